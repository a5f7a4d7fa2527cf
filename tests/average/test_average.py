from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlic.average.average import average
from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.evaluate import EvaluateConfig, ThresholdConfig
from mlic.config.predict import AverageConfig, PredictConfig
from mlic.config.train import TrainConfig
from mlic.errors import ConfigError, DataError
from mlic.evaluate.evaluate import evaluate
from mlic.model import bundle
from mlic.threshold.threshold import threshold
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks of other kinds, and one that sees smaller images."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for name, more in (("one", {}), ("two", {"arch": "small", "loss": "asymmetric"}), ("three", {"image_size": 48})):
        given = {**FIT, **NET, "epochs": 2, "color": "rgb", "calibration": "none", **more}
        made.append(train(TrainConfig(shards=shards, runs=folder, workers=1, name=name, **given)).run)
    return made


def test_the_average_of_two_runs(runs: list[Path], shards: Path, tmp_path: Path) -> None:
    config = AverageConfig(runs=tuple(runs[:2]), out=tmp_path / "both", calibration="none")
    report = average(config)
    assert set(report.alone) == {"one", "two"}
    assert report.best == max(report.alone, key=lambda name: report.alone[name])
    value = report.measurement.values["f1_micro"]
    assert report.lead[0] == pytest.approx(value - report.alone[report.best])
    assert report.lead[1] <= report.lead[0] <= report.lead[2]
    assert average(config) == report  # as it was reported
    scores = []
    for name in (*runs[:2], tmp_path / "both"):
        out = tmp_path / f"{name.name}.parquet"
        predict(PredictConfig(model=name, images=shards, split="test", out=out, values="scores"))
        found = prediction_files.read(out).scores
        assert found is not None
        scores.append(found)
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-5)
    threshold(ThresholdConfig(model=tmp_path / "both", policy="global"))
    assert len(set(bundle.read(tmp_path / "both").thresholds)) == 1
    evaluate(EvaluateConfig(predictions=tmp_path / "both", labels=shards))


def test_what_cannot_be_averaged(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one and three have other images"):
        average(AverageConfig(runs=(runs[0], runs[2]), out=tmp_path / "a"))
    with pytest.raises(DataError, match="one is the name of two of the runs"):
        average(AverageConfig(runs=(runs[0], runs[0]), out=tmp_path / "b"))
    both = average(AverageConfig(runs=tuple(runs[:2]), out=tmp_path / "c")).model
    with pytest.raises(DataError, match="is an average itself"):
        average(AverageConfig(runs=(both, runs[0]), out=tmp_path / "d"))
    with pytest.raises(ConfigError, match="made from different models"):
        average(AverageConfig(runs=(runs[1], runs[2]), out=tmp_path / "c"))
