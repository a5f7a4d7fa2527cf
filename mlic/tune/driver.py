"""Run the trials of a search on Ray and collect their results.

What happens is decided by `search`, here in the driver; Ray Tune finds a worker for each piece of work, gives it what
it needs of CPUs and GPUs, keeps its process for the next one, and does again what was lost with a worker. A piece of
work ends where the search decides, so no trial has to be stopped from outside. Each trial's own folder is the record:
its history is told to the search when a search continues, and Ray Tune starts anew.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlic.cluster import placement, ray_private, signals
from mlic.cluster.preflight import trials_at_once
from mlic.cluster.resources import Cluster
from mlic.config.tune import TuneConfig
from mlic.errors import PartialError, RunError
from mlic.metrics.measurement import aligned
from mlic.runs.files import write_json
from mlic.runs.progress import LOG_EVERY_S
from mlic.runs.run import Run
from mlic.train import checkpoints, epoch_choice
from mlic.train.launch import decide_arithmetic
from mlic.tune import worker
from mlic.tune.early_stopping import Rule, Search, Work
from mlic.tune.trial import Trial, table
from mlic.tune.trial_store import Trials

logger = logging.getLogger(__name__)

_CLOCK = "search.json"
_SAME_DEATHS = 3  # first trials, at least, that die of one error before any lives: the others would be no better
_STARTS_WITHIN_S = 120.0  # a worker; the piece of work that waits longer for one is done by another
_SHOW_EVERY_S, _CLOCK_EVERY_S = 0.5, 5.0
_OVERHEARD = 32  # trials, at most, whose files are looked at while they are at work
_BEST_SHOWN, _SHOWN = 5, 20  # trials in the table on a terminal: of the ended ones, and altogether


def rule(config: TuneConfig) -> Rule:
    """The early stopping rule of this search."""
    return Rule(config.scheduler, config.epochs, config.grace_epochs, config.reduction_factor)


def kept(config: TuneConfig) -> int:
    """The number of trials that keep their checkpoints."""
    return max(config.keep, config.ensemble)


def seconds_spent(run: Path) -> float:
    """The time in seconds that all attempts of the search have taken."""
    path = run / _CLOCK
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def train_on(cluster: Cluster, config: TuneConfig, trials: Trials, run: Run[Path], timed: bool) -> None:
    """Train the trials until the search is done or, if it is `timed`, until its budget is used.

    Raises ClusterError when not even one trial fits, RunError when trials die of one error from the first on, and
    PartialError when it is interrupted.
    """
    at_once, share = trials_at_once(cluster, config)
    _announce(config, trials.search, at_once, timed)
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours to answer
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the trials' folders have their own files
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # nobody resumes from what Ray Tune notes of its trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # All workers start at once. One after another, which is Ray Tune's way with a searcher, they take as many starts of
    # a process as there are nodes.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    from ray import tune as ray_tune

    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what is lost with a worker is done again, or told
    driver = _Driver(config, trials, run, at_once, timed)
    arguments = {
        "folder": str(run.folder),
        "base": str(trials.base),
        "attempt": run.attempt,
        "deadline": driver.deadline,
        "share": dataclasses.astuple(share),
        "embedded": cluster.embedded,
        "arithmetic": decide_arithmetic("auto", share, run),
    }
    # A group of workers takes what it needs by itself, and the function that waits for it next to nothing.
    resources = {"memory": 2**20} if share.workers > 1 else {"cpu": share.cpus, "gpu": share.gpus}
    trainable = ray_tune.with_resources(worker.trainable(arguments), resources)
    scratch = Path(tempfile.mkdtemp(prefix="mlic-tune-"))  # what Ray Tune notes of pieces of work is of no use later
    tuner = ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=_queue(driver),
            scheduler=_order(),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        with run.stopping_on_request(), placement.watching_room(share, share.workers):
            failed = signals.run_beside(tuner.fit, driver.look)
    except KeyboardInterrupt:
        raise driver.stopped() from None
    finally:
        driver.save_clock()
        shutil.rmtree(scratch, ignore_errors=True)
    if failed is not None:
        raise failed
    if driver.hopeless is not None:
        raise RunError(
            f"the first {driver.first} trials all failed with the same error: {driver.hopeless}",
            "fix that and use --fresh.",
        )
    if run.is_asked_to_stop and not trials.search.done:
        raise driver.stopped()


def _announce(config: TuneConfig, search: Search, at_once: int, timed: bool) -> None:
    """Log the size of the search and its maximum cost."""
    most = search.count * config.epochs
    longest = -(-search.count // at_once) * config.epochs
    looked = sorted({epoch for number in range(search.count) for epoch in search.rule.milestones(number)})
    some = f"{', '.join(str(epoch) for epoch in looked[:8])}{', ...' if len(looked) > 8 else ''}"
    early = f"{search.rule.kind} looks at them after epochs {some}" if looked else "none is stopped early"
    budget = "" if config.budget is None or not timed else f"; {config.budget / 3600:.3g} h at the longest"
    logger.info(
        "search: %d trials of up to %d epochs, %d at a time; %s; at most %d epochs, %d one after another%s",
        search.count,
        config.epochs,
        at_once,
        early,
        most,
        longest,
        budget,
    )


class _Driver:
    """Assigns tasks and collects results; all calls except `look` come from the thread of Ray Tune's loop."""

    def __init__(self, config: TuneConfig, trials: Trials, run: Run[Path], at_once: int, timed: bool) -> None:
        self.config, self.trials, self.run, self.at_once, self.timed = config, trials, run, at_once, timed
        self.search = search = trials.search
        self.metric = epoch_choice.objective(config)
        self.busy: dict[str, Work] = {}
        self.values = {number: list(search.values(number)) for number in range(trials.count)}
        # A trial's value is that of its best epoch so far, but for folds and for epochs that are kept by another rule.
        self.by_epoch = config.keep_epoch == "best" and not trials.folds
        known = [trials.value(number) for number in range(trials.count) if self.values[number]]
        self.best = max((value for value in known if value is not None), default=-math.inf)
        self.begun, self.spent, self.epochs = time.monotonic(), seconds_spent(run.folder), 0
        self.deadline = (
            None if config.budget is None or not timed else time.time() + max(0.0, config.budget - self.spent)
        )
        self.lock = threading.Lock()
        # By number, and all that begin together: those that die are quick, and a trial that lives may still be at work.
        self.first = min(max(_SAME_DEATHS, at_once), trials.count)
        self.hopeless: str | None = None  # the error of all these
        self.lived = any(self.values.values())
        self.kept: list[int] = []  # ended trials that have their checkpoints, best first
        self.looked_at = 0  # of the ended ones, for that
        self._drop_checkpoints()
        self.said = self.shown = self.clocked = time.monotonic()

    @property
    def ended(self) -> int:
        return len(self.search.ended)

    def suggest(self, name: str) -> dict[str, Any] | None:
        """The next task, None if there is none now; raises StopIteration when there will be no more."""
        if self.hopeless is not None or self._is_over():
            raise StopIteration
        if len(self.busy) >= self.at_once:
            return None
        if self.trials.population is not None and self.search.due is not None:
            for number in self.trials.population.exchange(self.search.due):
                self.values[number] = list(self.search.values(number))
        fresh = self.search.next_fresh
        drawn = None if fresh is None else self.trials.draw(fresh)
        work = self.search.ask({each.trial for each in self.busy.values()}, may_begin=drawn is not None)
        if work is None:
            if self.search.done:
                raise StopIteration
            return None
        settings = self.trials.draw(work.trial) or {}
        own = self.trials.folder(work.trial)
        if not own.is_dir():
            own.mkdir(parents=True)
            write_json(own / "trial.json", settings)
        self.busy[name] = work
        plan = self.trials.plan(settings).model_dump_json()
        return {"number": work.trial, "until": work.until, "plan": plan, "folds": self.trials.folds}

    def heard(self, number: int, found: Sequence[float]) -> None:
        """Store the values of a trial's epochs, of which the first ones are known already."""
        with self.lock:
            values = self.values[number]
            for epoch, value in enumerate(found[len(values) :], len(values) + 1):
                values.append(value)
                self.lived = True
                self.epochs += 1
                if self.by_epoch and value > self.best:
                    self.best = value
                    logger.info("tune  trial %d, epoch %d | %s %.4f | best", number, epoch, self.metric, value)

    def overhear(self) -> None:
        """Read the values of running trials from their folders, since they report only at the end of a task."""
        for each in list(self.busy.values())[:_OVERHEARD]:
            rows = checkpoints.read_history(self.trials.folder(each.trial))
            self.heard(each.trial, [row[self.metric] for row in rows])

    def took(self, name: str, failed: str | None) -> None:
        """Handle a finished or failed task, reported by its worker, or by Ray Tune if the worker is lost."""
        work = self.busy.pop(name)
        if failed is not None:
            write_json(self.trials.folder(work.trial) / "failed.json", {"error": failed})
        values = self.values[work.trial]
        if failed is not None:
            logger.warning("trial %d failed: %s", work.trial, failed)
        stopped_itself = len(values) < work.until and not self._is_over()
        self.search.tell(work.trial, values, "failed" if failed else "finished" if stopped_itself else None)
        value = self.trials.value(work.trial) if failed is None and not self.by_epoch else None
        if value is not None and value > self.best:
            self.best = value
            logger.info("tune  trial %d, epoch %d | %s %.4f | best", work.trial, len(values), self.metric, value)
        self._give_up_at_same_deaths()
        self._drop_checkpoints()

    def _drop_checkpoints(self) -> None:
        if self.timed:
            new = self.search.ended[self.looked_at :]
            self.looked_at += len(new)
            self.kept = self.trials.drop_checkpoints([*self.kept, *new], kept(self.config))

    def _is_over(self) -> bool:
        return (self.deadline is not None and time.time() >= self.deadline) or self.run.is_asked_to_stop

    def stopped(self) -> PartialError:
        return PartialError(
            f"stopped; {self.ended} of {self.trials.count} trials are done, and the others keep their epochs.",
            "run the same command again to resume.",
        )

    def _give_up_at_same_deaths(self) -> None:
        if self.lived or self.ended < self.first:
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
            self.overhear()
            logger.info(
                "%s",
                "\n".join([*aligned(table(self._shown(), self.config.objective)), str(self)]),
                extra={"transient": True},
            )

    def _shown(self) -> list[Trial]:
        """The trials in the terminal's table: the best finished ones and the running ones."""
        at_work = {each.trial: f"to epoch {each.until}" for each in list(self.busy.values())}
        rows = []
        for number in [*[number for number in self.kept if number not in at_work][:_BEST_SHOWN], *at_work]:
            values = self.values[number]
            value = max(values, default=None) if self.by_epoch else self.trials.value(number)
            rows.append(
                Trial(
                    number=number,
                    status=at_work.get(number) or self.search.status(number),
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
            f"{statuses.count('failed')} failed | {len(self.busy)} at work | {self.epochs} epochs{best}{most}"
        )


def _queue(driver: _Driver) -> Any:
    """The searcher that Ray Tune asks for tasks. The class is defined here because it needs Ray."""
    from ray.tune.search import Searcher

    class Queue(Searcher):  # type: ignore[misc]
        def __init__(self, driver: _Driver) -> None:
            super().__init__()
            self.driver = driver

        def suggest(self, trial_id: str) -> Any:
            try:
                return self.driver.suggest(trial_id)
            except StopIteration:
                return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if result is not None and not error:
                if result["together"] is not None:
                    self.driver.trials.together[self.driver.busy[trial_id].trial] = result["together"]
                self.driver.heard(self.driver.busy[trial_id].trial, result["values"])
            failed = "its worker was lost again and again" if error else (result or {}).get("failed")
            self.driver.took(trial_id, failed)

        def __getstate__(self) -> dict[str, Any]:
            """Nothing: a search resumes from its trials' folders, never from Ray Tune's state."""
            return {}

        def save(self, checkpoint_path: str) -> None:
            """The trials' own folders are the record."""

        def restore(self, checkpoint_path: str) -> None:
            """As `save`."""

    return Queue(driver)


def _order() -> Any:
    """The scheduler that picks the next task of an idle worker. The class is defined here because it needs Ray.

    In the order in which it was asked for, which is Ray Tune's own, that would be the piece that another worker is
    being started for, and that start would be given up for a new one. While pieces are shorter than a start, the node
    that starts a process last would never come to work.
    """
    from ray.tune.schedulers import FIFOScheduler

    class NewestFirst(FIFOScheduler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked: dict[str, float] = {}  # when each piece of work was asked for

        def on_trial_add(self, _controller: Any, trial: Any) -> None:
            """Called for a new task, and again if its worker is lost."""
            self.asked[trial.trial_id] = time.monotonic()

        def choose_trial_to_run(self, controller: Any) -> Any:
            """The newest pending task, but first a task that has waited longer than a worker takes to start."""
            waiting = ray_private.waiting_trials(controller)
            if not waiting:
                return None
            waiting.sort(key=lambda each: self.asked[each.trial_id])
            late = time.monotonic() - self.asked[waiting[0].trial_id] > _STARTS_WITHIN_S
            return waiting[0] if late else waiting[-1]

    return NewestFirst()
