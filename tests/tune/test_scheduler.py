"""The scheduler and the searcher of `mlic tune`, called as Ray Tune's controller calls them, without Ray running."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from mlic.config.tune import TuneConfig
from mlic.runs.run import Run
from mlic.tune.early_stopping import Rule, Search
from mlic.tune.progress import Progress
from mlic.tune.scheduler import SearchScheduler, TrialSearcher
from mlic.tune.trial_store import Trials


class Trial:
    """A trial of Ray Tune, as far as a scheduler looks at it."""

    is_saving = False
    pickled_error_file = None  # its processes die without a word

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.trial_id, self.status = config, str(config["number"]), "PENDING"


class Controller:
    """Ray Tune's controller: it does what the scheduler answers, and has trials that report when a test says so."""

    def __init__(self, progress: Progress) -> None:
        self.scheduler, self.searcher = SearchScheduler(progress), TrialSearcher(progress)
        self.trials: dict[int, Trial] = {}

    def fill(self) -> list[int]:
        """Start trials while there is room; returns their numbers, resumed ones too."""
        started = []
        while isinstance(config := self.searcher.suggest("id"), dict):
            trial = self.trials[config["number"]] = Trial(config)
            self.scheduler.on_trial_add(self, trial)
            trial.status = "RUNNING"
            started.append(config["number"])
        while (paused := self.scheduler.choose_trial_to_run(self)) is not None:
            paused.status = "RUNNING"
            started.append(paused.config["number"])
        return started

    def report(self, number: int, *values: float, done: bool = False, failed: str | None = None) -> str:
        trial = self.trials[number]
        result = {"values": list(values), "epoch": len(values), "together": None, "failed": failed, "done": done}
        answer = TrialScheduler.STOP if done else self.scheduler.on_trial_result(self, trial, result)
        if answer == TrialScheduler.STOP:
            trial.status = "TERMINATED"
            self.scheduler.on_trial_complete(self, trial, result)
        return str(answer)

    def lose_worker(self, number: int) -> None:
        trial = self.trials[number]
        trial.status = "ERROR"
        self.scheduler.on_trial_error(self, trial)
        trial.status = "PENDING"
        self.scheduler.on_trial_add(self, trial)

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"

    def stop_trial(self, trial: Trial) -> None:
        assert trial.status in ("PENDING", "PAUSED")
        self.scheduler.on_trial_remove(self, trial)
        trial.status = "TERMINATED"


@pytest.fixture
def progress(tmp_path: Path) -> Iterator[Progress]:
    """A search of five trials of up to nine epochs, two at a time, with decisions after epochs 1 and 3."""
    config = TuneConfig(shards=tmp_path, num_samples=5, epochs=9, max_failures=1)
    with Run.open(tmp_path / "tune", "tune", config, {}, False) as run:
        search = Search(Rule("asha", 9, 1, 3), 5)
        trials = Trials(search, run.folder / "trials", config.drawn, config.plan, config)
        yield Progress(config, trials, run, at_once=2, timed=True)


def test_a_trial_that_waits_for_an_earlier_one_makes_room_and_resumes(progress: Progress) -> None:
    controller = Controller(progress)
    assert controller.fill() == [0, 1]
    assert controller.trials[0].config["milestones"] == [1, 3]
    assert controller.report(1, 0.5) == TrialScheduler.NOOP
    assert controller.trials[1].status == "PAUSED"
    assert controller.fill() == [2]
    assert controller.report(0, 0.4) == TrialScheduler.CONTINUE
    assert controller.fill() == []  # there is room for two, which run
    assert controller.report(2, 0.1) == TrialScheduler.STOP
    assert progress.search.status(2) == "pruned"
    assert controller.fill() == [1]
    assert controller.report(1, 0.5, 0.5) == TrialScheduler.CONTINUE  # between two milestones
    assert progress.best == 0.5


def test_a_paused_trial_stops_when_earlier_ones_show_that_it_is_weak(progress: Progress) -> None:
    controller = Controller(progress)
    controller.fill()
    controller.report(1, 0.3)
    assert controller.report(0, 0.4) == TrialScheduler.CONTINUE
    assert (controller.trials[1].status, progress.search.status(1)) == ("TERMINATED", "pruned")
    assert controller.fill() == [2]


def test_what_a_worker_says_at_the_end_of_a_trial(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(progress)
    controller.fill()
    controller.report(0, 0.4, 0.5, done=True)  # its patience was over
    controller.report(1, done=True, failed="no memory")
    assert (progress.search.status(0), progress.search.status(1)) == ("finished", "failed")
    assert progress.trials.failure(1) == "no memory"
    assert controller.fill() == [2, 3]
    monkeypatch.setattr(Progress, "is_over", True)
    controller.report(2, 0.4, 0.5, done=True)  # the time was over
    assert progress.search.status(2) == ""
    assert controller.searcher.suggest("id") == Searcher.FINISHED


def test_a_trial_fails_by_its_result_and_not_by_what_a_file_system_shows(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trials, "failure", lambda *_: None)  # a negative look-up that is still cached
    controller = Controller(progress)
    controller.fill()
    controller.report(0, done=True, failed="out of memory")
    assert progress.search.status(0) == "failed"


def test_when_the_time_is_up_paused_trials_leave_and_stay_open(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(progress)
    controller.fill()
    controller.report(1, 0.5)
    monkeypatch.setattr(Progress, "is_over", True)
    assert controller.fill() == []
    assert controller.trials[1].status == "TERMINATED"
    assert (progress.search.status(1), progress.search.values(1)) == ("", [0.5])


def test_a_trial_fails_when_it_loses_workers_without_an_epoch_in_between(progress: Progress) -> None:
    controller = Controller(progress)
    controller.fill()
    controller.lose_worker(0)
    controller.report(0, 0.4)
    controller.lose_worker(0)
    controller.report(0, 0.4)  # it has resumed, and trained no epoch more
    assert progress.search.status(0) == ""
    controller.lose_worker(0)
    assert progress.search.status(0) == "failed"
    assert controller.fill() == [2]


def test_a_trial_that_runs_may_live_where_those_that_died_did_not(progress: Progress) -> None:
    controller = Controller(progress)
    assert controller.fill() == [0, 1]
    controller.report(0, done=True, failed="no memory")
    for number in (2, 3):
        assert controller.fill() == [number]
        controller.report(number, done=True, failed="no memory")
    assert progress.hopeless is None
    controller.report(1, done=True, failed="no memory")
    assert progress.hopeless == "no memory"
    assert controller.searcher.suggest("id") == Searcher.FINISHED


def test_open_trials_of_an_earlier_attempt_come_first(progress: Progress) -> None:
    for number, values in enumerate(([0.4, 0.4], [0.5], [0.1])):
        progress.search.tell(number, values)
    controller = Controller(progress)
    assert controller.fill() == [0, 1]
    assert progress.search.status(2) == ""
    controller.report(0, 0.4, 0.4, 0.4)
    controller.report(0, *[0.4] * 9)
    assert progress.search.status(0) == "finished"
    assert controller.fill() == [3]
    assert progress.search.status(2) == "pruned"


@pytest.mark.parametrize(("keep_epoch", "value"), [("best", 0.5), ("last", 0.4), ("lowest-loss", 0.4)])
def test_a_value_is_that_of_reported_epochs_while_the_worker_has_written_more(
    progress: Progress, keep_epoch: str, value: float
) -> None:
    """A worker writes an epoch before it reports it, and the terminal's table is drawn in between."""
    progress.config = progress.config.model_copy(update={"keep_epoch": keep_epoch})
    progress.trials = trials = dataclasses.replace(progress.trials, config=progress.config)
    progress.by_epoch = keep_epoch == "best"
    Controller(progress).fill()
    assert (trials.kept_epoch(0), trials.value(0)) == (None, None)
    rows = [{"val/f1_micro": value, "val/loss": -epoch} for epoch, value in enumerate((0.5, 0.4, 0.7))]
    (trials.folder(0) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    progress.take(0, {"values": [0.5, 0.4], "together": None})
    progress.search.tell(0, [0.5, 0.4])
    assert trials.value(0) == value
    progress.shown = -math.inf
    progress.look()
