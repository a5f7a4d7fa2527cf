from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.exceptions import RayActorError

from mlic.cluster.resources import Share
from mlic.config.train import TrainConfig
from mlic.errors import RunError
from mlic.train import workers
from mlic.train.checkpoints import read_history
from mlic.train.workers import Worker, actors, group, raise_failure, trains_here
from tests.train.test_training_loop import settings, without_times


class Listener(ray.train.UserCallback):  # type: ignore[misc]
    """Writes down what Ray Train's controller is told of each epoch, as trackers of experiments do."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, float]], checkpoint: Any) -> None:  # noqa: ARG002
        with self.file.open("a") as lines:
            lines.write(json.dumps(metrics) + "\n")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.smoke
def test_a_group_of_workers_reports_every_epoch_to_ray_train(shards: Path, ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    where = {
        "folder": str(tmp_path),
        "owner": str(tmp_path),
        "attempt": 1,
        "dtype": "fp32",
        "keep_scores": False,
    }
    trainer = group(settings(shards, epochs=2), where, Share(2, 1, 0), embedded=True, name="attempt-1-0")
    trainer.run_config.callbacks = [Listener(tmp_path / "heard.jsonl")]
    trainer.fit()
    heard = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    history = without_times(read_history(tmp_path))
    assert len(history) == 2
    assert [without_times(of_ranks) for of_ranks in heard] == [[row, row] for row in history]


@pytest.mark.parametrize("gpus", [0, 1])
def test_ray_train_looks_for_gpus_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """The detector observes and stops nothing, which is its default."""
    detector = "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"
    monkeypatch.setenv(detector, "")
    monkeypatch.delenv(detector)
    monkeypatch.delenv("RAY_TRAIN_NCCL_RAS_ACTION", raising=False)
    where = {"folder": str(tmp_path), "owner": str(tmp_path), "attempt": 1, "dtype": "fp32", "keep_scores": False}
    group(TrainConfig(shards=tmp_path), where, Share(2, 1, gpus), embedded=False, name="attempt-1-0")
    assert os.environ.get(detector) == ("1" if gpus else None)


def where(folder: Path) -> dict[str, Any]:
    (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    return {"folder": str(folder), "owner": str(folder), "attempt": 1, "dtype": "fp32", "keep_scores": False}


def test_ray_train_is_used_on_clusters_and_gpus() -> None:
    assert trains_here(embedded=True, share=Share(2, 1, 0))
    assert trains_here(embedded=False, share=Share(1, 1, 0))
    assert not trains_here(embedded=False, share=Share(2, 1, 0))
    assert not trains_here(embedded=True, share=Share(2, 1, 1))


@pytest.mark.ray
@pytest.mark.slow
def test_actors_train_as_a_group_of_ray_train_does(shards: Path, ray_cluster: None, tmp_path: Path) -> None:
    config = settings(shards, epochs=2)
    folders = [tmp_path / name for name in ("actors", "group")]
    for folder in folders:
        folder.mkdir()
    actors(config, where(folders[0]), Share(2, 1, 0))()
    group(config, where(folders[1]), Share(2, 1, 0), embedded=True, name="attempt-1-0").fit()
    histories = [without_times(read_history(folder)) for folder in folders]
    assert len(histories[0]) == 2
    assert histories[0] == histories[1]


class _Failing(Worker):
    """Rank 1 fails or dies; rank 0 waits for it until it hears of it."""

    def fit(self, arguments: dict[str, Any], rank: int, world_size: int, store: str) -> None:  # noqa: ARG002
        if rank == 1 and arguments["until"] == 1:
            raise ValueError("a bad day")
        if rank == 1:
            os._exit(1)
        if arguments["until"] == 2:
            raise RuntimeError("connection closed by peer")
        time.sleep(60)


@pytest.mark.ray
@pytest.mark.slow
def test_a_rank_that_fails_or_dies_ends_its_group(
    shards: Path, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death that a peer hears of first is still a death: the training starts again after it."""
    monkeypatch.setattr(workers, "Worker", _Failing)
    train = actors(settings(shards, epochs=2), where(tmp_path), Share(2, 1, 0), until=1)
    with pytest.raises(workers.GroupError) as failed:
        train()
    with pytest.raises(RunError, match="rank 1: .*a bad day"):
        raise_failure(tmp_path, 1, failed.value)
    for until in (2, 3):
        with pytest.raises(RayActorError):
            actors(settings(shards, epochs=2), where(tmp_path), Share(2, 1, 0), until)()
