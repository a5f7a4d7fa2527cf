"""Nodes, placement groups, devices and network interfaces of Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import psutil

from mlic.cluster import ray_private
from mlic.cluster.resources import Cluster, Node, Share, room
from mlic.cluster.signals import waiting_loops
from mlic.errors import ClusterError

logger = logging.getLogger(__name__)


# A restarting node needs about a minute, so only a longer wait causes a warning. Queries are rare, for large clusters.
_ROOM_WARNING_S, _ROOM_LOOK_S = 60, 10


@contextlib.contextmanager
def watching_room(share: Share, fewest: int) -> Iterator[None]:
    """Warn if the remaining nodes have no room for the `fewest` workers for a minute.

    The work continues by itself as soon as a new node replaces the lost one. Until then, nothing else explains why
    nothing happens. A thread asks, because a Ray that has lost its head does not answer, and Ctrl-C must not wait for
    that.
    """
    over, ended = threading.Event(), threading.Event()

    def target() -> None:
        try:
            _watch_room(share, fewest, over)
        finally:
            ended.set()

    waiting_loops.append(ended)
    threading.Thread(target=target, name="room", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if ended.wait(1):
            waiting_loops.remove(ended)


def _watch_room(share: Share, fewest: int, over: threading.Event) -> None:
    missed, warned = 0, False
    while not over.wait(_ROOM_LOOK_S):
        room_now = room(describe_cluster(embedded=False), share)
        missed = missed + 1 if room_now < fewest else 0
        if missed * _ROOM_LOOK_S >= _ROOM_WARNING_S and not warned:
            logger.warning(
                "waiting for a node: the remaining nodes have room for %d of %d workers with %g CPUs and %g GPUs%s.",
                room_now,
                fewest,
                share.cpus,
                share.gpus,
                "; to continue with those alone, stop this and run it again" if room_now else "",
            )
            warned = True
        elif not missed and warned:
            logger.info("there is room for %d workers again", room_now)
            warned = False


def reserved() -> set[str]:
    """The ids of the placement groups of this process's job."""
    import ray

    # The last four bytes of the id of a placement group are those of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    table = ray.util.placement_group_table()
    return {name for name, group in table.items() if name.endswith(job) and group["state"] != "REMOVED"}


def free(groups: Collection[str]) -> None:
    """Remove placement groups and their actors. Ray keeps the groups of a dead actor until its job ends."""
    from ray.util.placement_group import remove_placement_group

    for name in groups:
        remove_placement_group(ray_private.placement_group(name))


def assigned_device() -> str:
    """ "cuda" in a Ray worker that was given a GPU or a share of one, else "cpu".

    Not torch.cuda.is_available(): Ray hides the GPUs of a node only from workers that were given some of them.
    """
    import ray

    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"


def set_socket_interface() -> str | None:
    """Use the network interface with this node's Ray address for gloo and NCCL, unless the user has set one.

    By default, both look up the host's name, which many machines map to a loopback address.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return str(name)
    return None


def ask_worker(share: Share, question: Callable[..., Any], *arguments: Any) -> Any:
    """Call `question` in a worker with the GPUs of a share, or in this process if the share has no GPUs."""
    if not share.gpus:
        return question(*arguments)
    import ray

    task = ray.remote(num_cpus=0, num_gpus=share.gpus)(question)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:200]
        raise ClusterError(f"a worker with {share.gpus:g} GPUs does not answer: {text}.", "try again.") from None


def describe_cluster(embedded: bool) -> Cluster:
    import ray

    nodes = [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return Cluster(tuple(sorted(nodes, key=lambda node: (node.host, node.id))), embedded)
