"""Sampling weights: how often an epoch shows each training image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rates(targets: Array, labels: Sequence[str], repeat_below: float, thin: float, common: Sequence[str]) -> Array:
    """How often an epoch shows each sample (N,), on average, by its targets int8 (N, L).

    `repeat_below` t repeats the samples with a rare label: by the largest of sqrt(t / share) over their labels with a
    share below t (repeat factor sampling of Gupta et al., LVIS, CVPR 2019). `thin` leaves samples whose labels are all
    in `common` out with this probability (reference system E).
    """
    given = targets == 1
    found = np.ones(len(targets))
    if repeat_below:
        share = given.sum(axis=0) / np.maximum(1, (targets >= 0).sum(axis=0))
        factor = np.where(share > 0, np.sqrt(repeat_below / np.maximum(share, 1e-12)), 1.0).clip(min=1.0)
        found = np.where(given, factor, 1.0).max(axis=1, initial=1.0)
    if thin:
        rare = [i for i, label in enumerate(labels) if label not in common]
        found = np.where(given[:, rare].any(axis=1), found, found * (1 - thin))
    return found


def epoch_order(rates: Array, seed: int, epoch: int) -> Array:
    """The samples of an epoch in their order, int64; every epoch has the same number of them.

    A sample with rate 1.4 is there once or twice, with 0.5 once or not at all. They are drawn systematically (equal
    steps along the sum of the rates, in random order), so that only the choice varies and not the count. Where all
    rates are 1 this is a permutation.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(rates))
    if (rates == 1).all():
        return order
    count = max(1, round(float(rates.sum())))
    ends = np.cumsum(rates[order])
    ends *= count / ends[-1]
    steps = np.floor(ends + rng.random() * (1 - 1e-9))
    steps[-1] = count  # the sum is rounded; this one is known
    times = np.diff(steps, prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(order, times))
