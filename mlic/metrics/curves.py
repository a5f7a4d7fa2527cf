"""Curves over thresholds and scores, in a few hundred points for any number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Curve:
    """One label at P falling thresholds: what `score >= threshold` gives, arrays (P,)."""

    thresholds: Array
    precision: Array
    recall: Array
    f1: Array


@dataclass(frozen=True)
class Reliability:
    """Scores in B bins of equal width from 0 to 1: how many (B,), their mean (B,) and the share of positives (B,).

    `error` is the mean distance of the two, weighted by how many there are (the expected calibration error).
    """

    counts: Array
    scores: Array
    shares: Array
    error: float


def curve(scores: Array, targets: Array, most: int = 200) -> Curve:
    """The curve of one label's scores (N,) and targets (N,), exact at each of at most `most` of its thresholds.

    The thresholds are scores that occur: half of them are spread evenly by rank among the positives' scores, half
    evenly by value. The threshold with the best F1 is among them.
    """
    known = targets >= 0
    scores, positive = scores[known].astype(np.float32), targets[known] == 1
    total = int(positive.sum())
    if not len(scores):
        empty = np.zeros(0)
        return Curve(empty, empty, empty, empty)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last of each run of equal scores
    true, predicted = np.cumsum(positive[order])[last].astype(float), last + 1.0
    recall = true / total if total else np.zeros(len(last))
    f1 = 2 * true / (predicted + total)
    chosen = _thin(ranked[last], true, int(np.argmax(f1)), most)
    return Curve(ranked[last][chosen].astype(float), (true / predicted)[chosen], recall[chosen], f1[chosen])


def _thin(values: Array, true: Array, best: int, most: int) -> Array:
    """Numbers of at most `most` of the falling `values`."""
    if len(values) <= most:
        return np.arange(len(values))
    half = (most - 1) // 2
    by_value = np.searchsorted(-values, -np.linspace(values[0], values[-1], half)).clip(0, len(values) - 1)
    by_rank = np.searchsorted(true, np.linspace(0, true[-1], half)).clip(0, len(values) - 1)
    return np.unique(np.concatenate([by_value, by_rank, [best]]))


def reliability(scores: Array, targets: Array, bins: int = 10) -> Reliability:
    """How often scores come true, of scores and targets of one shape; unknown targets count nowhere."""
    known = targets >= 0
    values, positive = scores[known].astype(float), targets[known] == 1
    bin_of = np.minimum((values * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    some = np.maximum(counts, 1)
    means = np.bincount(bin_of, values, minlength=bins) / some
    shares = np.bincount(bin_of, positive, minlength=bins) / some
    error = float((counts * np.abs(means - shares)).sum() / max(1, len(values)))
    return Reliability(counts, means, shares, error)
