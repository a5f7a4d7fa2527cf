"""The scheduler in a plain script of Ray Tune."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.experiment import Trial

from mlic.tune import OrderedASHA

EPOCHS, TRIALS = 9, 10


def score(number: int, epoch: int) -> float:
    """What a trial reaches, with noise, so that the ranks of trials change from rung to rung."""
    return float(np.random.default_rng([number, epoch]).normal() / epoch + np.sin(number))


def train(config: dict[str, Any]) -> None:
    """Trains for some milliseconds, the later trials faster than the earlier ones, and resumes where it was."""
    checkpoint = tune.get_checkpoint()
    begun = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            begun = int(json.loads((Path(folder) / "epoch.json").read_text()))
    for epoch in range(begun + 1, EPOCHS + 1):
        time.sleep(0.02 * (TRIALS - config["number"]))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "epoch.json").write_text(str(epoch))
            metrics = {"score": score(config["number"], epoch), "epoch": epoch}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def search(folder: Path, cpus: float) -> dict[int, int]:
    """The epochs of each trial, when trials need so many of two CPUs."""
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": cpus}),
        param_space={"number": tune.grid_search(list(range(TRIALS)))},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            reuse_actors=True,
            scheduler=OrderedASHA(time_attr="epoch", max_t=EPOCHS, reduction_factor=3),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0
    return {result.config["number"]: result.metrics["epoch"] for result in results}


def expected() -> dict[int, int]:
    """The same by hand: at epochs 1 and 3, the trials before a trial at that epoch decide."""
    epochs: dict[int, int] = {}
    for number in range(TRIALS):
        epochs[number] = EPOCHS
        for rung in (1, 3):
            before = [score(other, rung) for other in range(number) if epochs[other] >= rung]
            if before and score(number, rung) < np.quantile(before, 2 / 3):
                epochs[number] = rung
                break
    return epochs


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("cpus", [2, 0.5], ids=["one at a time", "four at a time"])
def test_the_same_trials_stop_however_many_run_at_once(ray_cluster: None, tmp_path: Path, cpus: float) -> None:
    stopped = search(tmp_path, cpus)
    assert stopped == expected()
    assert 1 < sum(epochs < EPOCHS for epochs in stopped.values()) < TRIALS - 1


def test_a_trial_that_lost_its_worker_has_not_failed() -> None:
    scheduler = OrderedASHA(metric="score", mode="max")
    trials = [SimpleNamespace(trial_id=name, status=Trial.RUNNING) for name in "ab"]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    trials[0].status = Trial.ERROR  # what Ray Tune does before it starts a trial again
    scheduler.on_trial_error(None, trials[0])
    scheduler.on_trial_error(None, trials[1])
    assert [scheduler._search.status(number) for number in (0, 1)] == ["", "failed"]
    scheduler.on_trial_add(None, trials[0])
    result = {"training_iteration": 1, "score": 0.5}
    assert scheduler.on_trial_result(None, trials[0], result) == OrderedASHA.CONTINUE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grace_period": 0}, "grace_period is 0"),
        ({"max_t": 3, "grace_period": 4}, "grace_period is 4, which is not from 1 to max_t, 3"),
        ({"reduction_factor": 1}, "reduction_factor should be 2 or more, not 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrderedASHA(**settings)


def test_lower_may_be_better_and_one_metric_is_enough() -> None:
    scheduler = OrderedASHA(metric="loss", mode="min")
    assert not scheduler.set_search_properties("other", None)
    assert not scheduler.set_search_properties(None, "max")
    with pytest.raises(ValueError, match="mode should be min or max, not None"):
        OrderedASHA().set_search_properties("loss", None)
