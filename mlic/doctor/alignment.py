"""Do the labels belong to the images? A cross-validated test with simple features, against shuffled labels.

Labels that were attached to the wrong images look like any other labels. A model that is trained on them looks like a
model with a hard task. But nothing about an image then predicts its labels: a linear model on crude colour and edge
features does no better on held-out images than it does after the labels are shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Verdict = Literal["aligned", "unsure", "not aligned"]

_FOLDS = 5
_MIN_POSITIVES = 8  # a label with fewer says nothing
_RIDGE = 10.0
_ALIGNED_Z = 4.0
# Correctly joined labels of photographs reach 0.6 and more. If the value is certainly below this, the join is wrong.
_CREDIBLE_AUC = 0.58
_WINDOW_Z = 7.0  # a window is wide enough for correctly joined labels to reach this many deviations
_LOST_Z = 1.0  # a window below this holds labels of other images
_MIN_WINDOW, _MIN_WINDOWS = 60, 4


@dataclass(frozen=True)
class Alignment:
    """The answer.

    `auc` is the mean over labels, weighted by their positives; `chance` and `spread` are the mean and the standard
    deviation of the same for shuffled labels; `labels` is how many labels had enough positives to count.
    """

    verdict: Verdict
    auc: float
    chance: float
    spread: float
    labels: int
    samples: int


@dataclass(frozen=True)
class Stretch:
    """Samples from `start` to `end`, in the order of the test, that have the labels of other images."""

    start: int
    end: int


def probe(features: Array, targets: Array, seed: int, shuffles: int = 60) -> Alignment:
    """Test features (N, F) against targets (N, L), 1, 0 or -1 for unknown.

    `aligned`: the labels are predicted better than shuffled ones by more than four standard deviations. `not aligned`:
    they are not, although there is enough data that labels of photographs would have been. `unsure`: too few samples or
    too rare labels to tell.
    """
    num_samples = len(features)
    counted = [
        i
        for i in range(targets.shape[1])
        if min((targets[:, i] == 1).sum(), (targets[:, i] == 0).sum()) >= _MIN_POSITIVES
    ]
    if not counted or num_samples < 4 * _FOLDS:
        return Alignment("unsure", 0.5, 0.5, 0.5, len(counted), num_samples)
    chosen = targets[:, counted]
    weights = np.sqrt((chosen == 1).sum(axis=0).astype(float))
    rng = np.random.default_rng([seed, 7])
    orders = [np.arange(num_samples), *(rng.permutation(num_samples) for _ in range(shuffles))]
    fold = rng.permutation(num_samples) % _FOLDS
    solvers = [_solver(features, fold != k, fold == k) for k in range(_FOLDS)]
    means = [float(np.average(_aucs(solvers, fold, chosen[order]), weights=weights)) for order in orders]
    auc, shuffled = means[0], np.array(means[1:])
    chance, spread = float(shuffled.mean()), float(shuffled.std(ddof=1))
    verdict: Verdict = "unsure"
    if auc > chance + _ALIGNED_Z * spread:
        verdict = "aligned"
    elif auc + _ALIGNED_Z * spread < _CREDIBLE_AUC:
        verdict = "not aligned"
    return Alignment(verdict, auc, chance, spread, len(counted), num_samples)


def stretches(features: Array, targets: Array, seed: int) -> list[Stretch]:
    """Find where labels stop belonging to their images, in samples (N,) in the order of the label files.

    One extra line shifts all labels after it. A test of all samples does not show this, because most labels are right.
    So windows are tested, each wide enough to be sure. The test compares the agreement of scores and labels with that
    of labels shuffled within the window. It finds nothing in small data, and in windows where nearly all samples have
    the same labels.
    """
    num_samples = len(features)
    if num_samples < _MIN_WINDOW * _MIN_WINDOWS:
        return []
    scores, residuals = _agreement(features, targets, seed)
    if not scores.shape[1]:
        return []
    rng = np.random.default_rng([seed, 11])
    overall = _window_z(scores, residuals, rng)
    if overall <= 0:
        return []
    width = max(_MIN_WINDOW, int(np.ceil(num_samples * (_WINDOW_Z / overall) ** 2)))
    if width * _MIN_WINDOWS > num_samples:
        return []
    lost: list[Stretch] = []
    spread = residuals.var(axis=0).sum()
    for start in [*range(0, num_samples - width, width // 4), num_samples - width]:
        window = slice(start, start + width)
        if residuals[window].var(axis=0).sum() < spread / 2:
            continue
        if _window_z(scores[window], residuals[window], rng) < _LOST_Z:
            if lost and lost[-1].end + width >= start:
                lost[-1] = Stretch(lost[-1].start, start + width)
            else:
                lost.append(Stretch(start, start + width))
    return lost


def doubtful(features: Array, targets: Array, seed: int, count: int) -> Array:
    """The numbers of the samples whose labels agree least with their images, the worst first."""
    scores, residuals = _agreement(features, targets, seed)
    worst: Array = np.argsort((scores * residuals).sum(axis=1), kind="stable")[:count]
    return worst


def _agreement(features: Array, targets: Array, seed: int) -> tuple[Array, Array]:
    """Cross-validated scores and labels (N, L') of the labels that count, each with mean 0 and deviation 1."""
    enough = np.minimum((targets == 1).sum(axis=0), (targets == 0).sum(axis=0)) >= _MIN_POSITIVES
    chosen = targets[:, enough]
    fold = np.random.default_rng([seed, 7]).permutation(len(features)) % _FOLDS
    known = chosen >= 0
    shares = (chosen == 1).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    residuals = np.where(known, (chosen == 1) - shares, 0.0) / np.sqrt(shares * (1 - shares))
    scores = np.zeros(chosen.shape)
    for k in range(_FOLDS):
        solver = _solver(features, fold != k, fold == k)
        scores[fold == k] = solver @ residuals[fold != k].astype(solver.dtype)
    return (scores - scores.mean(axis=0)) / (scores.std(axis=0) + 1e-9), residuals


def _window_z(scores: Array, residuals: Array, rng: np.random.Generator, shuffles: int = 40) -> float:
    """How many standard deviations the agreement is above that of shuffled labels."""
    null = [float((scores * residuals[rng.permutation(len(residuals))]).sum()) for _ in range(shuffles)]
    return float(((scores * residuals).sum() - np.mean(null)) / (np.std(null, ddof=1) + 1e-9))


def _solver(features: Array, fitted: Array, held: Array) -> Array:
    """The matrix that turns the targets of the fitted samples into ridge regression scores of the held-out samples."""
    mean, deviation = features[fitted].mean(axis=0), features[fitted].std(axis=0) + 1e-6
    a, b = (features[fitted] - mean) / deviation, (features[held] - mean) / deviation
    gram = a.T @ a + _RIDGE * np.eye(a.shape[1], dtype=a.dtype)
    solver: Array = b @ np.linalg.solve(gram, a.T)
    return solver


def _aucs(solvers: list[Array], fold: Array, targets: Array) -> Array:
    """Area under the ROC curve (L,) of the scores of held samples, the mean over folds."""
    aucs = np.zeros((len(solvers), targets.shape[1]))
    for k, solver in enumerate(solvers):
        fitted, held = targets[fold != k], targets[fold == k]
        shares = np.array([column[column >= 0].mean() if (column >= 0).any() else 0 for column in fitted.T])
        scores = solver @ np.where(fitted >= 0, fitted - shares, 0).astype(solver.dtype)
        for i in range(targets.shape[1]):
            aucs[k, i] = _auc(scores[:, i], held[:, i])
    mean: Array = aucs.mean(axis=0)
    return mean


def _auc(scores: Array, targets: Array) -> float:
    """Area under the ROC curve by ranks; 0.5 when one class is missing. Scores of a regression have no ties."""
    known = targets >= 0
    positive = targets[known] == 1
    count = int(positive.sum())
    if count in (0, len(positive)):
        return 0.5
    ranks = np.empty(len(positive))
    ranks[np.argsort(scores[known])] = np.arange(1, len(positive) + 1)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))
