"""Check that all nodes of a cluster see the same folders."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlic.cluster.resources import Cluster, Node
from mlic.config.types import Location
from mlic.errors import ClusterError


def check_shared(cluster: Cluster, folder: Location, *inputs: Location) -> None:
    """Check that every node sees the same `folder` and has the `inputs`; object stores need no check.

    This process writes a file to `folder`, and a task on each node reads it. Raises ClusterError with the path and the
    names of the nodes that do not see it.
    """
    here = [path for path in inputs if isinstance(path, Path)]
    if len(cluster.nodes) < 2 or not (here or isinstance(folder, Path)):
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = folder / f".probe-{uuid.uuid4().hex}.part" if isinstance(folder, Path) else None
    text = uuid.uuid4().hex
    if probe is not None:
        probe.write_text(text)
    try:
        task = ray.remote(num_cpus=0)(_unseen)
        asked = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                probe, text, here
            )
            for node in cluster.nodes
        ]
        unseen = [_answer(node, reference) for node, reference in zip(cluster.nodes, asked, strict=True)]
    finally:
        if probe is not None:
            probe.unlink()
    blind = [(node.host, path) for node, path in zip(cluster.nodes, unseen, strict=True) if path is not None]
    if blind:
        hosts = ", ".join(sorted(host for host, _ in blind)[:3])
        raise ClusterError(
            f"{len(blind)} of {len(cluster.nodes)} nodes do not see {blind[0][1]} ({hosts}).",
            "use folders on storage that all nodes share.",
        )


def _answer(node: Node, reference: Any) -> Path | None:
    """The answer of a task on a node; None if the node has died since."""
    import ray

    try:
        path: Path | None = ray.get(reference, timeout=120)
    except ray.exceptions.RayError as error:
        if not any(info["NodeID"] == node.id and info["Alive"] for info in ray.nodes()):
            return None
        text = " ".join(str(error).split())[:200]
        raise ClusterError(f"the node {node.host} does not answer: {text}.", "try again, or leave it out.") from None
    return path


def _unseen(probe: Path | None, text: str, inputs: Sequence[Path]) -> Path | None:
    """The first path that this node does not see as the driver does."""
    if probe is not None:
        try:
            os.listdir(probe.parent)  # noqa: PTH208 - refreshes the directory that a network file system has cached
            if probe.read_text() != text:
                return probe.parent
        except OSError:
            return probe.parent
    return next((path for path in inputs if not path.exists()), None)
