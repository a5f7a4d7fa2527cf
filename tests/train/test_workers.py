from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import ray.train

from mlic.cluster.resources import Share
from mlic.config.train import TrainConfig
from mlic.train.checkpoints import read_history
from mlic.train.workers import group
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
