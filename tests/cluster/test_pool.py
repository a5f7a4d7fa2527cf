"""Work that outlives pieces that kill their workers: the tasks themselves, and every command that opens images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from mlic.cluster import pool, processes
from mlic.cluster.resources import Share
from mlic.errors import ClusterError
from tests import poison

pytestmark = pytest.mark.ray


def _square(numbers: list[int], deadly: set[int]) -> list[int]:
    if deadly & set(numbers):
        os.kill(os.getpid(), signal.SIGKILL)
    return [number * number for number in numbers]


def _halves(numbers: list[int]) -> list[list[int]]:
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else [numbers]


@pytest.fixture(params=["ray", "processes"])
def tasks(request: pytest.FixtureRequest, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tasks of `pool.run` run."""
    if request.param == "processes":
        monkeypatch.setattr(pool, "connected", lambda: False)


def test_a_piece_that_kills_its_worker_costs_itself_alone(tasks: None) -> None:
    pieces = iter([[1, 2, 3, 4], [5, 6, 7]])
    found: dict[int, Any] = {}
    reasons = []

    def lost(numbers: list[int], reason: str) -> list[int]:
        reasons.append(reason)
        return [-1] * len(numbers)

    for numbers, squares in pool.run(_square, pieces, {3}, 2, _halves, lost):
        found |= dict(zip(numbers, squares, strict=True))
    assert found == {1: 1, 2: 4, 3: -1, 4: 16, 5: 25, 6: 36, 7: 49}
    assert reasons == ["the process that decoded it died, 3 times"]


def _fails(_: int, __: None) -> None:
    raise ClusterError("a disk is full.", "free some space.")


class Pair:
    """An actor that ends a task only while another is in progress; the first process dies of its first two tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, 0
        self.dies = not (folder / "died").exists()
        (folder / "died").touch()

    def ready(self) -> None:
        pass

    def run(self, number: int) -> int:
        self.begun += 1
        (self.folder / f"{number}-{os.getpid()}").touch()
        patience = time.monotonic() + 20
        while self.begun < 2 and time.monotonic() < patience:
            time.sleep(0.01)
        if self.dies:
            os._exit(1)
        return self.begun


def test_an_actor_with_two_tasks_at_once_that_dies_is_replaced_once(ray_cluster: None, tmp_path: Path) -> None:
    def attempts(number: int) -> int:
        return len(list(tmp_path.glob(f"{number}-*")))

    share = Share(1, 1, 0)
    outcomes = list(
        pool.run_on_actors(Pair, (tmp_path,), share, [1, 2, 3], lambda number: (number,), attempts, 5, at_once=2)
    )
    assert sorted(number for number, _, _ in outcomes) == [1, 2, 3]
    assert all(why is None and begun >= 2 for _, begun, why in outcomes)
    assert len({path.name.split("-")[1] for path in tmp_path.glob("*-*")}) == 2  # processes: the first, its successor


def test_what_work_raises_comes_as_it_is(tasks: None) -> None:
    with pytest.raises(ClusterError, match="a disk is full") as caught:
        list(pool.run(_fails, iter([1, 2]), None, 2, lambda piece: [piece], lambda *_: None))
    assert caught.value.hint == "free some space."


def test_processes_that_do_not_start_are_no_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "connected", lambda: False)
    monkeypatch.setattr(processes, "_prepare", _dies)
    with pytest.raises(ClusterError, match="no worker process starts on this machine") as caught:
        list(pool.run(_square, iter([[1], [2]]), set(), 1, _halves, lambda *_: []))
    assert "--workers" in caught.value.hint


def _dies(*_: object) -> None:
    os._exit(1)


_SCRIPT = """
import os, signal, sys, time
from mlic.cluster import pool

def function(piece, shared):
    print("by", os.getpid(), flush=True)
    time.sleep(piece)
    return os.getpid()

pieces = iter([0.0, 0.0, float(sys.argv[1])])
for _, result in pool.run(function, pieces, None, 1, lambda piece: [piece], lambda *_: None):
    print("result", result, flush=True)
"""


def test_processes_serve_a_script_and_end_with_it(tmp_path: Path) -> None:
    """The script needs no guard of its main module. Its processes end after it is done, and soon after kill -9."""
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("result") == 3
    assert len({line.split()[1] for line in done.stdout.splitlines()}) == 1, "one worker does all tasks"
    process = subprocess.Popen([*command, "100"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int([process.stdout.readline() for _ in range(5)][-1].split()[1])
    process.kill()
    process.wait()
    patience = time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie" and time.monotonic() < patience:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"


@pytest.fixture
def poisoned(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy corpus, whose third image kills the process that decodes it."""
    poison.install(tmp_path, monkeypatch)
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    poison.put(images / "im3.jpg")
    return images


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("--workers", "2"), ("--group-by", "none", "--expand", "1")],
    ids=["scanned", "scanned-by-ray", "expanded"],
)
def test_an_image_that_kills_its_worker_is_left_out_of_the_shards(
    corpus: Path, poisoned: Path, mlic: Callable[..., CompletedProcess[str]], more: tuple[str, ...]
) -> None:
    done = mlic("pack", poisoned, "--labels", corpus / "annotations", *more)
    assert done.returncode == 0, done.stderr
    index = json.loads((poisoned.parent / "shards" / "index.json").read_text())
    assert index["account"]["unreadable"] == (index["account"]["unreadable"] if "--expand" in more else 1)
    left = (poisoned.parent / "shards" / "left_out.tsv").read_text()
    assert "im3.jpg" in left
    assert "the process that decoded it died, 3 times" in left
    assert mlic("doctor").returncode == 0, "shards are where pack writes them"


@pytest.mark.slow
def test_exploring_and_examining_outlive_an_image_that_kills_its_worker(
    corpus: Path, poisoned: Path, mlic: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = mlic("explore", poisoned, "--labels", corpus / "annotations", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bad"] == 1
    with monkeypatch.context() as harmless:  # an image that kills pack's worker is in no shard
        harmless.delenv("PYTHONPATH")
        kept = mlic("pack", poisoned, "--labels", corpus / "annotations")
    assert kept.returncode == 0, kept.stderr
    seen = mlic("doctor")
    assert seen.returncode == 0, seen.stderr
    assert "1 cannot be decoded" in seen.stdout
