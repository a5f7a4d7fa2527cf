"""Two sets of decisions about the same samples: by how much they differ, and how sure that is.

Both are resampled together. Intervals of each by itself overlap long after a difference is certain, because what makes
a sample hard is mostly the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.score import confusion

Array = np.ndarray[Any, Any]

METRICS = ("f1_micro", "precision_micro", "recall_micro", "f1_macro", "subset_accuracy", "hamming_accuracy")
_CHUNK = 50  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """The second's value less the first's, and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def differences(first: Array, second: Array, targets: Array, resamples: int, seed: int) -> dict[str, Difference]:
    """METRICS of the decisions `second` less those of `first`, both (N, L), by metric."""
    rng = np.random.default_rng([seed, 15])
    rows = np.concatenate([_sample_counts(first, targets), _sample_counts(second, targets)], axis=1)
    sums = np.concatenate([rows.sum(axis=0)[None], confusion.resampled(rows, resamples, rng)])
    half = rows.shape[1] // 2
    before, after = _metrics(sums[:, :half]), _metrics(sums[:, half:])
    drawn = {name: after[name] - before[name] for name in before}
    drawn["f1_macro"] = _macro(second, targets, resamples, seed) - _macro(first, targets, resamples, seed)
    found = {}
    for name in METRICS:
        low, high = np.quantile(drawn[name][1:], [0.025, 0.975])
        found[name] = Difference(float(drawn[name][0]), float(low), float(high))
    return found


def _sample_counts(decisions: Array, targets: Array) -> Array:
    """True positives, false positives, false negatives, known labels, all right and 1 of each sample, (N, 6)."""
    given, known = decisions.astype(bool), targets >= 0
    tp, fp, fn = ((given & (targets == 1)), (given & (targets == 0)), (~given & (targets == 1)))
    right = ~(fp | fn).any(axis=1)
    parts = [tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1), known.sum(axis=1), right, np.ones(len(targets))]
    return np.stack(parts, axis=1).astype(np.int64)


def _metrics(sums: Array) -> dict[str, Array]:
    """Metrics (R,) of summed `_sample_counts` (R, 6)."""
    tp, fp, fn, known, right, count = sums.T.astype(float)
    return {
        "f1_micro": confusion.f1(sums[:, :3]), "precision_micro": _ratio(tp, tp + fp),
        "recall_micro": _ratio(tp, tp + fn), "subset_accuracy": _ratio(right, count),
        "hamming_accuracy": 1 - _ratio(fp + fn, known),
    }  # fmt: skip


def _macro(decisions: Array, targets: Array, resamples: int, seed: int) -> Array:
    """Macro F1 (1 + R,): of the samples, then of resamples, which are the same for every set of decisions."""
    given = decisions.astype(bool)
    parts = [given & (targets == 1), given & (targets == 0), ~given & (targets == 1)]
    counts = np.concatenate(parts, axis=1).astype(np.float32)
    rng = np.random.default_rng([seed, 16])
    weights = [np.ones((1, len(targets)), np.float32)]
    sums = [weights[0] @ counts]
    for start in range(0, resamples, _CHUNK):
        picks = rng.integers(0, len(targets), (min(_CHUNK, resamples - start), len(targets)))
        drawn = np.stack([np.bincount(row, minlength=len(targets)) for row in picks]).astype(np.float32)
        sums.append(drawn @ counts)
    whole = np.concatenate(sums).reshape(-1, 3, targets.shape[1])
    return np.asarray(confusion.f1(np.moveaxis(whole, 1, 2)).mean(axis=1), dtype=float)


def _ratio(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0))
