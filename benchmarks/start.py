"""Seconds from the command to the end of the first epoch of one step, for two workers on this machine.

    python -m benchmarks.start [--rounds 3]

`mlic train` beside a script of Ray Train and a script for torchrun that do as little as can be done: import PyTorch,
form a group of two, build the same network and take one step on random tensors. The commands run in turns on a warm
disk; `mlic train` also reads shards, decodes, evaluates and writes a checkpoint. Its log says where the time goes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.results import write_section

IMAGES, SIZE = 80, 64
# What a line of the log says has just been done.
_STAGES = {
    "Ray inside this process": "Ray runs, and PyTorch is imported",
    "begins with": "workers have started, imported PyTorch and built the network",
    "val  epoch 1/1": "first step, evaluation and checkpoint",
}

_STEP = """
import torch
from mlic.model import zoo
def step(rank):
    net = torch.nn.parallel.DistributedDataParallel(zoo.build("small", 6, 3, 64, {}))
    net(torch.randn(32, 3, 64, 64)).sum().backward()
    if rank == 0:
        print("first step", flush=True)
"""
_RAY_TRAIN = (
    _STEP
    + """
import ray, ray.train, ray.train.torch
def loop():
    step(ray.train.get_context().get_world_rank())
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, logging_level="ERROR")
ray.train.torch.TorchTrainer(loop, scaling_config=ray.train.ScalingConfig(num_workers=2)).fit()
"""
)
_TORCHRUN = (
    _STEP
    + """
torch.distributed.init_process_group("gloo")
torch.set_num_threads(1)
step(torch.distributed.get_rank())
torch.distributed.destroy_process_group()
"""
)


@click.command()
@click.option("--rounds", default=3, show_default=True)
def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        commands = prepare(folder)
        seconds: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds + 1):  # the first round warms the disk
            for name, (command, marks) in commands.items():
                seconds.setdefault(name, []).append(times(command, marks, folder))
    lines = ["| what | seconds to the first step | ratio to torchrun |", "|---|---|---|"]
    ends = {name: [list(run.values())[-1] for run in runs[1:]] for name, runs in seconds.items()}
    for name, values in ends.items():
        ratio = statistics.median(a / b for a, b in zip(values, ends["torchrun, by hand"], strict=True))
        spread = f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        lines.append(f"| {name} | {spread} | {ratio:.2f} |")
    lines += ["", "Where the seconds of `mlic train` go:", ""]
    before = 0.0
    for mark, stage in _STAGES.items():
        at = statistics.median(run[mark] for run in seconds["mlic train"][1:])
        lines.append(f"- {at - before:.1f} s: {stage}")
        before = at
    write_section("Starting a training", f"Two workers, {rounds} rounds in turns.\n\n" + "\n".join(lines) + "\n")


def prepare(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """The commands by name, each with the marks in its output."""
    from mlic.config.data import PackConfig
    from mlic.data import toy
    from mlic.pack.pack import pack

    toy.generate(folder / "corpus", IMAGES, 0, 0, SIZE)
    corpus = folder / "corpus"
    pack(PackConfig(images=corpus / "images", labels=corpus / "annotations", out=folder / "shards", group_by="none"))
    (folder / "ray_train.py").write_text(_RAY_TRAIN)
    (folder / "torchrun.py").write_text(_TORCHRUN)
    train = ["train", str(folder / "shards"), "--workers", "2", "--epochs", "1", "--arch", "small", "--fresh"]
    python = [sys.executable, "-m"]
    torchrun = [*python, "torch.distributed.run", "--nproc-per-node", "2", "torchrun.py"]
    return {
        "mlic train": ([*python, "mlic", *train, "--image-size", str(SIZE), "--no-doctor"], list(_STAGES)),
        "Ray Train, by hand": ([sys.executable, "ray_train.py"], ["first step"]),
        "torchrun, by hand": (torchrun, ["first step"]),
    }


def times(command: list[str], marks: list[str], folder: Path) -> dict[str, float]:
    """Seconds until each mark appears in the output of a command."""
    begun, seen = time.monotonic(), dict[str, float]()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            mark = next((mark for mark in marks if mark in line and mark not in seen), None)
            if mark is not None:
                seen[mark] = time.monotonic() - begun
    assert process.returncode == 0, "".join(lines)
    assert len(seen) == len(marks), "".join(lines)
    return seen


if __name__ == "__main__":
    main()
