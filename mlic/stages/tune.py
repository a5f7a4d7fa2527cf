"""Search any settings of training, architecture, loss weighting and thresholds among them, for the best model.

Which trials go on is decided in the order of their numbers (see `search.rungs`), so the same settings give the same
table on any number of workers and after any interruption, and a search that is given more trials goes on as if it had
had them from the start.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import Run, write_atomic
from mlic.config import DoctorConfig, TuneConfig
from mlic.data.shards import check_trainable, read_index
from mlic.errors import ConfigError, RunError
from mlic.model import bundle, losses, weights, zoo
from mlic.schema import Model
from mlic.search.rungs import Search
from mlic.search.tpe import Tpe
from mlic.space import Value
from mlic.stages import checkpoints, start, trials
from mlic.stages.doctor import doctor as examine
from mlic.stages.fit import finish
from mlic.stages.measure import Measurement, aligned

logger = logging.getLogger(__name__)

_SHOWN = 20  # trials in the printed table
_LAG = 8  # trials that tpe draws without knowing what came of them: as many as can be at work


class Trial(Model):
    """A trial: how it ended, its best value of the objective (None when it has none) and what it was given."""

    number: int
    status: str
    epochs: int
    value: float | None
    best_epoch: int | None
    settings: dict[str, Value]
    error: str | None


class TuneReport(Model):
    """What a search came to: its trials, best first, and the winner's model and configuration file.

    `rungs` has the number of trials that were trained for so many epochs, `epochs` those of all trials together, of
    `possible` ones if none had been stopped.
    """

    run: Path
    model: Path
    best_config: Path
    objective: str
    trials: tuple[Trial, ...]
    rungs: dict[int, int]
    epochs: int
    possible: int
    seconds: float
    measurement: Measurement

    def text(self) -> str:
        counts = {status: sum(t.status == status for t in self.trials) for status in ("pruned", "failed", "cut")}
        named = {"pruned": "stopped early", "failed": "failed", "cut": "cut off when the time was up"}
        ended = ", ".join([f"{len(self.trials)} trials", *(f"{n} {named[s]}" for s, n in counts.items() if n)])
        more = [f"... and {len(self.trials) - _SHOWN} more in trials.parquet"] * (len(self.trials) > _SHOWN)
        failed = [f"trial {t.number} failed: {t.error}" for t in self.trials[:_SHOWN] if t.status == "failed"]
        share = self.epochs / self.possible
        return "\n".join(
            [
                *aligned(_table(self.trials[:_SHOWN], self.objective)), *more, *failed,
                f"{ended}; {self.epochs:,} epochs, {share:.0%} of {self.possible:,}; trial {self.trials[0].number} won",
                f"its validation split, {self.measurement.samples:,} samples, cross-fitted thresholds "
                "(the best of several trials looks better than it is)",
                self.measurement.table(), f"config  {self.best_config}", f"model   {self.model}",
            ]
        )  # fmt: skip


def _table(shown: Sequence[Trial], objective: str) -> list[list[str]]:
    names = list(dict.fromkeys(name for trial in shown for name in trial.settings))
    rows = [["trial", "status", "epochs", objective, *names]]
    for trial in shown:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        given = [_short(trial.settings[name]) if name in trial.settings else "-" for name in names]
        rows.append([f"{trial.number}", trial.status, f"{trial.epochs}", value, *given])
    return rows


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tune(config: TuneConfig) -> TuneReport:
    """Search, and leave the winner's bundle, tables of trials and epochs, and a configuration for `mlic train`.

    A stopped search goes on by the same command, and one with more trials or more time goes on from what there is.
    Raises ConfigError for a space that cannot work, ClusterError when not even one trial fits, RunError when no trial
    finished an epoch and PartialError when it is interrupted.
    """
    index = read_index(config.shards)
    check_trainable(config.shards, index, config.fold)
    begins_with = _check_networks(config, tuple(index["labels"]))
    config = config.model_copy(update={"name": config.name or "tune"})
    folder = config.runs / str(config.name)
    inputs = {"shards": index["fingerprint"], "weights": " ".join(begins_with)}
    with Run.open(folder, "tune", config, inputs, config.fresh) as run:
        if config.fresh and config.checkpoint_copy is not None:
            for number in range(config.trials):
                checkpoints.forget_copy(config.checkpoint_copy, trials.folder_of(folder, number), folder)
        search = trials.recall(config, folder)
        draw = Tpe(config.space, config.seed, search, _LAG) if config.searcher == "tpe" else config.drawn
        search.settle()
        if run.finished and (search.done or _time_is_up(config, folder)) and (folder / "model" / bundle.SPEC).is_file():
            return TuneReport(**run.report)
        if run.finished:
            run.reopen()
        if not search.done and not _time_is_up(config, folder):
            with cluster_ray.connect(config.address) as cluster:
                if config.doctor:
                    examine(DoctorConfig(shards=config.shards, address=config.address))
                cluster_ray.check_shared(cluster, folder, config.shards)
                trials.search_on(cluster, config, search, draw, run)
        report = _finish(config, search, draw, run)
        run.finish(report)
    return report


def _time_is_up(config: TuneConfig, folder: Path) -> bool:
    return config.budget is not None and trials.seconds_spent(folder) >= config.budget


def _check_networks(config: TuneConfig, labels: tuple[str, ...]) -> list[str]:
    """The digests of the weights that trials begin with. Raises ConfigError where there is no such thing."""
    start.check_names(config, labels)
    named = config.space.get("arch")
    archs = [config.arch] if named is None else [str(value) for value in named.ends]
    found = []
    for arch in archs:
        zoo.check(arch)
        path = weights.resolve(arch, config.weights)
        if path is not None and config.weights != "default" and len(archs) > 1:
            raise ConfigError(
                f"the weights {path} are those of one architecture, and space.arch has {len(archs)}.",
                "give space.arch one, or --weights default.",
            )
        found.append("none" if path is None else weights.digest(path))
    for number in range(min(config.trials, 50)):
        plan = config.plan(config.drawn(number))
        losses.check(plan.loss, plan.loss_options)
    return found


def _finish(config: TuneConfig, search: Search, draw: Any, run: Run[Path]) -> TuneReport:
    """Write the tables, the winner's configuration and its bundle."""
    ranking = trials.ranking(search, config.trials)
    if not ranking:
        reasons = [trials.failure(run.folder, number) for number in range(config.trials)]
        first = next((reason for reason in reasons if reason), "there was no time for one.")
        raise RunError(f"none of the {config.trials} trials finished an epoch: {first}", "mend that and use --fresh.")
    trials.drop_checkpoints(run.folder, search, config)
    begun = [number for number in range(config.trials) if search.begun(number)]
    rows = [_trial(run.folder, search, number, draw(number) or {}) for number in begun]
    rows.sort(key=lambda trial: (ranking.index(trial.number) if trial.number in ranking else len(begun), trial.number))
    winner = config.plan(rows[0].settings)
    _write_tables(config, run.folder, rows)
    best = winner.model_dump(mode="json", exclude={"address", "workers", "fresh", "name"})
    head = f"# The winner of {run.folder.name}: trial {rows[0].number}, {config.objective} {rows[0].value:.4f}.\n"
    write_atomic(run.folder / "best.yaml", (head + yaml.safe_dump(best, sort_keys=False)).encode())
    fitted = finish(winner, run.folder, trials.folder_of(run.folder, rows[0].number))
    return TuneReport(
        run=run.folder, model=fitted.model, best_config=run.folder / "best.yaml", objective=config.objective,
        trials=tuple(rows), rungs=dict(search.rungs()), epochs=sum(trial.epochs for trial in rows),
        possible=len(begun) * config.epochs, seconds=trials.seconds_spent(run.folder), measurement=fitted.measurement,
    )  # fmt: skip


def _trial(run: Path, search: Search, number: int, settings: dict[str, Value]) -> Trial:
    values = search.values(number)
    value = max(values, default=None)
    return Trial(
        number=number, status=search.status(number) or "cut", epochs=len(values), value=value,
        best_epoch=None if value is None else values.index(value) + 1, settings=settings,
        error=trials.failure(run, number),
    )  # fmt: skip


def _write_tables(config: TuneConfig, folder: Path, rows: Sequence[Trial]) -> None:
    """`trials.parquet`, a row a trial with all its settings, and `epochs.parquet`, a row for each of their epochs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_trials, of_epochs = [], []
    for trial in rows:
        plan = config.plan(trial.settings).model_dump(mode="json", exclude={"address", "workers", "fresh", "name"})
        plain = {
            key: value if isinstance(value, bool | int | float | str | None) else str(value)
            for key, value in plan.items()
        }
        kept = trial.model_dump(exclude={"settings"})
        of_trials.append(kept | {f"space.{name}": _column(value) for name, value in trial.settings.items()} | plain)
        for row in checkpoints.read_history(trials.folder_of(folder, trial.number)):
            of_epochs.append({"trial": trial.number, **row})
    for name, table in (("trials", of_trials), ("epochs", of_epochs)):
        columns = list(dict.fromkeys(key for row in table for key in row))
        sink = io.BytesIO()
        pq.write_table(pa.table({key: [row.get(key) for row in table] for key in columns}), sink)
        write_atomic(folder / f"{name}.parquet", sink.getvalue())


def _column(value: Value) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
