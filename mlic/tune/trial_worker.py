"""Train the trials of a search in the workers of Ray Tune."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import time
import traceback
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from mlic.cluster import placement, signals
from mlic.cluster.resources import Share
from mlic.config.fit_checks import STORED
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import MlicError, RunError
from mlic.runs.files import write_atomic, write_json
from mlic.runs.run import is_current
from mlic.train import checkpoints, epoch_choice, out_of_fold, training_loop
from mlic.train.rank import RankContext
from mlic.train.workers import actors, group, lost_worker, raise_failure, trains_here
from mlic.tune import exploit

_REPORT_EVERY_S = 1.0  # the driver needs milliseconds to answer a report, and short epochs take no longer
TOGETHER = "together.json"  # the value of a trial over all its folds


def folder_of(base: Path, number: int) -> Path:
    """The folder of a trial."""
    return base / f"{number:05d}"


def parts(folder: Path, folds: int) -> list[Path]:
    """The folders of the models of a trial: its own folder, or one per fold in it."""
    return [folder / f"fold{fold}" for fold in range(folds)] or [folder]


def trainable(arguments: dict[str, Any]) -> Any:
    """The trainable of Ray Tune. The class is defined here because it needs Ray.

    A class and not a function: Ray Tune runs a function in a thread of its own, and each report waits for the driver.
    """
    from ray import tune as ray_tune

    class TrialWorker(ray_tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.training = TrialTraining(int(self.trial_name), config, arguments)

        def step(self) -> dict[str, Any]:
            return self.training.step()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Take another trial into this process, which has PyTorch loaded already."""
            self.training.close()
            self.training = TrialTraining(int(self.trial_name), new_config, arguments)
            return True

        def cleanup(self) -> None:
            self.training.close()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int] | None:
            """Save a trial of a population for others. Otherwise nothing: a process resumes from the trial's folder."""
            if arguments["population"] is None:
                return {"trial": self.training.number}
            exploit.leave(self.training.folder, self.training.number, Path(checkpoint_dir))
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Take over what another trial has left."""
            if arguments["population"] is not None:
                self.training.take_over(Path(checkpoint))

    return TrialWorker


class TrialTraining:
    """A trial in training, from its last checkpoint on, step by step.

    A step ends at a milestone, where the search decides about the trial, or where the training ends. It also ends
    between epochs, as soon as it has taken a second. So Ray Tune gets reports of every trial often, but no single
    report for each short epoch.
    """

    def __init__(self, number: int, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self.number, self.config, self.arguments = number, config, arguments
        self.folder = folder_of(Path(arguments["base"]), number)
        self.folds: int = config["folds"]
        self.milestones = frozenset[int](config["milestones"])
        # A lost worker may have reached a milestone that it did not report to the search.
        self.asks_again: bool = config["asks_again"]
        self.history: list[dict[str, float]] | None = None  # metrics of the epochs so far; None before the first step
        self.together: float | None = None
        self._epochs: Generator[list[dict[str, float]], None, None] | None = None
        self._plan: TrainConfig | None = None

    @property
    def plan(self) -> TrainConfig:
        """The configuration of the trial; in a population, as it has become."""
        self._plan = self._plan or self._read_plan()
        return self._plan

    def _read_plan(self) -> TrainConfig:
        if self.arguments["population"] is None:
            return TrainConfig.model_validate(json.loads(self.config["plan"]), context=STORED)
        exploit.complete(self.folder)
        search = TuneConfig.model_validate(json.loads(self.arguments["population"]), context=STORED)
        return search.plan(exploit.read_settings(self.folder) or {})

    def take_over(self, left: Path) -> None:
        """Continue as the copy of another trial, if that is what Ray Tune restores; see `exploit`."""
        if not is_current(Path(self.arguments["folder"]), self.arguments["attempt"]):
            return
        exploit.complete(self.folder)
        history = checkpoints.read_history(self.folder)
        value = history[-1][self.arguments["objective"]] if history else 0.0
        if exploit.take_over(self.folder, self.number, value, left, self.config["settings"]):
            self.close()
            self._plan = self.history = None  # both are read again

    def step(self) -> dict[str, Any]:
        """Train on; returns the last epoch's metrics and, since the driver may not see the files yet, more.

        `values` are those of all epochs so far, `together` is the value over all folds, `failed` says why the trial
        failed, and `ended` whether it has nothing left to train. `done` says the same to Ray Tune, which sets it too.
        """
        failed = None
        try:
            if not is_current(Path(self.arguments["folder"]), self.arguments["attempt"]):
                raise RunError("a newer attempt of this search is active.", "let that one finish.")
            self.folder.mkdir(parents=True, exist_ok=True)
            ended = self._train()
        except Exception as error:
            failed, ended = reason(error), True
            self._note_failure(failed)
        history, objective = self.history or [], self.arguments["objective"]
        values = [row[objective] for row in history]
        last = history[-1] if history else {objective: math.nan}
        known = {"values": values, "together": self.together, "failed": failed, "ended": ended, "done": ended}
        return {**last, "epoch": len(values), **known}

    def close(self) -> None:
        """Let go of the network and the data; the process may have other trials to come."""
        if self._epochs is not None:
            self._epochs.close()
            self._epochs = None
            gc.collect()
            _empty_cuda_cache()

    def _train(self) -> bool:
        """Train to the end of this step; returns whether the training has ended."""
        if self.folds or Share(*self.arguments["share"]).workers > 1:
            return self._train_to_milestone()
        if self._epochs is None:
            self._epochs = _epochs(self.plan, self.folder, self.arguments)
        began = time.monotonic()
        for history in self._epochs:
            is_resumed, self.history = self.history is None, history
            if len(history) in self.milestones and (self.asks_again or not is_resumed):
                return False
            if history and time.monotonic() - began >= _REPORT_EVERY_S and not epoch_choice.is_done(self.plan, history):
                return False
        return True

    def _train_to_milestone(self) -> bool:
        """As `_train`, for the folds of a trial, one after the other, and for trials with a group of workers."""
        if self.history is None:
            self.history = checkpoints.read_history(self.folder)
            if len(self.history) in self.milestones and self.asks_again:
                return False
        done = len(self.history)
        until = min((epoch for epoch in self.milestones if epoch > done), default=self.plan.epochs)
        for fold, folder in enumerate(parts(self.folder, self.folds)):
            folder.mkdir(exist_ok=True)
            plan = self.plan.model_copy(update={"fold": fold}) if self.folds else self.plan
            _fit(plan, folder, until, self.arguments)
        if self.folds:
            self.together = _join_folds(self.plan, self.folder, self.folds)
        os.listdir(self.folder)  # noqa: PTH208 - looks past what a network file system has cached
        self.history = checkpoints.read_history(self.folder)
        return len(self.history) < until or until >= self.plan.epochs

    def _note_failure(self, failed: str) -> None:
        if is_current(Path(self.arguments["folder"]), self.arguments["attempt"]):
            with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            write_json(self.folder / "failed.json", {"error": failed})


def _epochs(
    plan: TrainConfig, folder: Path, arguments: Mapping[str, Any]
) -> Generator[list[dict[str, float]], None, None]:
    """The epochs of one model that this process trains alone."""
    import torch

    device = torch.device(placement.assigned_device())
    gpus = Share(*arguments["share"]).gpus
    if device.type == "cuda" and gpus < 1:  # so that a trial that takes more fails alone, and not its neighbours
        torch.cuda.set_per_process_memory_fraction(gpus)
    context = RankContext(0, 1, device, folder, Path(arguments["folder"]), arguments["attempt"])
    dtype, keep_scores = _dtype(plan, arguments), plan.fold is not None
    return training_loop.epochs(plan, context, arguments["deadline"], dtype, keep_scores)


def _fit(plan: TrainConfig, folder: Path, until: int, arguments: Mapping[str, Any]) -> None:
    """Train one model of a trial, in this process or on a group of workers."""
    deadline, share = arguments["deadline"], Share(*arguments["share"])
    if share.workers > 1:
        where = {
            "folder": str(folder),
            "owner": arguments["folder"],
            "attempt": arguments["attempt"],
            "dtype": _dtype(plan, arguments),
            "keep_scores": plan.fold is not None,
        }
        for _ in range(plan.max_failures + 1):
            if trains_here(arguments["embedded"], share):
                train = actors(plan, where, share, until, deadline)
            else:
                name = f"attempt-{arguments['attempt']}-{uuid.uuid4().hex[:8]}"  # not the files of another start
                train = group(plan, where, share, arguments["embedded"], name, until, deadline).fit
            failed = signals.run_beside(train)
            if failed is None or not lost_worker(failed):
                break
        raise_failure(folder, arguments["attempt"], failed)
        return
    with contextlib.closing(_epochs(plan, folder, arguments)) as histories:
        for history in histories:
            if len(history) >= until:
                break
    gc.collect()
    _empty_cuda_cache()


def _empty_cuda_cache() -> None:
    """Give back the GPU's memory: the process has other trials to come."""
    import torch

    torch.cuda.empty_cache()  # does nothing where no GPU is used


def _dtype(plan: TrainConfig, arguments: Mapping[str, Any]) -> Any:
    """The dtype of a trial: its own, where one is set, else that of the search."""
    return arguments["dtype"] if plan.precision == "auto" else plan.precision


def _join_folds(plan: TrainConfig, folder: Path, folds: int) -> float | None:
    """Write the means over the folds as the trial's history, for the epochs that all folds have.

    Returns, and writes, the value of all folds together; None if a fold has no epoch because the run was stopped.
    """
    histories = [checkpoints.read_history(part) for part in parts(folder, folds)]
    epochs = zip(*histories, strict=False)  # patience may end a fold before the others
    rows = [{name: sum(row[name] for row in of_folds) / folds for name in of_folds[0]} for of_folds in epochs]
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    if not rows:
        return None
    together = out_of_fold.value(plan, parts(folder, folds))
    write_json(folder / TOGETHER, {"value": together})
    return together


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, MlicError):
        return str(error)
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300]}"
