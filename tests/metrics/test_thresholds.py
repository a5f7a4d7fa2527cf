from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, fbeta_score

from mlic.config.types import parse_policy
from mlic.metrics import thresholds
from mlic.metrics.metrics import decision_metrics

Array = np.ndarray[Any, Any]
unit = st.floats(0, 1, width=32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 4)))
    scores = draw(hnp.arrays(np.float32, shape, elements=st.one_of(unit, st.sampled_from([0.0, 0.25, 0.5, 1.0]))))
    targets = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 1, -1])))
    return scores, targets


def fit(policy: str, scores: Array, targets: Array) -> Array:
    return thresholds.thresholds(policy, scores, targets, 0)[0]


def all_cuts(scores: Array) -> Array:
    return np.append(np.unique(scores), np.float32(thresholds.NEVER))


def brute_force(scores: Array, positive: Array) -> float:
    """The best F1 over every cut-off that decides differently."""
    cuts = np.append(np.unique(scores), np.inf)
    return max(f1_score(positive, scores >= cut, zero_division=0) for cut in cuts)


@given(cases())
def test_global_is_the_best_micro_f1_of_all_cuts(case: tuple[Array, Array]) -> None:
    scores, targets = case
    values = fit("global", scores, targets)
    assert len(set(values.tolist())) == 1
    known = targets >= 0
    if (targets == 1).any():
        best = brute_force(scores[known], targets[known] == 1)
        got = decision_metrics(thresholds.decide(scores, values), targets)["f1_micro"]
        assert got == pytest.approx(best)


@given(cases())
def test_per_label_is_the_best_f1_of_each_label(case: tuple[Array, Array]) -> None:
    scores, targets = case
    values = fit("f-beta=1", scores, targets)
    together = fit("global", scores, targets)
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
    scores, targets = np.float32([[0.3, 0.6]] * 3), np.zeros((3, 2), np.int8)
    assert fit("fixed", scores, targets).tolist() == [0.5, 0.5]
    assert thresholds.fit("fixed=0.25", scores, targets, 0).decisions.tolist() == [[True, True]] * 3


def test_a_score_equal_to_its_threshold_is_given() -> None:
    assert thresholds.decide(np.float32([[0.1, 0.3]]), np.float32([0.1, 0.30000001192])).tolist() == [[True, True]]


def test_the_cut_lies_between_neighbouring_scores() -> None:
    scores = np.float32([[0.2], [0.4], [0.8], [0.9]])
    targets = np.int8([[0], [0], [1], [1]])
    assert fit("global", scores, targets)[0] == pytest.approx(0.6)


@pytest.mark.parametrize(("policy", "flattery"), [("f-beta=1", 0.04), ("per-label", 0.02)])
def test_cross_fitting_does_not_flatter(policy: str, flattery: float) -> None:
    """On scores that know nothing, fitted thresholds look good on their own samples and cross-fitted ones do not."""
    rng = np.random.default_rng(0)

    def sample() -> tuple[Array, Array]:
        return rng.random((120, 6), dtype=np.float32), (rng.random((120, 6)) < 0.1).astype(np.int8)

    def micro(decisions: Array, targets: Array) -> float:
        return decision_metrics(decisions, targets)["f1_micro"]

    own, crossed, fresh = [], [], []
    for seed in range(60):
        scores, targets = sample()
        found = thresholds.fit(policy, scores, targets, seed)
        values = found.thresholds
        own.append(micro(thresholds.decide(scores, values), targets))
        crossed.append(micro(found.decisions, targets))
        for _ in range(10):
            new, new_targets = sample()
            fresh.append(micro(thresholds.decide(new, values), new_targets))
    assert np.mean(own) > np.mean(fresh) + flattery
    assert abs(np.mean(crossed) - np.mean(fresh)) < 0.01


@given(cases(), st.integers(0, 3))
def test_cross_fitting_is_seeded_and_decides_every_sample(case: tuple[Array, Array], seed: int) -> None:
    scores, targets = case
    first = thresholds.fit("per-label", scores, targets, seed).decisions
    assert first.shape == scores.shape
    assert (first == thresholds.fit("per-label", scores, targets, seed).decisions).all()


@given(cases())
def test_joint_is_the_best_micro_f1_of_all_combinations(case: tuple[Array, Array]) -> None:
    scores, targets = case[0][:6, :3], case[1][:6, :3]
    if not (targets == 1).any():
        return
    best = max(
        decision_metrics(thresholds.decide(scores, np.array(cut)), targets)["f1_micro"]
        for cut in itertools.product(*(all_cuts(column) for column in scores.T))
    )
    got = decision_metrics(thresholds.decide(scores, fit("joint", scores, targets)), targets)["f1_micro"]
    assert got == pytest.approx(best)


@given(cases(), st.sampled_from([0.2, 0.5]))
def test_one_at_a_time_is_the_best_micro_f1_with_the_others_at_the_start(
    case: tuple[Array, Array], start: float
) -> None:
    scores, targets = case
    values = fit(f"one-at-a-time={start}", scores, targets)
    for i in range(targets.shape[1]):
        if not (targets[:, i] == 1).any():
            assert values[i] == np.float32(start)
            continue

        def micro(cut: float, label: int = i) -> float:
            cuts = np.full(targets.shape[1], start, np.float32)
            cuts[label] = cut
            return decision_metrics(thresholds.decide(scores, cuts), targets)["f1_micro"]

        assert micro(values[i]) == pytest.approx(max(micro(cut) for cut in all_cuts(scores[:, i])))


@given(cases(), st.sampled_from(["f-beta=2", "f-beta=0.5", "precision=0.6", "recall=0.7", "cost=3"]))
def test_policies_of_single_labels_are_the_best_of_all_cuts(case: tuple[Array, Array], policy: str) -> None:
    scores, targets = case
    values = fit(policy, scores, targets)
    name, _, raw = policy.partition("=")
    for i in range(targets.shape[1]):
        known = targets[:, i] >= 0
        own, positive = scores[known, i], targets[known, i] == 1
        if not positive.any():
            continue

        def goal(cut: float, own: Array = own, positive: Array = positive) -> float:
            given_ = own >= np.float32(cut)
            tp, count, wanted = int((given_ & positive).sum()), int(given_.sum()), int(positive.sum())
            precision, recall = tp / count if count else 0.0, tp / wanted
            if name == "f-beta":
                return float(fbeta_score(positive, given_, beta=float(raw), zero_division=0))
            if name == "precision":
                return recall if precision >= float(raw) or not count else -1.0
            if name == "recall":
                return precision if recall >= float(raw) else -1.0
            return -(count - tp) - float(raw) * (wanted - tp)

        assert goal(values[i]) == pytest.approx(max(goal(cut) for cut in all_cuts(own))), (policy, i)


@given(cases())
def test_cardinality_gives_as_many_labels_as_there_are(case: tuple[Array, Array]) -> None:
    scores, targets = case
    known = targets >= 0
    wanted = int((targets == 1).sum())
    values = fit("cardinality", scores, targets)

    def off(cut: float) -> int:
        return abs(int((scores[known] >= np.float32(cut)).sum()) - wanted)

    assert off(values[0]) == min((off(cut) for cut in all_cuts(scores[known])), default=0)


def test_top_k_gives_everybody_k_labels() -> None:
    scores = np.float32([[0.1, 0.9, 0.9, 0.2], [0.5, 0.5, 0.5, 0.5]])
    found = thresholds.fit("top-k=2", scores, np.zeros(scores.shape, np.int8), 0)
    assert found.decisions.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_rare_labels_are_drawn_to_the_global_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random((800, 8)) < 0.02).astype(np.int8)
    scores = (0.3 * targets + 0.7 * rng.random(targets.shape)).astype(np.float32)
    alone, together = fit("f-beta=1", scores, targets), fit("global", scores, targets)

    def drawn(strength: float) -> Array:
        monkeypatch.setattr(thresholds, "FAMILY", (thresholds.Choice(1, strength),))
        return fit("per-label", scores, targets)

    assert drawn(0) == pytest.approx(alone)
    assert ((drawn(50) - together) * (alone - together) >= 0).all()
    assert np.abs(drawn(50) - together).max() < np.abs(alone - together).max() / 2
    assert drawn(1e9) == pytest.approx(together, abs=1e-5)


def test_per_label_is_better_for_rare_labels_and_not_worse_for_all() -> None:
    """Labels that are easy and hard, frequent and rare: fitted to one half, measured on the other."""
    share, ease = np.array([0.4, 0.3, 0.2, 0.05, 0.03, 0.01]), np.array([1, 2, 1.5, 3, 2, 2.5])
    gains: list[tuple[float, float]] = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = (rng.random((3000, 6)) < share).astype(np.int8)
        raw = ease * targets + rng.normal(size=targets.shape) + np.log(share / (1 - share))
        scores = (1 / (1 + np.exp(-raw))).astype(np.float32)
        values = []
        for policy in ("global", "per-label"):
            found = thresholds.thresholds(policy, scores[:1500], targets[:1500], seed)[0]
            measured = decision_metrics(thresholds.decide(scores[1500:], found), targets[1500:])
            values.append(np.array([measured["f1_micro"], measured["f1_macro"]]))
        gains.append(tuple(values[1] - values[0]))
    micro, macro = np.array(gains).T
    assert micro.mean() > -2 * micro.std() / np.sqrt(len(gains))
    assert macro.min() >= 0
    assert macro.mean() > 0.05


def test_few_positives_are_warned_of() -> None:
    targets = np.zeros((50, 2), np.int8)
    targets[:20, 0] = targets[:3, 1] = 1
    (text,) = thresholds.warnings(("people", "river"), targets, "per-label")
    assert text == "thresholds of these labels rest on fewer than 10 positives: river (3)."
    assert thresholds.warnings(("people", "river"), targets, "global") == []


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("perlabel", "unknown threshold policy 'perlabel'"),
        ("recall", "needs a value, such as recall=0.9"),
        ("recall=2", "takes a value from 0.01 to 1, not '2'"),
        ("global=3", "takes no value"),
        ("top-k=1.5", "takes a value from 1"),
        ("cost=x", "not 'x'"),
    ],
)
def test_policies_that_there_are_not(policy: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_policy(policy)
