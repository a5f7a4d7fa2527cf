from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mlic.cluster import placement, shared_folders, signals
from mlic.cluster.connect import connect
from mlic.cluster.resources import Cluster, Node, Share, task_share, train_share
from mlic.errors import ClusterError


def cluster(*nodes: tuple[int, int]) -> Cluster:
    return Cluster(tuple(Node(f"n{i}", f"host{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(nodes)), False)


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([(2, 0)], "auto", Share(1, 2, 0)),
        ([(2, 0)], 2, Share(2, 1, 0)),
        ([(8, 0), (8, 0)], "auto", Share(2, 8, 0)),
        ([(8, 0), (4, 0)], "auto", Share(2, 4, 0)),
        ([(8, 0), (8, 0)], 3, Share(3, 4, 0)),
        ([(16, 4), (16, 4)], "auto", Share(8, 4, 1)),
        ([(16, 4), (64, 0)], 2, Share(2, 4, 1)),
    ],
)
def test_training_workers(nodes: list[tuple[int, int]], workers: int, share: Share) -> None:
    assert train_share(cluster(*nodes), workers) == share  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ClusterError, match="8 workers need 8 GPUs; this cluster has 4") as caught:
        train_share(cluster((16, 4)), 8)
    assert caught.value.hint == "--workers 4."
    with pytest.raises(ClusterError, match="3 workers need 3 CPUs; this cluster has 2"):
        task_share(cluster((2, 0)), 3, use_gpus=True)


def test_task_workers() -> None:
    assert task_share(cluster((8, 0)), "auto", use_gpus=True) == Share(8, 1, 0)
    assert task_share(cluster((8, 2)), "auto", use_gpus=True) == Share(2, 4, 1)
    assert task_share(cluster((8, 2)), "auto", use_gpus=False) == Share(8, 1, 0)
    assert task_share(cluster((8, 2), (16, 2)), "auto", True, 2) == Share(8, 2, 0.5)
    assert task_share(cluster((4, 0)), "auto", True, 2) == Share(4, 1, 0)
    with pytest.raises(ClusterError, match="9 workers need 5 GPUs, 2 on each; this cluster has 2") as caught:
        task_share(cluster((8, 2)), 9, True, 2)
    assert caught.value.hint == "--workers 4."


def test_a_long_wait_for_a_lost_node_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlic")
    looks = threading.Semaphore(0)
    asked, nodes = threading.Semaphore(0), [(8, 2), (8, 2)]

    def describe(**_: bool) -> Cluster:
        asked.release()
        looks.acquire()
        return cluster(*nodes)

    monkeypatch.setattr("mlic.cluster.placement.describe_cluster", describe)
    monkeypatch.setattr("mlic.cluster.placement._ROOM_LOOK_S", 0.001)
    monkeypatch.setattr("mlic.cluster.placement._ROOM_WARNING_S", 0.005)

    def look(times: int) -> list[str]:
        caplog.clear()
        for _ in range(times):
            looks.release()
            asked.acquire()  # by the next look, so what this one has to say is said
        return caplog.messages

    with placement.watching_room(Share(4, 4, 1), 4):
        asked.acquire()
        assert look(10) == []
        lost = nodes.pop()
        assert look(4) == []
        nodes.append(lost)
        assert look(4) == []
        nodes.pop()
        (warning,) = look(30)
        assert "room for 2 of 4 workers with 4 CPUs and 1 GPUs; to continue with those alone, stop" in warning
        nodes.append(lost)
        assert look(30) == ["there is room for 4 workers again"]
        looks.release()


def test_an_allocation_of_several_nodes_needs_ray_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(ClusterError, match="2 nodes and no Ray over them"), connect(None):
        pass


@pytest.mark.ray
def test_a_connection_is_shared(ray_cluster: None, tmp_path: Path) -> None:
    with connect(None) as outer, connect(None) as inner:
        assert outer == inner
        assert outer.cpus >= 1
        shared_folders.check_shared(outer, tmp_path)
    import ray

    assert ray.is_initialized()


def without_ray() -> dict[str, str]:
    """This process's environment without what it says to Ray."""
    return {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}


def test_a_lost_interrupt_is_noted(tmp_path: Path) -> None:
    """Ray's own code swallows a KeyboardInterrupt now and then; here a callback does. Ray is imported before `mlic`."""
    script = tmp_path / "lost.py"
    script.write_text(
        "import contextlib, os, signal, ray\n"
        "from mlic.cluster import connect as ray_session, signals\n"
        "with ray_session.connect(None):\n"
        "    task = ray.remote(lambda: 1)\n"
        "    for number in (signal.SIGINT, signal.SIGTERM):\n"
        "        running = [task.remote()]\n"
        "        assert signals.done(running) == running\n"
        "        with contextlib.suppress(KeyboardInterrupt):\n"
        "            os.kill(os.getpid(), number)\n"
        "        try:\n"
        "            signals.done([task.remote()])\n"
        "        except KeyboardInterrupt:\n"
        "            print(number.name)\n"
    )
    command = "import signal, runpy; signal.signal(signal.SIGTERM, signal.default_int_handler); "
    ended = subprocess.run(
        [sys.executable, "-c", f"{command}runpy.run_path({str(script)!r})"],
        env=without_ray(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.stdout.split() == ["SIGINT", "SIGTERM"], ended.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_takes_too_long_to_start_is_started_once_more() -> None:
    """The first raylet is held until Ray has given it up, half a minute later."""
    script = (
        "import os, signal, threading, time, ray\n"
        "from pathlib import Path\n"
        "from mlic.cluster import connect as ray_session, signals\n"
        "def hold():\n"
        "    while True:\n"
        "        for pid in ray_session._child_processes():\n"
        "            if Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\\0')[0].endswith(b'/raylet'):\n"
        "                return os.kill(pid, signal.SIGSTOP)\n"
        "        time.sleep(0.001)\n"
        "threading.Thread(target=hold).start()\n"
        "with ray_session.connect(None):\n"
        "    print(ray.get(ray.remote(lambda: 'works').remote()), len(ray.nodes()))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=without_ray(), capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.stdout.split() == ["works", "1"], ended.stderr
    assert "Ray took too long to start; it is started once more" in ended.stderr


_BEGINS = """
import signal, sys
from mlic.cluster.connect import begin, connect
begin(None, ("wave",))
assert "ray" in sys.modules
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # not Ray's handler, which ends a process without a word
if sys.argv[1] == "connects":
    with connect(None) as cluster:
        import ray
        print(cluster.embedded, ray.get(ray.remote(lambda: 7).remote()))
    assert not ray.is_initialized()
    with connect(None):
        print("again", ray.is_initialized())
"""


@pytest.mark.ray
@pytest.mark.parametrize("what", ["connects", "fails"])
def test_a_ray_that_was_begun_early_is_used_and_ended(what: str) -> None:
    """A command that fails before it connects leaves no process behind, either."""
    ended = subprocess.run(
        [sys.executable, "-c", _BEGINS, what],
        env=without_ray() | {"MLIC_TEST": str(os.getpid())},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == (["True", "7", "again", "True"] if what == "connects" else [])
    begun = time.monotonic()
    while (left := _processes_with(f"MLIC_TEST={os.getpid()}")) and time.monotonic() - begun < 60:
        time.sleep(0.5)
    assert not left


def _processes_with(variable: str) -> list[str]:
    """The processes that have a variable in their environment."""
    names = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                names.append((process / "cmdline").read_text())
    return names


@pytest.mark.parametrize("wants", [True, False])
def test_a_token_is_shown_where_the_cluster_wants_one(wants: bool, tmp_path: Path) -> None:
    """A driver that has a token for some cluster gets an actor on one with tokens, and on one without."""
    token = "f" * 64
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if wants else {"RAY_AUTH_MODE": "disabled"}
    plain = without_ray()
    with tempfile.TemporaryDirectory(prefix="mlic-", dir="/tmp") as folder:
        start = (
            "import sys\nfrom ray.cluster_utils import Cluster\n"
            "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})\n"
            "print(cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()\n"
        )
        cluster = subprocess.Popen(
            [sys.executable, "-c", start],
            env=plain | own | {"RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert cluster.stdout is not None
        address = next(line for line in cluster.stdout if ":" in line).strip()
        ask = (
            "import sys\nfrom mlic.cluster import connect as ray_session, signals\n"
            "class Actor:\n    def work(self):\n        return 'works'\n"
            "with ray_session.connect(sys.argv[1]):\n    import ray\n"
            "    print(ray.get(ray.remote(Actor).remote().work.remote()))\n"
        )
        try:
            asked = subprocess.run(
                [sys.executable, "-c", ask, address],
                env=plain | {"RAY_AUTH_TOKEN": token},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert asked.stdout == "works\n", asked.stderr
        finally:
            cluster.communicate(timeout=60)


def test_silence_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nothing answers at {address}"), connect(address):
            pass


@pytest.mark.ray
def test_an_interrupted_wait_knows_that_its_thread_is_still_at_work(ray_cluster: None) -> None:
    """Python 3.11 calls a thread dead whose join() an interrupt came into; Ray was shut down under it.

    The signal is spent: work that comes later on the same connection continues.
    """
    go_on, before = threading.Event(), len(signals.waiting_loops)

    def work() -> None:
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait()

    with pytest.raises(KeyboardInterrupt):
        signals.run_beside(work)
    (left,) = signals.waiting_loops[before:]
    assert not left.is_set()
    go_on.set()
    assert left.wait(60)
    signals.waiting_loops.remove(left)
    import ray

    running = [ray.remote(lambda: 1).remote()]
    assert signals.done(running) == running
