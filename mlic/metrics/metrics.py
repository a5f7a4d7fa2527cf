"""Metrics of decisions, each with an unambiguous name.

Definitions follow scikit-learn with zero_division=0: a ratio without a denominator is 0. Metrics of label sets over
samples, and of single labels over the known ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlic.metrics import ranking

Array = np.ndarray[Any, Any]

BETAS = (0.5, 2.0)
DECISION_METRICS = (
    *(
        f"{name}_{average}"
        for average in ("micro", "macro", "weighted", "samples")
        for name in ("f1", "precision", "recall")
    ),
    *(f"f{beta:g}_{average}" for average in ("micro", "macro") for beta in BETAS),
    "subset_accuracy",
    "hamming_accuracy",
    "jaccard_samples",
    "jaccard_micro",
    "jaccard_macro",
)
SCORE_METRICS = ("map", "map_micro", "roc_auc", "roc_auc_micro", *ranking.SAMPLE_METRICS)
HEADLINES = ("f1_micro", "f1_macro", "map", "subset_accuracy", "hamming_accuracy")
LOWER_IS_BETTER = frozenset({"coverage", "ranking_loss"})

PER_SAMPLE = 6  # columns of `per_sample` that are not counts of labels
_CHUNK = 65_536  # samples at a time


class Counts:
    """Sums from which all DECISION_METRICS are computed: over one part of the samples, several parts, or all.

    Different processes may count parts and merge them in any order: counts are exact, and the means over samples are
    equal up to rounding.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self._sums = np.zeros(4 * num_labels + PER_SAMPLE)

    def add(self, decisions: Array, targets: Array) -> Counts:
        """Count decisions (N, L) and targets (N, L); returns itself."""
        self._sums += per_sample(decisions, targets).sum(axis=0)
        return self

    def merge(self, other: Counts) -> Counts:
        """Add what another has counted; returns itself."""
        self._sums += other._sums
        return self

    def matrices(self) -> Array:
        """The 2x2 matrix of each label, int64 (L, 2, 2): rows are the truth, columns the decision, first no."""
        tp, fp, fn, tn = _label_counts(self._sums[None], self.num_labels)
        return np.stack([tn[0], fp[0], fn[0], tp[0]], axis=1).round().astype(np.int64).reshape(-1, 2, 2)

    def values(self) -> dict[str, float]:
        """All of DECISION_METRICS."""
        return {name: float(value[0]) for name, value in from_sums(self._sums[None], self.num_labels).items()}


def decision_metrics(decisions: Array, targets: Array) -> dict[str, float]:
    """All of DECISION_METRICS for decisions (N, L) and targets (N, L)."""
    return count(decisions, targets).values()


def count(decisions: Array, targets: Array) -> Counts:
    """The counts of decisions (N, L) and targets (N, L), of many samples by several threads."""
    parts = [slice(start, start + _CHUNK) for start in range(0, len(targets), _CHUNK)]
    total = Counts(targets.shape[1])
    if len(parts) < 2:
        return total.add(decisions, targets)
    with ThreadPoolExecutor(ranking.THREADS) as pool:
        for part in pool.map(lambda p: Counts(targets.shape[1]).add(decisions[p], targets[p]), parts):
            total.merge(part)
    return total


def score_metrics(scores: Array, targets: Array, areas: tuple[Array, Array] | None = None) -> dict[str, float]:
    """All of SCORE_METRICS for scores (N, L) and targets (N, L), each where it is defined.

    `map` counts a label without a positive sample as 0. `roc_auc` is the mean over labels that have both classes.
    `areas` are those of `ranking.areas`, where the caller has them.
    """
    known = targets >= 0
    precision, area = areas or ranking.areas(scores, targets)
    micro = ranking.cuts(scores[known], targets[known] == 1)
    values = {"map": float(precision.mean()), "map_micro": micro.average_precision()}
    if not np.isnan(area).all():
        values["roc_auc"] = float(np.nanmean(area))
    if not np.isnan(micro.roc_auc()):
        values["roc_auc_micro"] = micro.roc_auc()
    means = ranking.per_sample(scores, targets).mean(axis=0)
    return values | {name: float(mean) for name, mean in zip(ranking.SAMPLE_METRICS, means, strict=True)}


def label_metrics(decisions: Array, targets: Array) -> dict[str, Array]:
    """`support`, `accuracy`, `precision`, `recall` and `f1` of each label, arrays (L,)."""
    matrices = count(decisions, targets).matrices().astype(np.float64)
    tn, fp, fn, tp = matrices.reshape(-1, 4).T
    return {
        "support": (tp + fn).astype(int),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def average_precision(scores: Array, targets: Array) -> Array:
    """Average precision (L,): the area under the precision-recall steps, equal scores taken together."""
    return ranking.areas(scores, targets)[0]


def label_table(
    labels: Sequence[str], decisions: Array, targets: Array, areas: tuple[Array, Array] | None
) -> list[dict[str, Any]]:
    """One row per label: label, support, share, precision, recall, f1, ap and roc_auc.

    The last two are None without areas, and where no sample of the label is known.
    """
    columns = label_metrics(decisions, targets)
    share = ratio(columns["support"], (targets >= 0).sum(axis=0))
    precision, area = areas or (None, None)
    is_known = np.asarray((targets >= 0).any(axis=0))
    return [
        {
            "label": label,
            "support": int(columns["support"][i]),
            "share": float(share[i]),
            "precision": float(columns["precision"][i]),
            "recall": float(columns["recall"][i]),
            "f1": float(columns["f1"][i]),
            "ap": None if precision is None or not is_known[i] else float(precision[i]),
            "roc_auc": None if area is None or np.isnan(area[i]) else float(area[i]),
        }
        for i, label in enumerate(labels)
    ]


def per_sample(decisions: Array, targets: Array) -> Array:
    """What one sample adds to the sums that every metric is made of, float64 (N, 4 L + 6).

    Columns: tp, fp, fn, tn of each label; set right; precision, recall, F1 and Jaccard index of the set; 1.
    """
    decisions, positive, known = decisions.astype(bool), targets == 1, targets >= 0
    tp, fp, fn = decisions & positive, decisions & ~positive & known, ~decisions & positive
    tn = known & ~(tp | fp | fn)
    t, p, n = tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1)
    rest = [
        p + n == 0,
        ratio(t, t + p),
        ratio(t, t + n),
        ratio(2 * t, 2 * t + p + n),
        ratio(t, t + p + n),
        np.ones(len(targets)),
    ]
    return np.concatenate([tp, fp, fn, tn, np.stack(rest, axis=1)], axis=1, dtype=np.float64)


def from_sums(sums: Array, num_labels: int) -> dict[str, Array]:
    """DECISION_METRICS, arrays (R,), from R rows of summed `per_sample`."""
    tp, fp, fn, tn = _label_counts(sums, num_labels)
    subset, precision, recall, f1, jaccard, count = sums[:, 4 * num_labels :].T
    return rates(tp, fp, fn) | {
        "precision_samples": ratio(precision, count),
        "recall_samples": ratio(recall, count),
        "f1_samples": ratio(f1, count),
        "subset_accuracy": ratio(subset, count),
        "hamming_accuracy": ratio((tp + tn).sum(axis=1), (tp + fp + fn + tn).sum(axis=1)),
        "jaccard_samples": ratio(jaccard, count),
    }


def rates(tp: Array, fp: Array, fn: Array) -> dict[str, Array]:
    """Those metrics (R,) that are made of counts (R, L)."""
    by_name = {}
    micro = (tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1))
    support = tp + fn
    for name, function in _RATES.items():
        per_label = function(tp, fp, fn)
        by_name[f"{name}_micro"] = function(*micro)
        by_name[f"{name}_macro"] = per_label.mean(axis=1)
        if name in ("f1", "precision", "recall"):
            by_name[f"{name}_weighted"] = ratio((per_label * support).sum(axis=1), support.sum(axis=1))
    return by_name


def ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    result: Array = np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
    return result


def _f_beta(beta: float) -> Any:
    square = beta * beta
    return lambda t, p, n: ratio((1 + square) * t, (1 + square) * t + square * n + p)


_RATES = {
    "f1": _f_beta(1),
    "precision": lambda t, p, _: ratio(t, t + p),
    "recall": lambda t, _, n: ratio(t, t + n),
    "jaccard": lambda t, p, n: ratio(t, t + p + n),
    **{f"f{beta:g}": _f_beta(beta) for beta in BETAS},
}


def _label_counts(sums: Array, num_labels: int) -> list[Array]:
    """tp, fp, fn and tn, (R, L) each."""
    return [sums[:, i * num_labels : (i + 1) * num_labels] for i in range(4)]
