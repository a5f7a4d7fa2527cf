"""Train a model on the scores of others, its teachers (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

The targets of a labelled image are its labels mixed with the mean scores of the teachers; those of an image without
labels are the scores alone. The same model is trained without the teachers too, so that the gain is a number.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import list_items, predict, source_fingerprint
from mlic.config.base import Model
from mlic.config.data import PackConfig
from mlic.config.predict import PredictConfig
from mlic.config.train import DistillConfig, TrainConfig
from mlic.config.types import Location
from mlic.data.shards import read_index
from mlic.data.sources.image_sources import list_images
from mlic.errors import DataError
from mlic.metrics.decision import Settled
from mlic.metrics.measurement import Measurement
from mlic.model import bundle
from mlic.pack.pack import pack
from mlic.runs.files import disk_errors, write_atomic
from mlic.runs.run import Run
from mlic.train import checkpoints
from mlic.train.launch import decide
from mlic.train.train import train
from mlic.tune.ensemble import lead, verdict

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
_IMAGE = "file of the image"  # a column that no label is called like


class DistillReport(Model):
    """A model that learnt from teachers, measured on the validation split with cross-fitted thresholds.

    `labelled` and `unlabelled` count its training images. `gain` is its lead over the same model without teachers in
    `objective`, with the 95% interval over images; None if that was not trained.
    """

    model: Path
    run: Path
    teachers: tuple[str, ...]
    labelled: int
    unlabelled: int
    objective: str
    gain: tuple[float, float, float] | None
    measurement: Measurement

    def text(self) -> str:
        lines = [self.measurement.table(), ""]
        lines.append(
            f"learnt from {', '.join(self.teachers)} on {self.labelled:,} labelled and {self.unlabelled:,} other images"
        )
        if self.gain is not None:
            ahead, least, most = self.gain
            lines.append(
                f"beside the same model without teachers: {self.objective} {ahead:+.4f} ({least:+.4f} to {most:+.4f}), "
                f"{verdict(self.gain)}"
            )
        return "\n".join([*lines, f"model  {self.model}", f"next   mlic evaluate {self.run} measures the test split"])


def distill(config: DistillConfig) -> DistillReport:
    """Train a model on the scores of its teachers. Started again, it goes on where it was stopped.

    Raises DataError for teachers that do not have the labels of the shards.
    """
    index, models = read_index(config.shards), [bundle.read(path) for path in config.teachers]
    for path, model in zip(config.teachers, models, strict=True):
        _check_labels(path, model, tuple(index["labels"]), config.shards)
    inputs = {
        "teachers": " ".join(sorted(model.fingerprint for model in models)),
        "shards": index["fingerprint"],
        "images": "none" if config.images is None else source_fingerprint(list_items(config.images, None)),
    }
    with Run.open(config.folder, "distill", config, inputs, config.fresh) as run:
        if run.finished:
            return DistillReport(**run.report)
        tables = [_taught(config, config.shards, "labelled", models)]
        extra = None if config.images is None else _packed(config, config.images, models[0].labels)
        if extra is not None:
            tables.append(_taught(config, extra, "unlabelled", models))
        student = _student(config, "student", soft_targets=tuple(tables), unlabelled_shards=extra)
        measurement = train(student).measurement
        gain = None
        if config.compare:
            plain = _student(config, "without-teachers")
            train(plain)
            gain = lead(config.objective, _settled(student), _settled(plain), _targets(student), config.seed)
        report = DistillReport(
            model=_publish(config, student),
            run=config.folder,
            teachers=tuple(path.name for path in config.teachers),
            labelled=index["splits"]["train"]["samples"],
            unlabelled=0 if extra is None else read_index(extra)["samples"],
            objective=config.objective,
            gain=gain,
            measurement=measurement,
        )
        run.finish(report)
    return report


def _check_labels(path: Path, model: bundle.Bundle, labels: tuple[str, ...], shards: Location) -> None:
    if model.labels != labels:
        odd = sorted(set(model.labels) ^ set(labels)) or ["in another order"]
        raise DataError(
            f"{path} has not the labels of {shards}: {', '.join(odd[:5])}.",
            "name teachers that were trained on shards with the same labels.",
        )


def _student(config: DistillConfig, name: str, **more: Any) -> TrainConfig:
    """The configuration of the model to train, in a folder of its own."""
    plain = {field: getattr(config, field) for field in TrainConfig.model_fields}
    return TrainConfig.model_construct(**plain | {"runs": config.folder, "name": name, "fresh": False} | more)


def _taught(config: DistillConfig, shards: Location, name: str, models: Sequence[bundle.Bundle]) -> Path:
    """The table of the teachers' mean scores of a training split, which is written once."""
    out = config.folder / "teachers" / f"{name}.parquet"
    total, keys = None, pa.array([], pa.string())
    for number, path in enumerate(config.teachers):
        file = config.folder / "teachers" / f"{name}-{number}.parquet"
        logger.info("teacher %s scores the %s images", path.name, name)
        predict(
            PredictConfig(
                model=path,
                images=shards,
                split="train",
                out=file,
                values="scores",
                address=config.address,
                workers=config.workers,
            )
        )
        read = prediction_files.read(file)
        if read.scores is None:
            raise DataError(f"{file} has no scores.", "start again with --fresh.")
        total, keys = read.scores if total is None else total + read.scores, read.keys
    means = np.zeros((0, len(models[0].labels))) if total is None else total / len(config.teachers)
    columns = {label: means[:, number].astype(np.float32) for number, label in enumerate(models[0].labels)}
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": pa.array(keys, pa.string()), **columns}), sink)
    write_atomic(out, sink.getvalue())
    return out


def _packed(config: DistillConfig, images: Location, labels: Sequence[str]) -> Path:
    """Shards of the images without labels: one of them is named, with no label known, and so the others are unknown."""
    out, table = config.folder / "unlabelled", config.folder / "unlabelled.csv"
    listing = list_images(images)
    if not len(listing.paths):
        raise DataError(f"{images} has no image.", "check the path given to --images.")
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([_IMAGE, *labels])
    rows.writerow([bytes(listing.paths[0].as_py()).decode(errors="surrogateescape"), *["nan"] * len(labels)])
    write_atomic(table, text.getvalue().encode(errors="surrogateescape"))
    with _quietly("mlic"):
        pack(
            PackConfig(
                images=images,
                labels=table,
                image_column=_IMAGE,
                label_columns=tuple(labels),
                not_annotated="unknown",
                split={"train": 1.0, "val": 0.0, "test": 0.0},
                out=out,
                address=config.address,
                workers=config.workers,
            )
        )
    return out


@contextlib.contextmanager
def _quietly(name: str) -> Iterator[None]:
    """Without the warnings that images without labels and without a validation split give rise to."""
    speaker = logging.getLogger(name)
    before = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(before)


def _targets(config: TrainConfig) -> Array:
    return checkpoints.read_best(config.folder).targets


def _settled(config: TrainConfig) -> Settled:
    """The decisions of a run on the validation split, cross-fitted."""
    weights = bundle.read(config.folder).provenance["pos_weight"]
    best = checkpoints.read_best(config.folder)
    return decide(config.threshold_policy, config.calibration, best, weights, config.seed, config.objective)[0]


def _publish(config: DistillConfig, student: TrainConfig) -> Path:
    """The bundle of the student as that of this run."""
    model, net = bundle.load_model(student.folder)
    provenance = model.provenance | {"run": config.folder.name, "checkpoint": student.folder.name}
    with disk_errors(config.folder):
        bundle.save(dataclasses.replace(model, provenance=provenance), net.state_dict(), config.folder / "model")
    return config.folder / "model"
