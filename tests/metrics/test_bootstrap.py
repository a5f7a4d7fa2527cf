from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic.metrics import bootstrap, metrics
from tests.metrics.test_metrics import cases

Array = np.ndarray[Any, Any]


def sample(count: int, seed: int, labels: int = 3) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, labels)) < np.linspace(0.1, 0.5, labels)).astype(np.int8)
    scores = (targets * 0.2 + 0.8 * rng.random((count, labels))).astype(np.float32)
    return targets, scores > 0.6, scores


def test_intervals_cover_the_truth() -> None:
    """Of 60 samples from one distribution, about 57 intervals hold the value of a very large one."""
    targets, decisions, scores = sample(200_000, 1)
    truth = metrics.decision_metrics(decisions, targets) | metrics.score_metrics(scores, targets)
    inside = dict.fromkeys(("f1_micro", "f1_macro", "subset_accuracy", "map", "roc_auc", "lrap"), 0)
    for seed in range(60):
        targets, decisions, scores = sample(150, 100 + seed)
        limits = bootstrap.intervals(decisions, targets, scores, 200, seed)
        for name in inside:
            inside[name] += limits[name][0] <= truth[name] <= limits[name][1]
    assert all(52 <= count <= 60 for count in inside.values()), inside


@settings(max_examples=20)
@given(cases(), st.integers(0, 5))
def test_intervals_are_seeded_and_hold_map(case: tuple[Array, Array, Array], seed: int) -> None:
    targets, decisions, scores = case
    first = bootstrap.intervals(decisions, targets, scores, 100, seed)
    assert first == bootstrap.intervals(decisions, targets, scores, 100, seed)
    assert (
        {*metrics.DECISION_METRICS, "map", "lrap"} <= set(first) <= {*metrics.DECISION_METRICS, *metrics.SCORE_METRICS}
    )
    assert all(low <= high for low, high in first.values())


def test_blocks_of_images_have_the_intervals_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, decisions, scores = sample(6000, 4)
    exact = bootstrap.intervals(decisions, targets, scores, 2000, 0)
    monkeypatch.setattr(bootstrap, "BLOCKS", 1500)
    monkeypatch.setattr(bootstrap, "_SCORE_BLOCKS", 6000)
    by_image = bootstrap.intervals(decisions, targets, scores, 2000, 0)
    assert by_image.keys() == exact.keys()
    for name, (low, high) in by_image.items():
        width = exact[name][1] - exact[name][0]
        assert high - low == pytest.approx(width, rel=0.15), name
        assert low == pytest.approx(exact[name][0], abs=0.15 * width), name


def test_a_run_does_not_differ_from_itself_and_pairing_is_narrower() -> None:
    targets, decisions, scores = sample(800, 2)
    drawn = bootstrap.draws(decisions, targets, scores, 400, 0)
    assert set(bootstrap.differences(drawn, drawn).values()) == {(0.0, 0.0)}
    better = decisions.copy()
    better[::20] = targets[::20] == 1
    paired = bootstrap.differences(bootstrap.draws(better, targets, scores, 400, 0), drawn)["f1_micro"]
    alone = bootstrap.intervals(decisions, targets, scores, 400, 0)["f1_micro"]
    assert 0 < paired[0] < paired[1]
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 2
