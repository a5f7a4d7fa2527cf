"""How much memory and time the plan of a very large pack takes in the driver.

    python -m benchmarks.plan [SAMPLES]

A synthetic listing, a label table in Parquet and the digests and hashes of a scan, of 10 million samples and 14 labels
unless told otherwise, go through what `mlic pack` does before it writes: read the labels, join them, find duplicates,
deal out stratified splits with folds, and plan the shards. The figure is the peak of the process's memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.results import write_section
from mlic.config.data import PackConfig
from mlic.data.annotations.read import read_annotations
from mlic.data.duplicates import clusters
from mlic.data.label_join import join
from mlic.data.sources.image_listing import Listing
from mlic.pack import shard_plan
from mlic.pack.pack import deal
from mlic.pack.splits import folds

LABELS = 14


def listing(count: int) -> Listing:
    numbers = pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.string()), 9, padding="0")
    names = pc.binary_join_element_wise("photos/", pc.utf8_slice_codeunits(numbers, 0, 5), "/im", numbers, "")
    paths = pc.binary_join_element_wise(names, ".jpg", "").cast(pa.large_string()).cast(pa.large_binary())
    sizes = np.random.default_rng(0).integers(5_000, 150_000, count)
    return Listing(Path("/nowhere"), paths, sizes, np.zeros(count, np.int64))


def write_labels(path: Path, found: Listing) -> None:
    rng = np.random.default_rng(1)
    columns = {"image": found.paths.cast(pa.large_string())}
    for label, share in enumerate(np.geomspace(0.0005, 0.3, LABELS)):
        columns[f"label{label}"] = pa.array((rng.random(len(found)) < share).astype(np.int8))
    pq.write_table(pa.table(columns), path)


def laps(count: int, scratch: Path) -> tuple[dict[str, tuple[float, float]], int]:
    """Seconds, and gigabytes at the peak until then, of each step of a plan; and how many shards it has."""
    found = listing(count)
    took: dict[str, tuple[float, float]] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        took[name] = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()

    table = scratch / "labels.parquet"
    write_labels(table, found)
    lap("make up the listing and the table")
    annotations = read_annotations(table)
    lap("read labels")
    joined = join(annotations, found.paths)
    del annotations
    lap("join")
    rng = np.random.default_rng(2)
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    start = time.perf_counter()
    group = clusters(digests, digests[:, :16].copy())
    lap("find near-duplicates")
    config = PackConfig(images=Path("/nowhere"), labels=Path("/nowhere"), folds=5)
    samples = shard_plan.Samples(found, joined.targets, np.zeros(count, np.int64), group, digest=digests)
    split = deal(config, samples, tuple(config.split), np.full(count, -1))
    lap("deal out splits")
    fold = folds(joined.targets, group, config.folds, config.seed)
    samples = shard_plan.Samples(found, joined.targets, split, group, fold, digests)
    lap("deal out folds")
    plan = shard_plan.plan(samples, tuple(config.split), config.shard_mb, config.min_shards, config.seed)
    lap("plan shards")
    assert sum(len(shard.rows) for shard in plan) == count
    return took, len(plan)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory() as scratch:
        took, shards = laps(count, Path(scratch))
    peak = max(gigabytes for _, gigabytes in took.values())
    lines = [f"| {name} | {duration:.0f} | {gigabytes:.1f} |" for name, (duration, gigabytes) in took.items()]
    head = f"{count:,} samples, {LABELS} labels, {shards:,} shards: peak memory {peak:.1f} GB.\n\n"
    write_section(
        "Planning a large pack",
        head + "| step | seconds | peak so far, GB |\n|---|---|---|\n" + "\n".join(lines) + "\n",
    )


if __name__ == "__main__":
    main()
