"""Decision thresholds: exact search over all cut-offs, and an honest estimate of what they will give.

A label is given where score >= threshold, in float32, everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlic.config import Policy

FIXED = 0.5
Array = np.ndarray[Any, Any]


def fit(policy: Policy, scores: Array, targets: Array) -> Array:
    """Fit thresholds (L,) float32 to scores (N, L) and targets (N, L).

    `fixed` is 0.5 for every label. `global` is the one threshold that gives the best micro-F1. `per-label` is, for each
    label, the threshold with the best F1 of that label, and the global one where a label has no positive sample.
    Every cut-off between two neighbouring scores is tried, in O(N L log(N L)).
    """
    num_labels = scores.shape[1]
    if policy == "fixed":
        return np.full(num_labels, FIXED, dtype=np.float32)
    known = targets >= 0
    together = best_f1_cut(scores[known], targets[known] == 1)
    if policy == "global":
        return np.full(num_labels, together, dtype=np.float32)
    values = [
        best_f1_cut(scores[known[:, i], i], targets[known[:, i], i] == 1) if (targets[:, i] == 1).any() else together
        for i in range(num_labels)
    ]
    return np.array(values, dtype=np.float32)


def best_f1_cut(scores: Array, positive: Array) -> np.float32:
    """The threshold with the best F1 of 1-d scores; the highest of equals, and 0.5 where nothing is positive.

    It lies halfway to the next lower score, so that a score that differs in its last bits is decided alike.
    """
    scores = scores.astype(np.float32)
    num_positive = int(positive.sum())
    if not num_positive:
        return np.float32(FIXED)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last of each run of equal scores
    true_positives = np.cumsum(positive[order])[last]
    f1 = 2 * true_positives / (last + 1 + num_positive)
    best = int(np.argmax(f1))
    upper = ranked[last[best]]
    lower = ranked[last[best] + 1] if last[best] + 1 < len(ranked) else np.float32(0)
    middle = np.float32((np.float64(upper) + np.float64(lower)) / 2)
    return np.float32(middle if lower < middle <= upper else upper)


def decide(scores: Array, thresholds: Array) -> Array:
    """Decisions (N, L): where the scores reach the thresholds (L,)."""
    return np.asarray(scores, dtype=np.float32) >= np.asarray(thresholds, dtype=np.float32)


def cross_fit(policy: Policy, scores: Array, targets: Array, seed: int, folds: int = 5) -> Array:
    """Decisions (N, L), each by thresholds that were fitted without the sample's own fold.

    Metrics of them estimate what the policy gives on new samples. Thresholds that are measured on the samples that
    they were fitted to look better than they are, most of all for rare labels.
    """
    num_samples = len(scores)
    folds = min(folds, num_samples)
    if folds < 2 or policy == "fixed":
        return decide(scores, fit("fixed", scores, targets))  # there is nothing to fit without the sample itself
    fold = np.random.default_rng([seed, 3]).permutation(num_samples) % folds
    decisions = np.zeros(scores.shape, dtype=bool)
    for k in range(folds):
        held = fold == k
        decisions[held] = decide(scores[held], fit(policy, scores[~held], targets[~held]))
    return decisions
