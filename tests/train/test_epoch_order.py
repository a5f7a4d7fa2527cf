"""What an epoch shows: the order of its samples, and what is drawn for each time that one is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlic.config.train import TrainConfig
from mlic.data import sampling_weights
from mlic.data.shards import natural_order, read_split
from mlic.train import epoch_order, setup


def config(shards: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**({"shards": shards, "augment": {"rotate": 20}, "crop": 0.5, "seed": 5} | changes))


@pytest.mark.ray
def test_a_sample_that_is_shown_again_is_changed_in_another_way(shards: Path) -> None:
    split = read_split(shards, "train")
    settings = config(shards, repeat_below=0.9, rand_augment=1)
    rates = sampling_weights.rates(split.targets, split.labels, settings.repeat_below, 0.0, ())
    epoch = epoch_order.of_epoch(settings, split, rates, 1, augmented=True)
    twice = next(sample for sample in epoch.samples.tolist() if (epoch.samples == sample).sum() > 1)
    first, second, *_ = np.flatnonzero(epoch.samples == twice)
    assert epoch.parts is not None
    assert epoch.mirrored is not None
    assert epoch.distorted["rotate"][epoch.draws[first]] != epoch.distorted["rotate"][epoch.draws[second]]
    assert (epoch.parts[epoch.draws[first]] != epoch.parts[epoch.draws[second]]).any()
    assert len(set(epoch.draws.tolist())) == len(epoch.samples)
    assert len(epoch.mirrored) == epoch.draws.max() + 1


@pytest.mark.ray
def test_what_is_drawn_for_a_sample_depends_on_no_other(shards: Path) -> None:
    """With a sampler and without one, on one rank or several, its first showing is the same."""
    split = read_split(shards, "train")
    settings = config(shards)
    plain = epoch_order.of_epoch(settings, split, np.ones(len(split)), 0, augmented=True)
    rates = sampling_weights.rates(split.targets, split.labels, 0.9, 0.0, ())
    repeated = epoch_order.of_epoch(settings, split, rates, 0, augmented=True)
    assert (plain.draws == plain.samples).all()
    assert plain.parts is not None
    assert repeated.parts is not None
    once = len(split)
    np.testing.assert_array_equal(plain.distorted["rotate"], repeated.distorted["rotate"][:once])
    dealt = [entries for rank in range(3) for entries, _ in plain.batches(rank, 3)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(split)))


@pytest.mark.ray
def test_unshuffled_samples_come_in_the_order_of_their_keys(shards: Path) -> None:
    split = read_split(shards, "train")
    for epoch in (0, 1):
        found = epoch_order.of_epoch(config(shards, shuffle=False), split, np.ones(len(split)), epoch, augmented=True)
        keys = [split.key(i) for i in found.samples.tolist()]
        assert keys == sorted(keys, key=lambda key: int(key.removeprefix("im")))
    assert natural_order(["im10", "im9", "a2", "b"]).tolist() == [2, 3, 1, 0]


@pytest.mark.ray
def test_a_limit_takes_so_many_training_samples_by_the_seed(shards: Path) -> None:
    whole = read_split(shards, "train")
    few, other = (setup.train_split(config(shards, limit=30, seed=seed)) for seed in (5, 6))
    assert len(few) == len(other) == 30
    assert few.keys.to_pylist() != other.keys.to_pylist()
    assert set(few.keys.to_pylist()) < set(whole.keys.to_pylist())
    assert few.name != whole.name, "or the caches of both would be taken for one another"
    assert len(setup.train_split(config(shards, limit=10**6))) == len(whole)
