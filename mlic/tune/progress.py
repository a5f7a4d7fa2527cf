"""What a search has reached: its best value, its failures and its time, in the log and in the terminal's table."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from mlic.config.tune import TuneConfig
from mlic.errors import PartialError
from mlic.metrics.measurement import aligned
from mlic.runs.files import write_json
from mlic.runs.progress import LOG_EVERY_S
from mlic.runs.run import Run
from mlic.train import epoch_choice
from mlic.tune.exploit import current
from mlic.tune.trial import Trial, table
from mlic.tune.trial_store import Trials

logger = logging.getLogger(__name__)

IN_ORDER = ("asha", "none")  # schedulers that decide in the order of trial numbers
_CLOCK = "search.json"
_SAME_DEATHS = 3  # if at least this many first trials fail with one error and none works, the search gives up
_SHOW_EVERY_S, _CLOCK_EVERY_S = 0.5, 5.0
_BEST_SHOWN, _SHOWN = 5, 20  # trials in the table on a terminal: of the ended ones, and altogether


def kept(config: TuneConfig) -> int:
    """The number of trials that keep their checkpoints."""
    return max(config.keep, config.ensemble)


def seconds_spent(run: Path) -> float:
    """The time in seconds that all attempts of the search have taken."""
    path = run / _CLOCK
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


class Progress:
    """The state of a search in this process; all calls except `look` come from the thread of Ray Tune's loop."""

    def __init__(self, config: TuneConfig, trials: Trials, run: Run[Path], at_once: int, timed: bool) -> None:
        self.config, self.trials, self.run, self.at_once, self.timed = config, trials, run, at_once, timed
        self.search = search = trials.search
        self.metric = epoch_choice.objective(config)
        self.known_to_ray = set[int]()  # trials that Ray Tune has: running, paused or ended
        self.running = set[int]()  # trials that have a worker, or wait for one
        self.values = {number: list(search.values(number)) for number in range(trials.count)}
        # A trial's value is that of its best epoch so far, except with folds or if another rule chooses the kept epoch.
        self.by_epoch = config.keep_epoch == "best" and not trials.folds
        known = [trials.value(number) for number in range(trials.count) if self.values[number]]
        self.best = max((value for value in known if value is not None), default=-math.inf)
        self.begun, self.spent, self.epochs = time.monotonic(), seconds_spent(run.folder), 0
        self.deadline = (
            None if config.budget is None or not timed else time.time() + max(0.0, config.budget - self.spent)
        )
        # The first by number, at least all that begin together: failures are quick, and a working trial may still be
        # running.
        self.first = min(max(_SAME_DEATHS, at_once), trials.count)
        self.hopeless: str | None = None  # the error of all these
        self.lived = any(self.values.values())
        self.kept: list[int] = []  # ended trials that have their checkpoints, best first
        self.looked_at = 0  # how many ended trials were considered for `kept`
        self._drop_checkpoints()
        self.said = self.shown = self.clocked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes its schedulers to a file, which nobody reads."""
        return {}

    @property
    def is_over(self) -> bool:
        """Whether no epoch is to begin any more: the time is up, or the run was asked to stop."""
        return (self.deadline is not None and time.time() >= self.deadline) or self.run.is_asked_to_stop

    @property
    def is_closing(self) -> bool:
        """Whether no trial is to begin or continue any more."""
        return self.hopeless is not None or self.is_over

    def config_of(self, number: int) -> dict[str, Any]:
        """What the worker of a trial is given."""
        settings = self.trials.draw(number) or {}
        plan = self.trials.plan(settings).model_dump_json()
        in_order = self.config.scheduler in IN_ORDER
        config: dict[str, Any] = {
            "number": number,
            "plan": plan,
            "folds": self.trials.folds,
            "milestones": self.search.rule.milestones() if in_order else list(range(1, self.config.epochs)),
            "asks_again": in_order,
        }
        if self.config.scheduler == "pbt":
            config["settings"] = {name: current(settings, name) for name in self.config.movable if name in settings}
        return config

    def begin(self, number: int) -> dict[str, Any]:
        """Note that a trial is handed to Ray Tune; returns what its worker is given."""
        folder = self.trials.folder(number)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            write_json(folder / "trial.json", self.trials.draw(number) or {})
        self.known_to_ray.add(number)
        self.running.add(number)
        return self.config_of(number)

    def take(self, number: int, result: dict[str, Any]) -> None:
        """Store the report of a worker: the values of all epochs of a trial. The first of them are known already."""
        if result["together"] is not None:
            self.trials.together[number] = result["together"]
        values = self.values[number]
        if values != result["values"][: len(values)]:
            values.clear()  # it continues as another trial
        for epoch, value in enumerate(result["values"][len(values) :], len(values) + 1):
            values.append(value)
            self.lived = True
            self.epochs += 1
            if self.by_epoch and value > self.best:
                self.best = value
                logger.info("tune  trial %d, epoch %d | %s %.4f | best", number, epoch, self.metric, value)

    def end(self, number: int, failed: str | None) -> None:
        """Note that a trial has ended, or was cut; `failed` says why it failed, if it did."""
        self.running.discard(number)
        if failed is not None:
            write_json(self.trials.folder(number) / "failed.json", {"error": failed})
            logger.warning("trial %d failed: %s", number, failed)
        value = self.trials.value(number) if failed is None and not self.by_epoch else None
        if value is not None and value > self.best:
            self.best = value
            epochs = len(self.values[number])
            logger.info("tune  trial %d, epoch %d | %s %.4f | best", number, epochs, self.metric, value)
        self._give_up_at_same_deaths()
        self._drop_checkpoints()

    def stopped(self) -> PartialError:
        return PartialError(
            f"stopped; {len(self.search.ended)} of {self.trials.count} trials are done; the others keep their epochs.",
            "run the same command again to resume.",
        )

    def _drop_checkpoints(self) -> None:
        if self.timed:
            new = self.search.ended[self.looked_at :]
            self.looked_at += len(new)
            self.kept = self.trials.drop_checkpoints([*self.kept, *new], kept(self.config))

    def _give_up_at_same_deaths(self) -> None:
        if self.lived or len(self.search.ended) < self.first:
            return
        reasons = {self.trials.failure(number) for number in range(self.first)}
        if len(reasons) == 1:
            self.hopeless = reasons.pop()

    def look(self) -> None:
        """Log progress and store the elapsed time."""
        now = time.monotonic()
        if now - self.clocked >= _CLOCK_EVERY_S:
            self.save_clock()
            self.clocked = now
        if now - self.said >= LOG_EVERY_S:
            self.said = self.shown = now
            logger.info("%s", self)
        elif now - self.shown >= _SHOW_EVERY_S:
            self.shown = now
            logger.info(
                "%s",
                "\n".join([*aligned(table(self._shown(), self.config.objective)), str(self)]),
                extra={"transient": True},
            )

    def _shown(self) -> list[Trial]:
        """The trials in the terminal's table: the best finished ones and the running ones."""
        running = sorted(self.running)
        rows = []
        for number in [*[number for number in self.kept if number not in running][:_BEST_SHOWN], *running]:
            values = self.values[number]
            value = max(values, default=None) if self.by_epoch else self.trials.value(number)
            rows.append(
                Trial(
                    number=number,
                    status="running" if number in running else self.search.status(number),
                    epochs=len(values),
                    value=value,
                    best_epoch=self.trials.kept_epoch(number),
                    settings=self.trials.draw(number) or {},
                    error=None,
                )
            )
        return rows[:_SHOWN]

    def save_clock(self) -> None:
        """Store the elapsed time of the search."""
        if self.timed:
            write_json(self.run.folder / _CLOCK, {"seconds": round(self.spent + time.monotonic() - self.begun, 1)})

    def __str__(self) -> str:
        statuses = [self.search.status(number) for number in self.search.ended]
        done = sum(len(self.values[number]) for number in range(self.trials.count) if not self.search.status(number))
        left = (self.trials.count - len(statuses)) * self.config.epochs - done
        seconds = time.monotonic() - self.begun
        most = f" | at most {left * seconds / self.epochs / 60:.1f}m left" if self.epochs else ""
        best = f" | best {self.best:.4f}" if math.isfinite(self.best) else ""
        return (
            f"tune  {len(statuses)}/{self.trials.count} trials | {statuses.count('pruned')} stopped early | "
            f"{statuses.count('failed')} failed | {len(self.running)} at work | {self.epochs} epochs{best}{most}"
        )
