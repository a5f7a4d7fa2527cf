"""Causes of errors: each error gets the first of four rules that applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.metrics.confusion import swapped

Array = np.ndarray[Any, Any]

SURE = 0.9  # from this score on, the model is sure that a label belongs
DOUBT = 0.1  # below this fraction of a label's share, the model is sure that the label does not belong
FEW = 100  # training positives below which a label cannot be expected to be learnt
LIFT = 2.0  # an error has to be this many times as frequent with another label as without it
LEAST = 5  # errors below which nothing is said about a pattern

KINDS = {
    "wrong label suspected": (
        f"The score is {SURE:g} or more for a label that is not given, or below {DOUBT:g} of the label's share for "
        "one that is; or the labels given break a rule between labels that nearly always holds, and the decision fixes "
        "it."
    ),
    "too few examples": f"The label has fewer than {FEW} positives in the training split.",
    "wrong pattern": (
        f"This very error comes at least {LIFT:g} times as often with a label that the image has (for a label wrongly "
        "given), or with one that it was wrongly given (for a missed label), as without it, and at least "
        f"{LEAST} times."
    ),
    "unexplained": "None of the above.",
}


@dataclass(frozen=True)
class Causes:
    """`kind` int8 (N, L): 0 where the decision is right or the truth unknown, else 1 + the number of the kind.

    `by_rule` bool (N, L): where a rule between labels speaks for the decision. `misled` int64 (N, L): for the third
    kind the label that misleads, else -1.
    """

    kind: Array
    by_rule: Array
    misled: Array


def assign(
    decisions: Array,
    targets: Array,
    scores: Array | None,
    train_positives: Array | None,
    rules: Sequence[tuple[int, int]],
) -> Causes:
    """Put each error of decisions (N, L) under a kind of KINDS.

    `rules` are pairs of labels (i, j) where i nearly always implies j. Without `scores` no decision is sure; without
    `train_positives` (L,) no label is rare.
    """
    predicted, positive, negative = decisions.astype(bool), targets == 1, targets == 0
    wrong, missed = predicted & negative, positive & ~predicted
    suspected = by_rule = _restores(predicted, positive, negative, rules) & (wrong | missed)
    if scores is not None:
        share = positive.sum(axis=0) / np.maximum(1, (targets >= 0).sum(axis=0))
        suspected = suspected | (wrong & (scores >= SURE)) | (missed & (scores < DOUBT * share))
    misled = _misled(predicted, targets, wrong, missed)
    kind = np.where(wrong | missed, np.int8(4), np.int8(0))
    kind[(misled >= 0) & (kind > 0)] = 3
    if train_positives is not None:
        kind[:, train_positives < FEW] = np.where(kind[:, train_positives < FEW] > 0, 2, 0)
    kind[suspected] = 1
    return Causes(kind, by_rule, np.where(kind == 3, misled, -1))


def _restores(predicted: Array, positive: Array, negative: Array, rules: Sequence[tuple[int, int]]) -> Array:
    """Where the labels given break a rule and the decision would fix it, bool (N, L)."""
    restored = np.zeros(predicted.shape, bool)
    for first, second in rules:
        broken = positive[:, first] & negative[:, second]
        restored[:, second] |= broken & predicted[:, second]
        restored[:, first] |= broken & ~predicted[:, first] & ~predicted[:, second]
    return restored


def _misled(predicted: Array, targets: Array, wrong: Array, missed: Array) -> Array:
    """The label that goes with this kind of error, (N, L), or -1."""
    positive = (targets == 1).astype(np.float32)
    # A label wrongly given (column), by a label that the image has (row).
    with_it = positive.T @ wrong.astype(np.float32)
    chances_with = positive.T @ (targets == 0).astype(np.float32)
    lured = _lift(with_it, chances_with, wrong.sum(axis=0), (targets == 0).sum(axis=0))
    # A label missed (column), by a label that the image was wrongly given (row).
    pairs = swapped(predicted, targets).T.astype(np.float32)
    chances = wrong.astype(np.float32).T @ positive
    hidden = _lift(pairs, chances, missed.sum(axis=0), (targets == 1).sum(axis=0))
    misled_by = np.full(predicted.shape, -1, np.int64)
    for where, lift, has in ((wrong, lured, positive > 0), (missed, hidden, wrong)):
        for label in range(predicted.shape[1]):
            rows = np.flatnonzero(where[:, label])
            strength = np.where(has[rows], lift[:, label], 0)
            best = strength.argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
            misled_by[rows, label] = np.where(strength[np.arange(len(rows)), best] >= LIFT, best, -1)
    return misled_by


def _lift(errors: Array, chances: Array, all_errors: Array, all_chances: Array) -> Array:
    """How much more frequent the errors of a column are among the row's samples than among all others, (L, L)."""
    rest = (all_errors - errors + 1) / np.maximum(
        1, all_chances - chances + 1
    )  # the 1 avoids a rate of 0 when no error was seen
    lift: Array = np.where(errors >= LEAST, errors / np.maximum(1, chances) / rest, 0)
    np.fill_diagonal(lift, 0)
    return lift
