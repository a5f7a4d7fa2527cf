"""The nodes of a cluster, and the resources of each worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlic.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    id: str
    host: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """The nodes of a Ray cluster. An `embedded` one ends with this process."""

    nodes: tuple[Node, ...]
    embedded: bool

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        where = (
            "Ray inside this process"
            if self.embedded
            else f"a Ray cluster of {len(self.nodes)} node{'s' * (len(self.nodes) > 1)}"
        )
        return f"{where}: {self.cpus} CPUs, {self.gpus} GPUs"


@dataclass(frozen=True)
class Share:
    """The number of workers, and the CPUs and GPUs of each."""

    workers: int
    cpus: float
    gpus: float


def train_share(cluster: Cluster, workers: int | Literal["auto"]) -> Share:
    """Training workers: one per GPU, or one per node without GPUs; each gets an equal part of its node's CPUs.

    Raises ClusterError when there are fewer GPUs (or, without GPUs, CPUs) than workers.
    """
    usable = [node for node in cluster.nodes if (node.gpus if cluster.gpus else node.cpus)]
    count = (cluster.gpus or len(usable)) if workers == "auto" else workers
    unit = "GPU" if cluster.gpus else "CPU"
    have = cluster.gpus or cluster.cpus
    if count > have or have == 0:
        raise ClusterError(
            f"{count} workers need {count} {unit}s; this cluster has {have}.", f"--workers {max(1, have)}."
        )
    if cluster.gpus:
        return Share(count, max(1, min(node.cpus // node.gpus for node in usable)), 1)
    cpus = max(n for n in range(1, cluster.cpus + 1) if sum(node.cpus // n for node in usable) >= count)
    return Share(count, cpus, 0)


def task_share(cluster: Cluster, workers: int | Literal["auto"], use_gpus: bool, per_gpu: int = 1) -> Share:
    """Independent workers: with `use_gpus` and a GPU in the cluster, `per_gpu` for each with a part of its node's CPUs.

    Otherwise, one worker per CPU. Raises ClusterError.
    """
    gpus = use_gpus and cluster.gpus > 0
    have = cluster.gpus * per_gpu if gpus else cluster.cpus
    count = have if workers == "auto" else workers
    if count > have or have == 0:
        unit = "GPU" if gpus else "CPU"
        need = f"{count} {unit}s" if not gpus or per_gpu == 1 else f"{-(-count // per_gpu)} GPUs, {per_gpu} on each"
        has = cluster.gpus if gpus else have
        raise ClusterError(f"{count} workers need {need}; this cluster has {has}.", f"--workers {max(1, have)}.")
    if not gpus:
        return Share(count, 1, 0)
    cpus = min(node.cpus // (node.gpus * per_gpu) for node in cluster.nodes if node.gpus)
    return Share(count, max(1, cpus), 1 if per_gpu == 1 else 1 / per_gpu)


def room(cluster: Cluster, share: Share) -> int:
    """The number of workers of this share that the nodes have room for, ignoring running ones."""
    by_cpu = [int(node.cpus // share.cpus) for node in cluster.nodes]
    if not share.gpus:
        return sum(by_cpu)
    return sum(min(cpus, int(node.gpus // share.gpus)) for cpus, node in zip(by_cpu, cluster.nodes, strict=True))
