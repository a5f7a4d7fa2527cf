"""How fast one worker writes shards, beside `tar cf` and webdataset's ShardWriter on the same files.

    python -m benchmarks.pack [FOLDER OF IMAGES]

Without a folder it generates 3,000 images. The writers take turns for ROUNDS rounds in one run; numbers are ratios of
medians. All of them read from a warm page cache and none waits for the disk. mlic alone checks every image's header,
takes two sha256 sums and writes a label record; webdataset writes the label record too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from benchmarks.results import write_section
from mlic.data import images, shards, toy

ROUNDS = 7


def write_mlic(folder: Path, files: list[images.ImageFile], out: Path) -> None:
    sources = tuple(shards.Source(file.key, file.path, file.size, (1, 0)) for file in files)
    with (out / "mlic.tar").open("wb", buffering=2**20) as tar:
        shards.write(shards.ShardPlan("mlic.tar", "train", sources), ("a", "b"), folder, tar, 10**8)


def write_webdataset(folder: Path, files: list[images.ImageFile], out: Path) -> None:
    with webdataset.TarWriter(str(out / "webdataset.tar"), mtime=0) as tar:
        for file in files:
            record = json.dumps({"key": file.key, "labels": ["a"]}).encode()
            tar.write({"__key__": file.key, "jpg": (folder / file.path).read_bytes(), "json": record})


def write_tar(folder: Path, files: list[images.ImageFile], out: Path) -> None:
    (out / "list").write_text("\n".join(file.path for file in files))
    subprocess.run(["tar", "cf", out / "tar.tar", "-C", folder, "-T", out / "list"], check=True)


WRITERS: dict[str, Callable[[Path, list[images.ImageFile], Path], None]] = {
    "tar cf": write_tar,
    "mlic": write_mlic,
    "webdataset TarWriter": write_webdataset,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "images"
        if len(sys.argv) == 1:
            toy.generate(Path(scratch), 3000, 0, seed=1, size=128)
        files, _ = images.list_images(folder)
        seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
        for turn in range(ROUNDS + 1):
            for name, write in WRITERS.items():
                start = time.perf_counter()
                write(folder, files, Path(scratch))
                if turn:  # the first turn warms the page cache
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [f"| {name} | {medians['tar cf'] / value:.2f} |" for name, value in medians.items()]
    size = sum(file.size for file in files) / len(files) / 1000
    head = (
        f"{len(files):,} images of {size:.1f} kB on average, {ROUNDS} rounds in turns; speed as a multiple of "
        "`tar cf`.\n\n"
        "| writer | x tar |\n|---|---|\n"
    )
    write_section("Packing, one worker", head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
