"""Runs are sent to trackers: each epoch once, through kills and servers that are away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlic.config.load import build
from mlic.config.log import LogConfig
from mlic.errors import ConfigError, DataError, PartialError
from mlic.log import contents
from mlic.log.log import log
from mlic.log.tensorboard_files import TensorboardFiles
from tests.golden import ROOT

SERVER = ROOT / ".trackers" / "bin" / "mlflow"  # made by `make trackers`
VALUES = {"f1_micro": 0.5, "ranking_loss": 0.2}
MEASURED = {
    "values": VALUES,
    "intervals": {"f1_micro": [0.4, 0.6]},
    "baselines": {"shuffled": {"f1_micro": 0.3, "ranking_loss": 0.5}, "all": {"f1_micro": 0.1, "ranking_loss": 0.6}},
}


def written(folder: Path, epochs: int = 3, status: str = "finished", kind: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"kind": kind, "status": status, "settings": {"lr": 0.1, "arch": "small", "augment": {"hue": 0.2}}}
    (folder / "run.json").write_text(json.dumps(state | {"versions": {"mlic": "1"}, "host": "h", "inputs": {"a": "f"}}))
    rows = [{"epoch": n, "val/f1_micro": n / 10, "val/f1/a&b": 0.5, "note": "text"} for n in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 9, "val/f1')
    if status == "finished":
        (folder / "report.json").write_text(json.dumps({"measurement": MEASURED}))
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "model.json").write_text("{}")
    return folder


def test_what_a_folder_holds(tmp_path: Path) -> None:
    run = contents.read(written(tmp_path / "x"))
    assert run.params == {"lr": "0.1", "arch": "small", "augment.hue": "0.2"}
    assert run.tags["mlic.version.mlic"] == "1"
    assert run.rows == {n: {"epoch": n, "val/f1_micro": n / 10, "val/f1/a_b": 0.5} for n in (1, 2, 3)}
    assert run.summary == {
        "measured/f1_micro": 0.5,
        "measured/f1_micro/low": 0.4,
        "measured/f1_micro/high": 0.6,
        "measured/f1_micro/baseline": 0.3,
        "measured/ranking_loss": 0.2,
        "measured/ranking_loss/baseline": 0.5,
    }
    assert contents.read(tmp_path / "x").identity == run.identity
    assert ("model.json", "model") in [(path.name, folder) for path, folder in run.files]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run"):
        log(LogConfig(runs=(tmp_path,), to=("tensorboard",)))
    with pytest.raises(DataError, match="was made by mlic pack"):
        contents.read(written(tmp_path / "shards", kind="pack"))
    with pytest.raises(ConfigError, match="tensorbord"):
        build(LogConfig, {"runs": [str(tmp_path)], "to": "tensorbord"})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_has_each_epoch_once_after_a_kill(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", epochs=2, status="running")
    client = TensorboardFiles()
    client.send(contents.read(folder))
    written(folder, epochs=4, status="running")
    sent = (folder / "tensorboard" / "sent.json").read_bytes()
    client.send(contents.read(folder))
    (folder / "tensorboard" / "sent.json").write_bytes(sent)  # as if it had been killed before it noted this
    written(folder, epochs=5)
    for _ in range(2):
        log(LogConfig(runs=(folder,), to=("tensorboard",)))
    found = scalars(folder / "tensorboard")
    assert found["val/f1_micro"] == [(n, n / 10) for n in range(1, 6)]
    assert found["measured/f1_micro"] == [(5, 0.5)]


def test_the_trials_of_a_search_are_folders_below_it(tmp_path: Path) -> None:
    search = written(tmp_path / "tune", epochs=0, kind="tune")
    for number in (0, 1):
        trial = search / "trials" / f"{number:05d}"
        written(trial, epochs=number + 1)
        (trial / "trial.json").write_text(json.dumps({"lr": 0.1 * number}))
    log(LogConfig(runs=(search,), to=("tensorboard",)))
    assert len(scalars(search / "tensorboard" / "00001")["val/f1_micro"]) == 2
    parent = contents.read(search)
    assert [trial.params for trial in contents.trials(parent)] == [{"lr": "0.0"}, {"lr": "0.1"}]


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = written(tmp_path / "x", epochs=2, status="stopped")
    log(LogConfig(runs=(folder,), to=("wandb",)))
    written(folder, epochs=4)
    log(LogConfig(runs=(folder,), to=("wandb",)))
    steps = [step for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for step in history(path)]
    assert steps == [1, 2, 3, 4]
    identity = contents.read(folder).identity
    assert all(identity in path.name for path in folder.glob("wandb/offline-run-*"))


def history(path: Path) -> Iterator[int]:
    """The steps of the history in a file of wandb: records in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, message = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if left < 7 or kind == 0:  # the rest of a block is filled up
            place += left
            continue
        message += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num


# A real server of MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not SERVER.exists():
        pytest.skip("no server of MLflow: make trackers")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [SERVER, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/db.sqlite",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def runs_at(url: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("mlic")
    return client, list(client.search_runs([experiment.experiment_id])) if experiment else []


def steps_of(client: Any, run: Any, metric: str) -> list[int]:
    return [value.step for value in client.get_metric_history(run.info.run_id, metric)]


@pytest.mark.slow
def test_mlflow_gets_everything_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mlic")
    folder = written(tmp_path / "once", epochs=2, status="stopped")
    with pytest.raises(PartialError, match="mlflow did not take once") as caught:
        log(LogConfig(runs=(folder,), to=("mlflow",)))
    assert "MLFLOW_TRACKING_URI" in str(caught.value.hint)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    log(LogConfig(runs=(folder,), to=("mlflow",)))
    written(folder, epochs=4)
    search = written(tmp_path / "search", epochs=0, kind="tune")
    written(search / "trials" / "00000", epochs=2)
    for _ in range(2):
        log(LogConfig(runs=(folder, search), to=("mlflow",)))
    client, runs = runs_at(server)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs) == 3
    run, trial = by_name["once"], by_name["search 00000"]
    assert steps_of(client, run, "val/f1_micro") == [1, 2, 3, 4]
    assert steps_of(client, run, "measured/f1_micro") == [4]
    assert run.data.params["augment.hue"] == "0.2"
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id, "model")} == {"model/model.json"}
    assert trial.info.status == "FINISHED"
    assert trial.data.tags["mlflow.parentRunId"] == by_name["search"].info.run_id


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_that_is_killed_is_one_run(server: str, shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlic", "train", shards, "--runs", tmp_path, "--name", "killed", "--epochs", "12"]
    command += ["--image-size", "64", "--arch", "b-final", "--no-doctor", "--log-to", "mlflow,tensorboard"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "mlic"}

    def started(url: str) -> subprocess.Popen[bytes]:
        words = list(map(str, command))
        return subprocess.Popen(words, env={**environment, "MLFLOW_TRACKING_URI": url}, stderr=subprocess.PIPE)

    for epochs in (2, 6):
        process = started(server)
        while process.poll() is None and contents._rows(tmp_path / "killed" / "metrics.jsonl").keys() < {epochs}:
            time.sleep(0.1)
        time.sleep(1)
        process.kill()
        process.communicate()
    process = started(f"http://127.0.0.1:{free_port()}")  # a server that is away stops nothing
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"mlic log {tmp_path / 'killed'} --to mlflow".encode() in err
    done = subprocess.run(
        [sys.executable, "-m", "mlic", "log", tmp_path / "killed", "--to", "mlflow"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    client, runs = runs_at(server)
    (run,) = [run for run in runs if run.info.run_name == "killed"]
    assert steps_of(client, run, "val/f1_micro") == list(range(1, 13))
    assert run.info.status == "FINISHED"
    assert len(scalars(tmp_path / "killed" / "tensorboard")["val/f1_micro"]) == 12
