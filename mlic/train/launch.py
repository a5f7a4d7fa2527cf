"""One run: start the worker or workers of the training loop, then write the bundle of the kept epoch."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster import placement, shared_folders, signals
from mlic.cluster.connect import connect
from mlic.cluster.resources import Cluster, Share, train_share
from mlic.config.base import Model
from mlic.config.data import DoctorConfig
from mlic.config.train import TrainConfig
from mlic.config.types import Precision
from mlic.data.shards import check_sizes, check_trainable, read_index
from mlic.doctor.doctor import doctor as examine
from mlic.errors import ClusterError, PartialError
from mlic.metrics import decision, thresholds
from mlic.metrics.measurement import Measurement, measure
from mlic.model import bundle, losses, weights, zoo
from mlic.runs.files import disk_errors
from mlic.runs.run import Run, read_state
from mlic.train import checkpoints, epoch_choice, setup
from mlic.train.workers import actors, follow, group, lost_worker, raise_failure, trains_here

logger = logging.getLogger(__name__)

_RESAMPLES = 1000
_ALSO_CHOSE = "; it also chose the epoch, so new images may give a little less"


class TrainReport(Model):
    """The result of a run.

    `measurement` is of the validation split, with cross-fitted thresholds, at the epoch that was `kept`.
    """

    run: Path
    model: Path
    arch: str
    epochs: int
    best_epoch: int
    threshold_policy: str
    calibration: str
    measurement: Measurement
    kept: str = "best"

    def text(self) -> str:
        return (
            f"{self.run}: {self.arch}, {self.kept} epoch {self.best_epoch} of {self.epochs}, "
            f"{self.threshold_policy} thresholds"
            + ("\n" if self.calibration == "none" else f", {self.calibration} calibration\n")
            + f"validation split, {self.measurement.samples:,} samples, cross-fitted thresholds"
            + ("\n" if self.kept == "last" or self.epochs == 1 else f"{_ALSO_CHOSE}\n")
            + f"{self.measurement.table()}\nmodel  {self.model}\n"
            f"next   mlic evaluate {self.run} measures the test split"
        )


def fit(config: TrainConfig, keep_scores: bool = False) -> TrainReport:
    """Train one model on the workers of a Ray cluster and leave its bundle in `RUN/model`.

    Started again, a stopped run resumes after its last finished epoch and ends with the same result.
    With `keep_scores` the validation scores of all epochs are kept. Raises DataError for bad shards, ClusterError where
    the workers do not fit, RunError when training itself fails and PartialError when it is interrupted.
    """
    index = read_index(config.shards)
    zoo.check(config.arch)
    losses.check(config.loss, config.loss_options)
    begins_with = weights.resolve(config.arch, config.weights)
    setup.check_names(config, tuple(index["labels"]))
    check_trainable(config.shards, index, config.fold)
    config = config.model_copy(update={"name": config.name or config.folder.name})
    folder = config.folder
    inputs = {
        "shards": index["fingerprint"],
        "weights": weights.digest(begins_with),
    }
    with Run.open(folder, "train", config, inputs, config.fresh) as run:
        if config.fresh and config.checkpoint_copy is not None:
            checkpoints.forget_copy(config.checkpoint_copy, folder, folder)
        if run.finished and (folder / "model" / bundle.SPEC).is_file():
            logger.info("%s is finished; --fresh trains it again", folder)
            return TrainReport(**run.report)
        if run.finished:
            run.reopen()
        if not epoch_choice.is_done(config, checkpoints.read_history(folder)):
            check_sizes(config.shards, index, None)
            with connect(config.address) as cluster:
                if config.doctor:
                    ranks = train_share(cluster, config.workers).workers
                    examine(DoctorConfig(shards=config.shards, address=config.address, ranks=ranks))
                _fit_on(cluster, config, run, keep_scores)
        report = finish(config, run.folder, run.folder)
        run.finish(report)
    return report


def finish(
    config: TrainConfig, folder: Path, fitted: Path, warn: bool = True, measurement: Measurement | None = None
) -> TrainReport:
    """Write the bundle of `folder` from the kept epoch in `fitted` and measure it; `warn` of uncertain thresholds.

    If a `measurement` is given, such as that of a cross-validation, it replaces the model's own measurement on its
    validation split.
    """
    best = checkpoints.read_best(fitted)
    index = read_index(config.shards)
    labels = tuple(index["labels"])
    weight = setup.positive_weights(setup.train_split(config), config).tolist()
    settled, fit = decide(config.threshold_policy, config.calibration, best, weight, config.seed, config.objective)
    fit |= {"fitted_on": "val", "split": "val", "data": index["fingerprint"], "samples": len(best.targets)}
    measurement = measurement or measured(labels, settled, best.targets, config.seed)
    state = read_state(folder) or {}
    model = bundle.Bundle(
        config.arch,
        config.arch_options,
        labels,
        setup.preprocessing(config),
        losses.activation(config.loss),
        tuple(float(value) for value in settled.thresholds),
        fit | expected(measurement),
        settled.calibration.plain(),
        {
            "run": folder.name,
            "epoch": best.epoch,
            "shards": index["fingerprint"],
            "seed": config.seed,
            "checkpoint": os.path.relpath(fitted, folder),
            "pos_weight": weight,
            "versions": state.get("versions"),
            "git_commit": state.get("git_commit"),
        },
    )
    with disk_errors(folder):
        bundle.save(model, best.state, folder / "model")
    for text in thresholds.warnings(labels, best.targets, config.threshold_policy) if warn else ():
        logger.warning("%s", text)
    return TrainReport(
        run=folder,
        model=folder / "model",
        arch=config.arch,
        epochs=len(checkpoints.read_history(fitted)),
        best_epoch=best.epoch,
        threshold_policy=config.threshold_policy,
        calibration=settled.calibration.method,
        measurement=measurement,
        kept=config.keep_epoch,
    )


def measured(
    labels: Sequence[str],
    settled: decision.Settled,
    targets: np.ndarray[Any, Any],
    seed: int,
    resamples: int = _RESAMPLES,
    notes: Sequence[str] = (),
) -> Measurement:
    """The measurement of cross-fitted decisions."""
    return measure(labels, settled.decisions, targets, settled.scores, resamples, seed, settled.ranked, notes)


def decide(
    policy: str, method: str, best: checkpoints.Best, weights: Sequence[float], seed: int, objective: str
) -> tuple[decision.Settled, dict[str, Any]]:
    """Settle calibration and thresholds on a run's validation scores, and say how, as a bundle notes it."""
    settled = decision.settle(policy, method, best.scores, best.targets, np.array(weights), seed, objective)
    return settled, noted(policy, settled, seed, objective)


def noted(policy: str, settled: decision.Settled, seed: int, objective: str) -> dict[str, Any]:
    """How thresholds were fitted, as a bundle notes it."""
    choice = None if settled.choice is None else dataclasses.asdict(settled.choice)
    return {
        "policy": policy,
        "choice": choice,
        "log_losses": settled.losses,
        "objective": objective,
        "objectives": settled.objectives,
        "seed": seed,
    }


def expected(measurement: Measurement) -> dict[str, Any]:
    """What thresholds are expected to give on new images, with its intervals, as a bundle notes it."""
    names = ("f1_micro", "f1_macro", "precision_micro", "recall_micro")
    return {
        "cross_fitted": {name: measurement.values[name] for name in names},
        "intervals": {name: list(measurement.intervals[name]) for name in names},
    }


def decide_dtype(precision: Precision, share: Share, run: Run[Path]) -> str:
    """The dtype of a whole run or search: that in run.json, else the setting, or what its GPUs support."""
    state = read_state(run.folder) or {}
    noted = state.get("dtype", state.get("arithmetic"))  # the latter is what earlier versions wrote
    if noted is None:
        noted = placement.ask_worker(share, _dtype, precision)
        run.note(dtype=noted)
    return str(noted)


def _dtype(precision: Precision) -> str:
    """In a worker: what its device has."""
    import torch

    from mlic.model.amp import of_device

    return of_device(precision, torch.device(placement.assigned_device()))


def _fit_on(cluster: Cluster, config: TrainConfig, run: Run[Path], keep_scores: bool) -> None:
    """Run the loop on the workers, and pass its log on while it runs."""
    share = train_share(cluster, config.workers)
    shared_folders.check_shared(cluster, run.folder, config.shards)
    if config.min_workers is not None and config.min_workers > share.workers:
        raise ClusterError(
            f"min_workers is {config.min_workers}, and there are {share.workers} workers.",
            f"--min-workers {share.workers}, or fewer.",
        )
    run.note(workers=share.workers, cpus_per_worker=share.cpus, gpus_per_worker=share.gpus)
    logger.info("workers: %d, each with %d CPUs and %d GPUs", share.workers, share.cpus, share.gpus)
    dtype = decide_dtype(config.precision, share, run)
    log = follow(run.folder / "log.txt")
    others = placement.reserved()
    try:
        for start_number in range(config.max_failures + 1):
            where = {
                "folder": str(run.folder),
                "owner": str(run.folder),
                "attempt": run.attempt,
                "dtype": dtype,
                "keep_scores": keep_scores,
            }
            if trains_here(cluster.embedded, share):
                train = actors(config, where, share)
            else:
                train = group(config, where, share, cluster.embedded, f"attempt-{run.attempt}-{start_number}").fit
            with run.stopping_on_request(), placement.watching_room(share, config.min_workers or share.workers):
                failed = signals.run_beside(train, lambda: next(log))
            if failed is None or not lost_worker(failed):
                break
            logger.warning("a worker was lost; training restarts from its last checkpoint")
            # The placement groups of a lost controller would block the new one for as long as this process lives.
            placement.free(placement.reserved() - others)
    except KeyboardInterrupt:
        raise _stopped(config, run) from None
    raise_failure(run.folder, run.attempt, failed)
    if run.is_asked_to_stop and not epoch_choice.is_done(config, checkpoints.read_history(run.folder)):
        raise _stopped(config, run)


def _stopped(config: TrainConfig, run: Run[Path]) -> PartialError:
    done = len(checkpoints.read_history(run.folder))
    return PartialError(
        f"stopped; {done} of {config.epochs} epochs are done and kept.", "run the same command again to resume."
    )
