"""Statistics of labels: frequency, number per sample, co-occurrence and implications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Implication:
    """Nearly every sample with the label `first` has the label `second` too; `exceptions` number those that do not."""

    first: int
    second: int
    support: int
    exceptions: Array

    @property
    def confidence(self) -> float:
        return 1 - len(self.exceptions) / self.support


def together(targets: Array) -> Array:
    """How many samples have both labels, int64 (L, L), of targets (N, L) with 1 where a label is given."""
    positive = (targets == 1).astype(np.float32)
    return np.asarray(np.rint(positive.T @ positive), np.int64)


def cardinality(targets: Array) -> Array:
    """How many samples have 0, 1, 2 ... labels."""
    return np.bincount((targets == 1).sum(axis=1))


def implications(targets: Array, least_support: int, least_confidence: float) -> list[Implication]:
    """Pairs of labels where the first nearly implies the second; the clearest pairs come first.

    Samples for which either label is unknown are ignored. A second label that most samples have anyway proves nothing.
    So a pair must have clearly less than half of the exceptions that chance would give.
    """
    rules = []
    both, known = together(targets), targets >= 0
    for first in range(targets.shape[1]):
        for second in range(targets.shape[1]):
            if first == second or both[first, second] < least_confidence * least_support:
                continue
            having = (targets[:, first] == 1) & known[:, second]
            support = int(having.sum())
            exceptions = np.flatnonzero(having & (targets[:, second] == 0))
            if support < least_support or len(exceptions) > (1 - least_confidence) * support:
                continue
            by_chance = support * (targets[known[:, second], second] == 0).mean()
            if 2 * len(exceptions) + 3 <= by_chance:
                rules.append(Implication(first, second, support, exceptions))
    return sorted(rules, key=lambda item: (-item.confidence, -item.support))


def label_sets(targets: Array) -> tuple[int, int]:
    """How many different sets of labels occur, and how many of them occur only once."""
    counts = np.unique(np.packbits(targets == 1, axis=1), axis=0, return_counts=True)[1]
    return len(counts), int((counts == 1).sum())
