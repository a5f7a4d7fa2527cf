from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlic.config import PredictConfig, TuneConfig
from mlic.data import predictions
from mlic.space import Dimension
from mlic.stages import checkpoints
from mlic.stages.predict import predict
from mlic.stages.tune import tune
from tests.test_pipeline import FIT

pytestmark = pytest.mark.ray


def test_the_best_trials_are_averaged(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = {"lr": Dimension(grid=(1e-3, 2e-3)), "arch": Dimension(grid=("b-final", "small"))}
    config = TuneConfig(
        shards=shards, runs=tmp_path, num_samples=4, ensemble=2, keep=1, color="rgb", space=space, scheduler="none",
        calibration="none", **(FIT | {"epochs": 2}),
    )  # fmt: skip
    report = tune(config)
    made = report.ensemble
    assert made is not None
    assert made.trials == tuple(trial.number for trial in report.trials[:2])
    low, high = made.lead[1:]
    assert low <= made.lead[0] <= high
    assert made.lead[0] == pytest.approx(
        made.measurement.values["f1_micro"] - report.measurement.values["f1_micro"], abs=1e-9
    )
    assert f"average of trials {made.trials[0]}, {made.trials[1]}: f1_micro" in report.text()

    out = tmp_path / "val.parquet"
    predict(PredictConfig(model=tmp_path / "tune" / "ensemble", images=shards, split="val", out=out, values="both"))
    found = predictions.read(out)
    bests = [checkpoints.read_best(tmp_path / "tune" / "trials" / f"{number:05d}") for number in made.trials]
    mean = np.mean([best.scores for best in bests], axis=0)
    assert found.scores == pytest.approx(mean, abs=1e-5)

    assert tune(config) == report
    more = tune(config.model_copy(update={"ensemble": 3}))
    assert more.ensemble is not None
    assert (more.trials, more.ensemble.trials) == (report.trials, made.trials)
    assert "an ensemble of 3 was asked for; 2 trials have their checkpoints" in caplog.text
