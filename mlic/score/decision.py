"""From a model's scores to decisions: calibration, then thresholds, both fitted without the samples that they judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.score import calibration, thresholds
from mlic.score.calibration import Calibration
from mlic.score.thresholds import Choice

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settled:
    """What a model decides with, fitted to all samples, and what it is worth, by cross-fitting.

    `scores` float32 (N, L) and `decisions` bool (N, L) are those of maps and thresholds that were fitted without the
    sample's own fold. `losses` are the cross-fitted log losses of the calibrations that were tried.
    """

    calibration: Calibration
    thresholds: Array
    choice: Choice | None
    scores: Array
    decisions: Array
    losses: dict[str, float]


def settle(policy: str, method: str, scores: Array, targets: Array, weights: Array, seed: int) -> Settled:
    """Fit a threshold policy to scores (N, L) and targets (N, L), after calibration by a method or the best (`auto`).

    `weights` (L,) are those of the positives in the loss that the model was trained with.
    """
    losses: dict[str, float] = {}
    if method == "auto":
        method, losses = calibration.choose(scores, targets, weights, seed)
    if method == "none":
        plain = thresholds.fit(policy, scores, targets, seed)
        return Settled(Calibration(), plain.thresholds, plain.choice, scores, plain.decisions, losses)
    whole = calibration.fit(method, scores, targets, weights)
    final, choice = thresholds.thresholds(policy, whole.apply(scores), targets, seed)
    fold = calibration.folds(len(scores), seed)
    crossed, decisions = np.empty(scores.shape, dtype=np.float32), np.empty(scores.shape, dtype=bool)
    top_k = thresholds.top_k(policy)
    for k in range(calibration.FOLDS):
        held = fold == k
        if not held.any():
            continue
        part = calibration.fit(method, scores[~held], targets[~held], weights)
        fitted, _ = thresholds.thresholds(policy, part.apply(scores[~held]), targets[~held], seed)
        crossed[held] = part.apply(scores[held])
        decisions[held] = thresholds.decide(crossed[held], fitted, top_k)
    return Settled(whole, final, choice, crossed, decisions, losses)
