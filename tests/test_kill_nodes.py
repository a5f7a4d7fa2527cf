"""Training on a cluster of several nodes, with its driver, its workers and whole nodes killed at random moments."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_kill import KILLS, children, run, same_result, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

KINDS = ("driver", "worker", "node")
PATIENCE_S = 240


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU each, all on this machine; lost nodes are missed within seconds."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="mlic-", dir="/tmp"))
    (folder / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    watch = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 2000,
             "health_check_failure_threshold": 3}  # fmt: skip
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": watch}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def command(nodes: Any, shards: Path, *more: object) -> list[object]:
    return [
        "train", shards, "--address", nodes.address, "--image-size", "64", "--batch-size", "32", "--workers", "2",
        "--no-doctor", "--set", "max_failures=100", "--checkpoint-minutes", "0.001", *more,
    ]  # fmt: skip


def train_workers(nodes: Any) -> list[int]:
    """The processes that train, on the nodes of this cluster."""
    found = []
    for node in nodes.worker_nodes:
        for pid in children(node.all_processes["raylet"][0].process.pid):
            with contextlib.suppress(OSError):
                if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
    return found


def kill(what: str, nodes: Any, driver: int, rng: random.Random) -> None:
    """Kill the driver, a worker, or a node, which another one takes the place of."""
    if what == "node":
        nodes.remove_node(rng.choice(sorted(nodes.worker_nodes, key=id)), allow_graceful=False)
        nodes.add_node(num_cpus=1)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver if what == "driver" else rng.choice(train_workers(nodes)), signal.SIGKILL)


@pytest.mark.timeout(300 + 100 * KILLS)
def test_training_killed_at_random_points(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """Two workers on two nodes, so the weights are those of a run that nobody disturbs, to the last bit."""
    epochs = ("--epochs", 10, "--arch", "b-final", "--set", "color=rgb")
    (tmp_path / "straight").mkdir()
    started = time.monotonic()
    code, _, err = run(tmp_path / "straight", *command(nodes, shards, *epochs))
    assert code == 0, err
    took = time.monotonic() - started
    rng = random.Random(11)
    kills: list[str] = []
    turn, finished = 0, 0
    while len(kills) < KILLS or not finished:
        folder = tmp_path / f"turn{turn}"
        folder.mkdir(exist_ok=True)
        process = start(folder, *command(nodes, shards, *epochs))
        while process.poll() is None and len(kills) < KILLS:
            what, now = KINDS[len(kills) % len(KINDS)], time.monotonic()
            after = now + rng.uniform(0, took)
            while process.poll() is None and (
                time.monotonic() < after or not (what != "worker" or train_workers(nodes))
            ):
                assert time.monotonic() < now + PATIENCE_S, (kills, stopped(process))
                time.sleep(0.1)
            if process.poll() is None:
                kill(what, nodes, process.pid, rng)
                kills.append(what)
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            finished += 1
            turn += 1
            same_result(tmp_path / "straight" / "runs" / "b-final", folder / "runs" / "b-final")
        else:
            refused = process.returncode == 4 and "2 workers need 2 CPUs; this cluster has 1." in err
            assert process.returncode == -signal.SIGKILL or (refused and kills[-1] == "node"), err
    assert set(kills) == set(KINDS)


def stopped(process: subprocess.Popen[str]) -> str:
    """What a process that does not go on has said."""
    process.kill()
    return process.communicate()[1]


@pytest.mark.timeout(600)
def test_a_node_that_does_not_come_back(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """The run goes on with the other one, where it may, and its numbers are those of two workers."""
    net = ("--arch", "a-cnn1", "--epochs", 8, "--optimizer", "sgd", "--lr", "0.02", "--min-workers", 1)
    for name in ("straight", "lost"):
        (tmp_path / name).mkdir()
    code, _, err = run(tmp_path / "straight", *command(nodes, shards, *net))
    assert code == 0, err
    process = start(tmp_path / "lost", *command(nodes, shards, *net))
    wait_for(process, "epoch 2/")
    nodes.remove_node(sorted(nodes.worker_nodes, key=id)[0], allow_graceful=False)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    rows = [
        [json.loads(line) for line in (tmp_path / name / "runs" / "a-cnn1" / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "lost")
    ]
    assert len(rows[0]) == len(rows[1]) == 8
    for one, two in zip(*rows, strict=True):
        for metric in ("val/loss", "val/f1_micro", "val/map"):
            assert two[metric] == pytest.approx(one[metric], rel=0.01), metric
    last = [
        torch.load(tmp_path / name / "runs" / "a-cnn1" / "checkpoints" / "last.pt") for name in ("straight", "lost")
    ]
    for name, tensor in last[0]["net"].items():
        torch.testing.assert_close(last[1]["net"][name], tensor, rtol=1e-2, atol=1e-4)
