from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import precision_recall_fscore_support

from mlic.metrics import curves

Array = np.ndarray[Any, Any]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array]:
    size = draw(st.integers(1, 60))
    scores = draw(hnp.arrays(np.float32, size, elements=st.one_of(st.floats(0, 1, width=32), st.just(0.5))))
    targets = draw(hnp.arrays(np.int8, size, elements=st.sampled_from([0, 0, 1, -1])))
    return scores, targets


@given(cases(), st.sampled_from([9, 20, 200]))
def test_every_point_is_what_its_threshold_gives(case: tuple[Array, Array], most: int) -> None:
    scores, targets = case
    found = curves.curve(scores, targets, most)
    known = targets >= 0
    assert len(found.thresholds) <= most
    assert (np.diff(found.thresholds) < 0).all()
    for i, threshold in enumerate(found.thresholds):
        given_ = scores[known] >= np.float32(threshold)
        wanted = precision_recall_fscore_support(targets[known] == 1, given_, average="binary", zero_division=0)[:3]
        assert (found.precision[i], found.recall[i], found.f1[i]) == pytest.approx(wanted)
    best = max((f1(scores[known] >= cut, targets[known] == 1) for cut in scores[known]), default=0)
    assert max(found.f1, default=0) == pytest.approx(best)


def f1(given_: Array, positive: Array) -> float:
    return 2 * (given_ & positive).sum() / max(1, given_.sum() + positive.sum())


def test_few_points_of_many_samples() -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random(50_000) < 0.001).astype(np.int8)
    scores = rng.random(50_000).astype(np.float32)
    found = curves.curve(scores, targets)
    assert 100 < len(found.thresholds) <= 200
    assert found.recall[-1] == 1
    assert np.diff(found.recall).max() < 0.1  # no step of a rare label is left out


def test_the_best_of_many_thresholds_is_among_few() -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random(3000) < 0.3).astype(np.int8)
    scores = (0.4 * targets + 0.6 * rng.random(3000)).astype(np.float32)
    found = curves.curve(scores, targets, most=12)
    assert len(found.thresholds) <= 12
    assert found.f1.max() == pytest.approx(max(f1(scores >= cut, targets == 1) for cut in scores))


@given(cases())
def test_reliability_by_hand(case: tuple[Array, Array]) -> None:
    scores, targets = case
    found = curves.reliability(scores, targets, bins=4)
    known = targets >= 0
    values, positive = scores[known].astype(float), targets[known] == 1
    error = 0.0
    for i in range(4):
        inside = (values >= i / 4) & ((values < (i + 1) / 4) | (i == 3))
        assert found.counts[i] == inside.sum()
        if inside.any():
            assert found.scores[i] == pytest.approx(values[inside].mean())
            assert found.shares[i] == pytest.approx(positive[inside].mean())
            error += inside.sum() * abs(values[inside].mean() - positive[inside].mean())
    assert found.error == pytest.approx(error / max(1, len(values)))
