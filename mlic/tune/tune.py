"""Search the settings of training, architecture, loss weighting and thresholds for the best model.

Which trials continue is decided in the order of their numbers (see `early_stopping`). So the same settings give the
same table on any number of workers and after any interruption, and a search that gets more trials continues as if it
had planned them from the start.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlic.cluster import shared_folders
from mlic.cluster.connect import connect
from mlic.config.data import DoctorConfig
from mlic.config.space import Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data.shards import check_sizes, check_trainable, read_index
from mlic.doctor.doctor import doctor as examine
from mlic.errors import ConfigError, RunError
from mlic.log.log import following
from mlic.metrics.measurement import Measurement, measure
from mlic.model import bundle, losses, weights, zoo
from mlic.pack.foreign_shards import index_if_needed
from mlic.runs.files import write_atomic
from mlic.runs.run import Run
from mlic.train import checkpoints, epoch_choice, out_of_fold, setup
from mlic.train.cross_validation import check_folds
from mlic.train.launch import finish
from mlic.tune import exploit
from mlic.tune.confirm import confirm
from mlic.tune.early_stopping import Kind, Rule, Search
from mlic.tune.ensemble import ensemble, lack
from mlic.tune.progress import kept, seconds_spent
from mlic.tune.result import TuneReport
from mlic.tune.run_trials import train_on
from mlic.tune.search_page import render
from mlic.tune.tpe import Tpe
from mlic.tune.trial import Trial
from mlic.tune.trial_store import Draw, Trials
from mlic.tune.trial_worker import folder_of, parts

logger = logging.getLogger(__name__)

_RESAMPLES = 1000
_LAG = 8  # tpe does not use the results of this many trials before a draw; so many can be at work


def tune(config: TuneConfig) -> TuneReport:
    """Search, and leave the winner's bundle, tables of trials and epochs, and a configuration for `mlic train`.

    A stopped search continues by the same command, and one with more trials or more time resumes from what there is.
    Raises ConfigError for a space that cannot work, ClusterError when not even one trial fits, RunError when no trial
    finished an epoch and PartialError when it is interrupted.
    """
    index_if_needed(config.shards, config.address)
    config = setup.with_statistics(config)
    index = read_index(config.shards)
    check_trainable(config.shards, index, config.fold)
    folds = check_folds(config.shards, index) if config.cross_validate else 0
    begins_with = _check_networks(config, tuple(index["labels"]))
    config = config.model_copy(update={"name": config.name or config.folder.name})
    folder = config.folder
    inputs = {"shards": index["fingerprint"], "weights": " ".join(begins_with)}
    with following(config.log_to, folder), Run.open(folder, "tune", config, inputs, config.fresh) as run:
        kind: Kind = "asha" if config.scheduler == "asha" else "none"
        rule = Rule(kind, config.epochs, config.grace_epochs, config.reduction_factor)
        search = Search(rule, config.trials)
        base = folder / "trials"
        trials = Trials(search, base, _draws(config, search, base), config.plan, config, folds)
        if config.fresh and config.checkpoint_copy is not None:
            for number in range(trials.count):
                checkpoints.forget_copy(config.checkpoint_copy, trials.folder(number), folder)
        trials.recall(epoch_choice.objective(config))
        search.settle()
        done = _kept(config, trials, run)
        if done is not None:
            return done
        if run.finished:
            run.reopen()
        if not search.done and not _time_is_up(config, folder):
            check_sizes(config.shards, index, None)
            with connect(config.address) as cluster:
                if config.doctor:
                    examine(DoctorConfig(shards=config.shards, address=config.address))
                shared_folders.check_shared(cluster, folder, config.shards)
                train_on(cluster, config, trials, run, timed=True)
        report = _finish(config, trials, run)
        run.finish(report)
    return report


def _draws(config: TuneConfig, search: Search, base: Path) -> Draw:
    """The settings of trials by their numbers; those of a population as they have become."""
    if config.searcher == "tpe":
        return Tpe(config.space, config.seed, search, _LAG)
    drawn = config.draws()
    if config.scheduler != "pbt":
        return drawn
    return lambda number: exploit.read_settings(folder_of(base, number)) or drawn(number)


def _kept(config: TuneConfig, trials: Trials, run: Run[Path]) -> TuneReport | None:
    """The stored report of a finished search, unless more trials, more time or another confirmation is asked for."""
    ended = trials.search.done or _time_is_up(config, run.folder)
    if not (run.finished and ended and (run.folder / "model" / bundle.SPEC).is_file()):
        return None
    report = TuneReport(**run.report)
    confirmed = 0 if report.confirmation is None else report.confirmation.seeds
    is_complete = len(report.trials) == trials.count or not trials.search.done
    averaged = config.ensemble if report.no_ensemble else 0 if report.ensemble is None else report.ensemble.asked
    return report if is_complete and config.confirm in (0, confirmed) and config.ensemble in (0, averaged) else None


def _time_is_up(config: TuneConfig, folder: Path) -> bool:
    return config.budget is not None and seconds_spent(folder) >= config.budget


def _check_networks(config: TuneConfig, labels: tuple[str, ...]) -> list[str]:
    """The digests of the weights that trials begin with. Raises ConfigError where there is no such thing."""
    setup.check_names(config, labels)
    named = config.space.get("arch")
    archs = [config.arch] if named is None else [str(value) for value in named.ends]
    digests = []
    for arch in archs:
        zoo.check(arch)
        paths = weights.resolve(arch, config.weights)
        if paths and config.weights != "default" and len(archs) > 1:
            raise ConfigError(
                f"the weights {config.weights} are those of one architecture, and space.arch has {len(archs)}.",
                "give space.arch one, or --weights default.",
            )
        digests.append(weights.digest(paths))
    drawn = config.draws()
    for number in range(min(config.trials, 50)):
        plan = config.plan(drawn(number))
        losses.check(plan.loss, plan.loss_options)
    return digests


def _finish(config: TuneConfig, trials: Trials, run: Run[Path]) -> TuneReport:
    """Write the tables, the winner's configuration and its bundle, and train it again where that is asked for."""
    ranking, search = trials.ranking(), trials.search
    if not ranking:
        reasons = [trials.failure(number) for number in range(trials.count)]
        first = next((reason for reason in reasons if reason), "there was no time for one.")
        raise RunError(f"none of the {trials.count} trials finished an epoch: {first}", "fix that and use --fresh.")
    trials.drop_checkpoints(search.ended, kept(config))
    begun = [number for number in range(trials.count) if search.begun(number)]
    rows = [_trial(trials, number) for number in begun]
    rows.sort(key=lambda trial: (ranking.index(trial.number) if trial.number in ranking else len(begun), trial.number))
    winner = config.plan(rows[0].settings)
    _write_tables(config, trials, rows)
    best = winner.model_dump(mode="json", exclude={"address", "workers", "fresh", "name"})
    head = f"# The winner of {run.folder.name}: trial {rows[0].number}, {config.objective} {rows[0].value:.4f}.\n"
    write_atomic(run.folder / "best.yaml", (head + yaml.safe_dump(best, sort_keys=False)).encode())
    if trials.folds:
        winner = winner.model_copy(update={"fold": 0})
    fitted = finish(winner, run.folder, trials.fitted(rows[0].number), measurement=_of_folds(winner, trials, rows[0]))
    contest = [trials.draw(number) or {} for number in trials.distinct(ranking)[:2]]
    averaged = ensemble(config, trials, run) if config.ensemble else None
    report = TuneReport(
        run=run.folder,
        model=fitted.model,
        best_config=run.folder / "best.yaml",
        page=run.folder / "report" / "search.html",
        objective=config.objective,
        trials=tuple(rows),
        rungs=dict(search.rungs()),
        epochs=sum(trial.epochs for trial in rows),
        possible=len(begun) * config.epochs,
        folds=trials.folds,
        seconds=seconds_spent(run.folder),
        measurement=fitted.measurement,
        confirmation=confirm(config, contest, run) if config.confirm else None,
        ensemble=averaged,
        no_ensemble="" if averaged or not config.ensemble else _no_ensemble(config),
        exploits=tuple(taken for number in begun for taken in exploit.read_exploits(trials.folder(number))),
    )
    curves = {number: search.values(number) for number in begun}
    text, pictures = render(report, config, curves)
    for name, data in pictures.items():
        (run.folder / "report").mkdir(exist_ok=True)
        write_atomic(run.folder / "report" / f"search-{name}.png", data)
    write_atomic(report.page, text.encode())
    return report


def _no_ensemble(config: TuneConfig) -> str:
    return f"there is no ensemble of {config.ensemble}: {lack(config, 1)}"


def _of_folds(winner: TrainConfig, trials: Trials, trial: Trial) -> Measurement | None:
    """The value of a cross-validated trial over all folds; None without folds."""
    if not trials.folds:
        return None
    all_folds = out_of_fold.together(out_of_fold.read(winner, parts(trials.folder(trial.number), trials.folds)))
    labels = tuple(read_index(winner.shards)["labels"])
    return measure(
        labels, all_folds.decisions, all_folds.targets, all_folds.scores, _RESAMPLES, winner.seed, all_folds.ranked
    )


def _trial(trials: Trials, number: int) -> Trial:
    values = trials.search.values(number)
    return Trial(
        number=number,
        status=trials.search.status(number) or "cut",
        epochs=len(values),
        value=trials.value(number),
        best_epoch=None if trials.folds else trials.kept_epoch(number),
        settings=trials.draw(number) or {},
        error=trials.failure(number),
    )


def _write_tables(config: TuneConfig, trials: Trials, rows: Sequence[Trial]) -> None:
    """`trials.parquet`, a row a trial with all its settings, and `epochs.parquet`, a row for each of their epochs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_trials, of_epochs = [], []
    for trial in rows:
        plan = config.plan(trial.settings).model_dump(mode="json", exclude={"address", "workers", "fresh", "name"})
        settings = {
            key: value if isinstance(value, bool | int | float | str | None) else str(value)
            for key, value in plan.items()
        }
        ranked = trial.model_dump(exclude={"settings", "epochs"}) | {"epochs_trained": trial.epochs}
        of_trials.append(ranked | {f"space.{name}": _column(value) for name, value in trial.drawn.items()} | settings)
        for row in checkpoints.read_history(trials.folder(trial.number)):
            of_epochs.append({"trial": trial.number, **row})
    for name, records in (("trials", of_trials), ("epochs", of_epochs)):
        columns = list(dict.fromkeys(key for row in records for key in row))
        sink = io.BytesIO()
        pq.write_table(pa.table({key: [row.get(key) for row in records] for key in columns}), sink)
        write_atomic(trials.base.parent / f"{name}.parquet", sink.getvalue())


def _column(value: Value) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
