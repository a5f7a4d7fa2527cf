"""Connect to Ray or start it, and refuse at once what cannot fit."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mlic.cluster import ray_private
from mlic.cluster.auth import has_token, use_own_token, wants_token
from mlic.cluster.placement import describe_cluster
from mlic.cluster.resources import Cluster, Node
from mlic.cluster.signals import noted_signals, waiting_loops
from mlic.errors import ClusterError
from mlic.machine import usable_cpus

logger = logging.getLogger(__name__)

# mlic passes paths, not pixels, between processes, so the object store of an embedded Ray can be small.
_OBJECT_STORE_BYTES = 200 * 2**20

FEW = 2000  # images, at most, for which starting Ray takes longer than it saves

_has_begun = False  # a Ray runs that `begin` has started and no `connect` has taken over yet

_GPU_DEVICES = ("/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of Windows' Linux, of AMD


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Connect to Ray: `address`, else RAY_ADDRESS, else a new Ray inside this process; leave it at the end.

    If this process is connected already, that connection is used and left open. Raises ClusterError when the address
    does not answer, or when a SLURM allocation of several nodes has no Ray over it.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    embedded = is_embedded(address)
    if embedded:
        _refuse_half_an_allocation()
        use_own_token()
    else:
        _refuse_silence(address)
        # A driver with an address host:port does not look for a token. A driver with "auto" sends any token that it
        # finds. If a driver sends a token to a cluster without tokens, its actors die.
        if "RAY_AUTH_MODE" not in os.environ and has_token():
            os.environ["RAY_AUTH_MODE"] = "token" if wants_token(address) else "disabled"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    global _has_begun
    has_begun, _has_begun = _has_begun, False
    if ray.is_initialized() and not has_begun:
        yield describe_cluster(embedded)
        return
    with noted_signals() as take_over:
        if not has_begun:
            _init(None if embedded else address)
        take_over()
        try:
            cluster = describe_cluster(embedded)
            logger.info("%s", cluster)
            yield cluster
        finally:
            # After Ctrl-C, a loop may still wait in Ray's native code. ray.shutdown() would free what that code uses,
            # which sometimes crashed. This process is about to end: then a cluster ends its work, and an embedded Ray
            # ends as after a kill, its two idle agents within a minute.
            if all(ended.is_set() for ended in waiting_loops):
                ray.shutdown()


@contextlib.contextmanager
def connect_unless_few(address: str | None, workers: int | Literal["auto"], images: int) -> Iterator[Cluster]:
    """Connect to Ray as `connect` does, except for few images where an embedded Ray would have to start for them.

    Then nothing is started here, and `pool.run` uses processes of this machine, which do the same in less time. A
    number of workers, or the address of a cluster, asks for Ray. Raises what `connect` raises.
    """
    if images > FEW or workers != "auto" or not is_embedded(address) or connected():
        with connect(address) as cluster:
            yield cluster
        return
    _refuse_half_an_allocation()
    cluster = Cluster((Node("", "", _usable_cpus(), 0),), True)
    logger.info("workers on this machine, without Ray (%d CPUs): %s images are few", cluster.cpus, f"{images:,}")
    yield cluster


def connected() -> bool:
    """Whether this process is connected to Ray."""
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


def begin(address: str | None, modules: Sequence[str]) -> None:
    """Start an embedded Ray for the next `connect`, and import `modules` in a thread while Ray's processes start.

    Both take seconds. Does nothing for other clusters. Ray starts in this thread, because its processes end with the
    thread that starts them. Raises what `connect` raises.
    """
    if not is_embedded(address) or "ray" in sys.modules:
        return
    _refuse_half_an_allocation()
    use_own_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    threading.Thread(target=_import, args=(modules,), name="imports").start()
    with noted_signals():
        _init(None)
    global _has_begun
    _has_begun = True


def _import(modules: Sequence[str]) -> None:
    with contextlib.suppress(ImportError):  # raised again where it is imported next
        for name in modules:
            import_module(name)


def is_embedded(address: str | None) -> bool:
    """Whether `connect` would start a Ray inside this process."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def foreseen(address: str | None) -> Cluster | None:
    """The resources of an embedded Ray before it starts; None for other clusters, and if there may be GPUs.

    With it, a request that cannot fit is refused at once, without the seconds that a start of Ray takes.
    """
    if not is_embedded(address) or any(Path(pattern).exists() for pattern in _GPU_DEVICES):
        return None
    return Cluster((Node("", "", _usable_cpus(), 0),), True)


def _refuse_half_an_allocation() -> None:
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        raise ClusterError(
            f"this SLURM job has {nodes} nodes and no Ray over them.",
            "start the command with srun cluster/with-ray.sh, as the files in slurm/ do.",
        )


def _refuse_silence(address: str | None) -> None:
    """Raise ClusterError if nothing listens at host:port; Ray itself would try for more than a minute."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or "/" in host:
        return  # "auto", or an address that has a protocol
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at {address}: {error}.",
            "check --address and RAY_ADDRESS: the port of Ray's head is 6379.",
        ) from None


def _init(address: str | None) -> None:
    import ray

    verbose = logger.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address is None:
        # One heap for all threads of a worker, because it does not train in its main thread: see malloc.keep. Ray's
        # workers inherit this variable from the environment of their node. Where cluster/ starts a node, it sets it
        # there.
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        options |= {
            "address": "local",
            "num_cpus": _usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            **ray_private.INIT_OPTIONS,
        }
    else:
        options |= {"address": address}
    others = _child_processes()
    try:
        try:
            ray.init(**options)
        except Exception as error:
            if address is not None or "timed out during startup" not in str(error):
                raise
            # Ray waits 30 s for its processes. The first start may take longer, because they are read from a cold or
            # busy disk.
            logger.warning("Ray took too long to start; it is started once more")
            for pid in _child_processes() - others:  # they would live as long as this process
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ray.init(**options)
    except Exception as error:  # Ray raises bare ones, too, when one of its processes does not come up
        # The last line of a traceback.
        text = " ".join(str(error).strip().splitlines()[-1].split())[:300].rstrip(".")
        if address is not None:
            raise ClusterError(
                f"cannot connect to the Ray cluster at {address}: {text}.",
                "check --address, and RAY_AUTH_TOKEN_PATH where the cluster has a token.",
            ) from None
        raise ClusterError(
            f"cannot start a Ray inside this process: {text}.", "see that memory and disk are free, and try again."
        ) from None


def _child_processes() -> set[int]:
    """The running child processes of this process; empty if the system does not list them."""
    children = set[int]()
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended since it was listed
            children |= {int(pid) for pid in thread.read_text().split()}
    return children


def _usable_cpus() -> int:
    """CPUs that this process may use; Ray itself counts all of the machine's."""
    allowed = usable_cpus()
    return min(allowed, int(os.environ.get("SLURM_CPUS_PER_TASK") or allowed))
