"""Fit decision thresholds and calibration again, without training, and store them in the bundle."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.config.base import Model
from mlic.config.evaluate import ThresholdConfig
from mlic.data import storage
from mlic.data.shards import INDEX, read_index
from mlic.errors import ConfigError, DataError
from mlic.evaluate.evaluate import join, predict_split
from mlic.metrics import bootstrap, decision, metrics, thresholds
from mlic.metrics.measurement import Measurement, aligned
from mlic.model import bundle
from mlic.runs.files import disk_errors, write_json
from mlic.train import checkpoints
from mlic.train.launch import expected, measured, noted

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
_COMPARED = ("fixed", "global", "per-label", "joint", "cardinality")


class PolicyRow(Model):
    """What a policy gives, cross-fitted, with 95% intervals; `labels_per_image` is the mean number of labels given."""

    policy: str
    f1_micro: float
    f1_micro_interval: tuple[float, float]
    f1_macro: float
    f1_macro_interval: tuple[float, float]
    precision_micro: float
    recall_micro: float
    labels_per_image: float


class ThresholdRow(Model):
    """A label's threshold before and after, and the positives that the new one rests on."""

    label: str
    positives: int
    before: float
    after: float


class ThresholdReport(Model):
    """The thresholds that the bundle has now, what they are expected to give, and what other policies would."""

    model: Path
    policy: str
    calibration: str
    fitted_on: str
    labels: tuple[ThresholdRow, ...]
    policies: tuple[PolicyRow, ...]
    warnings: tuple[str, ...]
    measurement: Measurement

    def text(self) -> str:
        rows = [["label", "positives", "before", "now"]]
        rows += [[r.label, f"{r.positives:,}", f"{r.before:.4f}", f"{r.after:.4f}"] for r in self.labels]
        compared = [["policy", "f1_micro", "95% interval", "f1_macro", "95% interval", "precision", "recall", "labels"]]
        for row in self.policies:
            limits = [f"{low:.4f}-{high:.4f}" for low, high in (row.f1_micro_interval, row.f1_macro_interval)]
            compared.append(
                [
                    row.policy + (" *" if row.policy == self.policy else ""),
                    f"{row.f1_micro:.4f}",
                    limits[0],
                    f"{row.f1_macro:.4f}",
                    limits[1],
                    f"{row.precision_micro:.4f}",
                    f"{row.recall_micro:.4f}",
                    f"{row.labels_per_image:.2f}",
                ]
            )
        return "\n".join(
            [
                *aligned(rows),
                "",
                f"what each policy gives on images that it was not fitted to ({self.measurement.samples:,} of "
                f"{self.fitted_on}; * is the one in the bundle)",
                *aligned(compared),
                "",
                self.measurement.table(),
                *(f"Warning: {text}" for text in self.warnings),
                f"{self.policy} thresholds, calibration {self.calibration}",
                f"model  {self.model}",
            ]
        )


def threshold(config: ThresholdConfig) -> ThresholdReport:
    """Fit the thresholds of a bundle by a policy, to its run's validation scores or to a split of shards.

    The weights stay as they are; thresholds, calibration and estimate are written in one step. Fitted to shards, the
    bundle keeps its calibration. Raises DataError where there is no model, and ConfigError where there are no scores to
    fit to.
    """
    model, folder = bundle.read(config.model), bundle.find(config.model)
    basis = _of_run(config, model, folder.parent) if config.labels is None else _of_shards(config, model)
    settled = decision.settle(
        config.policy, basis.method, basis.scores, basis.targets, basis.weights, config.seed, basis.objective
    )
    map_ = settled.calibration.plain() if config.labels is None else model.calibration
    measurement = measured(model.labels, settled, basis.targets, config.seed, config.resamples, _said(config))
    changed = dataclasses.replace(
        model,
        thresholds=tuple(float(value) for value in settled.thresholds),
        calibration=map_,
        threshold_fit={
            **noted(config.policy, settled, config.seed, basis.objective),
            **basis.noted,
            "samples": len(basis.targets),
            **expected(measurement),
        },
    )
    targets = basis.targets
    rows = zip(model.labels, (targets == 1).sum(axis=0).tolist(), model.thresholds, changed.thresholds, strict=True)
    report = ThresholdReport(
        model=folder,
        policy=config.policy,
        calibration=map_["method"],
        fitted_on=basis.noted["fitted_on"],
        labels=tuple(ThresholdRow(label=a, positives=b, before=c, after=d) for a, b, c, d in rows),
        policies=_compare(config, basis, settled),
        warnings=tuple(thresholds.warnings(model.labels, targets, config.policy)),
        measurement=measurement,
    )
    with disk_errors(folder):
        bundle.rewrite(changed, folder)
    _tell_run(folder.parent, report)
    return report


@dataclass(frozen=True)
class _Basis:
    """What thresholds are fitted to: `scores` (N, L) and `targets` (N, L), and how; `noted` is for the bundle."""

    method: str
    scores: Array
    targets: Array
    weights: Array
    objective: str
    noted: dict[str, Any]


def _of_run(config: ThresholdConfig, model: bundle.Bundle, run: Path) -> _Basis:
    """The validation scores that training left beside the bundle."""
    fitted = run / model.provenance.get("checkpoint", ".")
    if not (fitted / "checkpoints" / "best.pt").is_file():
        raise ConfigError(
            f"there are no validation scores beside {config.model}.", "give --labels SHARDS to predict and fit to."
        )
    best = checkpoints.read_best(fitted)
    noted = {"fitted_on": "val", "split": "val", "data": model.provenance["shards"]}
    weights = np.array(model.provenance["pos_weight"])
    return _Basis(config.calibration, best.scores, best.targets, weights, _objective(model), noted)


def _of_shards(config: ThresholdConfig, model: bundle.Bundle) -> _Basis:
    """Predictions of a split of shards, whose scores the bundle has calibrated already."""
    if config.calibration != "auto":
        raise ConfigError(
            "--labels keeps the calibration of the model.",
            "leave --calibration out.",
        )
    if config.labels is None or storage.size(config.labels / INDEX) is None:
        raise ConfigError(f"{config.labels} is not a folder of shards.", "pack the images and their labels first.")
    file = predict_split(config, config.model, config.labels, config.split)
    predictions = prediction_files.read(file)
    joined = join(predictions, config.labels, config.split)
    if predictions.scores is None or tuple(joined.labels) != model.labels:
        raise DataError(f"{config.labels} has different labels from the model.", "fit to the labels it was trained on.")
    noted = {
        "fitted_on": f"{config.split} of {config.labels}",
        "split": config.split,
        "data": read_index(config.labels)["fingerprint"],
    }
    ones = np.ones(len(joined.labels))
    return _Basis("none", predictions.scores[joined.rows], joined.targets, ones, _objective(model), noted)


def _objective(model: bundle.Bundle) -> str:
    return str(model.threshold_fit.get("objective", "f1_micro"))


def _said(config: ThresholdConfig) -> tuple[str, ...]:
    """What a reader of the numbers has to know of the split that thresholds are fitted to."""
    if config.labels is None or config.split == "val":
        return ()
    return (
        f"the thresholds are fitted to the split {config.split}, which can no longer say what they give on new images; "
        "the numbers here are cross-fitted.",
    )


def _compare(config: ThresholdConfig, basis: _Basis, settled: decision.Settled) -> tuple[PolicyRow, ...]:
    """The chosen policy and the usual ones, cross-fitted on the same scores."""
    rows = []
    for policy in dict.fromkeys([*_COMPARED, config.policy]):
        decisions = settled.decisions
        if policy != config.policy:
            decisions = decision.decide(
                policy,
                settled.calibration.method,
                basis.scores,
                basis.targets,
                basis.weights,
                config.seed,
                basis.objective,
            ).decisions
        values = metrics.decision_metrics(decisions, basis.targets)
        limits = bootstrap.intervals(decisions, basis.targets, None, config.resamples, config.seed)
        rows.append(
            PolicyRow(
                policy=policy,
                f1_micro=values["f1_micro"],
                f1_micro_interval=limits["f1_micro"],
                f1_macro=values["f1_macro"],
                f1_macro_interval=limits["f1_macro"],
                precision_micro=values["precision_micro"],
                recall_micro=values["recall_micro"],
                labels_per_image=float(decisions.sum() / max(1, len(decisions))),
            )
        )
    return tuple(rows)


def _tell_run(run: Path, report: ThresholdReport) -> None:
    """Let the run's own report, which its command prints when it is started again, say what its bundle is now.

    The bundle of an export in the run's folder, or of its ensemble, is not what that report is about.
    """
    try:
        old = json.loads((run / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if report.model != run / "model":
        return
    new = {
        "threshold_policy": report.policy,
        "calibration": report.calibration,
        "measurement": report.measurement.model_dump(mode="json"),
    }
    if old.get("folds"):
        del new["measurement"]  # that of a cross-validated search is of all its folds, and stays
    write_json(run / "report.json", old | {name: value for name, value in new.items() if name in old})
