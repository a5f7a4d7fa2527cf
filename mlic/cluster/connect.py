"""Connect to Ray, say what is there, and refuse at once what cannot fit."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlic.cluster.resources import Cluster, Node, Share, room
from mlic.config.types import Location
from mlic.errors import ClusterError
from mlic.machine import usable_cpus

logger = logging.getLogger(__name__)

# mlic passes paths, not pixels, between processes, so the object store of an embedded Ray can be small.
_OBJECT_STORE_BYTES = 200 * 2**20

_GPU_DEVICES = ("/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of Windows' Linux, of AMD

# A node that starts again needs a minute or so; a longer wait for one is worth a word. Large clusters are asked seldom.
_ROOM_WARNING_S, _ROOM_LOOK_S = 60, 10

_signals: list[int] = []  # that came to this process since it connected
# Ends of the threads that are at work in Ray. Events, and not the threads: of one whose join() an interrupt has come
# into, Python 3.11 says that it is no longer alive.
_loops: list[threading.Event] = []


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Connect to Ray: `address`, else RAY_ADDRESS, else a new Ray inside this process; leave it at the end.

    A connection that this process has already is shared and left open. Raises ClusterError when the address does not
    answer, or when a SLURM allocation of several nodes has no Ray over it.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    embedded = address is None or address == "local"
    if embedded:
        _refuse_half_an_allocation()
        _own_token()
    else:
        _refuse_silence(address)
        # A driver given host:port does not look for a token by itself, and one given "auto" shows any that there is.
        # One that shows a token to a cluster that has none sees its actors die.
        if "RAY_AUTH_MODE" not in os.environ and _has_token():
            os.environ["RAY_AUTH_MODE"] = "token" if _wants_token(address) else "disabled"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield _describe(embedded)
        return
    with _noted_signals() as take_over:
        _init(None if embedded else address)
        take_over()
        try:
            cluster = _describe(embedded)
            logger.info("%s", cluster)
            yield cluster
        finally:
            # After Ctrl-C a loop may still wait in native code of Ray, which shutting down would free under it, and now
            # and then that crashed. The process is about to end: a cluster ends its work then, and an embedded Ray goes
            # with it as after a kill, its two idle agents within a minute.
            if all(ended.is_set() for ended in _loops):
                ray.shutdown()


def is_embedded(address: str | None) -> bool:
    """Whether `connect` would start a Ray inside this process."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def foreseen(address: str | None) -> Cluster | None:
    """What a Ray inside this process will have, before it is started; None of others, and where there may be GPUs.

    So what cannot fit is refused at once and not after the seconds that a start takes.
    """
    if not is_embedded(address) or any(Path(each).exists() for each in _GPU_DEVICES):
        return None
    return Cluster((Node("", "", _usable_cpus(), 0),), True)


@contextlib.contextmanager
def _heard_once() -> Iterator[None]:
    """Forget the signal of an interrupt that is on its way to the caller: the next work is not to stop for it too."""
    try:
        yield
    except KeyboardInterrupt:
        _signals.clear()
        raise


@_heard_once()
def done(running: Collection[Any]) -> list[Any]:
    """Wait for at least one of the tasks; returns those that are done.

    Raises KeyboardInterrupt when this process has been told to stop, also when Ray's own code was at work at that
    moment and lost the one that was raised in it.
    """
    import ray

    ready, _ = ray.wait(list(running), num_returns=1)
    if _signals:
        raise KeyboardInterrupt
    return list(ready)


@_heard_once()
def run_beside(work: Callable[[], object], look: Callable[[], object] = lambda: None) -> BaseException | None:
    """Do `work` in a thread, with a `look` at it three times a second; returns what it raised.

    For the loops of Ray Train and Ray Tune: in the main thread they would take Ctrl-C for themselves, and now and then
    lose it. Here it is raised to the caller, and the thread ends with the process.
    """
    failed: list[BaseException] = []
    ended = threading.Event()

    def target() -> None:
        try:
            work()
        except BaseException as error:  # handed to the main thread, which is waiting for it
            failed.append(error)
        finally:
            ended.set()

    _loops.append(ended)
    threading.Thread(target=target, name="ray-loop", daemon=True).start()
    while not ended.wait(0.3):
        look()
    _loops.remove(ended)
    look()
    return failed[0] if failed else None


@contextlib.contextmanager
def watching_room(share: Share, fewest: int) -> Iterator[None]:
    """Warn while something waits because the nodes that are left had no room for the `fewest` workers for a minute.

    It goes on by itself as soon as a node takes the place of the lost one; until then, nothing else tells why nothing
    happens. A thread asks, since a Ray whose head is lost does not answer, and Ctrl-C is not to wait for that.
    """
    over, ended = threading.Event(), threading.Event()

    def target() -> None:
        try:
            _watch_room(share, fewest, over)
        finally:
            ended.set()

    _loops.append(ended)
    threading.Thread(target=target, name="room", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if ended.wait(1):
            _loops.remove(ended)


def _watch_room(share: Share, fewest: int, over: threading.Event) -> None:
    missed, warned = 0, False
    while not over.wait(_ROOM_LOOK_S):
        found = room(_describe(embedded=False), share)
        missed = missed + 1 if found < fewest else 0
        if missed * _ROOM_LOOK_S >= _ROOM_WARNING_S and not warned:
            logger.warning(
                "waiting for a node: those that are left have room for %d of %d workers with %g CPUs and %g GPUs%s.",
                found, fewest, share.cpus, share.gpus,
                "; to go on with those alone, stop this and run it again" if found else "",
            )  # fmt: skip
            warned = True
        elif not missed and warned:
            logger.info("there is room for %d workers again", found)
            warned = False


def reserved() -> set[str]:
    """The ids of the placement groups that this process's job has: resources kept for actors of its own."""
    import ray

    # The last four bytes of the id of a placement group are those of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    table = ray.util.placement_group_table()
    return {name for name, group in table.items() if name.endswith(job) and group["state"] != "REMOVED"}


def free(groups: Collection[str]) -> None:
    """Give up placement groups, and with them their actors. Ray keeps those of a dead actor until its job ends."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for name in groups:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def assigned_device() -> str:
    """ "cuda" in a Ray worker that was given a GPU or a share of one, else "cpu".

    Not torch.cuda.is_available(): Ray hides the GPUs of a node only from workers that were given some of them.
    """
    import ray

    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"


def ask_worker(share: Share, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a worker with the GPUs of a share; without GPUs this process answers by itself."""
    if not share.gpus:
        return question(*arguments)
    import ray

    task = ray.remote(num_cpus=0, num_gpus=share.gpus)(question)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:200]
        raise ClusterError(f"a worker with {share.gpus:g} GPUs does not answer: {text}.", "try again.") from None


def check_shared(cluster: Cluster, folder: Location, *inputs: Location) -> None:
    """Make sure that every node sees the same `folder`, and has the `inputs`; object stores are seen by all.

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
    """What a task on a node says; None from a node that has died since, which nobody will use."""
    import ray

    try:
        path: Path | None = ray.get(reference, timeout=120)
    except ray.exceptions.RayError as error:
        if not any(each["NodeID"] == node.id and each["Alive"] for each in ray.nodes()):
            return None
        text = " ".join(str(error).split())[:200]
        raise ClusterError(f"the node {node.host} does not answer: {text}.", "try again, or leave it out.") from None
    return path


def _unseen(probe: Path | None, text: str, inputs: Sequence[Path]) -> Path | None:
    """The first of the paths that this node does not see as the driver does."""
    if probe is not None:
        try:
            os.listdir(probe.parent)  # noqa: PTH208 - refreshes the directory that a network file system has cached
            if probe.read_text() != text:
                return probe.parent
        except OSError:
            return probe.parent
    return next((path for path in inputs if not path.exists()), None)


def _refuse_half_an_allocation() -> None:
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        raise ClusterError(
            f"this SLURM job has {nodes} nodes and no Ray over them.",
            "start the command with srun cluster/with-ray.sh, as the files in slurm/ do.",
        )


def _own_token() -> None:
    """Lock an embedded Ray with a token of its own, handed to its processes and written nowhere.

    Left to itself, Ray writes a token that others can read to the home directory and uses it from then on.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray._raylet" in sys.modules:  # it has read its environment already, once for this process: read it again
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _has_token() -> bool:
    return (
        any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


def _refuse_silence(address: str | None) -> None:
    """Raise ClusterError where nothing listens at host:port; Ray itself would go on trying for more than a minute."""
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


def _wants_token(address: str | None) -> bool:
    """Whether a cluster refuses one who shows no token; asked in another process, as Ray settles this only once."""
    if "://" in str(address):
        return True
    ask = (
        "import sys; from ray._private.services import canonicalize_bootstrap_address as where;"
        "from ray._raylet import GcsClient; GcsClient(address=where(sys.argv[1]))"
    )
    asked = subprocess.run(  # noqa: S603 - Python, with an address as its argument
        [sys.executable, "-c", ask, str(address)], env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return "AuthenticationError" in asked.stderr


def _init(address: str | None) -> None:
    import ray

    verbose = logger.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address is None:
        # One heap for all threads of a worker, which trains in a thread that is not its first: see memory.keep. Ray's
        # workers have it from the environment of their node; cluster/ sets it where it starts one.
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        options |= {
            "address": "local",
            "num_cpus": _usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            # Ray would start workers ahead and keep the driver waiting for them: for ever, when one of them is killed.
            "_system_config": {"prestart_worker_first_driver": False},
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
            # Ray waits 30 s for its processes, which have to be read from a cold or busy disk the first time.
            logger.warning("Ray took too long to start; it is started once more")
            for pid in _child_processes() - others:  # they do not go by themselves before this process does
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ray.init(**options)
    except Exception as error:  # Ray raises bare ones, too, when one of its processes does not come up
        # Of a traceback, what it ends with.
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
    """Those that this process has started and that have not ended; none where the system does not tell."""
    found = set[int]()
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended since it was listed
            found |= {int(pid) for pid in thread.read_text().split()}
    return found


def _usable_cpus() -> int:
    """CPUs that this process may use; Ray itself counts all of the machine's."""
    allowed = usable_cpus()
    return min(allowed, int(os.environ.get("SLURM_CPUS_PER_TASK") or allowed))


def _describe(embedded: bool) -> Cluster:
    import ray

    nodes = [
        Node(
            node["NodeID"], node["NodeManagerHostname"], int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]  # fmt: skip
    return Cluster(tuple(sorted(nodes, key=lambda node: (node.host, node.id))), embedded)


@contextlib.contextmanager
def _noted_signals() -> Iterator[Callable[[], None]]:
    """Note SIGTERM, SIGINT and SIGUSR1 for `done`, then do what their handlers did before.

    Yields what sets the handlers once more: ray.init replaces that of SIGTERM by one that ends the process without a
    word.
    """
    _signals.clear()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def note(number: int, frame: Any) -> None:
        _signals.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    def take_over() -> None:
        for number, handler in before.items():
            if callable(handler):  # not those that this process was told to ignore
                signal.signal(number, note)

    take_over()
    try:
        yield take_over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
