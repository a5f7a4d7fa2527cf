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
    assert "Average of trials" in report.page.read_text()
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


def test_a_population_is_the_same_on_any_number_of_workers(shards: Path, tmp_path: Path) -> None:
    """And what came of it can be trained again by one run whose settings change at the same epochs."""
    space = {"lr": Dimension(loguniform=(1e-4, 1e-1)), "weight_decay": Dimension(uniform=(0, 0.2))}
    config = TuneConfig(
        shards=shards, runs=tmp_path, num_samples=5, scheduler="pbt", color="rgb", space=space, arch="a-cnn1",
        reduction_factor=2, precision="fp32", name="one", workers=1,
        **(FIT | {"epochs": 4, "optimizer": "sgd", "schedule": "constant"}),
    )  # fmt: skip
    one = tune(config)
    assert [trial.epochs for trial in one.trials] == [4] * 5
    two = tune(config.model_copy(update={"workers": 2, "name": "two"}))
    assert two.trials == one.trials
    assert tune(config) == one
    trial = next(each for each in one.trials if any(name.startswith("changes.") for name in each.settings))
    plan = config.plan(trial.settings)
    changes = {"lr": plan.lr, "weight_decay": plan.weight_decay, "changes": plan.changes}
    alone = {"space": {"seed": Dimension(choice=(plan.seed,))}, "num_samples": 1, "scheduler": "none", "name": "alone"}
    tune(config.model_copy(update={**alone, **changes}))
    rows = [
        checkpoints.read_history(tmp_path / name) for name in (f"one/trials/{trial.number:05d}", "alone/trials/00000")
    ]
    timed = ("time/images_per_s", "time/data_pct")
    plain = [[{name: value for name, value in row.items() if name not in timed} for row in each] for each in rows]
    assert plain[0] == plain[1]
    assert len({row["lr"] for row in rows[0]}) > 1
