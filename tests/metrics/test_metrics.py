from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from mlic.metrics import metrics, ranking

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
    functions = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    expected = (
        {
            f"{name}_{average}": function(targets, decisions, average=average, zero_division=0)
            for name, function in functions.items()
            for average in ("micro", "macro", "weighted", "samples")
        }
        | {
            f"f{beta:g}_{average}": sk.fbeta_score(targets, decisions, beta=beta, average=average, zero_division=0)
            for beta in metrics.BETAS
            for average in ("micro", "macro")
        }
        | {
            f"jaccard_{average}": sk.jaccard_score(targets, decisions, average=average, zero_division=0)
            for average in ("samples", "micro", "macro")
        }
        | {
            "subset_accuracy": sk.accuracy_score(targets, decisions),
            "hamming_accuracy": 1 - sk.hamming_loss(targets, decisions),
        }
    )
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
def test_score_metrics_are_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, _, scores = case
    got = metrics.score_metrics(scores, targets)
    expected = {
        "lrap": sk.label_ranking_average_precision_score(targets, scores),
        "coverage": sk.coverage_error(targets, scores),
        "ranking_loss": sk.label_ranking_loss(targets, scores),
    }
    both = [i for i in range(targets.shape[1]) if 0 < targets[:, i].sum() < len(targets)]
    if both:
        expected["roc_auc"] = np.mean([sk.roc_auc_score(targets[:, i], scores[:, i]) for i in both])
    if 0 < targets.sum() < targets.size:
        expected["roc_auc_micro"] = sk.roc_auc_score(targets, scores, average="micro")
        expected["map_micro"] = sk.average_precision_score(targets, scores, average="micro")
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name
    assert set(got) <= set(metrics.SCORE_METRICS)


@given(cases())
def test_matrices_are_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, decisions, _ = case
    counts = metrics.Counts(targets.shape[1]).add(decisions, targets)
    assert (counts.matrices() == sk.multilabel_confusion_matrix(targets, decisions)).all()


@given(cases(), st.integers(0, 2**31))
def test_counts_of_parts_merge_to_those_of_the_whole(case: tuple[Array, Array, Array], seed: int) -> None:
    targets, decisions, _ = case
    part = np.random.default_rng(seed).integers(0, 3, len(targets))
    merged = metrics.Counts(targets.shape[1])
    for k in (2, 0, 1):
        merged.merge(metrics.Counts(targets.shape[1]).add(decisions[part == k], targets[part == k]))
    whole = metrics.Counts(targets.shape[1]).add(decisions, targets)
    assert (merged.matrices() == whole.matrices()).all()
    assert merged.values() == pytest.approx(whole.values(), abs=1e-12)


def test_many_samples_are_counted_in_parts() -> None:
    rng = np.random.default_rng(0)
    targets, decisions = (rng.random((150_000, 3)) < 0.2).astype(np.int8), rng.random((150_000, 3)) < 0.3
    whole = metrics.Counts(3).add(decisions, targets)
    assert (metrics.count(decisions, targets).matrices() == whole.matrices()).all()
    assert metrics.decision_metrics(decisions, targets) == pytest.approx(whole.values(), abs=1e-12)


@given(cases())
def test_label_metrics_are_scikit_learns(case: tuple[Array, Array, Array]) -> None:
    targets, decisions, scores = case
    p, r, f, s = sk.precision_recall_fscore_support(targets, decisions, zero_division=0)
    rows = metrics.label_table(
        [str(i) for i in range(targets.shape[1])], decisions, targets, ranking.areas(scores, targets)
    )
    accuracy = metrics.label_metrics(decisions, targets)["accuracy"]
    assert accuracy == pytest.approx((decisions == targets).mean(axis=0))
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
