from __future__ import annotations

from typing import Any

import numpy as np

from mlic.metrics import error_causes

KIND = {name: number for number, name in enumerate(error_causes.KINDS, 1)}


def base(num_samples: int = 200) -> tuple[Any, Any, Any]:
    """Four labels that every second sample has, decided rightly and without doubt."""
    targets = np.tile(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.int8), (num_samples // 2, 1))
    return targets == 1, targets, np.where(targets == 1, 0.8, 0.2)


def test_what_is_right_or_unknown_has_no_cause() -> None:
    decisions, targets, scores = base()
    targets[3] = -1
    decisions[3] = ~decisions[3]
    found = error_causes.assign(decisions, targets, scores, np.full(4, 5), [(0, 1)])
    assert not found.kind.any()
    assert not found.by_rule.any()


def test_a_wrong_label_is_suspected_where_the_model_is_sure() -> None:
    decisions, targets, scores = base()
    decisions[0, 2], scores[0, 2] = True, 0.95
    decisions[1, 2], scores[1, 2] = False, 0.01
    decisions[2, 2], scores[2, 2] = True, 0.6
    found = error_causes.assign(decisions, targets, scores, None, [])
    assert found.kind[:3, 2].tolist() == [1, 1, KIND["unexplained"]]
    assert error_causes.assign(decisions, targets, None, None, []).kind[:2, 2].tolist() == [4, 4]


def test_a_wrong_label_is_suspected_where_a_rule_is_mended() -> None:
    """The labels say 0 and not 1, against the rule: giving both, or neither, is the model's way out."""
    decisions, targets, scores = base()
    targets[[0, 2, 4], 1] = 0
    decisions[0, :2], decisions[2, :2], decisions[4, :2] = True, False, (True, False)
    scores[[0, 2, 4], :2] = 0.5
    found = error_causes.assign(decisions, targets, scores, np.full(4, 5), [(0, 1)])
    assert found.by_rule[0].tolist() == [False, True, False, False]
    assert found.by_rule[2].tolist() == [True, False, False, False]
    assert found.kind[4, 1] == 0
    assert found.kind[0, 1] == found.kind[2, 0] == KIND["wrong label suspected"]


def test_few_examples_come_before_patterns() -> None:
    decisions, targets, scores = base()
    decisions[0:20:2, 2], scores[0:20:2, 2] = True, 0.6  # always with labels 0 and 1
    few = error_causes.assign(decisions, targets, scores, np.array([500, 500, error_causes.FEW - 1, 500]), [])
    assert set(few.kind[0:20:2, 2]) == {KIND["too few examples"]}
    enough = error_causes.assign(decisions, targets, scores, np.full(4, error_causes.FEW), [])
    assert enough.kind[:, 2].sum() > 0
    assert KIND["too few examples"] not in enough.kind


def test_a_pattern_is_an_error_that_comes_with_another_label() -> None:
    rng = np.random.default_rng(5)
    targets = (rng.random((1000, 4)) < 0.3).astype(np.int8)
    decisions, scores = targets == 1, np.full(targets.shape, 0.5)
    sky = (targets[:, 0] == 1) & (targets[:, 1] == 0) & (rng.random(1000) < 0.6)
    decisions[sky, 1] = True  # 1 is wrongly given where 0 is
    hidden = sky & (targets[:, 2] == 1)
    decisions[hidden, 2] = False  # and 2 is missed where 1 was wrongly given
    alone = rng.permutation(np.flatnonzero(targets[:, 3] == 0))[:60]
    decisions[alone, 3] = True  # 3 is wrongly given anywhere
    found = error_causes.assign(decisions, targets, scores, None, [])
    assert set(found.kind[sky, 1]) == {KIND["wrong pattern"]}
    assert set(found.misled[sky, 1]) == {0}
    assert set(found.kind[hidden, 2]) == {KIND["wrong pattern"]}
    assert set(found.misled[hidden, 2]) == {1}
    assert (found.kind[alone, 3] == KIND["unexplained"]).mean() > 0.8


def test_every_error_has_one_cause() -> None:
    rng = np.random.default_rng(6)
    targets = rng.choice(np.array([-1, 0, 1], np.int8), (300, 6), p=[0.1, 0.6, 0.3])
    scores = rng.random((300, 6))
    found = error_causes.assign(scores > 0.5, targets, scores, rng.integers(0, 300, 6), [(0, 1), (2, 3)])
    wrong = ((scores > 0.5) != (targets == 1)) & (targets >= 0)
    assert ((found.kind > 0) == wrong).all()
    assert ((found.misled >= 0) == (found.kind == KIND["wrong pattern"])).all()
