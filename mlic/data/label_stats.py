"""Statistics of labels: frequency, number per sample, co-occurrence and implications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROWS = 65_536


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
    return _count_pairs(targets == 1, targets == 1)


def _count_pairs(first: Array, second: Array) -> Array:
    """How many samples are marked in both columns, int64 (L, L), of bool (N, L) and (N, L)."""
    counts = np.zeros((first.shape[1], second.shape[1]), np.int64)
    for start in range(0, len(first), _ROWS):  # a product of floats is fast, and exact for as many rows as these
        rows = slice(start, start + _ROWS)
        counts += np.rint(first[rows].astype(np.float32).T @ second[rows].astype(np.float32)).astype(np.int64)
    return counts


def cardinality(targets: Array) -> Array:
    """How many samples have 0, 1, 2 ... labels."""
    return np.bincount((targets == 1).sum(axis=1))


def implications(targets: Array, least_support: int, least_confidence: float) -> list[Implication]:
    """Pairs of labels where the first nearly implies the second; the clearest pairs come first.

    Samples for which either label is unknown are ignored. A second label that most samples have anyway proves nothing.
    So a pair must have clearly less than half of the exceptions that chance would give.
    """
    given, absent, known = targets == 1, targets == 0, targets >= 0
    supports, exceptions = _count_pairs(given, known), _count_pairs(given, absent)
    by_chance = supports * (absent.sum(axis=0) / np.maximum(1, known.sum(axis=0)))
    clear = (supports >= least_support) & (exceptions <= (1 - least_confidence) * supports)
    clear &= 2 * exceptions + 3 <= by_chance
    np.fill_diagonal(clear, False)
    rules = [
        Implication(first, second, int(supports[first, second]), np.flatnonzero(given[:, first] & absent[:, second]))
        for first, second in np.argwhere(clear).tolist()
    ]
    return sorted(rules, key=lambda item: (-item.confidence, -item.support))


def label_sets(targets: Array) -> tuple[int, int]:
    """How many different sets of labels occur, and how many of them occur only once."""
    counts = np.unique(np.packbits(targets == 1, axis=1), axis=0, return_counts=True)[1]
    return len(counts), int((counts == 1).sum())
