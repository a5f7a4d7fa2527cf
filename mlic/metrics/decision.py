"""Decisions from scores: calibration, then thresholds, both cross-fitted.

Calibration and thresholds are chosen together, and calibration never lowers the objective. The thresholds of a policy
are fitted to the model's own scores. A strictly rising calibration maps the thresholds together with the scores, so no
decision changes. All such calibrations have the same objective, and the log loss chooses among them. A calibration does
change decisions under a policy that sets the thresholds itself. There, the cross-fitted objective chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlic.config.types import parse_policy
from mlic.errors import DataError
from mlic.metrics import calibration, metrics, ranking, thresholds
from mlic.metrics.calibration import Calibration
from mlic.metrics.thresholds import Choice

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settled:
    """The calibration and thresholds of a model, fitted to all samples, and a cross-fitted estimate of their quality.

    `scores` float32 (N, L) and `decisions` bool (N, L) come from maps and thresholds that were fitted without the
    sample's own fold. `ranked` (N, L) are the scores that order the samples within a label. They are the model's own
    scores if the calibration rises strictly, because it does not change the order. `losses` are the cross-fitted log
    losses of the calibrations that were tried; `objectives` are their objectives, if these differ.
    """

    calibration: Calibration
    thresholds: Array
    choice: Choice | None
    scores: Array
    ranked: Array
    decisions: Array
    losses: dict[str, float]
    objectives: dict[str, float]


def settle(
    policy: str, method: str, scores: Array, targets: Array, weights: Array, seed: int, objective: str = "f1_micro"
) -> Settled:
    """Fit a threshold policy to scores (N, L) and targets (N, L), and a calibration by a method or the best (`auto`).

    `weights` (L,) are those of the positives in the loss that the model was trained with. Raises DataError for a score
    that is not a number.
    """
    check_finite(scores)
    if not _carries(policy, method):
        if method == "auto":
            return _best_by_objective(policy, scores, targets, weights, seed, objective)
        return _refitted(policy, method, scores, targets, weights, seed)
    losses = dict[str, float]()
    if method == "auto":
        method, losses = choose(scores, targets, weights, seed)
    uncalibrated_cuts = thresholds.fit(policy, scores, targets, seed)
    fitted = calibration.fit(method, scores, targets, weights)
    return Settled(
        fitted,
        fitted.carry(uncalibrated_cuts.thresholds),
        uncalibrated_cuts.choice,
        crossed(method, scores, targets, weights, seed),
        scores,
        uncalibrated_cuts.decisions,
        losses,
        {},
    )


@dataclass(frozen=True)
class Decided:
    """The basis of an epoch's metrics: `decisions` (N, L) and `ranked` (N, L) as in `settle`.

    `cuts` (L,) are thresholds of the model's own scores.
    """

    decisions: Array
    ranked: Array
    cuts: Array


def decide(
    policy: str, method: str, scores: Array, targets: Array, weights: Array, seed: int, objective: str
) -> Decided:
    """The part of the result of `settle` that the metrics of an epoch need."""
    if _carries(policy, method):
        fitted = thresholds.fit(policy, scores, targets, seed)
        return Decided(fitted.decisions, scores, fitted.thresholds)
    settled = settle(policy, method, scores, targets, weights, seed, objective)
    cuts = settled.thresholds if method == "none" else thresholds.thresholds(policy, scores, targets, seed)[0]
    return Decided(settled.decisions, settled.ranked, cuts)


def choose(scores: Array, targets: Array, weights: Array, seed: int) -> tuple[str, dict[str, float]]:
    """The strictly rising method with the lowest cross-fitted log loss, and the mean log loss of each method tried.

    The method is none if no method's log loss is significantly lower than that of the scores themselves.
    """
    uncalibrated = calibration.log_losses(scores, targets)
    losses, best, method = {"none": float(uncalibrated.mean())}, uncalibrated, "none"
    for name in calibration.STRICT[1:]:
        if name == "prior" and np.all(np.asarray(weights) == 1):
            continue
        calibrated = calibration.log_losses(crossed(name, scores, targets, weights, seed), targets)
        losses[name] = float(calibrated.mean())
        if calibration.surely_higher(uncalibrated, calibrated) and calibrated.mean() < best.mean():
            best, method = calibrated, name
    return method, losses


def crossed(method: str, scores: Array, targets: Array, weights: Array, seed: int) -> Array:
    """Calibrated scores float32 (N, L), each by a map that was fitted without the sample's fold."""
    if method == "none":
        return scores
    fold, calibrated = calibration.folds(len(scores), seed), np.empty(scores.shape, dtype=np.float32)
    for k in range(calibration.FOLDS):
        held = fold == k
        if held.any():
            calibrated[held] = calibration.fit(method, scores[~held], targets[~held], weights).apply(scores[held])
    return calibrated


def value_of(objective: str, decisions: Array, ranked: Array, targets: Array) -> float:
    """The objective of cross-fitted decisions and ranked scores, with the same functions as in every report."""
    if objective in metrics.DECISION_METRICS:
        return metrics.decision_metrics(decisions, targets)[objective]
    if objective == "map":
        return float(ranking.areas(ranked, targets)[0].mean())
    return metrics.score_metrics(ranked, targets)[objective]


def check_finite(scores: Array) -> None:
    """Raise DataError, with the number of the first such sample, where a score is not a number."""
    odd = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(odd):
        raise DataError(
            f"the scores of {len(odd):,} of {len(scores):,} samples are not numbers; the first is sample {odd[0]}.",
            "train the model again with a lower --lr.",
        )


def _carries(policy: str, method: str) -> bool:
    """Whether thresholds are fitted to the model's own scores and carried along by the calibration."""
    return parse_policy(policy)[0] not in ("fixed", "top-k") and method != "isotonic"


def _best_by_objective(
    policy: str, scores: Array, targets: Array, weights: Array, seed: int, objective: str
) -> Settled:
    """The method with the best cross-fitted objective; among equal ones, the one with the lowest log loss.

    A method that significantly raises the log loss is never chosen: its scores would be less informative, even if its
    decisions were better.
    """
    uncalibrated = calibration.log_losses(scores, targets)
    losses, objectives, tried = dict[str, float](), dict[str, float](), dict[str, Settled]()
    for name in calibration.METHODS:
        if name == "prior" and np.all(np.asarray(weights) == 1):
            continue
        settled = _refitted(policy, name, scores, targets, weights, seed)
        loss = calibration.log_losses(settled.scores, targets)
        losses[name] = float(loss.mean())
        objectives[name] = value_of(objective, settled.decisions, settled.ranked, targets)
        if name == "none" or not calibration.surely_higher(loss, uncalibrated):
            tried[name] = settled
    best = max(tried, key=lambda name: (objectives[name], -losses[name]))
    return replace(tried[best], losses=losses, objectives=objectives)


def _refitted(policy: str, method: str, scores: Array, targets: Array, weights: Array, seed: int) -> Settled:
    """Fit the policy's thresholds to calibrated scores; the thresholds of a fold are fitted to the other folds."""
    if method == "none":
        uncalibrated_cuts = thresholds.fit(policy, scores, targets, seed)
        return Settled(
            Calibration(),
            uncalibrated_cuts.thresholds,
            uncalibrated_cuts.choice,
            scores,
            scores,
            uncalibrated_cuts.decisions,
            {},
            {},
        )
    calibration_fitted = calibration.fit(method, scores, targets, weights)
    final, choice = thresholds.thresholds(policy, calibration_fitted.apply(scores), targets, seed)
    fold = calibration.folds(len(scores), seed)
    calibrated, decisions = np.empty(scores.shape, dtype=np.float32), np.empty(scores.shape, dtype=bool)
    top_k = thresholds.top_k(policy)
    for k in range(calibration.FOLDS):
        held = fold == k
        if not held.any():
            continue
        part = calibration.fit(method, scores[~held], targets[~held], weights)
        fitted, _ = thresholds.thresholds(policy, part.apply(scores[~held]), targets[~held], seed)
        calibrated[held] = part.apply(scores[held])
        decisions[held] = thresholds.decide(calibrated[held], fitted, top_k)
    ranked = scores if method in calibration.STRICT else calibrated
    return Settled(calibration_fitted, final, choice, calibrated, ranked, decisions, {}, {})
