from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from mlic.score import metrics

Array = np.ndarray[Any, Any]
shapes = st.tuples(st.integers(1, 25), st.integers(2, 5))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Targets, decisions and scores with ties; empty labels and all-negative rows are frequent."""
    shape = draw(shapes)
    targets = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 0, 1])))
    decisions = draw(hnp.arrays(bool, shape))
    scores = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    return targets, decisions, scores


@given(cases())
def test_decision_metrics_are_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, decisions, _ = case
    got = metrics.decision_metrics(decisions, targets)
    expected = {
        f"{name}_{average}": function(targets, decisions, average=average, zero_division=0)
        for name, function in {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}.items()
        for average in ("micro", "macro")
    } | {
        "subset_accuracy": sk.accuracy_score(targets, decisions),
        "hamming_accuracy": 1 - sk.hamming_loss(targets, decisions),
        "jaccard_samples": sk.jaccard_score(targets, decisions, average="samples", zero_division=0),
    }
    assert set(got) == set(expected) == set(metrics.DECISION_METRICS)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name


@given(cases())
def test_average_precision_is_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, _, scores = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.average_precision_score(targets, scores, average=None)
    assert metrics.average_precision(scores, targets) == pytest.approx(np.nan_to_num(expected), abs=1e-12)


@given(cases())
def test_label_metrics_are_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, decisions, scores = case
    p, r, f, s = sk.precision_recall_fscore_support(targets, decisions, zero_division=0)
    rows = metrics.label_table([str(i) for i in range(targets.shape[1])], decisions, targets, scores)
    for i, row in enumerate(rows):
        assert (row["support"], row["precision"], row["recall"], row["f1"]) == pytest.approx((s[i], p[i], r[i], f[i]))


@given(cases(), st.integers(0, 2**31))
def test_unknown_labels_count_nowhere(case: tuple[Array, Array, Array], seed: int) -> None:
    targets, decisions, scores = case
    hidden = np.random.default_rng(seed).random(targets.shape) < 0.3
    masked = np.where(hidden, -1, targets).astype(np.int8)
    got = metrics.decision_metrics(decisions, masked)
    assert got == metrics.decision_metrics(decisions ^ hidden, masked)
    known = ~hidden
    if known.any():
        expected = sk.f1_score(targets[known], decisions[known], zero_division=0)
        assert got["f1_micro"] == pytest.approx(expected)
        assert got["hamming_accuracy"] == pytest.approx((targets == decisions)[known].mean())
    for i in range(targets.shape[1]):
        if targets[known[:, i], i].any():
            expected = sk.average_precision_score(targets[known[:, i], i], scores[known[:, i], i])
            assert metrics.average_precision(scores, masked)[i] == pytest.approx(expected)


COUNTS = {
    "baby": 95, "bird": 360, "car": 319, "clouds": 1095, "dog": 448, "female": 3227, "flower": 761,
    "male": 2979, "night": 598, "people": 6403, "portrait": 3121, "river": 120, "sea": 173, "tree": 525,
}  # fmt: skip


def reference_targets() -> Array:
    """20,000 rows with the label counts of the reference data set and its 9,824 rows without a label.

    Which labels stand together does not matter to the numbers tested with it.
    """
    targets = np.zeros((20_000, len(COUNTS)), dtype=np.int8)
    start = 0
    for label, count in enumerate(COUNTS.values()):
        rows = (start + np.arange(count)) % (20_000 - 9_824)
        targets[rows, label] = 1
        start += count
    return targets


def test_trivial_baselines_of_the_reference_data() -> None:
    targets = reference_targets()
    found = metrics.baselines(targets)
    assert found["all_negative"]["hamming_accuracy"] == pytest.approx(0.92777, abs=5e-6)
    assert found["all_negative"]["subset_accuracy"] == pytest.approx(0.4912)
    assert found["all_negative"]["f1_micro"] == 0
    assert found["always_top_1"]["precision_micro"] == pytest.approx(0.320, abs=5e-4)
    assert found["always_top_1"]["recall_micro"] == pytest.approx(0.317, abs=5e-4)
    assert found["always_top_1"]["f1_micro"] == pytest.approx(0.318, abs=5e-4)
    assert found["always_top_2"]["f1_micro"] == pytest.approx(0.320, abs=5e-4)
    assert found["prevalence"]["map"] == pytest.approx(0.07223, abs=5e-6)


def test_prevalence_baseline_is_the_mean_of_random_guesses() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((3000, 4)) < [0.05, 0.2, 0.5, 0.7]).astype(np.int8)
    share = targets.mean(axis=0)
    drawn = [metrics.decision_metrics(rng.random(targets.shape) < share, targets) for _ in range(60)]
    expected = metrics.baselines(targets)["prevalence"]
    for name in ("f1_micro", "f1_macro", "precision_micro", "recall_macro", "subset_accuracy", "hamming_accuracy"):
        assert np.mean([values[name] for values in drawn]) == pytest.approx(expected[name], abs=4e-3), name


def test_intervals_cover_the_truth() -> None:
    """Of 60 samples from one distribution, about 57 intervals hold the value of a very large one."""
    rng = np.random.default_rng(1)

    def sample(n: int) -> tuple[Array, Array, Array]:
        targets = (rng.random((n, 3)) < [0.1, 0.3, 0.5]).astype(np.int8)
        scores = (targets * 0.3 + rng.random((n, 3))).astype(np.float32)
        return targets, scores > 0.7, scores

    targets, decisions, _ = sample(200_000)
    truth = metrics.decision_metrics(decisions, targets)
    inside = dict.fromkeys(("f1_micro", "f1_macro", "subset_accuracy"), 0)
    for seed in range(60):
        targets, decisions, _ = sample(150)
        limits = metrics.intervals(decisions, targets, None, 200, seed)
        for name in inside:
            inside[name] += limits[name][0] <= truth[name] <= limits[name][1]
    assert all(52 <= count <= 60 for count in inside.values()), inside


@settings(max_examples=20)
@given(cases(), st.integers(0, 5))
def test_intervals_are_seeded_and_hold_map(case: tuple[Array, Array, Array], seed: int) -> None:
    targets, decisions, scores = case
    first = metrics.intervals(decisions, targets, scores, 100, seed)
    assert first == metrics.intervals(decisions, targets, scores, 100, seed)
    assert set(first) == {*metrics.DECISION_METRICS, "map"}
    assert all(low <= high for low, high in first.values())


def test_headlines_at_or_below_a_baseline_are_warned_of() -> None:
    """The final numbers of two of the reference systems, beside what predicting nothing gives."""
    trivial = {"all_negative": {"subset_accuracy": 0.4912, "hamming_accuracy": 0.92777}}
    values = {"subset_accuracy": 0.25, "hamming_accuracy": 0.90}
    limits = {"subset_accuracy": (0.24, 0.26), "hamming_accuracy": (0.89, 0.91)}
    first, second = metrics.warnings(values, limits, trivial)
    assert first == "subset_accuracy 0.2500 is not above all negative, which gives 0.4912."
    assert "0.9278" in second
    (near,) = metrics.warnings({"subset_accuracy": 0.5}, {"subset_accuracy": (0.48, 0.52)}, trivial)
    assert "not clearly above" in near
    assert metrics.warnings({"subset_accuracy": 0.59}, {"subset_accuracy": (0.57, 0.61)}, trivial) == []
