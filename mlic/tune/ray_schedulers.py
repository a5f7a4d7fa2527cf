"""HyperBand, median stopping and population-based training, by Ray Tune's own schedulers.

What they decide depends on which trials report first, and Ray Tune keeps no state of a scheduler. So two searches may
stop different trials. If a search is started again, it continues with its open trials. Trials that ended stay ended,
and the scheduler starts without any state.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle
from ray import tune as ray_tune
from ray.exceptions import RayTaskError
from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler

from mlic.config.space import Dimension, Value, rounded
from mlic.config.tune import TuneConfig
from mlic.tune import trial_worker
from mlic.tune.progress import Progress

logger = logging.getLogger(__name__)

_MEDIAN_OF = 3  # a median needs at least this many trials
# Copies of a trial that others may take over, besides those that a trial waits to take over. Ray Tune's scheduler names
# one of the last two: it copies a good trial when it decides, and again when it pauses it.
_COPIES_KEPT = 2


def scheduler(config: TuneConfig, metric: str) -> TrialScheduler:
    """Ray Tune's scheduler of a search: `hyperband`, `median` or `pbt`."""
    common = {"time_attr": "epoch", "metric": metric, "mode": "max"}
    if config.scheduler == "hyperband":
        return HyperBandScheduler(max_t=config.epochs, reduction_factor=config.reduction_factor, **common)
    if config.scheduler == "median":
        return MedianStoppingRule(grace_period=config.grace_epochs, min_samples_required=_MEDIAN_OF, **common)
    rng = np.random.default_rng([config.seed, 29])
    return PopulationBasedTraining(
        perturbation_interval=config.grace_epochs,
        quantile_fraction=1 / config.reduction_factor,
        hyperparam_mutations={"settings": {name: _mutation(config.space[name], rng) for name in config.movable}},
        custom_explore_fn=lambda explored: explored | {"settings": _within_bounds(config, explored["settings"])},
        log_config=False,
        **common,
    )


def _mutation(dimension: Dimension, rng: np.random.Generator) -> list[Value] | Callable[[], Value]:
    """How Ray Tune draws a new value of a setting: from a list, in which it moves by steps, or by a function."""
    if dimension.listed is not None:
        return list(dimension.listed)
    return lambda: dimension.draw(rng)


def _within_bounds(config: TuneConfig, settings: dict[str, Value]) -> dict[str, Value]:
    """Explored settings, moved back into the intervals of the search space, numbers with four significant digits."""
    bounded = dict(settings)
    for name, value in settings.items():
        dimension = config.space[name]
        if dimension.listed is None and isinstance(value, int | float):
            low, high = dimension.bounds
            inside = min(max(value, low), high)
            bounded[name] = round(inside) if dimension.whole else rounded(inside)
    return bounded


def parameters(progress: Progress) -> dict[str, Any]:
    """The parameter space of a search that knows all its trials from the start: one sample for each open trial."""
    numbers = [number for number in range(progress.trials.count) if not progress.search.status(number)]
    configs = {number: progress.begin(number) for number in numbers}
    names = [name for name in configs[numbers[0]] if name != "number"]

    def of(name: str) -> Any:
        return ray_tune.sample_from(lambda spec: configs[spec.config["number"]][name])

    return {"number": ray_tune.grid_search(numbers), **{name: of(name) for name in names}}


def why_lost(trial: Trial) -> str:
    """Why a trial has lost its worker: its process died, or it raised the error that is named."""
    path = trial.pickled_error_file  # the last error
    if path is None or not Path(path).is_file():
        return "its process died"
    try:
        error = cloudpickle.loads(Path(path).read_bytes())
    except Exception as unreadable:  # the class of the error may be known to the worker alone
        return trial_worker.reason(unreadable)
    return trial_worker.reason(error.cause) if isinstance(error, RayTaskError) else "its process died"


def warn_of_loss(number: int, trial: Trial) -> None:
    """Tell that a trial has lost its worker. Silence would hide an error that only costs time."""
    logger.warning("trial %d lost its worker and continues on another one: %s", number, why_lost(trial))


class Recorder(Callback):  # type: ignore[misc]
    """Keeps the record of a search whose trials are stopped by a scheduler of Ray Tune."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._copies: dict[Trial, list[str]] = {}  # folders of the copies that a population's trials have left

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:  # noqa: ARG002
        """Note which trials have a worker, and delete the copies that no trial needs any more.

        Ray Tune itself would keep the last few, and delete one that a slow worker has yet to take over.
        """
        self._progress.running = {int(str(trial)) for trial in trials if trial.status == Trial.RUNNING}
        old = [copy for copies in self._copies.values() for copy in copies[:-_COPIES_KEPT]]
        if old:
            needed = {trial.checkpoint.path for trial in trials if trial.checkpoint and not trial.is_finished()}
            for copy in set(old) - needed:
                shutil.rmtree(copy, ignore_errors=True)
            for copies in self._copies.values():
                copies[:-_COPIES_KEPT] = [copy for copy in copies[:-_COPIES_KEPT] if copy in needed]

    def on_checkpoint(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        checkpoint: Checkpoint,
        **_: Any,
    ) -> None:
        """Note the copy that a trial has left."""
        self._copies.setdefault(trial, []).append(checkpoint.path)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Store the values of a trial."""
        number = int(str(trial))
        self._progress.take(number, result)
        if not self._progress.search.status(number):
            self._progress.search.tell(number, result["values"], "failed" if result["failed"] else None)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:  # noqa: ARG002
        """Store how a trial ended: by itself, or stopped by the scheduler."""
        number, progress, result = int(str(trial)), self._progress, trial.last_result
        if not progress.search.status(number):
            if not result.get("ended"):  # a trial that is stopped before its first report has no result
                progress.trials.note_pruned(number)
                progress.search.stop(number)
            elif not progress.is_over:
                progress.search.tell(number, result["values"], "finished")
        progress.end(number, result.get("failed"))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:  # noqa: ARG002
        """Tell that a trial has lost its worker, and gets another one."""
        warn_of_loss(int(str(trial)), trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:  # noqa: ARG002
        """Store that a trial has lost too many workers, or that its worker failed outside of the training."""
        number = int(str(trial))
        self._progress.search.tell(number, self._progress.search.values(number), "failed")
        self._progress.end(number, f"its worker was lost again and again: {why_lost(trial)}")


class EndOfSearch(Stopper):  # type: ignore[misc]
    """Stops all trials when the time is up or the run was asked to stop; they stay open for the next attempt."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        return self._progress.is_closing
