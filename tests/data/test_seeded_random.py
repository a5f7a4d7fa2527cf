"""Random numbers and permutations at any position."""

from __future__ import annotations

import numpy as np
import pytest

from mlic.data.seeded_random import permuted, uniform


@pytest.mark.parametrize("count", [1, 2, 3, 7, 255, 256, 257, 5000])
def test_every_number_once(count: int) -> None:
    moved = permuted(np.arange(count), count, 3, 1)
    assert sorted(moved.tolist()) == list(range(count))
    some = np.arange(count)[:: max(1, count // 5)]
    assert (permuted(some, count, 3, 1) == moved[some]).all()


def test_permutations_are_random() -> None:
    """Each number is at each of 8 places equally often, also behind its neighbour; chi-squared tests of both."""
    orders = np.array([permuted(np.arange(8), 8, 5, epoch) for epoch in range(4000)])
    places = np.array([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert ((places - 500) ** 2 / 500).sum() < 49 + 4 * (2 * 49) ** 0.5
    steps = np.bincount((np.diff(orders, axis=1) % 8).ravel(), minlength=8)
    assert steps[0] == 0
    assert ((steps[1:] - 4000) ** 2 / 4000).sum() < 6 + 4 * 12**0.5
    assert len({order.tobytes() for order in orders}) > 3700  # of 40,320, and 4,000 draws of them hit some twice


def test_a_large_permutation_looks_like_none() -> None:
    moved = permuted(np.arange(100_000), 10**9, 1, 0)
    assert len(np.unique(moved)) == 100_000
    assert moved.min() >= 0
    assert moved.max() < 10**9
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 0.02
    assert np.abs(np.bincount(moved // 10**8, minlength=10) - 10_000).max() < 500


def test_uniform_numbers() -> None:
    drawn = uniform(np.arange(200_000), 1, 2)
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] - 10_000).max() < 500
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn, uniform(np.arange(200_000), 1, 3))[0, 1]) < 0.01
    assert (uniform(np.array([[5, 9]]), 1, 2) == drawn[[[5, 9]]]).all()
