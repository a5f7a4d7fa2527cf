"""How many images a core loads in a second: mlic beside webdataset and a PyTorch dataset, on the same shards.

    python -m benchmarks.loader [SHARDS]

Without shards it packs 3,000 generated images of 128 pixels. Every engine gives the same thing, shuffled batches of 64
float32 images normalised in channels-last memory by the same code, with one decoding thread, and runs in a process of
its own; the engines take turns. The figure is images per second of CPU time of that process, over two epochs after a
first one that is not counted.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write_section

ROUNDS = 5
EPOCHS = 2
BATCH = 64


def batches_of_mlic(folder: Path, limit_gb: float) -> Iterator[Any]:
    from mlic.config import Preprocessing
    from mlic.data.loader import ShardReader, train_batches
    from mlic.data.shards import read_split

    prep = Preprocessing(image_size=128, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
    split = read_split(folder, "train")
    with ShardReader(split, prep) as reader, tempfile.TemporaryDirectory() as cache:
        if limit_gb:
            assert reader.use_cache(limit_gb, 1, Path(cache))
        for epoch in range(EPOCHS + 1):
            order = [mine for mine, _ in train_batches(len(split), BATCH, 0, 1, 0, epoch)]
            for batch in reader.batches(order, 1):
                yield batch.images
            yield None


def batches_of_webdataset(folder: Path) -> Iterator[Any]:
    import torch
    import webdataset

    for _ in range(EPOCHS + 1):
        urls = sorted(str(path) for path in folder.glob("train-*.tar"))
        data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("rgb8").to_tuple("jpg")
        found: list[Any] = []
        for (pixels,) in data:
            found.append(torch.from_numpy(np.array(pixels)))
            if len(found) == BATCH:
                yield torch.stack(found)
                found = []
        if found:
            yield torch.stack(found)
        yield None


def batches_of_pytorch(folder: Path) -> Iterator[Any]:
    import torch
    from PIL import Image

    from mlic.data.shards import read_split

    split = read_split(folder, "train")
    files = [path.open("rb") for path in split.shards]

    class Photographs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, i: int) -> Any:
            file = files[int(split.shard[i])]
            file.seek(int(split.offsets[i]))
            image = Image.open(io.BytesIO(file.read(int(split.sizes[i])))).convert("RGB")
            return torch.from_numpy(np.array(image))

    for _ in range(EPOCHS + 1):
        yield from torch.utils.data.DataLoader(Photographs(), batch_size=BATCH, shuffle=True)
        yield None


ENGINES: dict[str, Callable[[Path], Iterator[Any]]] = {
    "mlic, decoding": lambda folder: batches_of_mlic(folder, 0),
    "mlic, from its cache": lambda folder: batches_of_mlic(folder, 8),
    "webdataset with Pillow": batches_of_webdataset,
    "PyTorch dataset with Pillow": batches_of_pytorch,
}


def measure(engine: str, folder: Path) -> None:
    """Run one engine in this process and print images per second of its CPU time."""
    import torch

    from mlic.data.augment import Normalizer

    torch.set_num_threads(1)
    normalize = Normalizer((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    images, start, warm = 0, 0.0, False
    for batch in ENGINES[engine](folder):
        if batch is None:
            if not warm:
                warm, start = True, time.process_time()
            continue
        assert normalize(batch).shape[1:] == (3, 128, 128)
        images += len(batch) * warm
    print(images / (time.process_time() - start))


def main() -> None:
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else packed(Path(scratch))
        speed: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for _ in range(ROUNDS):
            for engine, found in speed.items():
                command = [sys.executable, "-m", "benchmarks.loader", engine, str(folder)]
                found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    medians = {engine: statistics.median(found) for engine, found in speed.items()}
    base = medians["PyTorch dataset with Pillow"]
    lines = [f"| {engine} | {value:,.0f} | {value / base:.1f} |" for engine, value in medians.items()]
    head = (
        f"Images of 128 pixels, batches of {BATCH}, one process, {ROUNDS} rounds in turns.\n\n"
        "| engine | images per core-second | x PyTorch dataset |\n|---|---|---|\n"
    )
    write_section("Loading", head + "\n".join(lines) + "\n")


def packed(scratch: Path) -> Path:
    """Generated images, packed."""
    from mlic.config import PackConfig
    from mlic.data import toy
    from mlic.stages.pack import pack

    toy.generate(scratch, 3000, 0, seed=1, size=128)
    pack(PackConfig(images=scratch / "images", labels=scratch / "annotations", out=scratch / "shards"))
    return scratch / "shards"


if __name__ == "__main__":
    main()
