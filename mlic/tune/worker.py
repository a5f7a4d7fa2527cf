"""Train a trial up to a number of epochs, in a worker of Ray Tune."""

from __future__ import annotations

import gc
import json
import os
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic.cluster import placement, signals
from mlic.cluster.resources import Share
from mlic.config.fit_checks import STORED
from mlic.config.train import TrainConfig
from mlic.errors import MlicError
from mlic.runs.files import write_atomic, write_json
from mlic.runs.run import is_current
from mlic.train import checkpoints, epoch_choice, out_of_fold, training_loop
from mlic.train.rank import Place
from mlic.train.workers import group, raise_failure

TOGETHER = "together.json"  # what all folds of a trial together come to


def folder_of(base: Path, number: int) -> Path:
    """The folder of a trial."""
    return base / f"{number:05d}"


def parts(folder: Path, folds: int) -> list[Path]:
    """The folders of the models of a trial: its own folder, or one per fold in it."""
    return [folder / f"fold{fold}" for fold in range(folds)] or [folder]


def trainable(arguments: dict[str, Any]) -> Any:
    """The trainable of Ray Tune. The class is defined here because it needs Ray.

    A piece of work is one step and reports once, at its end: each report more is a round to the driver and back that
    the worker waits for, and a function in place of a class is one more, too.
    """
    from ray import tune as ray_tune

    class Worker(ray_tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {**_do(self.config, arguments), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Whether this process can run another task: always, since a task leaves no state."""
            return bool(new_config)

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """The trials' own folders have them."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """As `save_checkpoint`."""

    return Worker


def _do(config: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Resume a trial and train it up to `until` epochs.

    Returns the `values` of all its epochs, what all its folds come to `together` and why it `failed`, None where there
    is nothing of the kind. The driver takes them from here: a network file system may not show it the files yet.
    """
    owner = Path(arguments["folder"])
    if not is_current(owner, arguments["attempt"]):
        return {"values": [], "together": None, "failed": "a newer attempt of this search is active."}
    folder = folder_of(Path(arguments["base"]), config["number"])
    folder.mkdir(parents=True, exist_ok=True)
    plan, failed, together = TrainConfig.model_validate(json.loads(config["plan"]), context=STORED), None, None
    try:
        if config["folds"]:
            for fold, part in enumerate(parts(folder, config["folds"])):
                part.mkdir(exist_ok=True)
                own = plan.model_copy(update={"fold": fold})
                _fit(own, part, config["until"], arguments)
            together = _join_folds(plan, folder, config["folds"])
        else:
            _fit(plan, folder, config["until"], arguments)
    except Exception as error:
        failed = _reason(error)
        if is_current(owner, arguments["attempt"]):
            with (folder / "log.txt").open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            write_json(folder / "failed.json", {"error": failed})
    os.listdir(folder)  # noqa: PTH208 - looks past what a network file system has cached
    values = [row[epoch_choice.objective(plan)] for row in checkpoints.read_history(folder)]
    return {"values": values, "together": together, "failed": failed}


def _fit(plan: TrainConfig, folder: Path, until: int, arguments: Mapping[str, Any]) -> None:
    """Train one model of a trial, in this process or on a group of workers."""
    import torch

    deadline, share = arguments["deadline"], Share(*arguments["share"])
    if share.workers > 1:
        where = {
            "folder": str(folder),
            "owner": arguments["folder"],
            "attempt": arguments["attempt"],
            "arithmetic": _arithmetic(plan, arguments),
            "keep_scores": plan.fold is not None,
        }
        name = f"attempt-{arguments['attempt']}-{uuid.uuid4().hex[:8]}"  # what another start left there is not taken up
        failed = signals.run_beside(group(plan, where, share, arguments["embedded"], name, until, deadline).fit)
        raise_failure(folder, arguments["attempt"], failed)
        return
    device = torch.device(placement.assigned_device())
    try:
        place = Place(0, 1, device, folder, Path(arguments["folder"]), arguments["attempt"])
        training_loop.fit(
            plan,
            place,
            until=until,
            deadline=deadline,
            arithmetic=_arithmetic(plan, arguments),
            keep_scores=plan.fold is not None,
        )
    finally:  # the process has other trials to come
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _arithmetic(plan: TrainConfig, arguments: Mapping[str, Any]) -> Any:
    """The arithmetic of a trial: its own, where one is set, else that of the search."""
    return arguments["arithmetic"] if plan.precision == "auto" else plan.precision


def _join_folds(plan: TrainConfig, folder: Path, folds: int) -> float | None:
    """Write the means over the folds, of the epochs that all of them have, as the trial's history.

    Returns, and writes, what all folds together come to; None where a stop has left one of them without an epoch.
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


def _reason(error: Exception) -> str:
    if isinstance(error, MlicError):
        return str(error)
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300]}"
