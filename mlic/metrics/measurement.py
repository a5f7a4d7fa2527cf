"""A measurement: every number beside its trivial baselines and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlic.config.base import Model
from mlic.metrics import baselines, bootstrap, calibration, metrics, ranking

SHOWN = (
    "f1_micro",
    "precision_micro",
    "recall_micro",
    "f1_macro",
    "map",
    "subset_accuracy",
    "hamming_accuracy",
)
BASELINES = ("all_negative", "always_top_1", "always_top_2", "always_top_3", "prevalence", "shuffled")


class LabelRow(Model):
    """One label's numbers; the last four are None when there are no scores, `roc_auc` also without both classes."""

    label: str
    support: int
    share: float
    precision: float
    recall: float
    f1: float
    ap: float | None
    roc_auc: float | None
    brier: float | None
    calibration_error: float | None


class Measurement(Model):
    """Metrics of decisions: `values` by metric, `intervals` (95%) by metric, `baselines` by name and metric."""

    samples: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, dict[str, float]]
    warnings: tuple[str, ...]
    labels: tuple[LabelRow, ...]

    def table(self) -> str:
        """The headline table: a metric a line, with its interval and its baselines."""
        names = [name for name in BASELINES if name in self.baselines]
        head = ["metric", "value", "95% interval", *(name.replace("_", "-") for name in names)]
        rows = [head]
        for metric in SHOWN:
            if metric in self.values:
                low, high = self.intervals[metric]
                others = [self.baselines[name].get(metric) for name in names]
                cells = ["-" if value is None else f"{value:.4f}" for value in others]
                rows.append([metric, f"{self.values[metric]:.4f}", f"{low:.4f}-{high:.4f}", *cells])
        return "\n".join([*aligned(rows), *(f"Warning: {text}" for text in self.warnings)])

    def label_table(self) -> str:
        """A label a line."""
        rows = [["label", "support", "precision", "recall", "f1", "ap"]]
        for row in self.labels:
            numbers = [f"{value:.4f}" for value in (row.precision, row.recall, row.f1)]
            rows.append([row.label, f"{row.support:,}", *numbers, "-" if row.ap is None else f"{row.ap:.4f}"])
        return "\n".join(aligned(rows))


def measure(
    labels: Sequence[str],
    decisions: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    scores: np.ndarray[Any, Any] | None,
    resamples: int,
    seed: int,
    ranked: np.ndarray[Any, Any] | None = None,
    notes: Sequence[str] = (),
) -> Measurement:
    """Measure decisions (N, L) and, where there are any, scores (N, L) against targets (N, L).

    `ranked` (N, L) are the scores that order samples within a label, if cross-fitted calibration has turned them into
    `scores`. `notes` are other remarks for the reader of the numbers, and are shown with the warnings.
    """
    values = metrics.decision_metrics(decisions, targets)
    areas = None if scores is None else ranking.areas(scores if ranked is None else ranked, targets)
    rows = metrics.label_table(labels, decisions, targets, areas)
    errors: dict[str, Any] = {"brier": [None] * len(rows), "calibration_error": [None] * len(rows)}
    if scores is not None:
        values |= metrics.score_metrics(scores, targets, areas)
        errors["brier"], errors["calibration_error"] = calibration.label_errors(scores, targets)
    limits = bootstrap.intervals(decisions, targets, scores, resamples, seed, ranked)
    trivial = baselines.baselines(decisions, targets, scores, seed)
    return Measurement(
        samples=len(targets),
        values=values,
        intervals=limits,
        baselines=trivial,
        warnings=(*baselines.warnings(values, limits, trivial, SHOWN), *notes),
        labels=tuple(
            LabelRow(**row, **{name: column[i] for name, column in errors.items()}) for i, row in enumerate(rows)
        ),
    )


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of text as lines in columns, the first `left` columns to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        parts = [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(cells)]
        lines.append("  ".join(parts).rstrip())
    return lines
