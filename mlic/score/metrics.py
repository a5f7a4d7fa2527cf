"""Every metric under an unmistakable name, its trivial baselines and its bootstrap interval.

Definitions follow scikit-learn with zero_division=0: a ratio without a denominator is 0, and a label without a positive
sample counts as 0 in macro averages and in mAP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DECISION_METRICS = (
    "f1_micro", "precision_micro", "recall_micro", "f1_macro", "precision_macro", "recall_macro",
    "subset_accuracy", "hamming_accuracy", "jaccard_samples",
)  # fmt: skip
HEADLINES = ("f1_micro", "f1_macro", "map", "subset_accuracy", "hamming_accuracy", "jaccard_samples")
_TOP_K = (1, 2, 3)
_CHUNK = 50  # bootstrap resamples at a time


def decision_metrics(decisions: Array, targets: Array) -> dict[str, float]:
    """All of DECISION_METRICS for decisions (N, L) and targets (N, L)."""
    values = _from_sums(_sample_sums(decisions, targets).sum(axis=0)[None], targets.shape[1])
    return {name: float(value[0]) for name, value in values.items()}


def label_metrics(decisions: Array, targets: Array) -> dict[str, Array]:
    """`support`, `precision`, `recall` and `f1` of each label, arrays (L,)."""
    tp, fp, fn = _label_counts(_sample_sums(decisions, targets).sum(axis=0)[None], targets.shape[1])
    return {
        "support": (tp + fn)[0].astype(int),
        "precision": _ratio(tp, tp + fp)[0],
        "recall": _ratio(tp, tp + fn)[0],
        "f1": _ratio(2 * tp, 2 * tp + fp + fn)[0],
    }


def average_precision(scores: Array, targets: Array) -> Array:
    """Average precision (L,): the area under the precision-recall steps, equal scores taken together."""
    ones = np.ones((1, len(scores)))
    return np.array([_weighted_ap(*_ranking(scores[:, i], targets[:, i]), ones)[0] for i in range(scores.shape[1])])


def baselines(targets: Array) -> dict[str, dict[str, float]]:
    """What needs no image gives: baseline -> metric -> value, with the label shares of these very targets.

    `all_negative` gives no label. `always_top_K` gives everybody the K most frequent labels. `prevalence` gives each
    label at random with its share; its values are expectations (of a ratio: the ratio of expected counts). The `map` of
    all of them is that of scores that do not know the image, the mean label share.
    """
    num_labels = targets.shape[1]
    known = targets >= 0
    positives = (targets == 1).sum(axis=0)
    share = _ratio(positives, known.sum(axis=0))
    found: dict[str, dict[str, float]] = {}
    ranked = np.argsort(-share, kind="stable")
    for k in (0, *(k for k in _TOP_K if k < num_labels)):
        decisions = np.zeros(targets.shape, dtype=bool)
        decisions[:, ranked[:k]] = True
        found["all_negative" if k == 0 else f"always_top_{k}"] = decision_metrics(decisions, targets)
    found["prevalence"] = _prevalence(targets, share)
    for values in found.values():
        values["map"] = float(share.mean())
    return found


def _prevalence(targets: Array, share: Array) -> dict[str, float]:
    known, positive = targets >= 0, targets == 1
    num_positive, num_known = positive.sum(axis=0), known.sum(axis=0)
    tp, fp, fn = num_positive * share, (num_known - num_positive) * share, num_positive * (1 - share)
    right = np.where(known, np.where(positive, share, 1 - share), 1.0)
    values = _rates(tp[None], fp[None], fn[None])
    return {name: float(value[0]) for name, value in values.items()} | {
        "subset_accuracy": float(right.prod(axis=1).mean()),
        "hamming_accuracy": float(right[known].mean()) if known.any() else 0.0,
    }


def intervals(
    decisions: Array, targets: Array, scores: Array | None, resamples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals over samples: metric -> (low, high) percentiles; `map` when there are scores."""
    num_samples, num_labels = targets.shape
    sums = _sample_sums(decisions, targets)
    rankings = [] if scores is None else [_ranking(scores[:, i], targets[:, i]) for i in range(num_labels)]
    rng = np.random.default_rng([seed, 4])
    drawn: dict[str, list[Array]] = {}
    for start in range(0, resamples, _CHUNK):
        picks = rng.integers(0, num_samples, (min(_CHUNK, resamples - start), num_samples))
        weights = np.stack([np.bincount(row, minlength=num_samples) for row in picks]).astype(np.float64)
        values = _from_sums(weights @ sums, num_labels)
        if rankings:
            values["map"] = np.mean([_weighted_ap(*ranking, weights) for ranking in rankings], axis=0)
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    edges = [(1 - level) / 2, (1 + level) / 2]
    found = {name: np.quantile(np.concatenate(parts), edges) for name, parts in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def warnings(
    values: Mapping[str, float],
    limits: Mapping[str, tuple[float, float]],
    trivial: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """One sentence for each headline that does not clear its best baseline."""
    found = []
    for name in HEADLINES:
        if name not in values:
            continue
        baseline, best = best_baseline(name, trivial)
        if values[name] <= best:
            found.append(
                f"{name} {values[name]:.4f} is not above {baseline.replace('_', ' ')}, which gives {best:.4f}."
            )
        elif limits[name][0] <= best:
            found.append(
                f"{name} {values[name]:.4f} is not clearly above {baseline.replace('_', ' ')}, which gives {best:.4f}: "
                f"its interval begins at {limits[name][0]:.4f}."
            )
    return found


def best_baseline(metric: str, trivial: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """Name and value of the best baseline of a metric."""
    have = {name: values[metric] for name, values in trivial.items() if metric in values}
    name = max(have, key=lambda key: have[key])
    return name, have[name]


def label_table(labels: Sequence[str], decisions: Array, targets: Array, scores: Array | None) -> list[dict[str, Any]]:
    """One row a label: label, support, share, precision, recall, f1 and, with scores, ap."""
    columns = label_metrics(decisions, targets)
    share = _ratio(columns["support"], (targets >= 0).sum(axis=0))
    precision = None if scores is None else average_precision(scores, targets)
    return [
        {
            "label": label, "support": int(columns["support"][i]), "share": float(share[i]),
            "precision": float(columns["precision"][i]), "recall": float(columns["recall"][i]),
            "f1": float(columns["f1"][i]), "ap": None if precision is None else float(precision[i]),
        }
        for i, label in enumerate(labels)
    ]  # fmt: skip


def _sample_sums(decisions: Array, targets: Array) -> Array:
    """What one sample adds to the sums that every metric is made of, float64 (N, 3 L + 5).

    Columns: tp, fp, fn of each label; right and known labels; set right; Jaccard index; 1.
    """
    decisions, positive, known = decisions.astype(bool), targets == 1, targets >= 0
    tp, fp, fn = decisions & positive, decisions & ~positive & known, ~decisions & positive
    right = (decisions == positive) & known
    wrong = known.sum(axis=1) - right.sum(axis=1)
    jaccard = _ratio(tp.sum(axis=1), (tp | fp | fn).sum(axis=1))
    rest = [right.sum(axis=1), known.sum(axis=1), wrong == 0, jaccard, np.ones(len(targets))]
    return np.concatenate([tp, fp, fn, np.stack(rest, axis=1)], axis=1, dtype=np.float64)


def _label_counts(sums: Array, num_labels: int) -> tuple[Array, Array, Array]:
    return (
        sums[:, :num_labels],
        sums[:, num_labels : 2 * num_labels],
        sums[:, 2 * num_labels : 3 * num_labels],
    )


def _from_sums(sums: Array, num_labels: int) -> dict[str, Array]:
    """Metrics (R,) from R rows of summed `_sample_sums`."""
    right, known, whole, jaccard, count = sums[:, 3 * num_labels :].T
    return _rates(*_label_counts(sums, num_labels)) | {
        "subset_accuracy": _ratio(whole, count),
        "hamming_accuracy": _ratio(right, known),
        "jaccard_samples": _ratio(jaccard, count),
    }


def _rates(tp: Array, fp: Array, fn: Array) -> dict[str, Array]:
    """Micro and macro precision, recall and F1 (R,) from counts (R, L)."""
    found = {}
    for average, (t, p, n) in {
        "micro": (tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1)),
        "macro": (tp, fp, fn),
    }.items():
        for name, value in {
            "f1": _ratio(2 * t, 2 * t + p + n), "precision": _ratio(t, t + p), "recall": _ratio(t, t + n),
        }.items():  # fmt: skip
            found[f"{name}_{average}"] = value if average == "micro" else value.mean(axis=1)
    return found


def _ranking(scores: Array, targets: Array) -> tuple[Array, Array, Array]:
    """For average precision: sample numbers by falling score, which are positive, and the last of equals."""
    samples = np.flatnonzero(targets >= 0)
    order = samples[np.argsort(-scores[samples], kind="stable")]
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    return order, targets[order] == 1, last


def _weighted_ap(order: Array, positive: Array, last: Array, weights: Array) -> Array:
    """Average precision (R,) of one label, each sample counted weights (R, N) times."""
    if not len(order):
        return np.zeros(len(weights))
    ranked = weights[:, order]
    every = np.cumsum(ranked, axis=1)[:, last]
    true = np.cumsum(ranked * positive, axis=1)[:, last]
    gained = np.diff(true, axis=1, prepend=0)
    return _ratio((gained * _ratio(true, every)).sum(axis=1), true[:, -1])


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    result: Array = np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
    return result
