"""Fit decision thresholds and calibration again, without training: a run's validation scores to its bundle."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster.runs import write_json
from mlic.config import ThresholdConfig
from mlic.data import predictions, storage
from mlic.data.shards import INDEX, read_index
from mlic.errors import ConfigError, DataError
from mlic.model import bundle
from mlic.schema import Model
from mlic.score import bootstrap, decision, metrics, thresholds
from mlic.stages import checkpoints
from mlic.stages.evaluate import join, predict_split
from mlic.stages.fit import decide, expected, noted
from mlic.stages.measure import Measurement, aligned, measure

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
                    row.policy + (" *" if row.policy == self.policy else ""), f"{row.f1_micro:.4f}", limits[0],
                    f"{row.f1_macro:.4f}", limits[1], f"{row.precision_micro:.4f}", f"{row.recall_micro:.4f}",
                    f"{row.labels_per_image:.2f}",
                ]
            )  # fmt: skip
        return "\n".join(
            [
                *aligned(rows), "",
                f"what each policy gives on images that it was not fitted to ({self.measurement.samples:,} of "
                f"{self.fitted_on}; * is the one in the bundle)",
                *aligned(compared), "", self.measurement.table(), *(f"Warning: {text}" for text in self.warnings),
                f"{self.policy} thresholds, calibration {self.calibration}", f"model  {self.model}",
            ]
        )  # fmt: skip


def threshold(config: ThresholdConfig) -> ThresholdReport:
    """Fit the thresholds of a bundle by a policy, to its run's validation scores or to a split of shards.

    The weights stay as they are; thresholds, calibration and estimate are written in one step. Fitted to shards, the
    bundle keeps its calibration. Raises DataError where there is no model, and ConfigError where there are no scores to
    fit to.
    """
    model, folder = bundle.read(config.model), bundle.find(config.model)
    if config.labels is None:
        settled, targets, fit = _on_run(config, model, folder.parent)
        map_ = settled.calibration.plain()
    else:
        settled, targets, fit = _on_shards(config, model)
        map_ = model.calibration
    measurement = measure(model.labels, settled.decisions, targets, settled.scores, config.resamples, config.seed)
    changed = dataclasses.replace(
        model, thresholds=tuple(float(value) for value in settled.thresholds), calibration=map_,
        threshold_fit=fit | {"samples": len(targets)} | expected(measurement),
    )  # fmt: skip
    rows = zip(model.labels, (targets == 1).sum(axis=0).tolist(), model.thresholds, changed.thresholds, strict=True)
    report = ThresholdReport(
        model=folder, policy=config.policy, calibration=map_["method"], fitted_on=fit["fitted_on"],
        
        labels=tuple(ThresholdRow(label=a, positives=b, before=c, after=d) for a, b, c, d in rows),
        policies=_compare(config, settled, targets),
        warnings=tuple(thresholds.warnings(model.labels, targets, config.policy)), measurement=measurement,
    )  # fmt: skip
    bundle.rewrite(changed, folder)
    _tell_run(folder.parent, report)
    return report


def _on_run(config: ThresholdConfig, model: bundle.Bundle, run: Path) -> tuple[decision.Settled, Array, dict[str, Any]]:
    """Settle on the validation scores that training left beside the bundle."""
    fitted = run / model.provenance.get("checkpoint", ".")
    if not (fitted / "checkpoints" / "best.pt").is_file():
        raise ConfigError(
            f"there are no validation scores beside {config.model}.", "give --labels SHARDS to predict and fit to."
        )
    best = checkpoints.read_best(fitted)
    settled, fit = decide(config.policy, config.calibration, best, model.provenance["pos_weight"], config.seed)
    return settled, best.targets, fit | {"fitted_on": "val", "data": model.provenance["shards"]}


def _on_shards(config: ThresholdConfig, model: bundle.Bundle) -> tuple[decision.Settled, Array, dict[str, Any]]:
    """Settle on predictions of a split of shards, whose scores the bundle has calibrated already."""
    if config.calibration != "auto":
        raise ConfigError(
            "scores that are fitted to again by --labels stay calibrated as the bundle says.",
            "leave --calibration out.",
        )
    if config.labels is None or storage.size(storage.join(config.labels, INDEX)) is None:
        raise ConfigError(f"{config.labels} is no folder of shards.", "pack the images and their labels first.")
    file = predict_split(config, config.model, config.labels, config.split)
    found = predictions.read(file)
    rows, targets, names, _ = join(found, config.labels, config.split, "auto")
    if found.scores is None or tuple(names) != model.labels:
        raise DataError(f"{config.labels} has other labels than the model.", "fit to the labels it was trained on.")
    scores = found.scores[rows]
    settled = decision.settle(config.policy, "none", scores, targets, np.ones(len(names)), config.seed)
    fit = {
        **noted(config.policy, settled, config.seed),
        "fitted_on": f"{config.split} of {config.labels}", "data": read_index(config.labels)["fingerprint"],
    }  # fmt: skip
    return settled, targets, fit


def _compare(config: ThresholdConfig, settled: decision.Settled, targets: Array) -> tuple[PolicyRow, ...]:
    """The chosen policy and the usual ones, on the same cross-fitted scores."""
    rows = []
    for policy in dict.fromkeys([*_COMPARED, config.policy]):
        decisions = (
            settled.decisions
            if policy == config.policy
            else thresholds.fit(policy, settled.scores, targets, config.seed).decisions
        )
        values = metrics.decision_metrics(decisions, targets)
        limits = bootstrap.intervals(decisions, targets, None, config.resamples, config.seed)
        rows.append(
            PolicyRow(
                policy=policy, f1_micro=values["f1_micro"], f1_micro_interval=limits["f1_micro"],
                f1_macro=values["f1_macro"], f1_macro_interval=limits["f1_macro"],
                precision_micro=values["precision_micro"], recall_micro=values["recall_micro"],
                labels_per_image=float(decisions.sum() / max(1, len(decisions))),
            )
        )  # fmt: skip
    return tuple(rows)


def _tell_run(run: Path, report: ThresholdReport) -> None:
    """Let the run's own report, which its command prints when it is started again, say what the bundle is now."""
    try:
        old = json.loads((run / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    new = {
        "threshold_policy": report.policy, "calibration": report.calibration,
        "measurement": report.measurement.model_dump(mode="json"),
    }  # fmt: skip
    write_json(run / "report.json", old | {name: value for name, value in new.items() if name in old})
