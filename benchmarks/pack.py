"""How fast shards are written, beside `tar cf` and the writers of other loaders on the same files.

    python -m benchmarks.pack [FOLDER OF IMAGES]

Without a folder it generates 3,000 images. The writers take turns for ROUNDS rounds in one run; numbers are ratios of
medians. All of them read from a warm page cache and none waits for the disk. mlic alone checks every image's header,
takes two sha256 sums, of the image and of the shard, and writes a label record; webdataset writes the record too. One
process writes, but for mlic on two, which write half of the files each; litdata starts a process of its own each time.
Writers that are not installed are left out: pip install -r benchmarks/requirements.txt says how.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from benchmarks import peers
from benchmarks.results import write_section
from mlic.data import toy
from mlic.data.sources.image_listing import Listing
from mlic.data.sources.image_sources import list_images
from mlic.pack import shard_plan, shard_writer

ROUNDS = 7


@dataclass(frozen=True)
class Photographs:
    """Files to pack, as mlic lists them and as paths within `folder`; `digest` (N, 32) are their sha256, if known."""

    folder: Path
    listing: Listing
    paths: list[str]
    digest: np.ndarray[Any, Any] | None = None

    def every(self, step: int, start: int) -> Photographs:
        rows = np.arange(start, len(self.paths), step)
        return replace(self, listing=self.listing.take(rows), paths=self.paths[start::step])


def write_mlic(files: Photographs, out: Path, name: str = "mlic.tar") -> None:
    count = len(files.paths)
    targets = np.tile(np.array([[1, 0]], np.int8), (count, 1))
    samples = shard_plan.Samples(files.listing, targets, np.zeros(count, np.int64), digest=files.digest)
    plan = shard_plan.ShardPlan(name, "val", np.arange(count), np.zeros(count, np.int16))
    with (out / name).open("wb") as tar:
        shard_writer.write(plan, samples, ("a", "b"), tar, 10**8)


def write_mlic_scanned(files: Photographs, out: Path, name: str = "scanned.tar") -> None:
    """As `mlic pack` does it by default: its scan has taken the images' sha256 sums before."""
    known = replace(files, digest=np.zeros((len(files.paths), 32), np.uint8))
    write_mlic(known, out, name)


def write_mlic_twice(files: Photographs, out: Path) -> None:
    """The same by two workers that are up already, as Ray's are, each with half of the files."""
    workers().starmap(write_mlic_scanned, [(files.every(2, i), out, f"mlic-{i}.tar") for i in range(2)])


@functools.cache
def workers() -> Pool:
    return multiprocessing.get_context("spawn").Pool(2)


def write_webdataset(files: Photographs, out: Path) -> None:
    with webdataset.TarWriter(str(out / "webdataset.tar"), mtime=0) as tar:
        for path in files.paths:
            key = path.rpartition(".")[0]
            record = json.dumps({"key": key, "labels": ["a"]}).encode()
            tar.write({"__key__": key, "jpg": (files.folder / path).read_bytes(), "json": record})


def write_tar(files: Photographs, out: Path) -> None:
    (out / "list").write_text("\n".join(files.paths))
    subprocess.run(["tar", "cf", out / "tar.tar", "-C", files.folder, "-T", out / "list"], check=True)


def write_litdata(files: Photographs, out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        peers.write_litdata([files.folder / path for path in files.paths], out / "litdata")


def write_mosaicml(files: Photographs, out: Path) -> None:
    peers.write_mosaicml([files.folder / path for path in files.paths], out / "mds")


WRITERS: dict[str, Callable[[Photographs, Path], None]] = {
    "tar cf": write_tar,
    "mlic": write_mlic,
    "mlic, after its scan": write_mlic_scanned,
    "mlic, after its scan, two processes": write_mlic_twice,
    "webdataset TarWriter": write_webdataset,
    "litdata optimize": write_litdata,
    "MosaicML MDSWriter": write_mosaicml,
}


def compare(files: Photographs, out: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each writer, and why others were left out."""
    seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
    left_out: dict[str, str] = {}
    for turn in range(ROUNDS + 1):
        for name in [name for name in WRITERS if name not in left_out]:
            start = time.perf_counter()
            try:
                WRITERS[name](files, out)
            except ModuleNotFoundError as error:
                left_out[name] = f"not installed ({error.name})"
                continue
            if turn:  # the first turn warms the page cache
                seconds[name].append(time.perf_counter() - start)
            for other in ("litdata", "mds"):
                shutil.rmtree(out / other, ignore_errors=True)
    return {name: statistics.median(values) for name, values in seconds.items() if values}, left_out


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "images"
        if len(sys.argv) == 1:
            toy.generate(Path(scratch), 3000, 0, seed=1, size=128)
        listing = list_images(folder)
        files = Photographs(folder, listing, [listing.path(i) for i in range(len(listing))])
        medians, left_out = compare(files, Path(scratch))
    lines = [f"| {name} | {medians['tar cf'] / value:.2f} |" for name, value in medians.items()]
    lines += ["", *(f"Left out: {name}, {reason}." for name, reason in left_out.items())]
    size = listing.sizes.mean() / 1000
    head = (
        f"{len(listing):,} images of {size:.1f} kB on average, {ROUNDS} rounds in turns; speed as a multiple of "
        "`tar cf`.\n\n"
        "| writer | x tar |\n|---|---|\n"
    )
    write_section("Packing", head + "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
