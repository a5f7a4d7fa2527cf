"""Find labels that are probably wrong, from out-of-fold scores and from co-occurring labels.

One ranking over all labels needs a common unit: the log-odds that a given value is wrong. A low score is not such a
unit. A model that has learnt little about a rare label gives low scores to all samples that have it, rightly or
wrongly. And if few samples are given a label wrongly, a low score for a given label means little.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from mlic.errors import ConfigError

Array = np.ndarray[Any, Any]
Rule = tuple[int, int]  # the label with the first number implies the one with the second

_EPSILON = 1e-4  # probabilities are held this far from 0 and 1
_CONTEXT = 30  # context labels of a label: those with the strongest positive or negative correlation with it
_BESIDE = 1.0  # a context label is named if it adds at least this much to the log-odds
_SCORE_RIDGE = 1.0
_RIDGE = 10.0  # for the context labels: their contradictions then add up to less than the sum of the single ones
_STEPS, _WARM_UP = 60, 6
_EXTRA = 0.3  # start value: the share of given labels that are wrong; it stays if the scores say nothing
_MISSING = 0.05  # prior share of true labels that are missing; it has as much weight as the estimate from the data
_RATE_LIMITS = 1e-5, 0.4


@dataclass(frozen=True)
class Suspects:
    """Every known (sample, label), the most suspicious first: `sample`, `label` and `evidence` (K,).

    `evidence` is the log-odds that the given value is wrong. `beside` (K,) is the other label that supports this most
    clearly, by being given or not. `rule` (K,) is the number of a rule that the sample breaks by this label. In both,
    -1 means none. `rates` (L, 2) are the share of a label's negatives that are given and the share of its positives
    that are not given.
    """

    sample: Array
    label: Array
    evidence: Array
    beside: Array
    rule: Array
    rates: Array

    @property
    def errors(self) -> float:
        """How many labels are wrong, by the evidence."""
        return float(_sigmoid(self.evidence).sum())


def check_installed() -> None:
    """Raise ConfigError when cleanlab is not there."""
    if find_spec("cleanlab") is None:
        raise ConfigError("suspected label errors need cleanlab, which is not installed.", "pip install 'mlic[noise]'.")


def suspects(scores: Array, targets: Array, fold: Array, rules: Sequence[Rule], context: bool = True) -> Suspects:
    """Rank all known labels (N, L) by how probably they are wrong.

    `scores` (N, L) come from models that were fitted without the sample's `fold` (N,). Without `context`, only the
    scores are evidence. With it, the sample's other labels are evidence too: those of rules and all others. Their
    weights are fitted on the other folds, and count only what the score does not already say. At an exception to a
    rule, one of its two labels is wrong, or neither: the rule is assigned to the label with more evidence against it.
    """
    logits = _logit(scores.astype(np.float64))
    known = targets >= 0
    shares = (targets == 1).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    filled = np.where(known, targets, shares)  # an unknown label says nothing about those beside it
    others = _associated(filled) if context else [np.zeros(0, np.int64)] * targets.shape[1]
    evidence, beside = np.full(scores.shape, -np.inf), np.full(scores.shape, -1)
    rates = np.zeros((targets.shape[1], 2))
    for label, near in enumerate(others):
        features = np.column_stack([logits[:, label], filled[:, near]])
        features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
        positive = targets[:, label] == 1
        for held in (fold == number for number in np.unique(fold)):
            fitted = known[:, label] & ~held
            fitted = fitted if fitted.any() else known[:, label]
            fit = _robust_regression(features[fitted], positive[fitted])
            terms = features[held] * fit.weights[1:]
            truly = _sigmoid(fit.weights[0] + terms.sum(axis=1))
            evidence[held, label] = _against(positive[held], truly, fit.extra, fit.missing)
            rates[label] += np.array([fit.extra, fit.missing]) * held.mean()
            if len(near):
                against = terms[:, 1:] * np.where(positive[held], -1, 1)[:, None]
                clear = against.max(axis=1) >= _BESIDE
                beside[held, label] = np.where(clear, near[against.argmax(axis=1)], -1)
    evidence[~known] = -np.inf
    rule = _blame(evidence, targets, rules)
    rows, columns = np.nonzero(known)
    agreement = 1 - np.abs(targets - scores)[known]  # orders labels whose evidence is equal because it is clipped
    order = np.lexsort((columns, rows, agreement, -evidence[known]))
    return Suspects(
        rows[order], columns[order], evidence[known][order], beside[known][order], rule[known][order], rates
    )


def exceptions(targets: Array, rule: Rule) -> Array:
    """The samples that have the first label of a rule and, for certain, not the second."""
    first, second = rule
    return np.flatnonzero((targets[:, first] == 1) & (targets[:, second] == 0))


def confident(scores: Array, targets: Array) -> Array:
    """The labels that confident learning considers wrong, bool (N, L): cleanlab's filter, for each label alone."""
    from cleanlab.filter import find_label_issues

    suspected = np.zeros(targets.shape, bool)
    for label in range(targets.shape[1]):
        rows = np.flatnonzero(targets[:, label] >= 0)
        labels = targets[rows, label].astype(np.int64)
        if 0 < labels.sum() < len(labels):
            confidence = scores[rows, label].astype(np.float64)
            with warnings.catch_warnings(action="ignore"):  # it warns that it may miss errors of rare labels
                suspected[rows, label] = find_label_issues(
                    labels, np.column_stack([1 - confidence, confidence]), n_jobs=1
                )
    return suspected


def _associated(filled: Array) -> list[Array]:
    """The labels with the strongest positive or negative correlation with each label, by the given values."""
    centred = filled - filled.mean(axis=0)
    scaled = centred / (np.sqrt((centred**2).sum(axis=0)) + 1e-9)
    strength = np.abs(scaled.T @ scaled)
    np.fill_diagonal(strength, -1)
    return [np.argsort(-row, kind="stable")[: min(_CONTEXT, len(row) - 1)] for row in strength]


@dataclass(frozen=True)
class _Fit:
    """A regression of the true label: `weights` (1 + F,), the intercept first, and both error rates."""

    weights: Array
    extra: float
    missing: float


def _robust_regression(features: Array, given: Array) -> _Fit:
    """Logistic regression of the true label on features (N, F), where `given` (N,) is wrong at two unknown rates.

    The method is expectation-maximisation. The first step computes how probable each label is, given the weights and
    rates. The second step is a Newton step of the weights towards that, and the rates that follow from it. A label that
    contradicts everything no longer pulls the weights, and that is why it stands out. A rate of missing labels is hard
    to distinguish from an unsure model, so a prior holds it. The rate of extra labels is visible where the features
    leave no doubt.
    """
    columns = np.column_stack([np.ones(len(features)), features])
    ridge = np.full(columns.shape[1], _RIDGE)
    ridge[:2] = 1e-3, _SCORE_RIDGE  # the first keeps the intercept finite for a label that all samples have, or none
    share = (given.sum() + 0.5) / (len(given) + 1)
    weights = np.zeros(columns.shape[1])
    weights[0] = np.log(share / (1 - share))
    extra, missing = np.clip(_EXTRA * share, *_RATE_LIMITS), _MISSING
    for step in range(_STEPS):
        probability = _sigmoid(columns @ weights)
        yes = np.where(given, 1 - missing, missing) * probability
        no = np.where(given, extra, 1 - extra) * (1 - probability)
        truly = yes / (yes + no)
        gradient = columns.T @ (truly - probability) - ridge * weights
        curvature = (columns * (probability * (1 - probability))[:, None]).T @ columns + np.diag(ridge)
        move = np.linalg.solve(curvature, gradient)
        weights = weights + move * min(1.0, 3 / (np.abs(move).max() + 1e-12))
        if step >= _WARM_UP:
            total = truly.sum()
            extra = np.clip((1 - truly)[given].sum() / (len(given) - total + 1e-9), *_RATE_LIMITS)
            missing = np.clip((truly[~given].sum() / (total + 1e-9) + _MISSING) / 2, *_RATE_LIMITS)
    return _Fit(weights, float(extra), float(missing))


def _against(positive: Array, truly: Array, extra: float, missing: float) -> Array:
    """The log-odds (N,) that the value of a label is wrong, by Bayes' rule; the label is given where `positive`."""
    odds = _logit(truly)
    against: Array = np.where(positive, np.log(extra / (1 - missing)) - odds, np.log(missing / (1 - extra)) + odds)
    return against


def _blame(evidence: Array, targets: Array, rules: Sequence[Rule]) -> Array:
    """The rule (N, L) that a label breaks, -1 for none; the first of several."""
    blamed = np.full(targets.shape, -1)
    for number, (first, second) in reversed(list(enumerate(rules))):
        rows = exceptions(targets, (first, second))
        worse = np.where(evidence[rows, first] > evidence[rows, second], first, second)
        blamed[rows, worse] = number
    return blamed


def _logit(value: Array) -> Array:
    held = np.clip(value, _EPSILON, 1 - _EPSILON)
    logit: Array = np.log(held / (1 - held))
    return logit


def _sigmoid(value: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-np.clip(value, -30, 30)))
    return result
