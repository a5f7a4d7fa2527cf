"""What the driver and each rank cost at 1,000 nodes, a thousand million images and ten thousand trials.

    python -m benchmarks.scale [--part NAME ...]

The planners, the readers of the index, and the event loop of a search run here on made-up inputs: at full size where a
machine has the memory for it, else at two sizes, of which the larger is taken times what is missing. Each part is a
process of its own; the memory of a step is what it adds at its peak to what was held before it. docs/scale.md says what
follows.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.results import write_section

IMAGES, TRIALS, NODES, GPUS = 10**9, 10**4, 1000, 8
_BATCH = 64
IMAGE_BYTES, SHARD_BYTES, LABELS = 110_000, 64_000_000, 14
SHARDS = IMAGES * IMAGE_BYTES // SHARD_BYTES


@dataclass(frozen=True)
class Cost:
    """What one step took: of so many items, seconds, and the peak of memory in bytes; `goal` items are asked for."""

    what: str
    items: int
    goal: int
    seconds: float
    memory: int


class Meter:
    """Notes the costs of the steps of a part."""

    def __init__(self) -> None:
        self.costs: list[Cost] = []

    @contextmanager
    def step(self, what: str, items: int, goal: int, own: bool = False) -> Iterator[None]:
        """Note what a step takes; with `own`, memory without files that are mapped, which others can take back."""
        if own:
            yield from self._own(what, items, goal)
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the beginning
        held, begun = _kilobytes("VmRSS"), time.perf_counter()
        yield
        took = time.perf_counter() - begun
        self.costs.append(Cost(what, items, goal, took, max(0, _kilobytes("VmHWM") - held) * 1024))

    def _own(self, what: str, items: int, goal: int) -> Iterator[None]:
        held, begun, peak, is_over = _kilobytes("RssAnon"), time.perf_counter(), [0], threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                peak[0] = max(peak[0], _kilobytes("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        yield
        took = time.perf_counter() - begun
        is_over.set()
        watcher.join()
        self.costs.append(Cost(what, items, goal, took, max(0, peak[0] - held) * 1024))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def plan(meter: Meter, scratch: Path, items: int = 10**6) -> None:
    """The plan of a pack, which benchmarks.plan has step by step."""
    from benchmarks.plan import laps

    with meter.step("plan a pack: labels, duplicates, splits, folds, shards", items, IMAGES):
        laps(items, scratch)


def plan_more(meter: Meter, scratch: Path) -> None:
    plan(meter, scratch, 4 * 10**6)


def index(meter: Meter, scratch: Path) -> None:
    """index.json with as many shards as there would be, and the sizes of the files that it names."""
    from mlic.data import shards
    from mlic.runs.files import write_json

    found = {
        "format": 1,
        "kind": "shards",
        "labels": [f"label{i}" for i in range(LABELS)],
        "samples": IMAGES,
        "splits": {"train": {"samples": IMAGES}},
        "folds": 0,
        "fingerprint": "f" * 32,
        "shards": {
            f"train-{i:06d}.tar": {"split": "train", "samples": 582, "size": 64_000_000 + i, "sha256": f"{i:064x}"}
            for i in range(SHARDS)
        },
    }
    with meter.step("write index.json (items are shards)", SHARDS, SHARDS):
        write_json(scratch / "index.json", found)
    del found
    with meter.step("read index.json", SHARDS, SHARDS):
        read = shards.read_index(scratch)
    few = dict(list(read["shards"].items())[:20_000])
    for name, shard in few.items():
        with (scratch / name).open("wb") as file:
            file.truncate(shard["size"])
    with meter.step("look at the sizes of shards, on a local disk", len(few), SHARDS):
        shards.check_sizes(scratch, {"shards": few}, None)


def table(meter: Meter, scratch: Path, items: int = 10**8, ranks: int = 64) -> None:
    """What the first rank of a node does to know a split, and what every further rank holds; one rank after another."""
    os.environ["MLIC_CACHE_DIR"] = str(scratch / "node")
    writer = multiprocessing.Process(target=_write_table, args=(scratch, items))  # its memory is not the reader's
    writer.start()
    writer.join()
    meter.costs.append(_of_process(_first_rank, scratch, items))
    costs = [_of_process(_further_rank, scratch, items) for _ in range(ranks)]
    most = max(costs, key=lambda cost: cost.seconds)
    meter.costs.append(replace(most, memory=max(cost.memory for cost in costs)))


def table_whole(meter: Meter, scratch: Path) -> None:
    """The same at full size, which takes 50 GB of disk and half an hour."""
    table(meter, scratch, IMAGES, 4)


def _of_process(function: Callable[[Meter, Path, int], None], scratch: Path, items: int) -> Cost:
    """The cost of a step in a process of its own."""
    queue: multiprocessing.Queue[Cost] = multiprocessing.Queue()
    process = multiprocessing.Process(target=_note, args=(function, scratch, items, queue))
    process.start()
    cost = queue.get()
    process.join()
    return cost


def _note(
    function: Callable[[Meter, Path, int], None], scratch: Path, items: int, queue: multiprocessing.Queue[Cost]
) -> None:
    list(_batches(_BATCH * 2, 1, seed=0))  # imports are not counted
    meter = Meter()
    function(meter, scratch, items)
    queue.put(meter.costs[0])


def _first_rank(meter: Meter, scratch: Path, items: int) -> None:
    from mlic.data import shards

    with meter.step("write the file of a split that ranks map, once a node", items, IMAGES):
        shards.read_split(scratch, "train", checked=True)


def _further_rank(meter: Meter, scratch: Path, items: int) -> None:
    from mlic.data import shards

    with meter.step("read a split and look up a first batch, the slowest and the largest rank", items, IMAGES):
        split = shards.read_split(scratch, "train", checked=True)
        (samples,) = _batches(items, 1, seed=os.getpid())
        assert len(split) == items
        assert split.sizes[samples].sum() > 0
        assert split.targets[samples].shape == (_BATCH, LABELS)


def _write_table(folder: Path, items: int) -> None:
    per_shard = SHARD_BYTES // IMAGE_BYTES
    rows = per_shard * 100
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for start in range(0, items, rows):
            block = _rows(start, min(rows, items - start), per_shard)
            if writer is None:
                target = pq.ParquetWriter(folder / "samples.parquet", block.schema, compression="zstd")
                writer = stack.enter_context(target)
            writer.write_table(block, row_group_size=rows)
    shard = {"split": "train", "samples": per_shard, "size": 0, "sha256": ""}
    named = {f"train-{i:06d}.tar": shard for i in range(-(-items // per_shard))}
    index = {"format": 1, "kind": "shards", "labels": [f"label{i}" for i in range(LABELS)], "fingerprint": "f"}
    (folder / "index.json").write_text(json.dumps(index | {"splits": {"train": {"samples": items}}, "shards": named}))


def _rows(start: int, count: int, per_shard: int) -> pa.Table:
    """Some made-up rows of a table of samples."""
    numbers, rng = np.arange(start, start + count), np.random.default_rng(start)
    keys = pc.binary_join_element_wise("photos/im", pa.array(numbers).cast(pa.string()), "")
    shard = pc.binary_join_element_wise(
        "train-", pc.utf8_lpad(pa.array(numbers // per_shard).cast(pa.string()), 6, padding="0"), ".tar", ""
    )
    flat = (rng.random(count * LABELS) < 0.1).astype(np.int8)
    return pa.table(
        {
            "key": keys,
            "file": pc.binary_join_element_wise(keys, ".jpg", ""),
            "split": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), ["train"]).cast(pa.string()),
            "shard": shard,
            "offset": pa.array((numbers % per_shard) * IMAGE_BYTES),
            "size": pa.array(rng.integers(5_000, 150_000, count)),
            "target": pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * LABELS, pa.int32()), pa.array(flat)),
        }
    )


def epoch(meter: Meter, _: Path) -> None:
    """The order of an epoch, at any place: each rank asks for it batch by batch."""
    places = 1_000
    list(_batches(_BATCH * 2, 1, seed=0))  # imports are not counted
    with meter.step("ask the order of an epoch for batches of 64 at 1,000 random places", IMAGES, IMAGES):
        drawn = np.concatenate(list(_batches(IMAGES, places, seed=0)))
    assert drawn.max() < IMAGES
    assert len(np.unique(drawn)) > 0.999 * len(drawn)
    few = 10**7
    rates = np.random.default_rng(0).uniform(0.2, 2, few)
    with meter.step("the same with sampling weights, which each rank holds", few, IMAGES):
        list(_batches(few, places, seed=0, rates=rates))


def _batches(items: int, places: int, seed: int, rates: np.ndarray[Any, Any] | None = None) -> Iterator[Any]:
    """The samples of batches at random places of an epoch."""
    from mlic.train.batches.epoch_order import EpochOrder

    order = EpochOrder(items, rates, seed, 0)
    for start in np.random.default_rng(seed).integers(0, len(order) - _BATCH, places).tolist():
        yield order.at(np.arange(start, start + _BATCH))[0]


def names(meter: Meter, scratch: Path) -> None:
    """What the driver of a prediction knows of its images and its parts."""
    from mlic.batch_predict.merge import part_at, part_numbers
    from mlic.config.predict import PredictConfig

    chunk = PredictConfig.model_fields["chunk"].default
    os.environ["MLIC_CACHE_DIR"] = str(scratch / "node")
    for items in (10**5, 10**6, 10**7):
        meter.costs.append(_of_process(_list, scratch, items))
    parts = 20_000
    for number in range(parts):
        Path(part_at(scratch, number)).touch()
    with meter.step("see which parts are there (items are parts)", parts, IMAGES // chunk):
        assert len(part_numbers(scratch)) == parts


def _list(meter: Meter, scratch: Path, items: int) -> None:
    """List images whose folder is made up, and cut a hundredth of the parts."""
    from mlic.batch_predict.predict import list_items
    from mlic.config.predict import PredictConfig
    from mlic.data.sources import image_sources

    chunk = PredictConfig.model_fields["chunk"].default
    image_sources._walk = lambda _: ((f"{i % 997}/{i:09d}.jpg", 50_000, 0) for i in range(items))
    with meter.step("list images to predict, and cut parts (own memory)", items, items, own=True):
        wanted = list_items(scratch, None)
        for start in range(0, items, 100 * chunk):
            wanted.part(start, start + chunk)


def search(meter: Meter, _: Path) -> None:
    """The event loop of ASHA with a worker on each GPU of a cluster, whose pieces of work end in random order."""
    from mlic.tune.early_stopping import Rule, Search

    rng, workers = np.random.default_rng(0), NODES * GPUS
    found = Search(Rule("asha", 27, 1, 3), TRIALS)
    value = rng.random(TRIALS)
    running: list[tuple[float, int, int]] = []
    now, events, busy = 0.0, 0, set[int]()
    with meter.step("decide which trial continues (items are trials)", TRIALS, TRIALS):
        while not found.done:
            while len(running) < workers and (work := found.ask(busy)) is not None:
                busy.add(work.trial)
                left = work.until - len(found.values(work.trial))
                heapq.heappush(running, (now + left * float(rng.lognormal()), work.trial, work.until))
            now, trial, until = heapq.heappop(running)
            busy.remove(trial)
            found.tell(trial, [float(value[trial])] * until)
            events += 1
    assert all(found.status(trial) for trial in range(TRIALS))
    meter.costs[-1] = Cost(
        f"decide which trial continues, {events:,} times, {workers:,} workers (items are trials)",
        *list(asdict(meter.costs[-1]).values())[1:],
    )


def recall(meter: Meter, scratch: Path) -> None:
    """What a search that continues reads of its trials' folders."""
    from mlic.train.checkpoints import read_history

    row = {"epoch": 1, "train/loss": 0.1, "val/f1_micro": 0.5} | {f"val/f1/label{i}": 0.123456 for i in range(LABELS)}
    lines = json.dumps(row) + "\n"
    few = 2_000
    for number in range(few):
        folder = scratch / f"{number:05d}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(lines * 4)
    with meter.step("read the trials' metrics when a search continues", few, TRIALS):
        histories = [read_history(scratch / f"{number:05d}") for number in range(few)]
    assert sum(map(len, histories)) == 4 * few


def nodes(meter: Meter, _: Path) -> None:
    """What is asked of a cluster before anything starts on it."""
    from mlic.cluster.check import ClusterReport, NodeReport, problems
    from mlic.cluster.resources import Cluster, Node, task_share, train_share

    cluster = Cluster(tuple(Node(f"{i:056x}", f"node{i:04d}", 96, GPUS) for i in range(NODES)), False)
    with meter.step("share the GPUs of nodes out", NODES, NODES):
        assert train_share(cluster, "auto").workers == task_share(cluster, "auto", True).workers == NODES * GPUS
    reports = [
        NodeReport(
            host=node.host,
            address="10.0.0.1",
            cpus=node.cpus,
            gpus=node.gpus,
            python="3.11.7",
            versions={"mlic": "1", "ray": "2", "torch": "2"},
            files=65536,
            store=2**33,
            disk=2**40,
            skew_s=0.0,
        )
        for node in cluster.nodes
    ]
    with meter.step("compare nodes and print their table", NODES, NODES):
        ClusterReport(nodes=reports, problems=problems(reports)).text()


PARTS: dict[str, Callable[[Meter, Path], None]] = {
    each.__name__: each for each in (nodes, plan, plan_more, index, table, table_whole, epoch, names, search, recall)
}
_USUAL = tuple(name for name in PARTS if name != "table_whole")


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), default=_USUAL)
@click.option("--alone", is_flag=True, help="Run one part in this process and print its costs as JSON")
def main(parts: tuple[str, ...], alone: bool) -> None:
    if alone:
        meter = Meter()
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[parts[0]](meter, Path(scratch))
        print(json.dumps([asdict(cost) for cost in meter.costs]))
        return
    costs: list[dict[str, Any]] = []
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.scale", "--alone", "--part", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        costs += json.loads(done.stdout.splitlines()[-1])
        print(part, costs[-1], flush=True)
    lines = [
        f"{NODES:,} nodes of {GPUS} GPUs; {IMAGES:,} images of {IMAGE_BYTES:,} bytes in {SHARDS:,} shards, {LABELS} "
        f"labels; {TRIALS:,} trials. Seconds are of one core.",
        "",
        "| step | items | seconds | memory, GB | items asked for | seconds | memory, GB |",
        "|---|---|---|---|---|---|---|",
        *(row(Cost(**cost)) for cost in costs),
    ]
    write_section("Scale", "\n".join(lines) + "\n")


def row(cost: Cost) -> str:
    times, memory = cost.goal / cost.items, cost.memory / 1e9
    measured = f"| {cost.what} | {cost.items:,} | {figure(cost.seconds)} | {figure(memory)} |"
    return f"{measured} {cost.goal:,} | {figure(cost.seconds * times)} | {figure(memory * times)} |"


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


if __name__ == "__main__":
    main()
