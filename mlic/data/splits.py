"""Which sample goes to which split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def random_split(num_samples: int, shares: Mapping[str, float], seed: int) -> list[np.ndarray[Any, Any]]:
    """Deal sample numbers out to splits at random.

    Sizes are exact: each share of `num_samples` rounded down, and what is left given to the largest remainders, the
    earlier split first. Returns one sorted int64 array of sample numbers a split, in the order of `shares`.
    """
    exact = np.array([share * num_samples for share in shares.values()])
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(exact - sizes), kind="stable")
    sizes[by_remainder[: num_samples - sizes.sum()]] += 1
    order = np.random.default_rng(seed).permutation(num_samples)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
