"""Search architecture, loss weighting, learning rate and threshold policy with Ray Tune and ASHA.

The trials are drawn before the first one starts, and each keeps its history and checkpoints in its own folder. A search
that is started again tells Ray Tune every trial's history anew: ASHA's rungs fill up as before, trials that were done
cost nothing, and the others go on after their last epoch. Ray Tune's own restore loses the rungs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import Run, is_current, write_atomic, write_json
from mlic.config import DoctorConfig, TrainConfig, TuneConfig
from mlic.data.shards import check_trainable, read_index
from mlic.errors import ClusterError, ConfigError, MlicError, PartialError, RunError
from mlic.fitting import FitSettings, NetworkSettings, RunSettings
from mlic.model import bundle, weights, zoo
from mlic.schema import Model
from mlic.stages import checkpoints, loop, start
from mlic.stages.doctor import doctor as examine
from mlic.stages.fit import finish
from mlic.stages.measure import Measurement, aligned
from mlic.stages.place import Place
from mlic.stages.progress import LOG_EVERY_S

logger = logging.getLogger(__name__)

_TRIALS = "trials"
_SETTINGS = ("arch", "threshold_policy", "pos_weight_power", "lr")


class Trial(Model):
    """A row of the table of trials; `value` is the best OBJECTIVE of its epochs, None when it reported none."""

    number: int
    status: str
    epochs: int
    value: float | None
    arch: str
    threshold_policy: str
    pos_weight_power: float
    lr: float
    error: str | None


class TuneReport(Model):
    """What a search came to: its trials, best first, and the winner's model and configuration file."""

    run: Path
    model: Path
    best_config: Path
    trials: tuple[Trial, ...]
    measurement: Measurement

    def text(self) -> str:
        rows = [["trial", "status", "epochs", loop.OBJECTIVE, "arch", "thresholds", "pos_weight_power", "lr"]]
        rows += [
            [
                f"{t.number}", t.status, f"{t.epochs}", "-" if t.value is None else f"{t.value:.4f}", t.arch,
                t.threshold_policy, f"{t.pos_weight_power:.3f}", f"{t.lr:.2e}",
            ]
            for t in self.trials
        ]  # fmt: skip
        pruned = sum(t.status == "pruned" for t in self.trials)
        failed = [f"trial {t.number} failed: {t.error}" for t in self.trials if t.status == "failed"]
        winner = self.trials[0].number
        return "\n".join(
            [
                *aligned(rows),
                *failed,
                f"{len(self.trials)} trials, {pruned} stopped early, {len(failed)} failed; trial {winner} won",
                f"its validation split, {self.measurement.samples:,} samples, cross-fitted thresholds "
                "(the best of several trials looks better than it is)",
                self.measurement.table(),
                f"config  {self.best_config}",
                f"model   {self.model}",
            ]
        )


def tune(config: TuneConfig) -> TuneReport:
    """Search with ASHA and leave the winner's bundle, a table of trials and a configuration for `mlic train`.

    A stopped search goes on by the same command. Raises ConfigError for a space that cannot work, ClusterError when not
    even one trial fits, RunError when no trial finished an epoch and PartialError when it is interrupted.
    """
    index = read_index(config.shards)
    check_trainable(config.shards, index, config.fold)
    begins_with = [_checked(arch, config) for arch in config.archs]
    start.check_names(config, tuple(index["labels"]))
    config = config.model_copy(update={"name": config.name or "tune"})
    folder = config.runs / str(config.name)
    plans = draw(config)
    inputs = {"shards": index["fingerprint"], "weights": " ".join(begins_with)}
    with Run.open(folder, "tune", config, inputs, config.fresh) as run:
        if config.fresh and config.checkpoint_copy is not None:
            for number in range(len(plans)):
                checkpoints.forget_copy(config.checkpoint_copy, _trial_folder(folder, number), folder)
        if run.finished and (folder / "model" / bundle.SPEC).is_file():
            return TuneReport(**run.report)
        if run.finished:
            run.reopen()
        if not all(_ended(_trial_folder(folder, i)) for i in range(len(plans))):
            with cluster_ray.connect(config.address) as cluster:
                if config.doctor:
                    examine(DoctorConfig(shards=config.shards, address=config.address))
                cluster_ray.check_shared(cluster, folder, config.shards)
                _search(cluster, config, plans, run)
        report = _finish(plans, run)
        run.finish(report)
    return report


def _checked(arch: str, config: TuneConfig) -> str:
    """The digest of the weights that an architecture begins with. Raises ConfigError where there is no such thing."""
    zoo.check(arch)
    path = weights.resolve(arch, config.weights)
    if path is not None and config.weights != "default" and len(config.archs) > 1:
        raise ConfigError(
            f"the weights {path} are those of one architecture, and archs has {len(config.archs)}.",
            "give --archs with one, or --weights default.",
        )
    return "none" if path is None else weights.digest(path)


def draw(config: TuneConfig) -> list[TrainConfig]:
    """The configurations of all trials, a pure function of the settings; each trial has its own stream of numbers."""
    shared = {
        name: getattr(config, name)
        for name in (RunSettings.model_fields | FitSettings.model_fields | NetworkSettings.model_fields)
        if name not in ("address", "workers", "fresh", "name")
    }
    plans = []
    for number in range(config.num_samples):
        rng = np.random.default_rng([config.seed, 5, number])
        low, high = (math.log(value) for value in config.lrs)
        drawn = {
            "arch": config.archs[int(rng.integers(len(config.archs)))],
            "pos_weight_power": round(float(rng.uniform(*config.pos_weight_powers)), 4),
            "threshold_policy": config.threshold_policies[int(rng.integers(len(config.threshold_policies)))],
            "lr": float(f"{math.exp(rng.uniform(low, high)):.4g}"),
        }
        plans.append(TrainConfig(**{**shared, **drawn}))
    return plans


def _search(cluster: cluster_ray.Cluster, config: TuneConfig, plans: Sequence[TrainConfig], run: Run[Path]) -> None:
    cpus = config.cpus_per_trial
    gpus = config.gpus_per_trial if config.gpus_per_trial is not None else float(cluster.gpus > 0)
    _refuse_what_does_not_fit(cluster, cpus, gpus)
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours to answer
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # a trial that is told to stop may be in an epoch
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="epoch", metric=_METRIC, mode="max", max_t=config.epochs, grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )  # fmt: skip
    arguments = {
        "plans": [plan.model_dump(mode="json") for plan in plans], "folder": str(run.folder), "attempt": run.attempt,
    }  # fmt: skip
    resources = {"cpu": cpus, "gpu": gpus}
    trainable = ray_tune.with_resources(ray_tune.with_parameters(_run_trial, arguments=arguments), resources)
    storage = run.folder / ".ray"
    shutil.rmtree(storage, ignore_errors=True)  # the trials' own folders are the record; Tune starts anew
    tuner = ray_tune.Tuner(
        trainable,
        param_space={"number": ray_tune.grid_search(list(range(len(plans))))},
        tune_config=ray_tune.TuneConfig(
            scheduler=scheduler, reuse_actors=True, max_concurrent_trials=_at_once(cluster, config, cpus, gpus)
        ),
        run_config=ray_tune.RunConfig(
            name="tune", storage_path=str(storage), verbose=0, callbacks=[_recorder(run.folder, plans)],
            failure_config=ray_tune.FailureConfig(max_failures=1),
        ),
    )  # fmt: skip
    try:
        failed = cluster_ray.run_beside(tuner.fit)
    except KeyboardInterrupt:
        done = sum(_ended(_trial_folder(run.folder, i)) is not None for i in range(len(plans)))
        raise PartialError(
            f"stopped; {done} of {len(plans)} trials are done, and the others keep their epochs.",
            "run the same command again to go on.",
        ) from None
    if failed is not None:
        raise failed


_METRIC = loop.OBJECTIVE.replace("/", "_")  # Ray Tune takes a slash for a nested result


def _at_once(cluster: cluster_ray.Cluster, config: TuneConfig, cpus: float, gpus: float) -> int:
    fits = int(cluster.cpus // cpus)
    if gpus:
        fits = min(fits, int(cluster.gpus // gpus))
    return fits if config.workers == "auto" else min(fits, config.workers)


def _refuse_what_does_not_fit(cluster: cluster_ray.Cluster, cpus: float, gpus: float) -> None:
    """Ray Tune itself would wait for ever."""
    for what, need, have in (
        ("CPUs", cpus, max((node.cpus for node in cluster.nodes), default=0)),
        ("GPUs", gpus, max((node.gpus for node in cluster.nodes), default=0)),
    ):
        if need > have:
            flag = f"--{what[:3].lower()}s-per-trial {have}"
            raise ClusterError(f"a trial needs {need:g} {what}; the largest node has {have}.", flag + ".")


def _run_trial(config: dict[str, Any], arguments: dict[str, Any]) -> None:
    """One trial, in a Ray Tune worker: its history so far, then its remaining epochs."""
    import torch
    from ray import tune as ray_tune

    owner = Path(arguments["folder"])
    folder = _trial_folder(owner, config["number"])
    plan = TrainConfig(**arguments["plans"][config["number"]])
    ended = _ended(folder)

    def report(row: dict[str, float]) -> None:
        ray_tune.report({"epoch": int(row["epoch"]), _METRIC: row[loop.OBJECTIVE]})

    if ended:
        for row in checkpoints.read_history(folder):
            report(row)
        if ended["status"] == "failed":
            raise RunError(ended["error"])
        return
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(cluster_ray.assigned_device())
    place = Place(0, 1, device, folder, owner, arguments["attempt"])
    try:
        loop.fit(plan, place, report)
    except MlicError as error:
        if is_current(owner, arguments["attempt"]):
            write_json(folder / "ended.json", {"status": "failed", "error": str(error)})
        raise


def _recorder(folder: Path, plans: Sequence[TrainConfig]) -> Any:
    """A Ray Tune callback that records how trials end and tells the story; the class needs Ray to be defined."""
    from ray.tune import Callback

    class Recorder(Callback):  # type: ignore[misc]
        best = -math.inf
        done = epochs = 0
        said = time.monotonic()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
            del iteration, trials
            number, value = trial.config["number"], result.get(_METRIC)
            if value is not None and value > self.best:
                self.best = value
                epoch = result["epoch"]
                logger.info("tune  trial %d, epoch %d | %s %.4f | best", number, epoch, loop.OBJECTIVE, value)
            self.epochs += 1
            if time.monotonic() - self.said >= LOG_EVERY_S:
                self._say()

        def _say(self) -> None:
            self.said = time.monotonic()
            logger.info("tune  %d/%d trials | %d epochs | best %.4f", self.done, len(plans), self.epochs, self.best)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            del iteration, trials
            self.done += 1
            own = _trial_folder(folder, trial.config["number"])
            finished = loop.is_done(plans[trial.config["number"]], checkpoints.read_history(own))
            if not _ended(own):
                write_json(own / "ended.json", {"status": "finished" if finished else "pruned", "error": None})
            self._say()

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            del iteration, trials
            self.done += 1
            own = _trial_folder(folder, trial.config["number"])
            if not _ended(own):
                text = str(trial.get_error() or "lost its worker").strip().splitlines()[-1][:300]
                own.mkdir(parents=True, exist_ok=True)
                write_json(own / "ended.json", {"status": "failed", "error": text})
            logger.warning("trial %d failed: %s", trial.config["number"], (_ended(own) or {}).get("error"))

    return Recorder()


def _trial_folder(folder: Path, number: int) -> Path:
    return folder / _TRIALS / f"{number:05d}"


def _ended(folder: Path) -> dict[str, Any] | None:
    path = folder / "ended.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _finish(plans: Sequence[TrainConfig], run: Run[Path]) -> TuneReport:
    trials = [_trial(run.folder, number, plan) for number, plan in enumerate(plans)]
    scored = [trial for trial in trials if trial.value is not None]
    if not scored:
        first = next((trial.error for trial in trials if trial.error), "no trial reported an epoch")
        raise RunError(f"none of the {len(trials)} trials finished an epoch: {first}.", "mend that and use --fresh.")
    trials.sort(key=lambda trial: (-(trial.value if trial.value is not None else -math.inf), trial.number))
    winner = plans[trials[0].number]
    _write_table(run.folder / "trials.parquet", trials)
    best = winner.model_dump(mode="json", exclude={"address", "workers", "fresh", "name"})
    head = f"# The winner of {run.folder.name}: trial {trials[0].number}, {loop.OBJECTIVE} {trials[0].value:.4f}.\n"
    write_atomic(run.folder / "best.yaml", (head + yaml.safe_dump(best, sort_keys=False)).encode())
    fitted = finish(winner, run.folder, _trial_folder(run.folder, trials[0].number))
    return TuneReport(
        run=run.folder, model=fitted.model, best_config=run.folder / "best.yaml", trials=tuple(trials),
        measurement=fitted.measurement,
    )  # fmt: skip


def _trial(folder: Path, number: int, plan: TrainConfig) -> Trial:
    own = _trial_folder(folder, number)
    history = checkpoints.read_history(own)
    ended = _ended(own) or {"status": "failed", "error": "never ended"}
    values = [row[loop.OBJECTIVE] for row in history]
    settings = {name: getattr(plan, name) for name in _SETTINGS}
    return Trial(
        number=number, status=ended["status"], epochs=len(history), value=max(values, default=None),
        error=ended["error"], **settings,
    )  # fmt: skip


def _write_table(path: Path, trials: Sequence[Trial]) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([trial.model_dump() for trial in trials]), sink)
    write_atomic(path, sink.getvalue())
