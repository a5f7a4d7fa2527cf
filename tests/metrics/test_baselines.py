from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlic.metrics import metrics
from mlic.metrics.baselines import baselines, best_baseline, warnings

Array = np.ndarray[Any, Any]

COUNTS = {
    "baby": 95,
    "bird": 360,
    "car": 319,
    "clouds": 1095,
    "dog": 448,
    "female": 3227,
    "flower": 761,
    "male": 2979,
    "night": 598,
    "people": 6403,
    "portrait": 3121,
    "river": 120,
    "sea": 173,
    "tree": 525,
}


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
    found = baselines(np.zeros(targets.shape, bool), targets, np.zeros(targets.shape, np.float32), 0)
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
    expected = baselines(targets == 1, targets, None, 0)["prevalence"]
    for name in ("f1_micro", "f1_macro", "precision_micro", "recall_macro", "subset_accuracy", "hamming_accuracy"):
        assert np.mean([values[name] for values in drawn]) == pytest.approx(expected[name], abs=4e-3), name


def test_headlines_at_or_below_a_baseline_are_warned_of() -> None:
    """The final numbers of two of the reference systems, beside what predicting nothing gives."""
    trivial = {"all_negative": {"subset_accuracy": 0.4912, "hamming_accuracy": 0.92777}}
    values = {"subset_accuracy": 0.25, "hamming_accuracy": 0.90}
    limits = {"subset_accuracy": (0.24, 0.26), "hamming_accuracy": (0.89, 0.91)}
    (said,) = warnings(values, limits, trivial)
    assert said == (
        "2 of 2 metrics do not beat a trivial baseline: subset_accuracy 0.2500 (all-negative 0.4912), "
        "hamming_accuracy 0.9000 (all-negative 0.9278)."
    )
    (near,) = warnings({"subset_accuracy": 0.5}, {"subset_accuracy": (0.48, 0.52)}, trivial)
    assert near.startswith(
        "1 of 1 metrics do not significantly beat a trivial baseline: subset_accuracy 0.5000, from 0.4800 "
    )
    assert warnings({"subset_accuracy": 0.59}, {"subset_accuracy": (0.57, 0.61)}, trivial) == []
    assert warnings(values, limits, trivial, ["f1_micro"]) == [], "the table does not show them"


def test_shuffled_decisions_know_nothing() -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((4000, 5)) < [0.05, 0.1, 0.2, 0.3, 0.5]).astype(np.int8)
    scores = (0.6 * targets + 0.4 * rng.random(targets.shape)).astype(np.float32)
    decisions = scores > 0.5
    found = baselines(decisions, targets, scores, 0)
    assert found["shuffled"]["map"] == pytest.approx(found["prevalence"]["map"], abs=0.01)
    assert found["shuffled"]["roc_auc"] == pytest.approx(0.5, abs=0.01)
    assert found["shuffled"]["f1_micro"] < metrics.decision_metrics(decisions, targets)["f1_micro"] - 0.3
    assert found == baselines(decisions, targets, scores, 0)


def test_the_best_baseline_of_a_loss_is_the_lowest() -> None:
    trivial = {"prevalence": {"ranking_loss": 0.2, "map": 0.1}, "shuffled": {"ranking_loss": 0.4, "map": 0.3}}
    assert best_baseline("ranking_loss", trivial) == ("prevalence", 0.2)
    assert best_baseline("map", trivial) == ("shuffled", 0.3)


def test_predictions_of_the_quality_that_two_reference_systems_reported_are_warned_of() -> None:
    """E: a Hamming accuracy of 90% with 25% of sets right; C: 59% of sets right, which does beat predicting nothing."""
    targets = reference_targets()
    rng = np.random.default_rng(1)
    wrong = rng.random(targets.shape) < 0.1
    decisions = (targets == 1) ^ wrong
    values = metrics.decision_metrics(decisions, targets)
    assert values["hamming_accuracy"] == pytest.approx(0.90, abs=0.005)
    assert values["subset_accuracy"] == pytest.approx(0.25, abs=0.03)
    limits = {name: (value - 0.01, value + 0.01) for name, value in values.items()}
    found = " ".join(warnings(values, limits, baselines(decisions, targets, None, 0)))
    assert "subset_accuracy" in found
    assert "hamming_accuracy" in found
    assert "(all-negative 0.9278)" in found
    right = rng.random(len(targets)) < 0.19
    blind = np.where(right[:, None], targets == 1, False)  # 49% need no look, 10 points more are earned
    reached = metrics.decision_metrics(blind, targets)
    assert reached["subset_accuracy"] == pytest.approx(0.59, abs=0.01)
    limits = {name: (value - 0.007, value + 0.007) for name, value in reached.items()}
    said = warnings(reached, limits, baselines(blind, targets, None, 0))
    assert not any("subset_accuracy" in line for line in said)
    assert "baseline: f1_micro" in said[0]
