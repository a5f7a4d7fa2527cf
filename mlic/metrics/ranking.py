"""Metrics of scores: ranking of samples per label, and of labels per sample.

Definitions are scikit-learn's. An unknown target counts nowhere.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SAMPLE_METRICS = ("lrap", "coverage", "ranking_loss")
THREADS = 4  # numpy sorts, adds and multiplies without Python's lock
_CHUNK = 65_536  # samples at a time


@dataclass(frozen=True)
class Cuts:
    """Every cut-off of N scores: `score` (C,) falling, and how many positives `tp` and samples `count` reach it."""

    score: Array
    tp: Array
    count: Array

    def average_precision(self) -> float:
        """The area under the steps of precision over recall; 0 where nothing is positive."""
        if not len(self.tp) or not self.tp[-1]:
            return 0.0
        return float((np.diff(self.tp, prepend=0) * (self.tp / self.count)).sum() / self.tp[-1])

    def roc_auc(self) -> float:
        """The area under the ROC curve; nan where one class is missing."""
        if not len(self.tp):
            return float("nan")
        tp, fp = self.tp.astype(np.float64), (self.count - self.tp).astype(np.float64)
        if not tp[-1] or not fp[-1]:
            return float("nan")
        before = np.concatenate([[0.0], tp[:-1]])
        return float((np.diff(fp, prepend=0) * (before + tp)).sum() / 2 / tp[-1] / fp[-1])


def cuts(scores: Array, positive: Array) -> Cuts:
    """All cut-offs of scores (N,) with positive (N,) bool, in O(N log N)."""
    scores = np.asarray(scores)
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    return Cuts(ranked[last], np.cumsum(positive[order])[last], last + 1)


def areas(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Average precision (L,) and area under the ROC curve (L,) of scores (N, L); see `Cuts`."""

    def of_label(i: int) -> tuple[float, float]:
        known = targets[:, i] >= 0
        label_cuts = cuts(scores[known, i], targets[known, i] == 1)
        return label_cuts.average_precision(), label_cuts.roc_auc()

    with ThreadPoolExecutor(THREADS) as pool:
        areas_of = np.array(list(pool.map(of_label, range(targets.shape[1])))).reshape(-1, 2)
    return areas_of[:, 0], areas_of[:, 1]


def per_sample(scores: Array, targets: Array) -> Array:
    """SAMPLE_METRICS of each sample, float64 (N, 3).

    `lrap`: for each right label, the share of right labels among those that rank at least as high; then the mean over
    the right labels. It is 1 if no known label, or every known label, is right. `coverage`: how many labels must be
    given until all right ones are. `ranking_loss`: the share of pairs of a right and a wrong label that are in the
    wrong order or tied.
    """
    parts = [_per_sample(scores[i : i + _CHUNK], targets[i : i + _CHUNK]) for i in range(0, len(targets), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, 3))


def _per_sample(scores: Array, targets: Array) -> Array:
    num_labels = targets.shape[1]
    known, positive = targets >= 0, targets == 1
    # Unknown labels rank below all others, so they are never counted as ranking above a right label.
    order = np.argsort(np.where(known, -scores.astype(np.float64), np.inf), axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    right = np.take_along_axis(positive, order, axis=1)
    ends = np.append(ranked[:, 1:] != ranked[:, :-1], np.ones((len(ranked), 1), bool), axis=1)
    num_known = known.sum(axis=1)
    ends[np.arange(len(ranked)), np.maximum(num_known - 1, 0)] = True  # a known label ties with no unknown one
    end_of = np.where(ends, np.arange(num_labels), num_labels)
    last = np.minimum.accumulate(end_of[:, ::-1], axis=1)[:, ::-1]
    rank = last + 1.0
    above = np.take_along_axis(np.cumsum(right, axis=1), last, axis=1)
    num_right = right.sum(axis=1)
    num_wrong = num_known - num_right
    one_sided = (num_right == 0) | (num_wrong == 0)
    lrap = (right * above / rank).sum(axis=1) / np.maximum(num_right, 1)
    coverage = np.where(right, rank, 0).max(axis=1, initial=0)
    loss = (right * (rank - above)).sum(axis=1) / np.maximum(num_right * num_wrong, 1)
    return np.stack([np.where(one_sided, 1.0, lrap), coverage, np.where(one_sided, 0.0, loss)], axis=1)
