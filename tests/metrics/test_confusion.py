from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlic.metrics import confusion
from mlic.metrics.bootstrap import intervals
from mlic.metrics.metrics import decision_metrics

Array = np.ndarray[Any, Any]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(st.tuples(st.integers(1, 15), st.integers(1, 4)))
    decisions = draw(hnp.arrays(bool, shape))
    return decisions, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 1, -1])))


@given(cases())
def test_counts_by_hand(case: tuple[Array, Array]) -> None:
    decisions, targets = case
    num_samples, num_labels = targets.shape
    swapped = confusion.swapped(decisions, targets)
    for i in range(num_labels):
        for j in range(num_labels):
            both = [
                targets[n, i] == 1 and not decisions[n, i] and targets[n, j] == 0 and decisions[n, j]
                for n in range(num_samples)
            ]
            assert swapped[i, j] == sum(both)
    grid = confusion.cardinality(decisions, targets, most=2)
    wanted = np.zeros((3, 3), int)
    for n in range(num_samples):
        known = targets[n] >= 0
        wanted[min(2, (targets[n] == 1).sum()), min(2, decisions[n][known].sum())] += 1
    assert grid.tolist() == wanted[: len(grid), : len(grid)].tolist()
    assert grid.sum() == num_samples


def samples(seed: int, num_samples: int = 400) -> tuple[Array, Array, Array]:
    """Targets, and the decisions of a good and of a poor model, whose errors are partly the same."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_samples, 5)) < 0.3).astype(np.int8)
    hard = rng.random(targets.shape) < 0.15
    good = (targets == 1) ^ (hard | (rng.random(targets.shape) < 0.02))
    return targets, good, (targets == 1) ^ (hard | (rng.random(targets.shape) < 0.07))


def test_slices_agree_with_the_metrics() -> None:
    targets, good, _ = samples(1)
    group = np.arange(400) % 3 - 1
    found = confusion.slices(["even", "odd", "none"], group, good, targets, 2000, seed=1)
    assert [(item.name, item.samples) for item in found] == [("even", 133), ("odd", 133)]
    for number, item in enumerate(found):
        rows = group == number
        assert item.f1_micro == pytest.approx(decision_metrics(good[rows], targets[rows])["f1_micro"])
        low, high = intervals(good[rows], targets[rows], None, 2000, 1)["f1_micro"]
        assert (item.low, item.high) == pytest.approx((low, high), abs=0.01)
