"""Calibrate scores: of the images with a score of 0.3, three in ten have the label.

none         the model's own scores
prior        logit - log(w): undoes the effect on the scores of training with positives weighted by w
temperature  logit / T for all labels (Guo et al., On Calibration of Modern Neural Networks, 2017)
platt        a logit + b for each label (Platt, 1999), with his targets that keep rare labels from the edge
isotonic     for each label the best rising steps (Zadrozny and Elkan, 2002), interpolated between their middles

Scores are calibrated before thresholds are applied. All maps rise, so they never reverse the order of scores within a
label. All maps except isotonic rise strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STRICT = ("none", "prior", "temperature", "platt")  # those that keep any two scores apart
METHODS = (*STRICT, "isotonic")
FOLDS = 5
_EDGE = 1e-6
_STEPS = 50  # of Newton's method
_MOST_SCALE = 100.0
_SURE = 1.645  # standard errors
_MIN_POSITIVES = 5  # a label with fewer keeps its scores


@dataclass(frozen=True)
class Calibration:
    """A map of scores: by `scale` and `shift` (L,) of the logits, or for each label by `knots`, scores and values."""

    method: str = "none"
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()

    def apply(self, scores: Array) -> Array:
        """Calibrated scores float32 (N, L) of scores (N, L)."""
        if self.method == "none":
            return np.asarray(scores, dtype=np.float32)
        if self.knots:
            columns = [
                np.interp(scores[:, i].astype(np.float64), x, y) if len(x) else scores[:, i]
                for i, (x, y) in enumerate(self.knots)
            ]
            return np.stack(columns, axis=1).astype(np.float32)
        return sigmoid(np.array(self.scale) * logit(scores) + np.array(self.shift)).astype(np.float32)

    def carry(self, thresholds: Array) -> Array:
        """Map thresholds (L,) of a model's own scores to thresholds float32 of calibrated scores; no decision changes.

        A threshold above all scores stays above all scores.
        """
        cuts = np.asarray(thresholds, dtype=np.float32)
        return np.where(cuts > 1, cuts, self.apply(cuts[None])[0]).astype(np.float32)

    def plain(self) -> dict[str, Any]:
        """As values for JSON; `Calibration.read` takes them back."""
        return {
            "method": self.method,
            "scale": list(self.scale),
            "shift": list(self.shift),
            "knots": [[list(x), list(y)] for x, y in self.knots],
        }

    @staticmethod
    def read(stored: dict[str, Any]) -> Calibration:
        """Raises KeyError, TypeError or ValueError for values that are none of `stored`'s."""
        knots = tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in stored["knots"])
        scale, shift = (tuple(map(float, stored[name])) for name in ("scale", "shift"))
        return Calibration(str(stored["method"]), scale, shift, knots)


def fit(method: str, scores: Array, targets: Array, weights: Array) -> Calibration:
    """Fit a method to scores (N, L) and targets (N, L); `weights` (L,) are those of the positives in the loss."""
    num_labels = scores.shape[1]
    if method == "none":
        return Calibration()
    if method == "prior":
        return Calibration(method, (1.0,) * num_labels, tuple(-np.log(np.asarray(weights, dtype=np.float64))))
    if method == "isotonic":
        return Calibration(method, knots=tuple(_isotonic(scores[:, i], targets[:, i]) for i in range(num_labels)))
    known = targets >= 0
    logits = logit(scores)
    if method == "temperature":
        scale = _newton(logits[known], (targets[known] == 1).astype(np.float64), with_shift=False)[0]
        return Calibration(method, (scale,) * num_labels, (0.0,) * num_labels)
    if method == "platt":
        parameters = [_platt(logits[k, i], targets[k, i] == 1) for i, k in enumerate(known.T)]
        return Calibration(method, tuple(scale for scale, _ in parameters), tuple(shift for _, shift in parameters))
    raise ValueError(f"unknown calibration {method!r}")


def folds(count: int, seed: int) -> Array:
    """The fold of each sample."""
    return np.random.default_rng([seed, 3]).permutation(count) % FOLDS


def surely_higher(one: Array, two: Array) -> bool:
    """Whether the first of two log losses (N,) of the same samples is significantly higher, at the 5% level."""
    gap = one - two
    return bool(gap.mean() > _SURE * gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else False


def label_errors(scores: Array, targets: Array, bins: int = 15) -> tuple[Array, Array]:
    """Brier score (L,) and expected calibration error (L,), the latter over bins of equal counts; 0 without samples."""
    brier, error = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for i in range(scores.shape[1]):
        known = targets[:, i] >= 0
        score, positive = scores[known, i].astype(np.float64), (targets[known, i] == 1).astype(np.float64)
        if not len(score):
            continue
        brier[i] = np.mean((score - positive) ** 2)
        order = np.argsort(score, kind="stable")
        starts = np.unique(np.linspace(0, len(score), bins, endpoint=False, dtype=int))
        gaps = np.add.reduceat((score - positive)[order], starts)
        error[i] = np.abs(gaps).sum() / len(score)
    return brier, error


def logit(scores: Array) -> Array:
    """Log-odds float64 of scores, which are clipped to avoid 0 and 1."""
    inside = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))


def _platt(logits: Array, positive: Array) -> tuple[float, float]:
    count, other = int(positive.sum()), int((~positive).sum())
    if min(count, other) < _MIN_POSITIVES:
        return 1.0, 0.0
    goals = np.where(positive, (count + 1) / (count + 2), 1 / (other + 2))
    scale, shift = _newton(logits, goals, with_shift=True)
    return (scale, shift) if scale > 0 else (1.0, 0.0)


def _newton(logits: Array, goals: Array, with_shift: bool) -> tuple[float, float]:
    """Scale and shift of logits (N,) with the lowest log loss against goals (N,) in [0, 1]; a convex problem.

    scikit-learn's LogisticRegression takes no goals between 0 and 1, which Platt's method has, and takes 15 times as
    long for 1,500 samples; a search fits every label at every epoch.
    """
    columns = np.stack([logits, np.ones_like(logits)], axis=1) if with_shift else logits[:, None]
    solution = np.zeros(columns.shape[1])
    solution[0] = 1.0
    if not len(logits):
        return 1.0, 0.0

    def loss(at: Array) -> float:
        values = columns @ at
        return float((np.logaddexp(0, values) - goals * values).sum())

    now = loss(solution)
    for _ in range(_STEPS):
        share = sigmoid(columns @ solution)
        gradient = columns.T @ (share - goals)
        hessian = (columns * (share * (1 - share))[:, None]).T @ columns + 1e-9 * np.eye(len(solution))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(solution - size * step) > now:
            size /= 2
        new = loss(solution - size * step)
        if not new < now - 1e-10 * abs(now):
            break
        solution, now = solution - size * step, new
    # If the scores separate the classes perfectly, the scale would grow without bound.
    return float(np.clip(solution[0], 1 / _MOST_SCALE, _MOST_SCALE)), float(solution[1]) if with_shift else 0.0


def _isotonic(scores: Array, targets: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from sklearn.isotonic import isotonic_regression

    known = targets >= 0
    positive = targets[known] == 1
    if min(positive.sum(), (~positive).sum()) < _MIN_POSITIVES:
        return (), ()
    value, index = np.unique(scores[known].astype(np.float64), return_inverse=True)
    weight = np.bincount(index).astype(np.float64)
    share = np.bincount(index, weights=positive) / weight
    rising = isotonic_regression(share, sample_weight=weight)
    starts = np.flatnonzero(np.append(True, rising[1:] != rising[:-1]))
    ends = np.append(starts[1:], len(value))
    middles = [float(np.average(value[a:b], weights=weight[a:b])) for a, b in zip(starts, ends, strict=True)]
    sums = np.add.reduceat(weight, starts)
    # A step of n samples without a positive gets 1 / (n + 2), and one with only positives 1 - 1 / (n + 2) (Laplace).
    steps = (rising[starts] * sums + 1) / (sums + 2)
    return tuple(middles), tuple(np.maximum.accumulate(steps).tolist())


def log_losses(scores: Array, targets: Array) -> Array:
    """Log loss (N,) of each sample, summed over its known labels."""
    inside = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    losses = np.where(targets == 1, -np.log(inside), -np.log1p(-inside))
    return np.asarray(np.where(targets >= 0, losses, 0).sum(axis=1))
