"""Thresholds that promise a recall or a precision keep it as often as they say, on images that nobody has seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlic.metrics import guarantees, thresholds

TRIALS = 1000


def drawn(rng: np.random.Generator, count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores, Beta(4, 2) for positives and Beta(2, 4) for the others, and whether each sample is positive."""
    positive = rng.random(count) < share
    scores = np.where(positive, rng.beta(4, 2, count), rng.beta(2, 4, count)).astype(np.float32)
    return scores, positive


@pytest.mark.parametrize(("count", "least"), [(400, 0.9), (2000, 0.95), (60, 0.7)])
def test_the_recall_of_new_images(count: int, least: float) -> None:
    rng = np.random.default_rng(3)
    kept = 0
    for _ in range(TRIALS):
        scores, positive = drawn(rng, count, 0.3)
        cut = guarantees.recall_cut(scores[positive], least)
        kept += float(stats.beta.sf(cut, 4, 2)) >= least
    assert stats.binom.cdf(kept, TRIALS, guarantees.CONFIDENCE) > 0.001
    assert kept < TRIALS, "not by giving the label always"


@pytest.mark.parametrize(("count", "least"), [(400, 0.7), (2000, 0.8)])
def test_the_precision_of_new_images(count: int, least: float) -> None:
    rng = np.random.default_rng(4)
    kept, found = 0, 0
    for _ in range(TRIALS):
        scores, positive = drawn(rng, count, 0.3)
        cut = guarantees.precision_cut(scores, positive, least)
        if cut is None:
            kept += 1
            continue
        found += 1
        right, wrong = 0.3 * stats.beta.sf(cut, 4, 2), 0.7 * stats.beta.sf(cut, 2, 4)
        kept += right / (right + wrong) >= least
    assert stats.binom.cdf(kept, TRIALS, guarantees.CONFIDENCE) > 0.001
    assert found > 0.5 * TRIALS, "not by giving nothing"


def test_too_few_samples() -> None:
    """28 positives cannot show a recall of 0.9 with 95% confidence (0.9^28 > 0.05), 29 can."""
    scores = np.linspace(0.1, 0.9, 28, dtype=np.float32)
    assert guarantees.recall_cut(scores, 0.9) == 0
    assert guarantees.needed(0.9) == 29
    targets = np.zeros((100, 2), np.int8)
    targets[:28, 0] = targets[:29, 1] = 1
    (warning,) = thresholds.warnings(("cat", "dog"), targets, "recall>=0.9")
    assert warning.endswith("takes 29 positives: cat (28).")
    assert guarantees.recall_cut(np.append(scores, np.float32(0.95)), 0.9) == np.float32(0.1)
    assert guarantees.recall_cut(scores[:0], 0.9) == 0
    assert guarantees.precision_cut(scores[:10], np.ones(10, bool), 0.9) is None
    assert guarantees.precision_cut(scores, np.zeros(28, bool), 0.5) is None


def test_equal_scores_are_given_together() -> None:
    scores = np.repeat(np.array([0.2, 0.8], np.float32), 200)
    cut = guarantees.precision_cut(scores, scores > 0.5, 0.9)
    assert cut is not None
    assert 0.2 < cut <= 0.8
    assert guarantees.recall_cut(scores[scores > 0.5], 0.9) == np.float32(0.8)


def test_the_policies() -> None:
    rng = np.random.default_rng(5)
    columns = [drawn(rng, 3000, share) for share in (0.3, 0.1, 0.002)]
    scores, positive = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    targets = positive.astype(np.int8)
    targets[::7] = -1
    recall = thresholds.fit("recall>=0.9", scores, targets, 1)
    point = thresholds.fit("recall=0.9", scores, targets, 1)
    assert (recall.thresholds[:2] < point.thresholds[:2]).all(), "more careful than the point estimate"
    assert recall.thresholds[2] == 0, "six positives prove nothing: the label is always given"
    precision = thresholds.fit("precision>=0.8", scores, targets, 1)
    assert precision.thresholds[0] < 1 < precision.thresholds[2]
    for fitted, name in ((recall, "recall"), (precision, "precision")):
        given, known = fitted.decisions[:, 0], targets[:, 0] >= 0
        right = (given & (targets[:, 0] == 1)).sum()
        whole = (targets[:, 0] == 1).sum() if name == "recall" else (given & known).sum()
        assert right / whole > 0.75
    with pytest.raises(ValueError, match="takes a value from 0.01 to 0.999"):
        thresholds.fit("recall>=1", scores, targets, 1)
