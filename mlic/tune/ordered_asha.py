"""ASHA for Ray Tune that stops the same trials on any number of workers.

Ray Tune's own ASHA compares a trial with whatever other trials have reported by then, so which trials are stopped
depends on which of them finish first. Here a trial is compared only with the trials that were added before it. If it
reaches a rung before they do, it is paused. As soon as they have reached the rung, it is resumed or stopped.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from mlic.cluster import ray_private
from mlic.tune.early_stopping import Rule, Search

_MANY = 2**31  # trials: more than any search has, since Ray Tune does not say how many will come


class OrderedASHA(TrialScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (Li et al., arXiv:1810.05934, its stopping variant), decided in trial order.

    A trial reports `time_attr` 1, 2, 3, ... with the `metric`; it needs checkpoints, because it may be paused. At
    `grace_period`, `grace_period * reduction_factor`, ... it continues if its metric is not below the
    (1 - 1/reduction_factor) quantile of the earlier trials' metrics there. At `max_t` it ends. A metric that is not a
    number counts as the worst.

        tuner = tune.Tuner(
            train,  # calls tune.report({"score": ...}, checkpoint=...) once per epoch
            param_space={"lr": tune.loguniform(1e-4, 1e-1)},
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=50, scheduler=OrderedASHA(max_t=27, reduction_factor=3)
            ),
        )

    Raises ValueError for an impossible setting, and for a trial that leaves out a value of `time_attr`.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        max_t: int = 100,
        grace_period: int = 1,
        reduction_factor: int = 4,
    ) -> None:
        super().__init__()
        if not 1 <= grace_period <= max_t:
            raise ValueError(f"grace_period is {grace_period}, which is not from 1 to max_t, {max_t}")
        if reduction_factor < 2:
            raise ValueError(f"reduction_factor should be 2 or more, not {reduction_factor}")
        self._time_attr, self._metric, self._mode = time_attr, metric, mode
        self._search = Search(Rule("asha", max_t, grace_period, reduction_factor), _MANY)
        self._numbers: dict[str, int] = {}  # by the id of a trial
        self._new: dict[int, Trial] = {}  # trials that have not been chosen to run, by number
        self._paused: dict[int, Trial] = {}  # trials that wait for earlier ones, or for room

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take metric and mode of `tune.TuneConfig`; False if the scheduler has its own already."""
        if (self._mode and mode) or not super().set_search_properties(metric, mode, **spec):
            return False
        self._mode = mode or self._mode
        if self._mode not in ("min", "max"):
            raise ValueError(f"mode should be min or max, not {self._mode}")
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        """Trials are numbered in the order in which they are added."""
        number = self._numbers.setdefault(trial.trial_id, len(self._numbers))
        self._new[number] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue, pause or stop a trial that has reported."""
        number = self._number(trial)
        self._paused.pop(number, None)
        self._search.tell(number, self._values(number, result))
        action: str = self.STOP
        if not self._search.status(number):
            verdict = self._search.verdict(number)
            if verdict == "go":
                action = self.CONTINUE
            elif verdict == "stop":
                self._search.stop(number)
            else:
                self._paused[number] = trial
                action = self._pause(tune_controller, trial)
        self._stop_decided(tune_controller)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:  # noqa: ARG002
        self._end(tune_controller, trial, "finished")

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Note that a trial has failed, unless Ray Tune starts it again."""
        if not self._is_recovering(trial):
            self._end(tune_controller, trial, "failed")

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._end(tune_controller, trial, "failed")

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:  # noqa: ARG002
        """The first trial by number that is new, or paused and free to continue."""
        for number in [number for number, trial in self._new.items() if trial.status != Trial.PENDING]:
            del self._new[number]
        ready = [
            (number, trial)
            for number, trial in (
                (number, self._paused[number]) for number in self._paused.keys() - self._search.waiting
            )
            if trial.status == Trial.PAUSED and self._search.verdict(number) == "go"
        ]
        return min([*ready, *list(self._new.items())[:1]], default=(0, None), key=lambda item: item[0])[1]

    def debug_string(self) -> str:
        rungs = ", ".join(f"{epoch}: {count}" for epoch, count in self._search.rungs().items())
        return f"OrderedASHA: trials by rung {{{rungs}}}, {len(self._paused)} paused"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Ray Tune does not keep the state of schedulers."""

    def restore(self, checkpoint_path: str) -> None:
        """As `save`."""

    def _number(self, trial: Trial) -> int:
        return self._numbers[trial.trial_id]

    def _is_recovering(self, trial: Trial) -> bool:
        """Whether Ray Tune restarts a trial after an error: then its status is ERROR before Ray Tune reports it."""
        return bool(trial.status == Trial.ERROR)

    def _pause(self, tune_controller: Any, trial: Trial) -> str:  # noqa: ARG002
        """The answer that makes Ray Tune pause a trial."""
        return str(self.PAUSE)

    def _values(self, number: int, result: dict[str, Any]) -> list[float]:
        """The values of all epochs so far; an epoch that is reported again, after a failure, replaces what it was."""
        values, epoch = self._search.values(number), int(result[self._time_attr])
        if not 1 <= epoch <= len(values) + 1:
            raise ValueError(f"trial {number} reports {self._time_attr} {epoch} after {len(values)}")
        value = float(result[str(self._metric)])
        return [*values[: epoch - 1], value if self._mode == "max" else -value]

    def _end(self, tune_controller: Any, trial: Trial, how: str) -> None:
        number = self._number(trial)
        self._paused.pop(number, None)
        if not self._search.status(number):
            self._search.tell(number, self._search.values(number), how)
            self._stop_decided(tune_controller)

    def _stop_decided(self, tune_controller: Any) -> None:
        """Stop the paused trials that have turned out to be too weak."""
        for number in sorted(self._paused.keys() - self._search.waiting):
            trial = self._paused.get(number)  # stopping one may have stopped others
            if trial is None or not (trial.status == Trial.PAUSED or trial.is_saving):
                continue
            if self._search.status(number) or self._search.verdict(number) == "stop":
                del self._paused[number]
                self._search.stop(number)
                ray_private.stop_trial(tune_controller, trial)
