"""Predictions and labels to numbers, each beside its trivial baselines and its interval."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster.runs import disk_errors, write_json
from mlic.config import AnyPath, EvaluateConfig, LabelFormat, Location, Model, PredictConfig, location
from mlic.data import labels, predictions, storage
from mlic.data.annotations import read_annotations
from mlic.data.shards import INDEX, read_split
from mlic.errors import ConfigError, DataError
from mlic.stages import report as page
from mlic.stages.measure import Measurement, measure
from mlic.stages.predict import predict
from mlic.stages.report_evidence import Evidence, of_predictions

logger = logging.getLogger(__name__)


class EvaluateReport(Model):
    """The measurement, and where it was written. `unmatched` counts annotated images without a prediction."""

    predictions: Path
    labels: AnyPath
    metrics: Path
    report: Path
    unmatched: int
    measurement: Measurement

    def text(self) -> str:
        lines = [
            f"{self.measurement.samples:,} samples of {self.predictions} against {self.labels}",
            self.measurement.label_table(), "", self.measurement.table(),
        ]  # fmt: skip
        if self.unmatched:
            lines.append(f"{self.unmatched:,} annotated images have no prediction and are not measured")
        return "\n".join([*lines, f"report  {self.report}"])


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure a predictions file, or a run on one split of its shards, and write metrics.json and report.html.

    Predictions and labels are joined by key, columns by name. Raises DataError when keys of the split have no
    prediction, when a key stands twice or when the labels are others.
    """
    file, truth = config.predictions, config.labels
    if not file.exists():
        raise DataError(f"the predictions {file} do not exist.", "mlic batch-predict writes them; a run works too.")
    if file.is_dir():
        truth = truth or _shards_of(file)
        file = _predict_split(config, file, truth)
    if truth is None:
        raise ConfigError("--labels is not given.", "name shards, a folder of per-label lists, or a CSV file.")
    found = predictions.read(file)
    if found.decisions is None:
        raise ConfigError(f"{file} holds scores and no decisions.", "predict with --values both.")
    rows, targets, names, unmatched = _join(found, truth, config.split, config.format)
    columns = [found.labels.index(name) for name in names]
    scores = None if found.scores is None else found.scores[rows][:, columns]
    decisions = found.decisions[rows][:, columns]
    measurement = measure(names, decisions, targets, scores, config.resamples, config.seed)
    out = config.out or file.with_name(file.name + ".eval")
    report = EvaluateReport(
        predictions=file, labels=truth, metrics=out / "metrics.json", report=out / "report.html", unmatched=unmatched,
        measurement=measurement,
    )  # fmt: skip
    title = f"{file.name} against {storage.name(truth)}"
    keys = [found.keys[i] for i in rows]
    evidence = of_predictions(title, names, keys, targets, decisions, scores, measurement, truth, config.split)
    _write(out, report, evidence, config.seed)
    return report


def _shards_of(run: Path) -> Location:
    """The shards that a run was trained on."""
    try:
        shards: Location = location(json.loads((run / "config.json").read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"{run} is no run of mlic train or mlic tune.", "name a run, or give --labels.") from None
    if not storage.is_folder(shards):
        raise DataError(f"the shards of {run}, {shards}, are not there.", "give --labels SHARDS.")
    return shards


def _predict_split(config: EvaluateConfig, run: Path, shards: Location) -> Path:
    if storage.size(storage.join(shards, INDEX)) is None:
        raise ConfigError(f"{shards} is no folder of shards.", "predict the images first, then evaluate the file.")
    out = run / "predictions" / f"{config.split}.parquet"
    predict(
        PredictConfig(
            model=run, images=shards, out=out, split=config.split, address=config.address, workers=config.workers,
            fresh=config.fresh,
        )
    )  # fmt: skip
    return out


def _join(
    found: predictions.Predictions, truth: Location, split: str, format: LabelFormat
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...], int]:
    """Rows of the predictions, their targets, the labels in order, and the annotated images without a prediction."""
    position = {key: i for i, key in enumerate(found.keys)}
    if len(position) < len(found.keys):
        twice = next(key for i, key in enumerate(found.keys) if position[key] != i)
        raise DataError(f"the key {twice!r} is predicted twice.", "name each image once.")
    if storage.size(storage.join(truth, INDEX)) is not None:
        samples = read_split(truth, split)
        _same_labels(found.labels, samples.labels)
        keys = samples.keys.to_pylist()
        lost = [key for key in keys if key not in position]
        if lost:
            raise DataError(
                f"{len(lost):,} of {len(samples):,} samples of the split {split!r} have no prediction ({lost[0]!r}).",
                "predict the whole split, or name another by --split.",
            )
        return (
            np.array([position[key] for key in keys], dtype=int),
            samples.targets,
            samples.labels,
            0,
        )
    annotations = read_annotations(truth, format)
    _same_labels(found.labels, annotations.labels)
    joined = labels.join(annotations, labels.as_paths(found.files))
    return np.arange(len(found.keys)), joined.targets, annotations.labels, len(joined.missing)


def _same_labels(predicted: tuple[str, ...], annotated: tuple[str, ...]) -> None:
    sides = {"predicted": set(predicted) - set(annotated), "annotated": set(annotated) - set(predicted)}
    if any(sides.values()):
        only = [f"only {side}: {', '.join(sorted(found)[:5])}" for side, found in sides.items() if found]
        raise DataError(
            f"predictions and labels have other labels ({'; '.join(only)}).",
            "measure with the labels that the model was trained on.",
        )


def _is_ours(metrics: Path) -> bool:
    try:
        return bool(json.loads(metrics.read_text(encoding="utf-8")).get("kind") == "metrics")
    except (OSError, ValueError, AttributeError):
        return False


def _write(out: Path, report: EvaluateReport, evidence: Evidence, seed: int) -> None:
    if out.is_dir() and any(out.iterdir()) and not _is_ours(report.metrics):
        raise ConfigError(f"{out} holds files that mlic did not write.", "name another folder by --out.")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    plain = report.model_dump(mode="json")
    write_json(report.metrics, {"format": 1, "kind": "metrics", **plain["measurement"]})
    page.write(out, [evidence], seed)
