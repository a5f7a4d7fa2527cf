"""What `mlic` makes of a GPU: training, prediction and trials beside what the GPU and the CPUs could do alone.

    python -m benchmarks.gpu [--images 8192] [--only train,predict,trials]

Generated JPEG files of 500 x 375 pixels, networks with random weights, bf16, channels_last. The most that training can
reach is the same step (forward, loss, metrics, backward, optimiser, EMA) on a batch that lies on the GPU already. From
JPEG files it is the lesser of that and the rate at which the worker's CPUs decode. A prediction can reach the lesser of
that rate and the forward pass on images in memory. Each figure is a process of its own, one after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.results import write_section
from mlic.config.data import PackConfig
from mlic.config.predict import PredictConfig
from mlic.config.train import TrainConfig
from mlic.data.loader import Batch, ShardReader
from mlic.data.pixels.augment import Normalizer
from mlic.data.pixels.decoding import ahead, decode_batch
from mlic.data.shards import read_split
from mlic.model import amp, runtimes
from mlic.train import setup
from mlic.train.rank import RankContext
from mlic.train.steps import Steps

WIDTH, HEIGHT, LABELS, SIDE = 500, 375, 20, 224
EPOCHS, VALIDATION = 3, 256
PARTS = ("train", "predict", "trials")


@click.command()
@click.option("--images", default=8192, show_default=True, help="Training images, and images to predict.")
@click.option("--batch", default=256, show_default=True)
@click.option("--arch", "archs", multiple=True, default=("resnet50", "vit_b_16"), show_default=True)
@click.option("--only", default=",".join(PARTS), show_default=True)
@click.option("--device", default="cuda", show_default=True, help="cpu: to try the program itself.")
def main(images: int, batch: int, archs: tuple[str, ...], only: str, device: str) -> None:
    chosen = torch.device(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    parts: list[str] = []

    def add(part: str) -> None:
        """What is measured is written at once, so that a run that is cut leaves it."""
        parts.append(part)
        write_section(f"GPU: {name}, PyTorch {torch.__version__}", "\n".join(parts))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, images)
        decoded = decode_rate(folder)
        cpus = runtimes.threads()
        add(
            f"{images:,} JPEG files of {WIDTH} x {HEIGHT} pixels. {cpus} CPUs decode {decoded:,.0f} images/s to {SIDE} "
            f"pixels, {decoded / cpus:,.0f} a CPU.\n"
        )
        for arch in archs:
            if "train" in only:
                add(training(folder, batch, arch, chosen, decoded))
            if "predict" in only and arch == archs[0]:
                add(prediction(folder, arch, chosen, decoded))
            if "trials" in only and arch == archs[0]:
                add(trials(folder, chosen))


def prepare(folder: Path, images: int) -> None:
    """Generated photographs and labels, and their shards."""
    from mlic.pack.pack import pack

    photos = folder / "photos"
    photos.mkdir()
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_photo, photos), range(images + VALIDATION), chunksize=32))
    rng = np.random.default_rng(0)
    split = np.array(["train"] * images + ["val"] * VALIDATION)
    names = [f"l{i:02d}" for i in range(LABELS)]
    lines = [f"image,split,{','.join(names)}"]
    for i, row in enumerate((rng.random((images + VALIDATION, LABELS)) < 0.2).astype(int).tolist()):
        lines.append(f"{i:06d}.jpg,{split[i]},{','.join(map(str, row))}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    pack(PackConfig(images=photos, labels=folder / "labels.csv", out=folder / "shards", group_by="none"))


def _photo(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg", quality=90)


def decode_rate(folder: Path) -> float:
    """Images per second that all CPUs decode from files in memory, in the pieces in which the loader decodes."""
    split = read_split(folder / "shards", "train")
    prep = setup.preprocessing(_config(folder, "resnet50"))
    with ShardReader(split, prep) as reader:
        files = {int(i): split.open_shard(int(i)) for i in set(split.shard.tolist())}
        reader._files.update(files)
        data = [read() for read in reader._readers(np.arange(min(len(split), 4096)))]
    readers = [partial(_same, each) for each in data]
    pieces = [readers[i : i + 32] for i in range(0, len(readers), 32)]

    def decode(piece: Sequence[Callable[[], bytes]]) -> int:
        return len(decode_batch(piece, prep, 10**9)[0])

    rates = []
    for _ in range(3):
        began = time.perf_counter()
        count = sum(ahead(decode, pieces, runtimes.threads()))
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def _same(data: bytes) -> bytes:
    return data


def _config(folder: Path, arch: str, **changes: Any) -> TrainConfig:
    base = {"shards": folder / "shards", "arch": arch, "image_size": SIDE, "optimizer": "adamw", "lr": 1e-4}
    return TrainConfig(**(base | changes))


def training(folder: Path, batch: int, arch: str, device: torch.device, decoded: float) -> str:
    step = step_rate(folder, arch, batch, device, True)
    fastest = step_rate(folder, arch, batch, device, False)
    lines = [
        f"Training {arch} in batches of {batch}: the step alone computes {step:,.0f} images/s, "
        f"and {fastest:,.0f} with deterministic=false.",
        "",
        "| mlic train | images/s | the most possible | ratio | time that waits for data |",
        "|---|---|---|---|---|",
    ]
    rows = (("from the decoded cache", 8, step), ("from JPEG files", 0, min(step, decoded)))
    for source, cache_gb, most in rows:
        rate, waits = of_mlic(folder, arch, batch, cache_gb)
        lines.append(f"| {source} | {rate:,.0f} | {most:,.0f} | {rate / most:.2f} | {waits:.0f}% |")
    return "\n".join(lines) + "\n"


def step_rate(folder: Path, arch: str, batch: int, device: torch.device, deterministic: bool) -> float:
    """Images per second of the step of `mlic train` on a batch that lies on the device."""
    amp.configure_gpu(device, deterministic)
    config = _config(folder, arch, batch_size=batch)
    train, prep = setup.train_split(config), setup.preprocessing(config)
    net, head, _ = setup.network(config, train, prep)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = Steps(
        config,
        RankContext(0, 1, device, folder, folder, 1),
        train,
        (net, net, head),
        Normalizer(prep.mean, prep.std, device),
    )
    steps.dtype = amp.of_device(config.precision, device)
    index = np.arange(batch) % len(train)
    images = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8, device=device)
    one = Batch(images, index, torch.from_numpy(train.targets[index]).to(device), ())
    mirror = torch.arange(batch) % 2 == 0
    net.train()
    count = 30 if device.type == "cuda" else 3
    for number in range(2 * count // 3 + count):
        if number == 2 * count // 3:  # warm: kernels are chosen and memory is there
            _wait(device)
            began = time.perf_counter()
        steps.set_lr(number, 100)
        steps.update(number, steps.backward(number, one, mirror, 1 / batch), one)
    _wait(device)
    return count * batch / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def of_mlic(folder: Path, arch: str, batch: int, cache_gb: int) -> tuple[float, float]:
    """Images per second and percent of the time without data, of the epochs of `mlic train` but the first."""
    command = ["train", str(folder / "shards"), "--arch", arch, "--epochs", str(EPOCHS), "--batch-size", str(batch)]
    more = ["--image-size", str(SIDE), "--optimizer", "adamw", "--lr", "1e-4", "--cache-gb", str(cache_gb)]
    _mlic(folder, *command, *more, "--no-doctor", "--fresh", "--runs", str(folder / "runs"), "--name", arch)
    text = (folder / "runs" / arch / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()][1:]
    names = ("time/images_per_s", "time/data_pct")
    rate, waits = (statistics.median(row[name] for row in rows) for name in names)
    return rate, waits


def _mlic(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlic", *arguments],
        cwd=folder,
        env=os.environ | {"MLIC_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mlic {' '.join(arguments)}:\n{done.stderr}")


def prediction(folder: Path, arch: str, device: torch.device, decoded: float) -> str:
    run = folder / "runs" / arch
    if not run.is_dir():
        of_mlic(folder, arch, 64, 8)
    lines = [
        f"mlic batch-predict with {arch}: images/s from the first finished part to the last.",
        "",
        "| precision | forward alone | mlic batch-predict | of the lesser of forward and decoding |",
        "|---|---|---|---|",
    ]
    for precision in ("fp32", "bf16"):
        forward = forward_rate(run, precision, device)
        rate = predict_rate(folder, run, precision)
        lines.append(f"| {precision} | {forward:,.0f} | {rate:,.0f} | {rate / min(forward, decoded):.2f} |")
    return "\n".join(lines) + "\n"


def forward_rate(run: Path, precision: str, device: torch.device) -> float:
    """Images per second of the network on images in the CPU's memory, whose scores come back."""
    from mlic.batch_predict.inference import Network

    network = Network(PredictConfig(model=run, images=run, precision=precision), "torch", device.type)
    pixels = np.random.default_rng(0).integers(0, 256, (network.batch_size, SIDE, SIDE, 3), dtype=np.uint8)
    network(pixels)
    count = 12 if device.type == "cuda" else 2
    began = time.perf_counter()
    for _ in range(count):
        network(pixels)
    return count * len(pixels) / (time.perf_counter() - began)


def predict_rate(folder: Path, run: Path, precision: str) -> float:
    """Images per second between the first and the last part that `mlic batch-predict` writes."""
    out = folder / f"{precision}.parquet"
    _mlic(folder, "batch-predict", str(run), str(folder / "photos"), "--out", str(out), "--precision", precision)
    import pyarrow.parquet as pq

    parts = sorted(folder.glob(f"*{precision}*parts*/part-*.parquet"), key=lambda path: path.stat().st_mtime)
    rows = sum(pq.read_metadata(part).num_rows for part in parts[1:])
    return rows / (parts[-1].stat().st_mtime - parts[0].stat().st_mtime)


def trials(folder: Path, device: torch.device) -> str:
    """Seconds of a search of eight trials, with one and with four at a time on the GPU."""
    lines = [
        "A search of 8 trials of 3 epochs over 1,024 images at 64 pixels.",
        "",
        "| GPUs a trial | seconds |",
        "|---|---|",
    ]
    for gpus in ("1", "0.25") if device.type == "cuda" else ("0",):
        command = ["tune", str(folder / "shards"), "--num-samples", "8", "--epochs", "3", "--arch", "resnet18"]
        more = [
            "--image-size",
            "64",
            "--set",
            "limit=1024",
            "--scheduler",
            "none",
            "--no-doctor",
            "--gpus-per-trial",
            gpus,
        ]
        began = time.perf_counter()
        _mlic(folder, *command, *more, "--runs", str(folder / f"search-{gpus}"), "--cpus-per-trial", "2")
        lines.append(f"| {gpus} | {time.perf_counter() - began:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
