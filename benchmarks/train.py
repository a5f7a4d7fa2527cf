"""Images per second of `mlic train` beside a training loop written by hand, for one worker and for two.

    python -m benchmarks.train [--rounds 3] [--arch small --arch resnet18 ...]

The same generated images of 128 pixels, decoded beforehand for both, the same network, optimiser, batch and number of
threads, fp32; a process each, in turns, and the median over rounds of the mean over epochs, the first one left out,
which warms up. Two workers are two processes of one thread each on the same two cores, by Ray and by torchrun.
`mlic train` also counts its losses, writes checkpoints and looks out for stops; the loop by hand does not. Evaluation
is not in these figures: the loop by hand has none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from benchmarks.results import write_section

BATCH, EPOCHS, IMAGES, SIZE = 64, 4, 768, 128
EFFICIENTNET = "timm/tf_efficientnet_lite0"


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--arch", "archs", multiple=True, default=("small", "resnet18", EFFICIENTNET), show_default=True)
def main(rounds: int, archs: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = prepare(folder)
        lines = ["| network | workers | mlic, images/s | by hand, images/s | ratio |", "|---|---|---|---|---|"]
        scaling = []
        for arch in archs:
            speed: dict[tuple[str, int], list[float]] = {}
            for _ in range(rounds):
                for workers in (1, 2):
                    speed.setdefault(("mlic", workers), []).append(of_mlic(folder, shards, arch, workers))
                    speed.setdefault(("hand", workers), []).append(by_hand(folder, arch, workers))
            middle = {key: statistics.median(values) for key, values in speed.items()}
            for workers in (1, 2):
                ours, theirs = middle["mlic", workers], middle["hand", workers]
                ratios = [a / b for a, b in zip(speed["mlic", workers], speed["hand", workers], strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                lines.append(f"| {arch} | {workers} | {ours:,.0f} | {theirs:,.0f} | {spread} |")
            one, two = (middle[name, 2] / middle[name, 1] for name in ("mlic", "hand"))
            scaling.append(f"{arch}: from one worker to two, mlic {one:.2f}, torchrun {two:.2f}.")
        text = f"{IMAGES} images, batches of {BATCH}, {rounds} rounds in turns; the ratio is the median of the rounds'."
        write_section("Training", "\n".join([text, "", *lines, "", *scaling]) + "\n")


def prepare(folder: Path) -> Path:
    """Shards of generated images, and the same images decoded in one file for the loop by hand."""
    from mlic.config.data import PackConfig, Preprocessing
    from mlic.data import toy
    from mlic.data.loader import ShardReader
    from mlic.data.shards import read_split
    from mlic.pack.pack import pack

    toy.generate(folder / "corpus", IMAGES + 64, 0, 0, SIZE)
    where = {"images": folder / "corpus" / "images", "labels": folder / "corpus" / "annotations"}
    share = 64 / (IMAGES + 64)
    split = {"train": 1 - share, "val": share}
    pack(PackConfig(**where, out=folder / "shards", split=split, split_by="random", group_by="none"))
    train = read_split(folder / "shards", "train")
    prep = Preprocessing(image_size=SIZE, color="rgb", mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash")
    with ShardReader(train, prep) as reader:
        (batch,) = reader.batches([np.arange(len(train))], 0)
    np.savez(folder / "images.npz", images=batch.images.numpy(), targets=train.targets)
    return folder / "shards"


def of_mlic(folder: Path, shards: Path, arch: str, workers: int) -> float:
    """Images per second of the epochs but the first, by `mlic train`."""
    command = [
        sys.executable,
        "-m",
        "mlic",
        "train",
        str(shards),
        "--arch",
        arch,
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        str(BATCH),
        "--workers",
        str(workers),
        "--optimizer",
        "adam",
        "--image-size",
        str(SIZE),
        "--no-doctor",
        "--fresh",
        "--runs",
        str(folder / "runs"),
        "--name",
        "run",
        "-q",
        *(word for each in ("precision=fp32", "ema=0", "crop=1") for word in ("--set", each)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    rows = [json.loads(line) for line in (folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    return float(statistics.mean(row["time/images_per_s"] for row in rows[1:]))


def by_hand(folder: Path, arch: str, workers: int) -> float:
    """The same by the loop of benchmarks.handwritten, in one process or under torchrun."""
    start = [sys.executable, "-m", "benchmarks.handwritten"]
    if workers > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={workers}",
            *start[1:],
        ]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    arguments = [str(folder / "images.npz"), arch, str(folder / "hand.json"), str(EPOCHS)]
    subprocess.run([*start, *arguments], check=True, env=os.environ | threads, stderr=subprocess.DEVNULL)
    return float(statistics.mean(json.loads((folder / "hand.json").read_text())[1:]))


if __name__ == "__main__":
    main()
