from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mlic.doctor import alignment

Array = np.ndarray[Any, Any]


def sample(n: int, seed: int, strength: float) -> tuple[Array, Array]:
    """Features and labels; the labels follow the features with the given strength, and one of them is rare."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 40)).astype(np.float32)
    weights = rng.normal(size=(40, 5)) / np.sqrt(40)
    logits = strength * features @ weights + np.array([-4.5, -2, -1, 0, -1.5])
    return features, (rng.random((n, 5)) < 1 / (1 + np.exp(-logits))).astype(np.int8)


@pytest.mark.parametrize("seed", range(20))
def test_right_labels_pass_and_shuffled_ones_are_caught(seed: int) -> None:
    features, targets = sample(2000, seed, 1.5)
    assert alignment.probe(features, targets, seed).verdict == "aligned"
    mixed = targets[np.random.default_rng(seed).permutation(2000)]
    assert alignment.probe(features, mixed, seed).verdict == "not aligned"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [30, 100, 300])
def test_right_labels_of_small_sets_are_never_accused(seed: int, n: int) -> None:
    features, targets = sample(n, seed, 1.0)
    assert alignment.probe(features, targets, seed).verdict != "not aligned"


@pytest.mark.parametrize("seed", range(5))
def test_weakly_predictable_labels_are_not_accused(seed: int) -> None:
    """Labels that crude features hardly predict, as of X-rays."""
    features, targets = sample(3000, seed, 0.35)
    assert alignment.probe(features, targets, seed).verdict != "not aligned"


def test_nothing_to_tell_by() -> None:
    features, targets = sample(500, 0, 1.0)
    assert alignment.probe(features, np.zeros_like(targets), 0).verdict == "unsure"
    assert alignment.probe(features[:5], targets[:5], 0).verdict == "unsure"


def test_unknown_labels_count_nowhere() -> None:
    features, targets = sample(2000, 3, 1.5)
    hidden = np.where(np.random.default_rng(0).random(targets.shape) < 0.3, -1, targets).astype(np.int8)
    assert alignment.probe(features, hidden, 0).verdict == "aligned"


def test_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random(200), rng.integers(-1, 2, 200)
    known = targets >= 0
    assert alignment._auc(scores, targets) == pytest.approx(roc_auc_score(targets[known], scores[known]))


@pytest.mark.parametrize("seed", range(20))
def test_right_labels_have_no_lost_stretch(seed: int) -> None:
    for n, strength in ((3000, 1.5), (1000, 3.0), (3000, 0.6), (300, 1.0)):
        features, targets = sample(n, seed, strength)
        assert alignment.stretches(features, targets, seed) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_shifted_stretch_is_found_where_it_is(seed: int) -> None:
    features, targets = sample(4000, seed, 3.0)
    targets[1000:1600] = np.roll(targets[1000:1600], 1, axis=0)
    (found,) = alignment.stretches(features, targets, seed)
    assert abs(found.start - 1000) < 150
    assert abs(found.end - 1600) < 150


def test_samples_sorted_by_label_are_not_accused() -> None:
    """A folder a label: within a window nearly all samples have the same labels, and shuffling them changes nothing."""
    features, targets = sample(4000, 1, 3.0)
    order = np.lexsort(targets.T)
    assert alignment.stretches(features[order], targets[order], 0) == []


def test_doubtful_samples_are_those_with_the_labels_of_others() -> None:
    features, targets = sample(2000, 2, 4.0)
    wrong = np.arange(0, 2000, 100)
    targets[wrong] = targets[(wrong + 1) % 2000]
    changed = [i for i in wrong if (targets[i] != sample(2000, 2, 4.0)[1][i]).any()]
    worst = alignment.doubtful(features, targets, 0, 100)
    assert len(set(changed) & set(worst.tolist())) > len(changed) * 0.3  # by chance 5%
