"""How Ray Tune asks `mlic tune` which trial runs next, and what to do with a trial that has reported."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from mlic.cluster import ray_private
from mlic.tune.ordered_asha import OrderedASHA
from mlic.tune.progress import Progress
from mlic.tune.ray_schedulers import warn_of_loss, why_lost


class TrialSearcher(Searcher):  # type: ignore[misc]
    """Hands the trials of a search to Ray Tune, in the order of their numbers, when there is room for one more."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """The configuration of the next trial, None if there is none now, FINISHED if there will be no more."""
        progress, search, trials = self._progress, self._progress.search, self._progress.trials
        if progress.is_closing or search.done:
            return Searcher.FINISHED
        if len(progress.running) >= progress.at_once:
            return None
        new = search.next_fresh
        settings = None if new is None else trials.draw(new)
        task = search.ask(progress.running, may_begin=settings is not None)
        if task is None or task.trial in progress.known_to_ray:  # the scheduler resumes those that are paused
            return Searcher.FINISHED if search.done else None
        return progress.begin(task.trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler is told the same."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a search resumes from its trials' folders, never from Ray Tune's state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """The trials' own folders are the record."""

    def restore(self, checkpoint_path: str) -> None:
        """As `save`."""


class SearchScheduler(OrderedASHA):
    """`OrderedASHA` for trials that have numbers and a past, and that report several epochs at once.

    A trial is paused without a checkpoint of Ray Tune's, since its folder has one after every epoch.
    """

    def __init__(self, progress: Progress) -> None:
        config = progress.config
        super().__init__("epoch", progress.metric, "max", config.epochs, config.grace_epochs, config.reduction_factor)
        self._search, self._progress = progress.search, progress
        self._losses: dict[int, int] = {}  # workers that a trial has lost since its last epoch

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Stop a trial that lost too many workers without an epoch in between; Ray Tune starts others again."""
        if self._losses.get(self._number(trial), 0) > self._progress.config.max_failures:
            ray_private.stop_trial(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue, pause or stop a trial that has reported."""
        number = self._number(trial)
        if len(result["values"]) > len(self._search.values(number)):
            self._losses.pop(number, None)
        self._progress.take(number, result)
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Note the end of a trial that was stopped, has failed, or has nothing left to train."""
        number, progress, failed = self._number(trial), self._progress, result["failed"]
        progress.take(number, result)
        if not self._search.status(number):
            is_cut = len(result["values"]) < self._search.rule.epochs and progress.is_over
            self._search.tell(number, result["values"], "failed" if failed else None if is_cut else "finished")
        progress.end(number, failed)
        self._stop_decided(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        """Count that a trial has lost its worker. Ray Tune adds the trial again, because it has no limit itself."""
        number = self._number(trial)
        self._losses[number] = self._losses.get(number, 0) + 1
        if self._losses[number] <= self._progress.config.max_failures:
            warn_of_loss(number, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Note that a trial without a worker was stopped: by its rank, as failed, or to resume in the next attempt."""
        number, failed = self._number(trial), None
        self._paused.pop(number, None)
        if self._losses.get(number, 0) > self._progress.config.max_failures:
            failed = f"its worker was lost again and again: {why_lost(trial)}"
            self._search.tell(number, self._search.values(number), "failed")
        self._progress.end(number, failed)
        self._stop_decided(tune_controller)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The paused trial with the lowest number that may continue, if there is room for one more.

        New trials are left to Ray Tune, which gives them an idle worker or starts one. Suppose that this method named a
        trial that waits for a worker to start. An idle worker would take the trial, and the start would be cancelled.
        Then the node that is the last to start a process would never get work.
        """
        progress = self._progress
        if progress.is_closing:
            for trial in list(self._paused.values()):
                ray_private.stop_trial(tune_controller, trial)
            return None
        if len(progress.running) >= progress.at_once:
            return None
        task = self._search.ask(progress.running, may_begin=False)
        self._stop_decided(tune_controller)
        trial = None if task is None else self._paused.pop(task.trial, None)
        if task is None or trial is None:
            return None
        progress.running.add(task.trial)
        return trial

    def _number(self, trial: Trial) -> int:
        return int(trial.config["number"])

    def _values(self, number: int, result: dict[str, Any]) -> list[float]:  # noqa: ARG002
        return list(result["values"])

    def _pause(self, tune_controller: Any, trial: Trial) -> str:
        self._progress.running.discard(self._number(trial))
        ray_private.pause_trial(tune_controller, trial)
        return str(self.NOOP)
