"""What `benchmarks.predict` compares with, each in a process of its own that prints seconds, or a rate, and its file.

python -m benchmarks.predict_peers alone|loop|ray_data FOLDER ARGUMENT
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.predict import BATCH, SIZE
from mlic.batch_predict import prediction_files
from mlic.config.types import Backend
from mlic.model import bundle, converters

_ROUNDS = 6


def alone(folder: Path, backend: str) -> tuple[float, str]:
    """Images per second of the forward pass, on images that lie in memory as bytes."""
    spec, net = bundle.load_model(folder / "model")
    whole = converters.Whole(net.to(memory_format=torch.channels_last), spec.preprocessing, "sigmoid").eval()
    images: Any = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    engine: Any = whole
    if backend != "torch":
        images = images.numpy()
        engine = converters.engine(cast("Backend", backend), whole, BATCH, images[0])
    with torch.inference_mode():
        engine(images)
        started = time.monotonic()
        for _ in range(_ROUNDS):
            engine(images)
    return _ROUNDS * BATCH / (time.monotonic() - started), ""


class Files(Dataset[Any]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = Image.open(self.paths[i])
        image.draft("RGB", (SIZE, SIZE))
        pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.copy())


def loop(folder: Path, images: str) -> tuple[float, str]:
    """Seconds of a loop as one writes it with care: decoding at a reduced size in processes, channels-last batches."""
    started = time.monotonic()
    spec, net = bundle.load_model(folder / "model")
    whole = converters.Whole(net.to(memory_format=torch.channels_last), spec.preprocessing, "sigmoid").eval()
    paths = sorted((folder / images).iterdir(), key=lambda path: path.stem)
    loader = DataLoader(Files(paths), BATCH, num_workers=os.cpu_count() or 1)
    with torch.inference_mode():
        scores = np.concatenate([whole(batch).numpy() for batch in loader])
    return time.monotonic() - started, write(folder, f"loop-{images}.csv", spec, paths, scores)


class Model:
    """An actor of Ray Data's recipe for batch inference."""

    def __init__(self, folder: Path) -> None:
        spec, net = bundle.load_model(folder / "model")
        self.whole = converters.Whole(net, spec.preprocessing, "sigmoid").eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return {"path": batch["path"], "scores": self.whole(torch.from_numpy(batch["image"])).numpy()}


def ray_data(folder: Path, images: str) -> tuple[float, str]:
    """Seconds of Ray Data as its documentation has it: read_images, then map_batches over actors."""
    import ray

    started = time.monotonic()
    ray.init(logging_level="ERROR", log_to_driver=False)
    data = ray.data.read_images(str(folder / images), size=(SIZE, SIZE), mode="RGB", include_paths=True)
    found = data.map_batches(Model, fn_constructor_args=(folder,), batch_size=BATCH, concurrency=1, num_cpus=1)
    rows = sorted(found.take_all(), key=lambda row: Path(row["path"]).stem)
    took = time.monotonic() - started
    spec = bundle.read(folder / "model")
    paths = [Path(row["path"]) for row in rows]
    return took, write(folder, f"ray-{images}.csv", spec, paths, np.stack([row["scores"] for row in rows]))


def write(folder: Path, name: str, spec: bundle.Bundle, paths: list[Path], scores: Any) -> str:
    """Write the decisions as mlic does, to be compared."""
    found = prediction_files.Predictions(
        spec.labels,
        tuple(path.stem for path in paths),
        tuple(path.name for path in paths),
        scores,
        scores >= np.array(spec.thresholds, dtype=np.float32),
    )
    prediction_files.write(folder / name, ".csv", spec.labels, "both", [found])
    return str(folder / name)


if __name__ == "__main__":
    run = {"alone": alone, "loop": loop, "ray_data": ray_data}[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]), sys.argv[3])))
