"""How many images a core loads in a second: mlic beside other loaders, on the same images.

    python -m benchmarks.loader [SHARDS] [--setting 128] [--setting 224] [--rounds 5]

Setting 128 reads the training images of SHARDS, which have to be JPEG of 128 pixels, or 3,000 generated ones. Setting
224 reads 1,000 JPEG of 500 x 375 pixels, mosaics of those, and resizes them to 224 x 224.

Every engine gives the same thing, shuffled batches of 64 float32 images normalised in channels-last memory by the same
code, and runs in a process of its own; the engines take turns. Each decodes in that process where it can (mlic,
PyTorch, webdataset, litdata, MosaicML), and else in one thread or worker more. The figure is images per second of CPU
time of the process and all below it, over two epochs after a first one that is not counted.
The first batch is timed from the call of the engine, so with its imports and with the start of what it needs, but
without the writing of its format. The bare decode is simplejpeg on bytes in memory: no reading, no resizing, no batch.
Resizing is bilinear with antialiasing everywhere but in FFCV, which averages areas.

Other loaders are optional: pip install -r benchmarks/requirements.txt says how.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.peers import BATCH, EPOCHS, Corpus
from benchmarks.results import write_section

BARE = "bare decode"
GENERATED = 3000
MOSAICS = 1000
COLUMNS, ROWS = 4, 3
TIMEOUT = 600  # seconds for one engine


def bare_decode(corpus: Corpus) -> Iterator[Any]:
    import simplejpeg

    data = [path.read_bytes() for path in corpus.files]
    for _ in range(EPOCHS + 1):
        for start in range(0, len(data), BATCH):
            some = data[start : start + BATCH]
            for jpeg in some:
                simplejpeg.decode_jpeg(jpeg)
            yield some
        yield None


def mlic_decoding(corpus: Corpus, limit_gb: float = 0) -> Iterator[Any]:
    from mlic.config.data import Preprocessing
    from mlic.data.loader import ShardReader, train_bounds
    from mlic.data.shards import read_split
    from mlic.train.batches.epoch_order import EpochOrder

    prep = Preprocessing(image_size=corpus.size, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3, resize="squash")
    split = read_split(corpus.folder / "shards", "train")
    with ShardReader(split, prep) as reader, tempfile.TemporaryDirectory() as cache:
        if limit_gb:
            assert reader.use_cache(limit_gb, 1, Path(cache))
        for epoch in range(EPOCHS + 1):
            order, bounds = EpochOrder(len(split), None, 0, epoch), train_bounds(len(split), BATCH, 1)
            numbers = (order.at(np.arange(start, end))[0] for start, end in itertools.pairwise(bounds.tolist()))
            for batch in reader.batches(numbers, 0):
                yield batch.images
            yield None


def mlic_cached(corpus: Corpus) -> Iterator[Any]:
    yield from mlic_decoding(corpus, limit_gb=8)


ENGINES: dict[str, Callable[[Corpus], Iterator[Any]]] = {
    BARE: bare_decode,
    "mlic, decoding": mlic_decoding,
    "mlic, from its cache": mlic_cached,
    **peers.ENGINES,
}


def cpu_seconds() -> float:
    """CPU time of this process and all below it, those that ended and were waited for included."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in the meantime
            continue
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), sum(int(field) for field in fields[11:15])
    below = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(ticks[process] for process in below) / os.sysconf("SC_CLK_TCK")


def measure(engine: str, corpus: Corpus) -> dict[str, float]:
    """Run one engine in this process: images per second of CPU time, and seconds to its first batch."""
    import torch

    from mlic.data.pixels.augment import Normalizer

    torch.set_num_threads(1)
    normalize = Normalizer((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    images, first = 0, 0.0
    epochs: list[float] = []  # CPU seconds at the end of each
    start = time.perf_counter()
    for batch in ENGINES[engine](corpus):
        if batch is None:
            epochs.append(cpu_seconds())
            continue
        first = first or time.perf_counter() - start
        if engine != BARE:
            batch = normalize(batch)
            assert batch.shape[1:] == (3, corpus.size, corpus.size)
            assert batch.is_contiguous(memory_format=torch.channels_last)
        images += len(batch)
    assert images == (EPOCHS + 1) * len(corpus.files), f"{images} images"
    return {"speed": EPOCHS * len(corpus.files) / (epochs[-1] - epochs[0]), "first": first}


def run(task: str, engine: str, corpus: Corpus) -> dict[str, Any]:
    """Do `task` in a process of its own; an engine that does not run gives its reason as `error`."""
    command = [sys.executable, "-m", "benchmarks.loader", "--task", task, "--engine", engine]
    command += ["--setting", str(corpus.size), str(corpus.folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {TIMEOUT} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if answers:
        return dict(json.loads(answers[-1]))
    return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def work(task: str, engine: str, corpus: Corpus) -> None:
    """What `run` starts: prints one line of JSON."""
    try:
        if task == "measure":
            answer: dict[str, Any] = dict(measure(engine, corpus))
        else:
            write, name = peers.FORMATS[engine]
            write(corpus.files, corpus.folder / name)
            answer = {"written": True}
    except ModuleNotFoundError as error:
        answer = {"error": f"not installed ({error.name})"}
    print("\n" + json.dumps(answer), flush=True)
    if task == "write":
        os._exit(0)  # a process that ffcv has written in may hang at its end


def compare(corpus: Corpus, rounds: int) -> str:
    """The table of all engines over one corpus."""
    left_out = {}
    for engine in peers.FORMATS:
        answer = run("write", engine, corpus)
        if "error" in answer:
            left_out[engine] = answer["error"]
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine in [name for name in ENGINES if name not in left_out]:
            answer = run("measure", engine, corpus)
            if "error" in answer:
                left_out[engine] = answer["error"]
                print(f"{engine}: {answer['error']}", flush=True)
            else:
                found[engine].append(answer)
    speeds = {
        engine: statistics.median(a["speed"] for a in found[engine]) for engine in ENGINES if engine not in left_out
    }
    lines = ["| engine | images per core-second | x bare decode | first batch, s |", "|---|---|---|---|"]
    for engine, speed in speeds.items():
        first = statistics.median(answer["first"] for answer in found[engine])
        lines.append(f"| {engine} | {speed:,.0f} | {speed / speeds[BARE]:.2f} | {first:.1f} |")
    return "\n".join([*lines, "", *(f"Left out: {engine}, {reason}." for engine, reason in left_out.items())])


def corpus_of(shards: Path, size: int, scratch: Path) -> Corpus:
    """The training images of `shards`, or mosaics of them where they are to be resized, as shards and as files."""
    from mlic.data import storage
    from mlic.data.shards import read_split

    split = read_split(shards, "train")
    folder = scratch / str(size)
    (folder / "files").mkdir(parents=True)
    for i, (shard, offset, length) in enumerate(zip(split.shard, split.offsets, split.sizes, strict=True)):
        with storage.File(split.shards[int(shard)]) as file:
            (folder / "files" / f"im{i}.jpg").write_bytes(file.read_at(int(offset), int(length)))
    corpus = Corpus(folder, size, resize=size != 128)
    if corpus.resize:
        (folder / "files").rename(folder / "tiles")
        (folder / "images").mkdir()
        tile(sorted((folder / "tiles").iterdir()), folder / "images")
        pack_all(folder)
        (folder / "images").rename(folder / "files")
    else:
        (folder / "shards").symlink_to(shards.resolve())
    return corpus


def tile(photographs: list[Path], out: Path) -> None:
    """Mosaics of 4 x 3 photographs at 500 x 375 pixels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(1)
    for i in range(MOSAICS):
        mosaic = Image.new("RGB", (COLUMNS * 128, ROWS * 128))
        for position, choice in enumerate(rng.choice(len(photographs), COLUMNS * ROWS, replace=False)):
            with Image.open(io.BytesIO(photographs[choice].read_bytes())) as image:
                mosaic.paste(image.convert("RGB"), (position % COLUMNS * 128, position // COLUMNS * 128))
        mosaic.resize((500, 375), Image.Resampling.BICUBIC).save(out / f"im{i}.jpg", quality=90)


def pack_all(folder: Path) -> None:
    """Pack `folder`/images into `folder`/shards, all of them for training."""
    from mlic.config.data import PackConfig
    from mlic.pack.pack import pack

    (folder / "annotations").mkdir()
    (folder / "annotations" / "even.txt").write_text("".join(f"{i}\n" for i in range(0, MOSAICS, 2)))
    pack(
        PackConfig(
            images=folder / "images",
            labels=folder / "annotations",
            out=folder / "shards",
            split={"train": 1.0},
            split_by="random",
            group_by="none",
        )
    )


def generated(scratch: Path) -> Path:
    """Generated images, packed."""
    from mlic.config.data import PackConfig
    from mlic.data import toy
    from mlic.pack.pack import pack

    toy.generate(scratch, GENERATED, 0, seed=1, size=128)
    pack(PackConfig(images=scratch / "images", labels=scratch / "annotations", out=scratch / "shards"))
    return scratch / "shards"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare loaders.")
    parser.add_argument("shards", nargs="?", type=Path)
    parser.add_argument("--setting", action="append", type=int, choices=[128, 224], help="again for more; both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", choices=["measure", "write"], help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        work(given.task, given.engine, Corpus(given.shards, given.setting[0], resize=given.setting[0] != 128))
        return
    with tempfile.TemporaryDirectory() as scratch:
        shards = given.shards or generated(Path(scratch))
        for size in given.setting or [128, 224]:
            corpus = corpus_of(shards, size, Path(scratch))
            what = "JPEG of 500 x 375 pixels to 224 x 224" if corpus.resize else "Images of 128 pixels"
            head = f"{len(corpus.files):,} images, batches of {BATCH}, {given.rounds} rounds in turns."
            body = compare(corpus, given.rounds).rstrip()
            write_section(f"Loading at {size} pixels", f"{what}, {head}\n\n{body}\n")


if __name__ == "__main__":
    main()
