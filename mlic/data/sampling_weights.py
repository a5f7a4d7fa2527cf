"""Sampling weights: how often an epoch shows each training image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rates(
    targets: Array, labels: Sequence[str], repeat_below: float, thin: float, common: Sequence[str]
) -> Array | None:
    """How often an epoch shows each sample (N,), on average, from its targets int8 (N, L); None if each once.

    `repeat_below` t repeats the samples with a rare label. The factor is the largest sqrt(t / share) over the sample's
    labels with a share below t (repeat factor sampling of Gupta et al., LVIS, CVPR 2019). `thin` is the probability
    with which a sample is left out if all its labels are in `common` (reference system E).
    """
    if not repeat_below and not thin:
        return None
    positive = targets == 1
    weights = np.ones(len(targets))
    if repeat_below:
        share = positive.sum(axis=0) / np.maximum(1, (targets >= 0).sum(axis=0))
        factor = np.where(share > 0, np.sqrt(repeat_below / np.maximum(share, 1e-12)), 1.0).clip(min=1.0)
        weights = np.where(positive, factor, 1.0).max(axis=1, initial=1.0)
    if thin:
        rare = [i for i, label in enumerate(labels) if label not in common]
        weights = np.where(positive[:, rare].any(axis=1), weights, weights * (1 - thin))
    return weights
