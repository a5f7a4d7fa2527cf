from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from mlic.errors import DataError
from mlic.metrics import calibration, decision, thresholds
from mlic.metrics.calibration import Calibration, logit, sigmoid
from tests.metrics.test_thresholds import cases

Array = np.ndarray[Any, Any]


def sample(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> tuple[Array, Array]:
    """Scores (N, 3) that are off by a scale and a shift of their logits, and targets."""
    rng = np.random.default_rng(seed)
    right = rng.normal(-1, 1.5, (count, 3))
    targets = (rng.random(right.shape) < sigmoid(right)).astype(np.int8)
    return sigmoid(right * scale + shift).astype(np.float32), targets


def test_temperature_and_platt_take_back_what_was_done() -> None:
    scores, targets = sample(20_000, 0, scale=3.0)
    found = calibration.fit("temperature", scores, targets, np.ones(3))
    assert found.scale[0] == pytest.approx(1 / 3, abs=0.02)
    scores, targets = sample(20_000, 1, scale=2.0, shift=1.5)
    found = calibration.fit("platt", scores, targets, np.ones(3))
    assert found.scale == pytest.approx([0.5] * 3, abs=0.03)
    assert found.shift == pytest.approx([-0.75] * 3, abs=0.06)


def test_platt_is_logistic_regression() -> None:
    """But for Platt's goals, which are those of scikit-learn's sigmoid calibration."""
    scores, targets = sample(5000, 3, scale=2.0, shift=-1.0)
    found = calibration.fit("platt", scores, targets, np.ones(3))
    for i in range(3):
        model = LogisticRegression(C=1e9).fit(logit(scores[:, [i]]), targets[:, i])
        assert found.scale[i] == pytest.approx(model.coef_[0, 0], rel=0.01)
        assert found.shift[i] == pytest.approx(model.intercept_[0], abs=0.01)


def test_prior_takes_back_the_weight_of_positives() -> None:
    weights = np.array([9.0, 1.0, 4.0])
    scores, targets = sample(20_000, 2, shift=np.log(weights))
    found = calibration.fit("prior", scores, targets, weights)
    assert np.abs(found.apply(scores).mean(axis=0) - targets.mean(axis=0)).max() < 0.01
    assert np.abs(scores.mean(axis=0) - targets.mean(axis=0)).max() > 0.1


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibration_error_falls_on_new_samples(method: str) -> None:
    scores, targets = sample(6000, 4, scale=2.5, shift=1.0)
    found = calibration.fit(method, scores, targets, np.ones(3))
    new, new_targets = sample(6000, 5, scale=2.5, shift=1.0)
    before, after = (calibration.label_errors(s, new_targets) for s in (new, found.apply(new)))
    limit = 0.06 if method == "temperature" else 0.03  # one number cannot take back a shift
    assert (after[0] < before[0]).all()
    assert (after[1] < before[1]).all()
    assert method == "temperature" or (after[1] < limit).all()


@given(cases(), st.sampled_from(calibration.METHODS))
def test_maps_rise_and_survive_json(case: tuple[Array, Array], method: str) -> None:
    scores, targets = case
    found = calibration.fit(method, scores, targets, np.full(scores.shape[1], 2.0))
    values = found.apply(scores)
    assert values.dtype == np.float32
    assert ((values >= 0) & (values <= 1)).all()
    for i in range(scores.shape[1]):
        order = np.argsort(scores[:, i], kind="stable")
        assert (np.diff(values[order, i]) >= -1e-6).all()
    again = Calibration.read(json.loads(json.dumps(found.plain())))
    assert (again.apply(scores) == values).all()


def test_auto_stays_off_where_scores_are_right_and_helps_where_not() -> None:
    chosen = [decision.choose(*sample(1500, seed), np.ones(3), 0)[0] for seed in range(20)]
    assert chosen.count("none") >= 17
    method, losses = decision.choose(*sample(1500, 1, scale=3.0), np.ones(3), 0)
    assert method in ("temperature", "platt")
    assert losses[method] < losses["none"]


def test_brier_is_scikit_learns_and_error_is_the_mean_gap() -> None:
    scores, targets = sample(900, 7)
    targets[::7, 0] = -1
    brier, error = calibration.label_errors(scores, targets, bins=1)
    for i in range(3):
        known = targets[:, i] >= 0
        assert brier[i] == pytest.approx(brier_score_loss(targets[known, i], scores[known, i]), abs=1e-6)
        assert error[i] == pytest.approx(abs((scores[known, i] - targets[known, i]).mean()), abs=1e-6)


def test_settled_decisions_are_those_of_calibrated_scores() -> None:
    scores, targets = sample(1200, 8, scale=3.0, shift=1.0)
    settled = decision.settle("global", "auto", scores, targets, np.ones(3), 0)
    assert settled.calibration.method == "platt"
    assert np.abs(settled.scores.mean(axis=0) - targets.mean(axis=0)).max() < 0.03
    own = thresholds.decide(settled.calibration.apply(scores), settled.thresholds)
    assert (own == settled.decisions).mean() > 0.97
    plain = decision.settle("global", "none", scores, targets, np.ones(3), 0)
    assert (plain.decisions == thresholds.fit("global", scores, targets, 0).decisions).all()


@pytest.mark.parametrize("policy", ["per-label", "global", "joint", "fixed=0.5", "top-k=1"])
@pytest.mark.parametrize("objective", ["f1_micro", "f1_macro", "map"])
def test_calibration_never_lowers_the_objective(policy: str, objective: str) -> None:
    """On few samples, whose scores are off, so that a choice by the log loss alone would change what is decided."""
    for seed in range(6):
        scores, targets = sample(80, seed, scale=2.0, shift=1.0)
        weights = np.array([2.7, 1.0, 2.7])
        plain, auto = (
            decision.settle(policy, method, scores, targets, weights, 0, objective) for method in ("none", "auto")
        )
        own, chosen = (decision.value_of(objective, s.decisions, s.ranked, targets) for s in (plain, auto))
        assert chosen >= own
        if not policy.startswith(("fixed", "top-k")):
            assert chosen == own, "a strictly rising map decides as the scores do"


def test_an_epoch_is_measured_as_its_report_will_be() -> None:
    scores, targets = sample(150, 3, scale=2.0, shift=0.7)
    for policy in ("per-label", "fixed=0.4", "cardinality", "top-k=1"):
        for method in ("auto", "none", "platt", "isotonic"):
            whole = decision.settle(policy, method, scores, targets, np.ones(3), 5)
            epoch = decision.decide(policy, method, scores, targets, np.ones(3), 5, "f1_micro")
            assert (epoch.decisions == whole.decisions).all()
            assert (epoch.ranked == whole.ranked).all()


def test_a_carried_threshold_decides_as_before() -> None:
    scores, targets = sample(500, 9, scale=2.0, shift=0.5)
    for method in ("prior", "temperature", "platt"):
        settled = decision.settle("per-label", method, scores, targets, np.array([3.0, 1.0, 0.5]), 0)
        plain = thresholds.fit("per-label", scores, targets, 0)
        new, _ = sample(20_000, 10)
        before = thresholds.decide(new, plain.thresholds)
        after = thresholds.decide(settled.calibration.apply(new), settled.thresholds)
        assert (before != after).mean() < 1e-4
    assert Calibration().carry(np.array([thresholds.NEVER]))[0] > 1


def test_scores_that_are_no_numbers_set_no_thresholds() -> None:
    scores, targets = sample(60, 1)
    scores[17, 2] = np.nan
    with pytest.raises(DataError, match="the first is sample 17"):
        decision.settle("per-label", "auto", scores, targets, np.ones(3), 0)
