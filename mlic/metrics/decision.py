"""Decisions from scores: calibration, then thresholds, both cross-fitted.

Calibration and thresholds are chosen together, and calibration never lowers the objective. The thresholds of a policy
are fitted to the model's own scores. A calibration that rises strictly carries them along, so every decision stays what
it was, all such calibrations are equal in the objective, and the log loss decides among them. Where a calibration does
change decisions, under a policy that says the thresholds itself, the cross-fitted objective decides.
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
    """What a model decides with, fitted to all samples, and what it is worth, by cross-fitting.

    `scores` float32 (N, L) and `decisions` bool (N, L) are those of maps and thresholds that were fitted without the
    sample's own fold. `ranked` (N, L) are the scores that order the samples within a label: the model's own where the
    calibration rises strictly, since that turns no order. `losses` are the cross-fitted log losses of the calibrations
    that were tried, `objectives` what each gives of the objective, where that differs.
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
    """What an epoch is measured by: `decisions` (N, L) and `ranked` (N, L) of `settle`, and thresholds `cuts` (L,) of
    the model's own scores."""

    decisions: Array
    ranked: Array
    cuts: Array


def decide(
    policy: str, method: str, scores: Array, targets: Array, weights: Array, seed: int, objective: str
) -> Decided:
    """What `settle` gives, without what the metrics of an epoch do not need."""
    if _carries(policy, method):
        fitted = thresholds.fit(policy, scores, targets, seed)
        return Decided(fitted.decisions, scores, fitted.thresholds)
    settled = settle(policy, method, scores, targets, weights, seed, objective)
    cuts = settled.thresholds if method == "none" else thresholds.thresholds(policy, scores, targets, seed)[0]
    return Decided(settled.decisions, settled.ranked, cuts)


def choose(scores: Array, targets: Array, weights: Array, seed: int) -> tuple[str, dict[str, float]]:
    """The strictly rising method with the lowest cross-fitted log loss, if it is significantly lower than that of the
    scores themselves, else none; and the mean log loss of each method that was tried."""
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
    """The objective of cross-fitted decisions and ranked scores, by the functions that every report is made by."""
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
    """The method with the best cross-fitted objective, of equals the one with the lowest log loss.

    One that significantly raises the log loss is not taken: its scores would say less, whatever they decide.
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
    """Thresholds by the policy on calibrated scores, in each fold on those of the others."""
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
