"""One run: a worker, or by Ray Train a group of them, around the training loop, and the bundle of its best epoch."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster import placement, pool, shared_folders, signals
from mlic.cluster.connect import connect
from mlic.cluster.resources import Cluster, Share, train_share
from mlic.config.base import Model
from mlic.config.data import DoctorConfig
from mlic.config.train import STORED, TrainConfig
from mlic.config.types import Precision
from mlic.data.shards import check_sizes, check_trainable, read_index
from mlic.doctor.doctor import doctor as examine
from mlic.errors import ClusterError, MlicError, PartialError, RunError
from mlic.metrics import decision, thresholds
from mlic.metrics.measurement import Measurement, measure
from mlic.model import bundle, losses, weights, zoo
from mlic.runs.files import disk_errors, write_json
from mlic.runs.progress import LOG_EVERY_S
from mlic.runs.run import Run, is_current, read_state
from mlic.train import checkpoints, setup, trainer
from mlic.train.rank import Place

logger = logging.getLogger(__name__)

_FAILURE = ".failure.json"
_RESAMPLES = 1000
_WARNING = "Warning: "
_ALSO_CHOSE = "; it also chose the epoch, so new images may give a little less"


class TrainReport(Model):
    """What a run came to.

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

    Started again, a stopped run goes on after its last finished epoch and ends with the result that it would have had.
    With `keep_scores` the validation scores of all epochs are kept. Raises DataError for bad shards, ClusterError where
    the workers do not fit, RunError when training itself fails and PartialError when it is interrupted.
    """
    index = read_index(config.shards)
    zoo.check(config.arch)
    losses.check(config.loss, config.loss_options)
    begins_with = weights.resolve(config.arch, config.weights)
    setup.check_names(config, tuple(index["labels"]))
    check_trainable(config.shards, index, config.fold)
    fold = "" if config.fold is None else f"-fold{config.fold}"
    config = config.model_copy(update={"name": config.name or config.arch + fold})
    folder = config.runs / str(config.name)
    inputs = {
        "shards": index["fingerprint"],
        "weights": "none" if begins_with is None else weights.digest(begins_with),
    }
    with Run.open(folder, "train", config, inputs, config.fresh) as run:
        if config.fresh and config.checkpoint_copy is not None:
            checkpoints.forget_copy(config.checkpoint_copy, folder, folder)
        if run.finished and (folder / "model" / bundle.SPEC).is_file():
            logger.info("%s is finished; --fresh trains it again", folder)
            return TrainReport(**run.report)
        if run.finished:
            run.reopen()
        if not trainer.is_done(config, checkpoints.read_history(folder)):
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
) -> TrainReport:  # fmt: skip
    """Write the bundle of `folder` from the kept epoch in `fitted` and measure it; `warn` of uncertain thresholds.

    A `measurement` that is given, such as that of a cross-validation, is what is expected of the model in place of its
    own on its validation split.
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
        config.arch, config.arch_options, labels, setup.preprocessing(config),
        losses.activation(config.loss),
        tuple(float(value) for value in settled.thresholds), fit | expected(measurement), settled.calibration.plain(),
        {
            "run": folder.name, "epoch": best.epoch, "shards": index["fingerprint"], "seed": config.seed,
            "checkpoint": os.path.relpath(fitted, folder), "pos_weight": weight,
            "versions": state.get("versions"), "git_commit": state.get("git_commit"),
        },
    )  # fmt: skip
    with disk_errors(folder):
        bundle.save(model, best.state, folder / "model")
    for text in thresholds.warnings(labels, best.targets, config.threshold_policy) if warn else ():
        logger.warning("%s", text)
    return TrainReport(
        run=folder, model=folder / "model", arch=config.arch, epochs=len(checkpoints.read_history(fitted)),
        best_epoch=best.epoch, threshold_policy=config.threshold_policy, calibration=settled.calibration.method,
        measurement=measurement, kept=config.keep_epoch,
    )  # fmt: skip


def measured(
    labels: Sequence[str], settled: decision.Settled, targets: np.ndarray[Any, Any], seed: int,
    resamples: int = _RESAMPLES, notes: Sequence[str] = (),
) -> Measurement:  # fmt: skip
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
        "policy": policy, "choice": choice, "log_losses": settled.losses, "objective": objective,
        "objectives": settled.objectives, "seed": seed,
    }  # fmt: skip


def expected(measurement: Measurement) -> dict[str, Any]:
    """What thresholds are expected to give on new images, with its intervals, as a bundle notes it."""
    names = ("f1_micro", "f1_macro", "precision_micro", "recall_micro")
    return {
        "cross_fitted": {name: measurement.values[name] for name in names},
        "intervals": {name: list(measurement.intervals[name]) for name in names},
    }


def decide_arithmetic(precision: Precision, share: Share, run: Run[Path]) -> str:
    """The arithmetic of a whole run or search: what run.json has noted, else what is set, or what its GPUs have."""
    noted = (read_state(run.folder) or {}).get("arithmetic")
    if noted is None:
        noted = placement.ask_worker(share, _arithmetic, precision)
        run.note(arithmetic=noted)
    return str(noted)


def _arithmetic(precision: Precision) -> str:
    """In a worker: what its device has."""
    import torch

    from mlic.model.amp import of_device

    return of_device(precision, torch.device(placement.assigned_device()))


def _fit_on(cluster: Cluster, config: TrainConfig, run: Run[Path], keep_scores: bool) -> None:
    """Run the loop on a worker or, by Ray Train, on a group of them, and pass its log on while it runs."""
    share = train_share(cluster, config.workers)
    shared_folders.check_shared(cluster, run.folder, config.shards)
    if config.min_workers is not None and config.min_workers > share.workers:
        raise ClusterError(
            f"min_workers is {config.min_workers}, and there are {share.workers} workers.",
            f"--min-workers {share.workers}, or fewer.",
        )
    run.note(workers=share.workers, cpus_per_worker=share.cpus, gpus_per_worker=share.gpus)
    logger.info("workers: %d, each with %d CPUs and %d GPUs", share.workers, share.cpus, share.gpus)
    arithmetic = decide_arithmetic(config.precision, share, run)
    log = _follow(run.folder / "log.txt")
    others = placement.reserved()
    try:
        for start_number in range(config.max_failures + 1):
            where = {
                "folder": str(run.folder), "owner": str(run.folder), "attempt": run.attempt, "arithmetic": arithmetic,
                "keep_scores": keep_scores,
            }  # fmt: skip
            if share.workers == 1:
                train = _alone(config, where, share)
            else:
                train = group(config, where, share, cluster.embedded, f"attempt-{run.attempt}-{start_number}").fit
            with run.stopping_on_request(), placement.watching_room(share, config.min_workers or share.workers):
                failed = signals.run_beside(train, lambda: next(log))
            if failed is None or not _lost_worker(failed):
                break
            logger.warning("a worker was lost; training is started anew, and goes on from its last checkpoint")
            # Those of a lost controller would be in the way of the new one for as long as this process lives.
            placement.free(placement.reserved() - others)
    except KeyboardInterrupt:
        raise _stopped(config, run) from None
    raise_failure(run.folder, run.attempt, failed)
    if run.is_asked_to_stop and not trainer.is_done(config, checkpoints.read_history(run.folder)):
        raise _stopped(config, run)


def _stopped(config: TrainConfig, run: Run[Path]) -> PartialError:
    done = len(checkpoints.read_history(run.folder))
    return PartialError(
        f"stopped; {done} of {config.epochs} epochs are done and kept.", "run the same command again to go on."
    )


def _lost_worker(failed: BaseException) -> bool:
    """Whether a worker died that nobody has replaced: one alone, or one of a group while that was set up or shut down,
    where Ray Train does not start it anew."""
    from ray.exceptions import RayActorError

    seen: list[BaseException | None] = [failed, failed.__cause__, getattr(failed, "cause", None)]
    seen += [getattr(error, "controller_failure", None) for error in list(seen)]
    return any(isinstance(error, (RayActorError, *pool.deaths())) for error in seen)


def _alone(config: TrainConfig, where: Mapping[str, Any], share: Share) -> Callable[[], object]:
    """What trains in one worker to the last epoch, in a plain actor; it raises RayActorError when the worker dies.

    Ray Train would add a controller and three more processes, whose main threads wake a hundred times a second each
    (CoreWorker looks for signals), in between threads of a computation that wait for each other at every layer. On two
    cores ResNet18 trains a tenth faster without them, and begins seconds earlier.
    """
    import ray

    actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0)(Worker)
    arguments = _arguments(config, where)

    def train() -> None:
        worker = actor.remote()
        try:
            ray.get(worker.fit.remote(arguments))
        finally:
            ray.kill(worker)

    return train


class Worker:
    """A process of Ray's that trains without others."""

    def fit(self, arguments: dict[str, Any]) -> None:
        """Run the training loop as the only rank."""
        import torch

        _loop(arguments, 0, 1, torch.device(placement.assigned_device()))


def group(
    config: TrainConfig, where: Mapping[str, Any], share: Share, embedded: bool, name: str,
    until: int | None = None, deadline: float | None = None,
) -> Any:  # fmt: skip
    """Ray Train's trainer of a group of workers for one start, by its name, to the last epoch or `until` an earlier.

    After `deadline`, in seconds since 1970, no epoch but its first is begun. `where` has the `folder` of the run or
    trial, that of its `owner`, the `attempt` that may write there, the `arithmetic` and whether to `keep_scores`.
    """
    # Ray Train reads these when it is imported, and hands them on to its controller and workers.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray.train
    from ray.train.torch import TorchTrainer

    from mlic.cluster.torch_backend import NodeTorchConfig

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """Without the actor that frees placement groups after a crash, where the whole Ray ends with this process.

            It asks Ray's dashboard, which an embedded Ray does not start, and costs a process and seconds.
            """
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not (embedded and type(c).__name__ == "PlacementGroupCleanerCallback")]

    # A worker that is lost while the group starts is counted by the controller, one that is lost later as a failure.
    limit = max(1, config.max_failures)
    workers = share.workers if config.min_workers is None else (config.min_workers, share.workers)
    resources = {"CPU": float(share.cpus), **({"GPU": float(share.gpus)} if share.gpus else {})}
    return Trainer(
        _worker,
        train_loop_config=_arguments(config, where, until, deadline),
        torch_config=NodeTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(share.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(Path(where["folder"]) / ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures, controller_failure_limit=limit),
        ),
    )


def _arguments(
    config: TrainConfig, where: Mapping[str, Any], until: int | None = None, deadline: float | None = None
) -> dict[str, Any]:
    """What a worker is told, in plain values."""
    return {"config": config.model_dump(mode="json"), "until": until, "deadline": deadline, **where}


def _worker(arguments: dict[str, Any]) -> None:
    """A Ray Train worker: the training loop on this rank."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    _loop(arguments, context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def _loop(arguments: Mapping[str, Any], rank: int, world_size: int, device: Any) -> None:
    """The training loop; our own errors are noted for the driver in the run's folder.

    It keeps its own checkpoints there, too: Ray Train takes note of a reported one only when its controller next looks,
    and a worker killed before that would go on from an older epoch.
    """
    folder = Path(arguments["folder"])
    place = Place(rank, world_size, device, folder, Path(arguments["owner"]), arguments["attempt"])
    if _read_failure(folder, place.attempt) is not None:
        return  # our own error would only come again; leaving quietly spares the restarts meant for lost workers
    try:
        config = TrainConfig.model_validate(arguments["config"], context=STORED)
        trainer.fit(
            config, place, until=arguments["until"], deadline=arguments["deadline"],
            arithmetic=arguments["arithmetic"], keep_scores=arguments["keep_scores"],
        )  # fmt: skip
    except MlicError as error:
        failure = {
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "attempt": place.attempt,
        }
        if is_current(place.owner, place.attempt):
            write_json(folder / _FAILURE, failure)
        raise


def _read_failure(folder: Path, attempt: int) -> MlicError | None:
    try:
        failure = json.loads((folder / _FAILURE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if failure["attempt"] != attempt:
        return None
    kinds = {kind.__name__: kind for kind in MlicError.__subclasses__()}
    return kinds.get(failure["kind"], MlicError)(failure["message"], failure["hint"])


def raise_failure(folder: Path, attempt: int, failed: BaseException | None) -> None:
    """Raise what went wrong in a group of workers: our own error, as it was raised there, or a RunError of Ray's."""
    ours = _read_failure(folder, attempt)
    if ours is not None:
        raise ours
    if failed is not None:
        rank, error = min((getattr(failed, "worker_failures", None) or {-1: failed}).items())
        for raised in (error, error.__cause__, getattr(error, "cause", None)):
            if isinstance(raised, MlicError):  # the note of it is not to be seen yet on a network file system
                raise raised
        where = f" on rank {rank}" if rank >= 0 else ""
        line = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)
        raise RunError(
            f"training failed{where}: {line.strip()[:300]}.",
            "run the same command again; -v shows Ray's own log.",
        ) from error


def _follow(path: Path) -> Iterator[None]:
    """Log the lines that are added to a file from now on, those since the last look at each step."""
    position = path.stat().st_size if path.is_file() else 0
    said = -LOG_EVERY_S
    while True:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                transient = line.startswith("step") and time.monotonic() - said < LOG_EVERY_S
                if line.startswith("step") and not transient:
                    said = time.monotonic()
                if line.startswith(_WARNING):
                    logger.warning("%s", line.removeprefix(_WARNING))
                else:
                    logger.info("%s", line, extra={"transient": transient})
        yield
