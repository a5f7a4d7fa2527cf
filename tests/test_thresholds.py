from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from mlic.score import thresholds
from mlic.score.metrics import decision_metrics

Array = np.ndarray[Any, Any]
unit = st.floats(0, 1, width=32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 4)))
    scores = draw(hnp.arrays(np.float32, shape, elements=st.one_of(unit, st.sampled_from([0.0, 0.25, 0.5, 1.0]))))
    targets = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 1, -1])))
    return scores, targets


def brute_force(scores: Array, positive: Array) -> float:
    """The best F1 over every cut-off that decides differently."""
    cuts = np.append(np.unique(scores), np.inf)
    return max(f1_score(positive, scores >= cut, zero_division=0) for cut in cuts)


@given(cases())
def test_global_is_the_best_micro_f1_of_all_cuts(case: tuple[Array, Array]) -> None:
    scores, targets = case
    values = thresholds.fit("global", scores, targets)
    assert len(set(values.tolist())) == 1
    known = targets >= 0
    if (targets == 1).any():
        best = brute_force(scores[known], targets[known] == 1)
        got = decision_metrics(thresholds.decide(scores, values), targets)["f1_micro"]
        assert got == pytest.approx(best)


@given(cases())
def test_per_label_is_the_best_f1_of_each_label(case: tuple[Array, Array]) -> None:
    scores, targets = case
    values = thresholds.fit("per-label", scores, targets)
    together = thresholds.fit("global", scores, targets)
    decisions = thresholds.decide(scores, values)
    for i in range(targets.shape[1]):
        known = targets[:, i] >= 0
        positive = targets[known, i] == 1
        if positive.any():
            got = f1_score(positive, decisions[known, i], zero_division=0)
            assert got == pytest.approx(brute_force(scores[known, i], positive))
        else:
            assert values[i] == together[i]


def test_fixed() -> None:
    assert thresholds.fit("fixed", np.zeros((3, 2), np.float32), np.zeros((3, 2), np.int8)).tolist() == [0.5, 0.5]


def test_a_score_equal_to_its_threshold_is_given() -> None:
    assert thresholds.decide(np.float32([[0.1, 0.3]]), np.float32([0.1, 0.30000001192])).tolist() == [[True, True]]


def test_the_cut_lies_between_neighbouring_scores() -> None:
    scores = np.float32([[0.2], [0.4], [0.8], [0.9]])
    targets = np.int8([[0], [0], [1], [1]])
    assert thresholds.fit("global", scores, targets)[0] == pytest.approx(0.6)


def test_cross_fitting_does_not_flatter() -> None:
    """On scores that know nothing, fitted thresholds look good on their own samples and cross-fitted ones do not."""
    rng = np.random.default_rng(0)

    def sample() -> tuple[Array, Array]:
        return rng.random((120, 6), dtype=np.float32), (rng.random((120, 6)) < 0.1).astype(np.int8)

    def micro(decisions: Array, targets: Array) -> float:
        return decision_metrics(decisions, targets)["f1_micro"]

    own, crossed, fresh = [], [], []
    for seed in range(60):
        scores, targets = sample()
        values = thresholds.fit("per-label", scores, targets)
        own.append(micro(thresholds.decide(scores, values), targets))
        crossed.append(micro(thresholds.cross_fit("per-label", scores, targets, seed), targets))
        for _ in range(10):
            new, new_targets = sample()
            fresh.append(micro(thresholds.decide(new, values), new_targets))
    assert np.mean(own) > np.mean(fresh) + 0.04
    assert abs(np.mean(crossed) - np.mean(fresh)) < 0.01


@given(cases(), st.integers(0, 3))
def test_cross_fitting_is_seeded_and_decides_every_sample(case: tuple[Array, Array], seed: int) -> None:
    scores, targets = case
    first = thresholds.cross_fit("per-label", scores, targets, seed)
    assert first.shape == scores.shape
    assert (first == thresholds.cross_fit("per-label", scores, targets, seed)).all()
