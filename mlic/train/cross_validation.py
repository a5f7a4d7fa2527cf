"""Train one model per fold, on the other folds, to score each sample with a model that did not see it."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster.connect import connect
from mlic.cluster.resources import train_share
from mlic.config.base import Model
from mlic.config.data import DoctorConfig
from mlic.config.train import TrainConfig
from mlic.data.shards import check_trainable, read_index, read_split
from mlic.doctor.doctor import doctor as examine
from mlic.errors import DataError
from mlic.metrics.measurement import SHOWN, Measurement, aligned, measure
from mlic.model import zoo
from mlic.runs.files import write_atomic
from mlic.runs.run import Run
from mlic.train import out_of_fold
from mlic.train.launch import fit

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

SCORES, _FOLDS = "scores.parquet", "folds"
_RESAMPLES = 1000


class FoldsReport(Model):
    """The result of the folds: each metric of each fold, and all their samples together.

    `folds` has a list by metric, in the order of the folds. Each fold is measured at one of the `epochs`, which the
    mean curve of the other folds chose. `measurement` is over all samples. Each sample has a model and thresholds that
    were not fitted to it. The interval is over samples, not over trainings.
    """

    run: Path
    scores: Path
    arch: str
    epochs: tuple[int, ...] = ()
    folds: dict[str, tuple[float, ...]]
    measurement: Measurement

    def text(self) -> str:
        count = len(next(iter(self.folds.values())))
        rows = [["metric", "mean of folds", "deviation", *(f"fold {k}" for k in range(count))]]
        for name, values in self.folds.items():
            numbers = (float(np.mean(values)), float(np.std(values, ddof=1)), *values)
            rows.append([name, *(f"{value:.4f}" for value in numbers)])
        return "\n".join(
            [
                f"{self.run}: {self.arch}, {count} folds, each measured by the model of the others, at an epoch that "
                "other folds chose",
                *aligned(rows),
                f"all folds together, {self.measurement.samples:,} samples, cross-fitted thresholds",
                self.measurement.table(),
                f"scores  {self.scores}",
                "next    mlic train without --cross-validate fits the model to keep",
            ]
        )


def cross_validate(config: TrainConfig) -> FoldsReport:
    """Train a model for each fold of the shards, in `RUN/folds/`, and measure all samples outside of the test split.

    If it is started again, it continues with the fold that was interrupted. Raises DataError for shards without folds,
    and what `fit` raises.
    """
    index = read_index(config.shards)
    zoo.check(config.arch)
    count = check_folds(config.shards, index)
    folder = config.folder
    with Run.open(folder, "cross-validate", config, {"shards": index["fingerprint"]}, config.fresh) as run:
        if run.finished and (folder / SCORES).is_file():
            logger.info("%s is finished; --fresh trains the folds again", folder)
            return FoldsReport(**run.report)
        if run.finished:
            run.reopen()
        fit_folds(config, folder, count)
        report = _report(config, folder, count)
        run.finish(report)
    return report


def check_folds(shards: Any, index: dict[str, Any]) -> int:
    """How many folds the shards have. Raises DataError when there are none."""
    count = int(index.get("folds") or 0)
    if count < 2:
        raise DataError(f"{shards} has no folds.", "pack with --folds 5 into another folder.")
    check_trainable(shards, index, count - 1)
    return count


def fit_folds(config: TrainConfig, folder: Path, count: int) -> None:
    """Train one model per fold, on the other folds, as runs in `folder/folds/` on one Ray, and write the scores."""
    with connect(config.address) as cluster:
        if config.doctor:
            ranks = train_share(cluster, config.workers).workers
            examine(DoctorConfig(shards=config.shards, address=config.address, ranks=ranks))
        for fold in range(count):
            logger.info("fold %d of %d", fold + 1, count)
            of_fold = {"runs": folder / _FOLDS, "name": f"fold{fold}", "fold": fold, "doctor": False}
            if config.checkpoint_copy is not None:  # a place of its own, whatever other runs copy there
                of_fold["checkpoint_copy"] = config.checkpoint_copy / f"{folder.name}/{_FOLDS}"
            fit(config.model_copy(update={**of_fold, "cross_validate": False}), keep_scores=True)
    _write_scores(folder / SCORES, config, folder, count)


def _parts(folder: Path, count: int) -> list[Path]:
    """The folders of the folds' runs, in their order."""
    return [folder / _FOLDS / f"fold{fold}" for fold in range(count)]


def _write_scores(path: Path, config: TrainConfig, folder: Path, count: int) -> None:
    """Write the scores of each sample by the model that did not see it, in the order of the folds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for fold, scores in enumerate(out_of_fold.read(config, _parts(folder, count))):
        split = read_split(config.shards, "val", fold)
        columns = {"key": split.keys, "file": split.files, "fold": pa.array(np.full(len(split), fold, np.int32))}
        for values, kind in ((scores.targets.astype(np.int8), "given"), (scores.scores, "score")):
            columns |= {f"{name}_{kind}": pa.array(values[:, i]) for i, name in enumerate(split.labels)}
        tables.append(pa.table(columns))
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    write_atomic(path, sink.getvalue())


def read_scores(path: Path, labels: Sequence[str]) -> tuple[list[str], Array, Array, Array]:
    """Files (N,), scores (N, L), targets (N, L) and folds (N,) of the out-of-fold scores of some labels."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    scores, targets = (
        np.stack([table.column(f"{name}_{kind}").to_numpy() for name in labels], axis=1) for kind in ("score", "given")
    )
    return table.column("file").to_pylist(), scores, targets, table.column("fold").to_numpy()


def _report(config: TrainConfig, folder: Path, count: int) -> FoldsReport:
    labels = tuple(read_index(config.shards)["labels"])
    folds = out_of_fold.read(config, _parts(folder, count))
    all_folds = out_of_fold.together(folds)
    return FoldsReport(
        run=folder,
        scores=folder / SCORES,
        arch=config.arch,
        epochs=tuple(fold.epoch for fold in folds),
        folds={name: tuple(fold.metrics[f"val/{name}"] for fold in folds) for name in SHOWN},
        measurement=measure(
            labels, all_folds.decisions, all_folds.targets, all_folds.scores, _RESAMPLES, config.seed, all_folds.ranked
        ),
    )
