"""`mlic batch-predict` beside a loop by hand, beside Ray Data's image recipe, and beside the forward pass alone.

    python -m benchmarks.predict [--images 1500]

Generated JPEG files of 256 pixels, EfficientNet-Lite0 on 128 pixels with random weights. What a program takes for five
times as many images less what it takes for them once is its steady state: starts, exports and imports are in neither.
mlic's steady state is that of `--workers 2`, since it predicts few images in its own process and many by workers.
All decide by the same thresholds; how many decisions agree with those of the loop by hand is in the last column.

First predictions are timed from the start of the command to the first part on the disk, for 100 images: in the
command's own process, by an export, and, with `--workers 2`, by actors of a fresh embedded Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.results import write_section
from mlic.batch_predict import prediction_files
from mlic.config.data import Preprocessing
from mlic.data import toy

ARCH, SIZE, BATCH = "timm/tf_efficientnet_lite0", 128, 64
ENGINES = ("torch", "onnx", "openvino")
_TIMES = 5
_WORKERS = ("--workers", "2")


@click.command()
@click.option("--images", default=1500, show_default=True)
def main(images: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, images)
        rows: list[tuple[str, float, float]] = []
        decided: dict[str, Any] = {}
        alone = {name: peer("alone", folder, name)[0] for name in ENGINES}
        programs: dict[str, Callable[[str], tuple[float, str]]] = {
            "a loop by hand: DataLoader, PyTorch": partial(peer, "loop", folder),
            "Ray Data's recipe: read_images, map_batches": partial(peer, "ray_data", folder),
            **{f"mlic batch-predict --backend {name}": partial(of_mlic, folder, name, ()) for name in ENGINES},
            "mlic batch-predict --backend openvino --precision bf16": partial(
                of_mlic, folder, "openvino", ("--precision", "bf16")
            ),
        }
        by_workers: dict[str, Callable[[str], tuple[float, str]]] = {
            **{f"mlic batch-predict --backend {name}": partial(of_mlic, folder, name, _WORKERS) for name in ENGINES},
            "mlic batch-predict --backend openvino --precision bf16": partial(
                of_mlic, folder, "openvino", ("--precision", "bf16", *_WORKERS)
            ),
        }
        for name, run in programs.items():
            whole = run("once")[0]
            once, often = (by_workers.get(name, run)(images_of) for images_of in ("once", "often"))
            steady = (_TIMES - 1) * images / (often[0] - once[0])
            decided[name] = prediction_files.read(Path(often[1])).decisions
            rows.append((name, whole, steady))
        first = next(iter(decided.values()))
        assert first is not None
        lines = ["| | whole command, s | steady, images/s | decisions as by hand |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {whole:.1f} | {steady:.0f} | {np.mean(decided[name] == first):.3%} |"
            for name, whole, steady in rows
        ]
        lines += [f"| the forward pass alone, {name} | | {rate:.0f} | |" for name, rate in alone.items()]
        speed = {name: steady for name, _, steady in rows}
        by_hand = rows[0][2]
        shares = [
            f"with {name} it is {(rate := speed[f'mlic batch-predict --backend {name}']) / by_hand:.1f} times as fast "
            f"as the loop by hand and has {rate / alone[name]:.2f} of the forward pass alone"
            for name in ENGINES
        ]
        few = {
            "in its own process": first_part(folder, folder / "model", ()),
            "by an export to ONNX Runtime": first_part(folder, export(folder), ()),
            "by two actors of a fresh Ray": first_part(folder, folder / "model", ("--workers", "2")),
        }
        text = [
            f"{images:,} images, and {_TIMES * images:,}.",
            "",
            *lines,
            "",
            f"mlic batch-predict: {'; '.join(shares)}.",
            "",
            "First predictions: " + ", ".join(f"{took:.1f} s {name}" for name, took in few.items()) + ".",
        ]
        write_section("Predicting", "\n".join(text) + "\n")


def prepare(folder: Path, images: int) -> None:
    """Images in `once` and, with more links to each, in `often`, and a bundle in `model`."""
    import torch

    from mlic.model import bundle, zoo

    toy.generate(folder / "corpus", 0, images, 0, 256)
    (folder / "corpus" / "unlabelled").rename(folder / "once")
    (folder / "often").mkdir()
    for path in (folder / "once").iterdir():
        for copy in range(_TIMES):
            (folder / "often" / f"{copy}{path.name}").hardlink_to(path)
    torch.manual_seed(0)
    prep = Preprocessing(
        image_size=SIZE, color="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="squash"
    )
    labels = tuple(f"label{i}" for i in range(14))
    model = zoo.build(ARCH, len(labels), 3, SIZE, {})
    spec = bundle.Bundle(
        ARCH,
        {},
        labels,
        prep,
        "sigmoid",
        (0.5,) * 14,
        {"policy": "fixed=0.5"},
        {"method": "none", "scale": [], "shift": [], "knots": []},
        {},
    )
    bundle.save(spec, model.state_dict(), folder / "model")


def of_mlic(folder: Path, backend: str, more: tuple[str, ...], images: str) -> tuple[float, str]:
    """Seconds of the whole command, and the file that it wrote."""
    out = folder / f"{backend}{''.join(more)}-{images}.csv"
    command = [
        sys.executable,
        "-m",
        "mlic",
        "batch-predict",
        str(folder / "model"),
        str(folder / images),
        "--out",
        str(out),
        "--backend",
        backend,
        "-q",
        *more,
    ]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started, str(out)


def export(folder: Path) -> Path:
    """An export of the model, compared on its own images."""
    command = [
        sys.executable,
        "-m",
        "mlic",
        "export",
        str(folder / "model"),
        "--images",
        str(folder / "once"),
        "--out",
        str(folder / "export"),
        "-q",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "export"


def first_part(folder: Path, model: Path, more: tuple[str, ...]) -> float:
    """Seconds from the start of a command over 100 images to its first part."""
    few = folder / "few"
    if not few.exists():
        few.mkdir()
        for path in sorted((folder / "once").iterdir())[:100]:
            (few / path.name).hardlink_to(path)
    out = folder / f"few-{model.name}{''.join(more)}.csv"
    command = [
        sys.executable,
        "-m",
        "mlic",
        "batch-predict",
        str(model),
        str(few),
        "--out",
        str(out),
        "--set",
        "chunk=50",
        "-q",
        *more,
    ]
    part = folder / f"{out.name}.parts" / "part-000000.parquet"
    started = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not part.exists() and running.poll() is None:
        time.sleep(0.01)
    took = time.monotonic() - started
    assert running.wait() == 0
    return took


def peer(what: str, folder: Path, argument: str) -> tuple[float, str]:
    """What a program of `predict_peers` has measured, in a process of its own, and the file that it wrote."""
    command = [sys.executable, "-m", "benchmarks.predict_peers", what, str(folder), argument]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    number, file = json.loads(out.splitlines()[-1])
    return number, file


if __name__ == "__main__":
    main()
