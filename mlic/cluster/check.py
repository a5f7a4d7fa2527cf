"""Check that the nodes of a Ray cluster can work together: versions, storage, clocks, network, memory and disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import statistics
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mlic.cluster.connect import connect
from mlic.config.jobs import ClusterCheckConfig

_PACKAGES = ("mlic", "ray", "torch", "torchvision", "numpy", "pillow")
_LEAST_FILES, _LEAST_STORE, _LEAST_DISK = 4096, 75 * 2**20, 5 * 2**30
_MOST_SKEW_S = 1.0  # only the --budget of a search depends on each node's clock; starts of a run have numbers
_LEAST_MB_PER_S = 50.0  # a gigabit is 125
_SENT = 32 * 2**20
_PINGS = 5
_MEASURED = 32  # links at most, one after another, so that two measurements do not share the bandwidth


class NodeReport(BaseModel):
    """One node. Sizes in bytes, `skew_s` against the clock of this machine, `mb_per_s` to the next node."""

    host: str
    address: str
    cpus: int
    gpus: int
    python: str
    versions: dict[str, str]
    files: int
    store: int
    disk: int
    skew_s: float
    mb_per_s: float | None = None
    sees: bool | None = None


class ClusterReport(BaseModel):
    """The nodes, and their problems, each with one remedy."""

    nodes: list[NodeReport]
    problems: list[str]

    @property
    def exit_code(self) -> int:
        return 4 if self.problems else 0

    def text(self) -> str:
        head = [
            "node",
            "CPUs",
            "GPUs",
            "python",
            "mlic",
            "ray",
            "torch",
            "clock",
            "to the next",
            "store",
            "disk",
            "storage",
        ]
        rows = [head, *(_row(node) for node in self.nodes)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        conclusion = [f"wrong  {problem}" for problem in self.problems] or ["nothing is wrong"]
        return "\n".join([*lines, "", *conclusion])


def _row(node: NodeReport) -> list[str]:
    versions = [node.versions.get(name, "none") for name in ("mlic", "ray", "torch")]
    speed = "" if node.mb_per_s is None else f"{node.mb_per_s:.0f} MB/s"
    storage = {None: "", True: "shared", False: "NOT SHARED"}[node.sees]
    return [
        node.host,
        str(node.cpus),
        str(node.gpus),
        node.python,
        *versions,
        f"{node.skew_s * 1000:+.0f} ms",
        speed,
        f"{node.store / 2**30:.1f} GiB",
        f"{node.disk / 2**30:.0f} GiB",
        storage,
    ]


def check(config: ClusterCheckConfig) -> ClusterReport:
    """Check every node from a process on it. Raises ClusterError if the cluster does not answer."""
    with connect(config.address) as cluster:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        facts = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        witness = ray.remote(num_cpus=0)(_Witness)
        witnesses = [
            witness.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote()
            for node in cluster.nodes
        ]
        looks = ray.get([actor.look.remote() for actor in witnesses], timeout=300)
        skews = [_skew(actor) for actor in witnesses]
        speeds = _speeds(witnesses)
        sees = [None] * len(witnesses) if config.folder is None else _sharing(witnesses, config.folder)
        nodes = [
            NodeReport(
                cpus=node.cpus,
                gpus=node.gpus,
                address=facts[node.id]["NodeManagerAddress"],
                store=int(facts[node.id]["Resources"].get("object_store_memory", 0)),
                skew_s=skew,
                mb_per_s=speed,
                sees=seen,
                **look,
            )
            for node, look, skew, speed, seen in zip(cluster.nodes, looks, skews, speeds, sees, strict=True)
        ]
    return ClusterReport(nodes=nodes, problems=problems(nodes))


def problems(nodes: Sequence[NodeReport]) -> list[str]:
    """What is wrong, in words, with what to do."""
    problems_found = []
    for name in ("python", *_PACKAGES):
        has = {node.host: node.python if name == "python" else node.versions.get(name, "none") for node in nodes}
        if len(set(has.values())) > 1:
            usual = statistics.mode(has.values())
            other = next(host for host, version in has.items() if version != usual)
            problems_found.append(
                f"{name} is {usual} on most nodes and {has[other]} on {other}: install the same on all."
            )
    for node in nodes:
        if node.sees is False:
            problems_found.append(
                f"{node.host} does not share the folder: use storage that all nodes mount at one path."
            )
        if abs(node.skew_s) > _MOST_SKEW_S:
            problems_found.append(f"the clock of {node.host} is {node.skew_s:+.1f} s off: synchronize it (chrony).")
        if node.mb_per_s is not None and node.mb_per_s < _LEAST_MB_PER_S:
            problems_found.append(
                f"{node.host} sends {node.mb_per_s:.0f} MB/s to the next node: see which interface Ray uses."
            )
        if node.files < _LEAST_FILES:
            problems_found.append(
                f"a process on {node.host} may open {node.files} files: ulimit -n {_LEAST_FILES}, or more."
            )
        if node.store < _LEAST_STORE:
            problems_found.append(
                f"the object store of {node.host} has {node.store / 2**20:.0f} MiB: --object-store-memory."
            )
        if node.disk < _LEAST_DISK:
            problems_found.append(f"{node.host} has {node.disk / 2**30:.1f} GiB of disk left for Ray: free some.")
    if len({node.gpus for node in nodes if node.gpus}) > 1:
        problems_found.append(
            "nodes have different numbers of GPUs: each worker gets the CPUs that the poorest can give."
        )
    return problems_found


class _Witness:
    """An actor on each node."""

    def look(self) -> dict[str, Any]:
        versions = {}
        for name in _PACKAGES:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        scratch = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108 - where Ray writes unless it is told otherwise
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "versions": versions,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "disk": shutil.disk_usage(scratch).free,
        }

    def time(self) -> float:
        return time.time()

    def make(self, size: int) -> Any:
        import numpy as np
        import ray

        return [ray.put(np.ones(size, np.uint8))]

    def take(self, data: list[Any]) -> float:
        """Seconds to fetch what another node has."""
        import ray

        begun = time.perf_counter()
        ray.get(data[0])
        return time.perf_counter() - begun

    def write(self, folder: Path, name: str) -> bool:
        try:
            (folder / name).write_text(name)
        except OSError:
            return False
        return True

    def see(self, folder: Path, names: Sequence[str]) -> bool:
        try:
            os.listdir(folder)  # noqa: PTH208 - refreshes what a network file system has cached
            return all((folder / name).read_text() == name for name in names)
        except OSError:
            return False


def _skew(witness: Any) -> float:
    """How many seconds a node's clock is ahead of this machine's clock, from the fastest of several requests."""
    import ray

    answers = []
    for _ in range(_PINGS):
        before = time.time()
        there = ray.get(witness.time.remote())
        after = time.time()
        answers.append((after - before, there - (before + after) / 2))
    return float(min(answers)[1])


def _speeds(witnesses: Sequence[Any]) -> list[float | None]:
    """Megabytes per second from each node to the next, for the first `_MEASURED` nodes."""
    import ray

    if len(witnesses) < 2:
        return [None] * len(witnesses)
    speeds: list[float | None] = []
    for number, witness in enumerate(witnesses):
        if number >= _MEASURED:
            speeds.append(None)
            continue
        following = witnesses[(number + 1) % len(witnesses)]
        seconds = []
        for size in (1, _SENT):  # the first one opens the connection
            data = ray.get(witness.make.remote(size))
            seconds.append(ray.get(following.take.remote(data)))
        speeds.append(_SENT / 1e6 / seconds[-1])
    return speeds


def _sharing(witnesses: Sequence[Any], folder: Path) -> list[bool | None]:
    """Whether each node sees what every node has written to the folder."""
    import ray

    names = [f".probe-{uuid.uuid4().hex}.part" for _ in witnesses]
    try:
        wrote = ray.get([witness.write.remote(folder, name) for witness, name in zip(witnesses, names, strict=True)])
        written = [name for name, done in zip(names, wrote, strict=True) if done]
        saw = ray.get([witness.see.remote(folder, written) for witness in witnesses])
        here = all((folder / name).is_file() for name in written)
        return [bool(done and seen and here) for done, seen in zip(wrote, saw, strict=True)]
    finally:
        for name in names:
            (folder / name).unlink(missing_ok=True)
