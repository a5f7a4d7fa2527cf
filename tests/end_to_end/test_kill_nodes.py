"""Training on a cluster of several nodes, with its driver, its workers and whole nodes killed at random moments."""

from __future__ import annotations

import contextlib
import json
import logging
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

import pandas as pd
import pytest
import torch

from mlic.cluster import auth
from mlic.config.data import Preprocessing
from mlic.data import toy
from mlic.model import bundle, zoo
from tests.end_to_end.test_kill import KILLS, children, run, same_result, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

logger = logging.getLogger(__name__)  # shown by pytest of a test that failed

KINDS = ("driver", "worker", "node")
PATIENCE_S = 240


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU each, all on this machine; lost nodes are missed within seconds."""
    auth.use_own_token()  # before Ray is loaded, which settles this once for all tests of a process
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="mlic-", dir="/tmp"))
    (folder / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    watch = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 2000,
        "health_check_failure_threshold": 3,
    }
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
    return ["train", shards, "--workers", "2", *common(nodes), *more]


def common(nodes: Any) -> list[object]:
    return [
        "--address",
        nodes.address,
        "--image-size",
        "64",
        "--batch-size",
        "32",
        "--no-doctor",
        "--set",
        "max_failures=100",
        "--checkpoint-minutes",
        "0.001",
    ]


def train_workers(nodes: Any) -> list[int]:
    """The processes that train a model or a trial, or predict, on the nodes of this cluster."""
    return [pid for node in nodes.worker_nodes for pid in workers_of(node)]


def workers_of(node: Any) -> list[int]:
    """Those on one node."""
    names = (b"RayTrainWorker", b"ResourceTrainable", b"ray::Worker", b"Predictor")
    found = []
    for pid in children(node.all_processes["raylet"][0].process.pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(name in line for name in names):
                found.append(pid)
    return found


def save_model(folder: Path) -> None:
    """A bundle with weights by chance."""
    torch.manual_seed(0)
    prep = Preprocessing(image_size=64, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3, resize="squash")
    net = zoo.build("b-final", len(toy.LABELS), 3, 64, {})
    spec = bundle.Bundle(
        "b-final",
        {},
        toy.LABELS,
        prep,
        "sigmoid",
        (0.5,) * len(toy.LABELS),
        {"policy": "fixed=0.5"},
        {"method": "none", "scale": [], "shift": [], "knots": []},
        {},
    )
    bundle.save(spec, net.state_dict(), folder)


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
    folders = killed_at_random(nodes, command(nodes, shards, *epochs), tmp_path)
    for folder in folders[1:]:
        same_result(folders[0] / "runs" / "b-final", folder / "runs" / "b-final")


@pytest.mark.timeout(300 + 100 * KILLS)
def test_a_search_killed_at_random_points(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """A trial on each of two nodes: the same trials are stopped, and all values are those of the undisturbed search."""
    search = ["tune", shards, *common(nodes), "--num-samples", 6, "--epochs", 4, "--lr", "0.001", "--loss", "bce"]
    folders = killed_at_random(nodes, search, tmp_path)
    tables = [pd.read_parquet(folder / "runs" / "tune" / "trials.parquet") for folder in folders]
    shown = ["number", "status", "epochs_trained", "value", "best_epoch", "error"]
    assert set(tables[0]["status"]) == {"finished", "pruned"}
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table[shown], tables[0][shown])
    models = [json.loads((folder / "runs" / "tune" / "model" / "model.json").read_text()) for folder in folders]
    assert len({model["weights_sha256"] for model in models}) == 1


@pytest.mark.timeout(900)
def test_a_search_is_the_same_on_one_two_and_three_nodes(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """With three nodes, the driver is killed at five points: when so many epochs are on the disk."""
    search = ["tune", shards, *common(nodes), "--num-samples", 8, "--epochs", 4, "--lr", "0.001", "--loss", "bce"]
    nodes.remove_node(sorted(nodes.worker_nodes, key=id)[0])
    tables = list[pd.DataFrame]()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        code, _, err = run(tmp_path / name, *search)
        assert code == 0, err
        tables.append(trials_in(tmp_path / name))
        nodes.add_node(num_cpus=1)
    (tmp_path / "three").mkdir()
    total = int(tables[0]["epochs_trained"].sum())
    for epochs in (round(total * share) for share in (0.1, 0.3, 0.5, 0.65, 0.8)):
        with told(tmp_path / "three", *search) as process:
            while process.poll() is None and epochs_in(tmp_path / "three") < epochs:
                time.sleep(0.05)
            assert process.poll() is None, f"ended before epoch {epochs}"
            process.kill()
            process.wait()
    code, _, err = run(tmp_path / "three", *search)
    assert code == 0, err
    tables.append(trials_in(tmp_path / "three"))
    assert set(tables[0]["status"]) == {"finished", "pruned"}
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def trials_in(folder: Path) -> pd.DataFrame:
    """The table of trials of a search, without where its shards and runs are."""
    return pd.read_parquet(folder / "runs" / "tune" / "trials.parquet").drop(columns=["runs"], errors="ignore")


def epochs_in(folder: Path) -> int:
    """How many epochs of all trials of a search are on the disk."""
    return sum(path.read_text().count("\n") for path in folder.glob("runs/tune/trials/*/metrics.jsonl"))


@pytest.mark.timeout(300 + 100 * KILLS)
def test_a_prediction_killed_at_random_points(nodes: Any, corpus: Path, tmp_path: Path) -> None:
    """An actor on each of two nodes; the file is that of the undisturbed prediction, byte for byte."""
    save_model(tmp_path / "model")
    what = [
        "batch-predict",
        tmp_path / "model",
        corpus / "images",
        "--out",
        "p.csv",
        "--address",
        nodes.address,
        "--batch-size",
        4,
        "--set",
        "chunk=4",
        "--values",
        "scores",
    ]
    folders = killed_at_random(nodes, what, tmp_path)
    written = [(folder / "p.csv").read_bytes() for folder in folders]
    assert written[0].count(b"\n") == 241
    assert all(other == written[0] for other in written[1:])


def killed_at_random(nodes: Any, what: list[object], tmp_path: Path) -> list[Path]:
    """Run a command undisturbed, then with its driver, its workers and nodes killed; returns the folders it ran in.

    A kill comes within the time of a whole run, and that is the shortest one seen: after a first run that was slow,
    because of what else the machine did, most kills would come too late for all the next ones.
    """
    (tmp_path / "straight").mkdir()
    started = time.monotonic()
    code, _, err = run(tmp_path / "straight", *what)
    assert code == 0, err
    took = time.monotonic() - started
    rng, kills, folders = random.Random(11), list[str](), [tmp_path / "straight"]
    while len(kills) < KILLS or len(folders) == 1:
        folder, before, begun = tmp_path / f"turn{len(folders)}", len(kills), time.monotonic()
        goes_on = folder.exists()
        folder.mkdir(exist_ok=True)
        logger.warning("%.1f s: %s begins; a run takes %.1f s", begun - started, folder.name, took)
        with told(folder, *what) as process:
            while process.poll() is None and len(kills) < KILLS:
                victim = KINDS[len(kills) % len(KINDS)]
                if await_victim(victim, nodes, process, rng.uniform(0, took)):
                    kill(victim, nodes, process.pid, rng)
                    kills.append(victim)
                    logger.warning("%.1f s: %s killed", time.monotonic() - started, victim)
            process.wait(timeout=300)
            err = (folder / "stderr").read_text()
            refused = process.returncode == 4 and "2 workers need 2 CPUs; this cluster has 1." in err
            assert process.returncode in (0, -signal.SIGKILL) or (refused and kills[-1] == "node")
        if process.returncode == 0:
            folders.append(folder)
            if not goes_on and len(kills) == before:
                took = min(took, time.monotonic() - begun)
    assert set(kills) == set(KINDS)
    return folders


@contextlib.contextmanager
def told(folder: Path, *what: object) -> Iterator[subprocess.Popen[str]]:
    """A process that writes into files, so that it never waits for a reader; what it said is shown on a failure."""
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = start(folder, *what, stdout=out, stderr=err)
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        logger.warning("%s", (folder / "stderr").read_text())
        raise


def await_victim(victim: str, nodes: Any, process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait for some seconds, and until there is one to kill; False when the process ends before."""
    begun = time.monotonic()
    while process.poll() is None:
        waited = time.monotonic() - begun
        if waited >= seconds and (victim != "worker" or train_workers(nodes)):
            return True
        assert waited < PATIENCE_S, f"no {victim}"
        time.sleep(0.1)
    return False


_SLOW_START = """
import socket, sys, time
if any("default_worker" in word for word in sys.orig_argv):
    time.sleep(3)
    socket.gethostname = lambda: "slow"
"""


@pytest.mark.timeout(600)
def test_a_node_that_starts_processes_slowly_comes_to_work(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """The other one ends many pieces of work before it is up, and leaves it the one that it is being started for."""
    (tmp_path / "sitecustomize.py").write_text(_SLOW_START)
    nodes.remove_node(sorted(nodes.worker_nodes, key=id)[0])
    nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    search = ("--num-samples", 24, "--epochs", 9, "--lr", "0.001", "--arch", "b-final", "--set", "color=rgb")
    code, _, err = run(tmp_path, "tune", shards, *common(nodes), *search)
    assert code == 0, err
    logs = [path.read_text() for path in tmp_path.glob("runs/tune/trials/*/log.txt")]
    assert len(logs) == 24
    assert 1 <= sum("on slow, rank 0" in log for log in logs) < 24


@pytest.mark.timeout(600)
def test_a_node_that_does_not_come_back(nodes: Any, shards: Path, tmp_path: Path) -> None:
    """The run continues with the other one, where it may, and its numbers are those of two workers."""
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


def test_a_prediction_loses_one_of_three_nodes_for_good(nodes: Any, corpus: Path, tmp_path: Path) -> None:
    """No node takes its place: the actors on the other two do its parts, and those of the actor that finds no room."""
    lost = nodes.add_node(num_cpus=1)
    save_model(tmp_path / "model")
    what = [
        "batch-predict",
        tmp_path / "model",
        corpus / "images",
        "--address",
        nodes.address,
        "--batch-size",
        4,
        "--set",
        "chunk=4",
        "--out",
    ]
    process = start(tmp_path, *what, "p.csv")
    parts, deadline = tmp_path / "p.csv.parts", time.monotonic() + PATIENCE_S
    while len(list(parts.glob("part-*.parquet"))) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    nodes.remove_node(lost, allow_graceful=False)
    assert len(list(parts.glob("part-*.parquet"))) < 50
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    code, _, err = run(tmp_path, *what, "q.csv")
    assert code == 0, err
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()
    assert (tmp_path / "p.csv").read_text().count("\n") == 241
