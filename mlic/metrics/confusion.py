"""Confusions: labels predicted for other labels, number of labels per image, and errors per kind of image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slice:
    """The images of one kind: how many, their micro F1 and its 95% bootstrap interval."""

    name: str
    samples: int
    f1_micro: float
    low: float
    high: float


def swapped(decisions: Array, targets: Array) -> Array:
    """In how many samples the label of the row was missed and that of the column wrongly given, int64 (L, L)."""
    predicted = decisions.astype(bool)
    missed, wrong = (targets == 1) & ~predicted, (targets == 0) & predicted
    return np.asarray(np.rint(missed.astype(np.float32).T @ wrong.astype(np.float32)), np.int64)


def cardinality(decisions: Array, targets: Array, most: int = 10) -> Array:
    """How many samples have `row` labels and were given `column`, int64 (K, K); the last stands for all above.

    Labels of which the truth is unknown count on neither side.
    """
    true = (targets == 1).sum(axis=1)
    predicted = (decisions.astype(bool) & (targets >= 0)).sum(axis=1)
    side = int(min(most, max(true.max(initial=0), predicted.max(initial=0)))) + 1
    flat = np.minimum(true, side - 1) * side + np.minimum(predicted, side - 1)
    return np.bincount(flat, minlength=side * side).reshape(side, side)


def slices(
    names: Sequence[str], group: Array, decisions: Array, targets: Array, resamples: int, seed: int
) -> list[Slice]:
    """Micro F1 by group. `group` (N,) is each sample's index into `names`; a negative number means no group."""
    slices_found = []
    counts = _counts(decisions, targets)
    for number, name in enumerate(names):
        rows = counts[group == number]
        if len(rows):
            drawn = f1(resampled(rows, resamples, np.random.default_rng([seed, 14, number])))
            low, high = np.quantile(drawn, [0.025, 0.975])
            slices_found.append(Slice(name, len(rows), float(f1(rows.sum(axis=0))), float(low), float(high)))
    return slices_found


def resampled(rows: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Sums of small whole numbers (N, K) over bootstrap resamples of the rows, (R, K).

    Few different rows occur, so the count of each different row is drawn. The distribution is that of drawing N rows.
    """
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    sums: Array = rng.multinomial(len(rows), counts / counts.sum(), resamples) @ kinds
    return sums


def f1(sums: Array) -> Array:
    """F1 (...) of true positives, false positives and false negatives (..., 3); 0 where there are none."""
    true, rest = 2.0 * sums[..., 0], sums[..., 1] + sums[..., 2]
    return np.asarray(np.divide(true, true + rest, out=np.zeros_like(true), where=(true + rest) > 0))


def _counts(decisions: Array, targets: Array) -> Array:
    """True positives, false positives and false negatives of each sample, int64 (N, 3)."""
    predicted = decisions.astype(bool)
    parts = [predicted & (targets == 1), predicted & (targets == 0), ~predicted & (targets == 1)]
    return np.stack([part.sum(axis=1) for part in parts], axis=1)
