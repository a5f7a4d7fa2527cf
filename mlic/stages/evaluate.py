"""Predictions and labels to numbers, each beside its trivial baselines and its interval."""

from __future__ import annotations

import difflib
import json
import logging
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster.runs import disk_errors, read_state, write_json
from mlic.config import EvaluateConfig, LabelFormat, PredictConfig
from mlic.data import labels, predictions, storage
from mlic.data.annotations import read_annotations
from mlic.data.shards import INDEX, read_split
from mlic.errors import ConfigError, DataError, RunError
from mlic.model import bundle
from mlic.schema import Model, Settings
from mlic.score import thresholds
from mlic.stages import report as page
from mlic.stages.measure import Measurement, measure
from mlic.stages.predict import predict
from mlic.stages.report_evidence import Evidence, of_predictions
from mlic.values import AnyPath, Location, location, parse_gate

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
_LAST_NUMBER = re.compile(r"\d+$")


_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Gate(Model):
    """A condition that was asked for, and the value that it was held against."""

    gate: str
    value: float
    passed: bool


class EvaluateReport(Model):
    """The measurement, and where it was written. `unmatched` counts annotated images without a prediction."""

    predictions: Path
    labels: AnyPath
    metrics: Path
    report: Path
    unmatched: int
    gates: tuple[Gate, ...] = ()
    measurement: Measurement

    @property
    def exit_code(self) -> int:
        """That of a run that failed by itself where a gate is not passed."""
        return 0 if all(gate.passed for gate in self.gates) else RunError.exit_code

    def text(self) -> str:
        lines = [
            f"{self.measurement.samples:,} samples of {self.predictions} against {self.labels}",
            self.measurement.label_table(), "", self.measurement.table(),
        ]  # fmt: skip
        if self.unmatched:
            lines.append(f"{self.unmatched:,} annotated images have no prediction and are not measured")
        lines += [f"gate  {g.gate}: {g.value:.4f}, {'passed' if g.passed else 'NOT passed'}" for g in self.gates]
        return "\n".join([*lines, f"report  {self.report}"])


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure a predictions file, or a run on one split of its shards, and write metrics.json and report.html.

    Predictions and labels are joined by key, columns by name. Raises DataError when keys of the split have no
    prediction, when a key stands twice or when the labels are others.
    """
    file, truth = config.predictions, config.labels
    if not file.exists():
        raise DataError(f"the predictions {file} do not exist.", "mlic batch-predict writes them; a run works too.")
    if file.is_dir() and not predictions.is_folder(file):
        truth = truth or shards_of(file)
        if storage.size(storage.join(truth, INDEX)) is None:
            raise ConfigError(f"{truth} is no folder of shards.", "predict the images first, then evaluate the file.")
        file = predict_split(config, file, truth, config.split)
    if truth is None:
        raise ConfigError("--labels is not given.", "name shards, a folder of per-label lists, or a CSV file.")
    found = predictions.read(file)
    decided = _decisions(config, file, found)
    rows, targets, names, unmatched = join(found, truth, config.split, config.format)
    columns = [found.labels.index(name) for name in names] if found.labels else list(range(len(names)))
    scores = None if found.scores is None else found.scores[rows][:, columns]
    decisions = decided[rows][:, columns]
    measurement = measure(names, decisions, targets, scores, config.resamples, config.seed)
    out = config.out or file.with_name(file.name + ".eval")
    report = EvaluateReport(
        predictions=file, labels=truth, metrics=out / "metrics.json", report=out / "report.html", unmatched=unmatched,
        gates=tuple(_check(gate, measurement) for gate in config.gate), measurement=measurement,
    )  # fmt: skip
    title = f"{file.name} against {storage.name(truth)}"
    keys = [found.keys[i] for i in rows]
    evidence = of_predictions(title, names, keys, targets, decisions, scores, measurement, truth, config.split)
    _write(out, report, evidence, config.seed)
    return report


def _decisions(config: EvaluateConfig, file: Path, found: predictions.Predictions) -> Array:
    """The decisions (N, L) of a file, or those that a threshold makes of its scores."""
    if found.decisions is not None:
        if config.threshold is not None:
            raise ConfigError(f"{file} holds decisions already.", "leave --threshold out.")
        return found.decisions
    if config.threshold is None or found.scores is None:
        raise ConfigError(
            f"{file} holds scores and no decisions.", "predict with --values both, or give --threshold 0.5."
        )
    return thresholds.decide(found.scores, np.full(found.columns, config.threshold, dtype=np.float32))


def _check(gate: str, measurement: Measurement) -> Gate:
    """Hold a measurement against a gate such as `f1_micro>=0.8`, or `f1_micro.low>=0.8` for its interval's end."""
    name, sign, limit = parse_gate(gate)
    end = next((end for end in (".low", ".high") if name.endswith(end)), "")
    metric = name.removesuffix(end)
    if metric not in measurement.values:
        near = difflib.get_close_matches(metric, measurement.values, n=1, cutoff=0.5)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(measurement.values)}."
        raise ConfigError(f"the gate {gate!r} names no metric that was measured.", known)
    value = measurement.values[metric]
    if end:
        value = measurement.intervals[metric][0 if end == ".low" else 1]
    return Gate(gate=gate, value=value, passed=_OPERATORS[sign](value, limit))


def shards_of(run: Path) -> Location:
    """The shards that a run was trained on."""
    try:
        shards: Location = location(json.loads((run / "config.json").read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"{run} is no run of mlic train or mlic tune.", "name a run, or give --labels.") from None
    if not storage.is_folder(shards):
        raise DataError(f"the shards of {run}, {shards}, are not there.", "give --labels SHARDS.")
    return shards


def predict_split(config: Settings, run: Path, shards: Location, split: str) -> Path:
    """Predict a split of shards with a run's model, once for as long as neither changes; returns the file."""
    out = run / "predictions" / f"{split}.parquet"
    before = read_state(out.with_name(out.name + ".parts")) or {}
    # The folder is this command's own, so a model with new thresholds or other shards are no reason to refuse.
    stale = before.get("inputs", {}).get("model") not in (None, bundle.read(run).fingerprint)
    predict(
        PredictConfig(
            model=run, images=shards, out=out, split=split, address=config.address, workers=config.workers,
            fresh=config.fresh or stale,
        )
    )  # fmt: skip
    return out


def join(
    found: predictions.Predictions, truth: Location, split: str, format: LabelFormat
) -> tuple[Array, Array, tuple[str, ...], int]:
    """Rows of the predictions, their targets, the labels in order, and the annotated images without a prediction.

    Images are joined by key; bare numbers find the key that ends in them. Raises DataError for keys of the split
    without a prediction, keys that stand twice and other labels.
    """
    position = {key: i for i, key in enumerate(found.keys)}
    if len(position) < len(found.keys):
        twice = next(key for i, key in enumerate(found.keys) if position[key] != i)
        raise DataError(f"the key {twice!r} is predicted twice.", "name each image once.")
    if storage.size(storage.join(truth, INDEX)) is not None:
        samples = read_split(truth, split)
        _same_labels(found.labels, found.columns, samples.labels)
        keys = samples.keys.to_pylist()
        if position and all(key.isdecimal() for key in position):
            keys = [str(int(number[0])) if (number := _LAST_NUMBER.findall(key)) else key for key in keys]
            position = {str(int(key)): i for key, i in position.items()}
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
    _same_labels(found.labels, found.columns, annotations.labels)
    joined = labels.join(annotations, labels.as_paths(found.files))
    return np.arange(len(found.keys)), joined.targets, annotations.labels, len(joined.missing)


def _same_labels(predicted: tuple[str, ...], columns: int, annotated: tuple[str, ...]) -> None:
    if not predicted:  # the columns have no names, and stand in the order of the labels
        if columns != len(annotated):
            raise DataError(
                f"the predictions have {columns} columns without names, and there are {len(annotated)} labels.",
                "predict all labels, in their order.",
            )
        return
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
