"""Measure predictions against labels: each metric beside its trivial baselines and its interval."""

from __future__ import annotations

import difflib
import json
import logging
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.base import Model, Settings
from mlic.config.evaluate import EvaluateConfig
from mlic.config.predict import PredictConfig
from mlic.config.types import AnyPath, Location, location, parse_gate
from mlic.data import label_join, storage
from mlic.data.annotations.options import LabelOptions, options_of
from mlic.data.annotations.read import DEFAULTS, read_annotations
from mlic.data.shards import INDEX, read_index, read_split
from mlic.errors import ConfigError, DataError, RunError
from mlic.evaluate import foreign_predictions
from mlic.metrics import decision, metrics, thresholds
from mlic.metrics.measurement import Measurement, measure
from mlic.model import bundle
from mlic.report import report as page
from mlic.report.evidence import Evidence, of_predictions
from mlic.runs.files import disk_errors, write_json
from mlic.runs.run import read_state

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
_LAST_NUMBER = re.compile(r"\d+$")


_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Gate(Model):
    """A requested condition, and the measured value that it was checked with."""

    gate: str
    value: float
    passed: bool


class EvaluateReport(Model):
    """The measurement, and where it was written.

    `unmatched` counts annotated images without a prediction, `unlabelled` predicted images that the label files do not
    name: they are not measured, unless `unlabelled_are` says that they are negatives.
    """

    predictions: Path
    labels: AnyPath
    metrics: Path
    report: Path
    unmatched: int
    unlabelled: int = 0
    unlabelled_are: Literal["skipped", "negative"] = "skipped"
    gates: tuple[Gate, ...] = ()
    measurement: Measurement

    @property
    def exit_code(self) -> int:
        """0 if all gates are passed, else the exit code of RunError."""
        return 0 if all(gate.passed for gate in self.gates) else RunError.exit_code

    def text(self) -> str:
        lines = [
            f"{self.measurement.samples:,} samples of {self.predictions} against {self.labels}",
            self.measurement.label_table(),
            "",
            self.measurement.table(),
        ]
        if self.unmatched:
            lines.append(f"{self.unmatched:,} annotated images have no prediction and are not measured")
        if self.unlabelled and self.unlabelled_are == "skipped":
            lines.append(
                f"{self.unlabelled:,} predicted images have no line in {self.labels} and are not measured; "
                "--unlabelled negative takes them for images without a label"
            )
        elif self.unlabelled:
            lines.append(f"{self.unlabelled:,} predicted images are in no label file and count as without a label")
        lines += [f"gate  {g.gate}: {g.value:.4f}, {'passed' if g.passed else 'NOT passed'}" for g in self.gates]
        return "\n".join([*lines, f"report  {self.report}"])


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure a predictions file, or a run on one split of its shards, and write metrics.json and report.html.

    Predictions and labels are joined by key, columns by name. Raises DataError when keys of the split have no
    prediction, when a key stands twice or when the labels are others.
    """
    _check_gates(config.gate)
    file, truth = _predictions_and_truth(config)
    predictions = foreign_predictions.read(file, config.logits, options_of(config) if config.labels else DEFAULTS)
    decided = _decisions(config, file, predictions)
    options = options_of(config, label_join.as_paths(predictions.files))
    joined = join(predictions, truth, config.split, options, config.unlabelled)
    names, rows, targets = joined.labels, joined.rows, joined.targets
    if not predictions.labels:
        logger.info("the columns are taken in the order of the labels: %s", ", ".join(names))
    if predictions.is_lists:
        predictions = predictions.with_labels(names)
        decided = _decisions(config, file, predictions)
    columns = [predictions.labels.index(name) for name in names] if predictions.labels else list(range(len(names)))
    scores = None if predictions.scores is None else predictions.scores[rows][:, columns]
    if scores is not None:
        decision.check_finite(scores)
    decisions = decided[rows][:, columns]
    notes = _said_of_split(file, truth, config.split)
    measurement = measure(names, decisions, targets, scores, config.resamples, config.seed, notes=notes)
    out = config.out or file.with_name(file.name + ".eval")
    report = EvaluateReport(
        predictions=file,
        labels=truth,
        metrics=out / "metrics.json",
        report=out / "report.html",
        unmatched=joined.unmatched,
        unlabelled=joined.unlabelled,
        unlabelled_are=joined.unlabelled_are,
        gates=tuple(_check(gate, measurement) for gate in config.gate),
        measurement=measurement,
    )
    title = f"{file.name} against {truth.name}"
    keys = [predictions.keys[i] for i in rows]
    evidence = of_predictions(title, names, keys, targets, decisions, scores, measurement, truth, config.split)
    _write(out, report, evidence, config.seed)
    return report


def _predictions_and_truth(config: EvaluateConfig) -> tuple[Path, Location]:
    """The file of predictions, which is written first for a run, and the shards or label files."""
    file, truth = config.predictions, config.labels
    if not file.exists():
        raise DataError(f"the predictions {file} do not exist.", "mlic batch-predict writes them; a run works too.")
    if file.is_dir() and not prediction_files.is_folder(file):
        truth = truth or shards_of(file)
        if storage.size(truth / INDEX) is None:
            raise ConfigError(
                f"{truth} is not a folder of shards.", "predict the images first, then evaluate the file."
            )
        file = predict_split(config, file, truth, config.split)
    if truth is None:
        raise ConfigError("--labels is not given.", "name shards, a folder of per-label lists, or a CSV file.")
    return file, truth


def _decisions(config: EvaluateConfig, file: Path, predictions: prediction_files.Predictions) -> Array:
    """The decisions (N, L) of a file, or those that a threshold makes of its scores."""
    if predictions.decisions is not None:
        if config.threshold is not None:
            raise ConfigError(f"{file} holds decisions already.", "leave --threshold out.")
        return predictions.decisions
    if config.threshold is None or predictions.scores is None:
        raise ConfigError(
            f"{file} holds scores and no decisions.", "predict with --values both, or give --threshold 0.5."
        )
    return thresholds.decide(predictions.scores, np.full(predictions.columns, config.threshold, dtype=np.float32))


def _check_gates(gates: Sequence[str]) -> None:
    """Raise ConfigError, before anything is predicted, for a gate on a metric that is never measured."""
    known = (*metrics.DECISION_METRICS, *metrics.SCORE_METRICS)
    for gate in gates:
        name = parse_gate(gate)[0].removesuffix(".low").removesuffix(".high")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise ConfigError(f"the gate {gate!r} names no metric.", hint)


def _said_of_split(file: Path, truth: Location, split: str) -> tuple[str, ...]:
    """Notes for the reader if the model was trained, or its thresholds were fitted, on the measured split."""
    try:
        index = json.loads((file.with_name(file.name + ".parts") / INDEX).read_text(encoding="utf-8"))
        data = read_index(truth)["fingerprint"]
    except (OSError, ValueError, DataError):
        return ()  # predictions of another program, or labels that are no shards: nothing is known
    fit = index.get("threshold_fit") or {}
    fitted = fit.get("split") or str(fit.get("fitted_on", "")).partition(" of ")[0]
    sentences = []
    if index.get("trained_on") == data and split == "train":
        sentences.append("the model was trained on this split, so new images will give less.")
    if fit.get("data") == data and fitted == split:
        sentences.append("the thresholds of the model were fitted to this split, so new images will give less.")
    return tuple(sentences)


def _check(gate: str, measurement: Measurement) -> Gate:
    """Check a measurement against a gate such as `f1_micro>=0.8`, or `f1_micro.low>=0.8` for an end of its interval."""
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
        raise DataError(f"{run} is not a run of mlic train or mlic tune.", "name a run, or give --labels.") from None
    if not storage.is_folder(shards):
        raise DataError(f"the shards of {run}, {shards}, are not there.", "give --labels SHARDS.")
    return shards


def predict_split(config: Settings, run: Path, shards: Location, split: str) -> Path:
    """Predict a split of shards with a run's model, again only if one of them changes; returns the file."""
    out = run / "predictions" / f"{split}.parquet"
    before = read_state(out.with_name(out.name + ".parts")) or {}
    # Only this command writes the folder, so new thresholds of the model or other shards must not be an error.
    stale = before.get("inputs", {}).get("model") not in (None, bundle.read(run).fingerprint)
    predict(
        PredictConfig(
            model=run,
            images=shards,
            out=out,
            split=split,
            address=config.address,
            workers=config.workers,
            fresh=config.fresh or stale,
        )
    )
    return out


@dataclass(frozen=True)
class Joined:
    """M predictions that are measured: their `rows`, `targets` int8 (M, L) and the `labels` in order.

    `unmatched` counts the annotated images without a prediction, `unlabelled` the predicted images without a line in
    the label files.
    """

    rows: Array
    targets: Array
    labels: tuple[str, ...]
    unmatched: int = 0
    unlabelled: int = 0
    unlabelled_are: Literal["skipped", "negative"] = "skipped"


def join(
    predictions: prediction_files.Predictions,
    truth: Location,
    split: str,
    options: LabelOptions = DEFAULTS,
    unlabelled: Literal["auto", "skip", "negative"] = "auto",
) -> Joined:
    """Predictions beside their targets, by key; a bare number matches the key that ends in it.

    A predicted image that no label file names is not measured: a missing line says nothing. But where each label has a
    list of its images (`auto`), an image in none of the lists has no labels. Raises DataError for keys of the split
    without a prediction, keys that stand twice, names that could mean two images and other labels.
    """
    position = {key: i for i, key in enumerate(predictions.keys)}
    if len(position) < len(predictions.keys):
        twice = next(key for i, key in enumerate(predictions.keys) if position[key] != i)
        raise DataError(f"the key {twice!r} is predicted twice.", "name each image once.")
    if storage.size(truth / INDEX) is not None:
        if unlabelled != "auto" or options.format != "auto":
            raise ConfigError(
                f"{truth} are shards, which have a label of each sample.", "leave --unlabelled and format out."
            )
        return _join_split(predictions, position, truth, split)
    if split != "test":
        raise ConfigError(f"{truth} holds label files, which have no split {split!r}.", "leave --split out.")
    annotations = read_annotations(truth, options)
    for warning in annotations.warnings:
        logger.warning("%s", warning)
    _same_labels(predictions, annotations.labels)
    joined = label_join.join(annotations, label_join.as_paths(predictions.files))
    logger.info("names    %s", ", ".join(f"{count:,} {rule}" for rule, count in joined.rules.items()))
    negative = unlabelled == "negative" or (unlabelled == "auto" and annotations.by_label)
    rows = np.arange(len(predictions.keys)) if negative else np.flatnonzero(joined.annotated)
    return Joined(
        rows,
        joined.targets[rows],
        annotations.labels,
        len(joined.missing),
        int((~joined.annotated).sum()),
        "negative" if negative else "skipped",
    )


def _join_split(
    predictions: prediction_files.Predictions, position: dict[str, int], truth: Location, split: str
) -> Joined:
    """Predictions of a split of shards, in the order of its samples."""
    samples = read_split(truth, split)
    _same_labels(predictions, samples.labels)
    keys = samples.keys.to_pylist()
    if not len(samples):
        raise DataError(f"the split {split!r} of {truth} is empty.", "name another by --split.")
    if all(key.isdecimal() for key in position) and not all(key in position for key in keys):
        keys, position = _by_number(keys, position)
        _refuse_rows(truth, position)
    lost = [key for key in keys if key not in position]
    if lost:
        raise DataError(
            f"{len(lost):,} of {len(samples):,} samples of the split {split!r} have no prediction ({lost[0]!r}).",
            "predict the whole split, or name another by --split.",
        )
    return Joined(np.array([position[key] for key in keys], dtype=int), samples.targets, samples.labels)


def _refuse_rows(truth: Location, position: dict[str, int]) -> None:
    """Raise DataError for predictions numbered from 0 on, as rows are, where no sample of the shards has number 0."""
    if {int(key) for key in position} != set(range(len(position))):
        return
    names = read_split(truth, None, checked=True).keys.to_pylist()
    if not any(number and int(number[0]) == 0 for number in map(_LAST_NUMBER.findall, names)):
        raise DataError(
            f"the predictions are numbered from 0 to {len(position) - 1}, as rows are, and no sample has the number 0.",
            "write a column with the images' names.",
        )


def _by_number(keys: Sequence[str], position: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """Keys by the number that they end in, and predictions by theirs. Raises DataError where two have the same."""
    numbered: dict[str, str] = {}
    for key in keys:
        number = _LAST_NUMBER.findall(key)
        name = str(int(number[0])) if number else key
        if name in numbered:
            raise DataError(
                f"the prediction {name!r} could mean {numbered[name]} or {key}.", "name images by their keys."
            )
        numbered[name] = key
    predicted: dict[str, int] = {}
    for key, i in position.items():
        if str(int(key)) in predicted:
            raise DataError(f"the number {int(key)} is predicted twice, as {key!r} too.", "name each image once.")
        predicted[str(int(key))] = i
    return list(numbered), predicted


def _same_labels(predictions: prediction_files.Predictions, annotated: tuple[str, ...]) -> None:
    predicted, columns = predictions.labels, predictions.columns
    if not predicted:  # the columns have no names, and stand in the order of the labels
        if columns != len(annotated):
            raise DataError(
                f"the predictions have {columns} columns without names, and there are {len(annotated)} labels.",
                "predict all labels, in their order.",
            )
        return
    sides = {"predicted": set(predicted) - set(annotated), "annotated": set(annotated) - set(predicted)}
    if predictions.is_lists:
        sides["annotated"] = set()
    if any(sides.values()):
        only = [f"only {side}: {', '.join(sorted(names)[:5])}" for side, names in sides.items() if names]
        raise DataError(
            f"predictions and labels have different labels ({'; '.join(only)}).",
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
    document = report.model_dump(mode="json")
    write_json(report.metrics, {"format": 1, "kind": "metrics", **document["measurement"]})
    page.write(out, [evidence], seed)
