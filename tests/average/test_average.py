from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mlic.average import soup
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
from mlic.train import checkpoints
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


@pytest.fixture(scope="module")
def cousins(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A network, two that went on from it with other seeds, and one that has unlearnt everything."""
    folder = tmp_path_factory.mktemp("cousins")
    given = {**FIT, **NET, "color": "rgb", "calibration": "none"}
    start = train(TrainConfig(shards=shards, runs=folder, workers=1, name="start", **given | {"epochs": 3})).run
    made = [start]
    for name, more in (("a", {"seed": 5}), ("b", {"seed": 6}), ("bad", {"lr": 0.5, "keep_epoch": "last"})):
        made.append(
            train(
                TrainConfig(
                    shards=shards, runs=folder, workers=1, name=name, weights=str(start), **given | {"epochs": 1} | more
                )
            ).run
        )
    return made


def test_a_soup_is_one_network_and_no_worse_than_its_best(cousins: list[Path], shards: Path, tmp_path: Path) -> None:
    config = AverageConfig(runs=tuple(cousins), out=tmp_path / "soup", weights=True, calibration="none")
    report = average(config)
    assert report.weights_of is not None
    assert len(report.weights_of) > 1
    assert "bad" not in report.weights_of
    assert report.weights_of[0] == max(report.alone, key=lambda name: report.alone[name])
    assert report.measurement.values["f1_micro"] >= max(report.alone.values()) - 1e-9
    assert average(config) == report
    model, net = bundle.load_model(tmp_path / "soup")
    assert model.members == ()
    assert model.arch == bundle.read(cousins[0]).arch
    states = [bundle.load_model(next(run for run in cousins if run.name == name))[1] for name in report.weights_of]
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(state.state_dict()[name] for state in states) / len(states)
            np.testing.assert_allclose(tensor.numpy(), expected.numpy(), rtol=1e-5, atol=1e-7)
    predict(PredictConfig(model=tmp_path / "soup", images=shards, split="val", out=tmp_path / "v.parquet"))
    best = checkpoints.read_best(tmp_path / "soup")
    found = prediction_files.read(tmp_path / "v.parquet")
    assert found.decisions.shape == best.targets.shape


def test_counts_have_no_mean() -> None:
    states = [{"w": torch.tensor([value]), "n": torch.tensor(7)} for value in (1.0, 3.0)]
    mixed = soup.mean_of(states)
    assert mixed["w"].item() == 2
    assert mixed["n"].item() == 7


def test_other_architectures_have_no_mean(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the weights of one and two have no mean: their architecture") as caught:
        average(AverageConfig(runs=tuple(runs[:2]), out=tmp_path / "a", weights=True))
    assert "leave --weights out" in str(caught.value.hint)
