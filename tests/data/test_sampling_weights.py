"""How often an epoch shows each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlic.data.sampling_weights import rates
from mlic.train.batches.epoch_order import EpochOrder


def epoch_order(rates: np.ndarray[Any, Any], seed: int, epoch: int) -> np.ndarray[Any, Any]:
    order = EpochOrder(len(rates), rates, seed, epoch)
    return order.at(np.arange(len(order)))[0]


LABELS = ("people", "rare", "night")
TARGETS = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] + [[0, 0, 1]] * 2 + [[0, -1, -1]], dtype=np.int8)


def test_without_a_sampler_an_epoch_is_a_permutation() -> None:
    assert rates(TARGETS, LABELS, 0.0, 0.0, ()) is None
    orders = [EpochOrder(10, None, 3, epoch).at(np.arange(10))[0] for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (orders[0] == epoch_order(np.ones(10), 3, 0)).all()


def test_repeat_factors_are_those_of_the_paper() -> None:
    """The rare label has 1 of 9 known, so t = 4/9 repeats its sample twice; night has 2 of 9: sqrt 2."""
    found = rates(TARGETS, LABELS, 4 / 9, 0.0, ())
    assert found is not None
    assert found.tolist() == pytest.approx([1.0] * 6 + [2.0] + [2**0.5] * 2 + [1.0])


def test_thinning_leaves_samples_with_a_rare_label_alone() -> None:
    thinned, both = (rates(TARGETS, LABELS, below, 0.75, ("people", "night")) for below in (0.0, 4 / 9))
    assert thinned is not None
    assert both is not None
    assert thinned.tolist() == [0.25] * 6 + [1.0] + [0.25] * 3
    assert both[6] == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_has_the_same_length_and_the_rates_hold_on_average(seed: int) -> None:
    wanted = np.random.default_rng(seed).uniform(0, 3, 200)
    orders = [epoch_order(wanted, seed, epoch) for epoch in range(400)]
    assert {len(order) for order in orders} == {round(wanted.sum())}
    counts = np.array([np.bincount(order, minlength=200) for order in orders])
    assert (counts >= np.floor(wanted * 0.98)).all()
    assert (counts <= np.ceil(wanted * 1.02)).all()
    assert np.abs(counts.mean(axis=0) - wanted).max() < 0.12


def test_copies_of_a_sample_are_not_all_beside_each_other() -> None:
    found = epoch_order(np.full(50, 4.0), 1, 0)
    assert (np.diff(found) == 0).mean() < 0.2
