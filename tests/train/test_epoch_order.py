"""What an epoch shows: the order of its samples, and what is drawn for each time that one is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlic.config.train import TrainConfig
from mlic.data import sampling_weights
from mlic.data.pixels.augment import distortions
from mlic.data.shards import natural_order, read_split
from mlic.errors import ConfigError
from mlic.train import setup
from mlic.train.batches import epoch_order


def config(shards: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**({"shards": shards, "augment": {"rotate": 20}, "crop": 0.5, "seed": 5} | changes))


def all_entries(shown: epoch_order.Shown) -> epoch_order.Entries:
    """All entries of an epoch, in one batch."""
    whole = shown.config.model_copy(update={"batch_size": 10**6})
    (entries,) = dataclasses.replace(shown, config=whole).batches(0, 1)
    return entries


@pytest.mark.ray
def test_a_sample_that_is_shown_again_is_changed_in_another_way(shards: Path) -> None:
    split = read_split(shards, "train")
    settings = config(shards, repeat_below=0.9, rand_augment=1)
    rates = sampling_weights.rates(split.targets, split.labels, settings.repeat_below, 0.0, ())
    shown = epoch_order.of_epoch(settings, split, rates, 1, augmented=True)
    entries = all_entries(shown)
    twice = next(sample for sample in entries.samples.tolist() if (entries.samples == sample).sum() > 1)
    first, second, *_ = np.flatnonzero(entries.samples == twice)
    rotate = distortions(entries.numbers, settings.augment, settings.seed, 1)["rotate"]
    assert rotate[first] != rotate[second]
    assert (shown.crop(entries)[first] != shown.crop(entries)[second]).any()
    assert len(set(entries.numbers.tolist())) == len(shown)
    assert sorted(entries.numbers % len(split)) == sorted(entries.samples)


@pytest.mark.ray
def test_what_is_drawn_for_a_sample_depends_on_no_other(shards: Path) -> None:
    """With a sampler and without one, on one rank or several, its first showing has its own number."""
    split = read_split(shards, "train")
    settings = config(shards)
    plain = epoch_order.of_epoch(settings, split, None, 0, augmented=True)
    rates = sampling_weights.rates(split.targets, split.labels, 0.9, 0.0, ())
    repeated = all_entries(epoch_order.of_epoch(settings, split, rates, 0, augmented=True))
    assert (all_entries(plain).numbers == all_entries(plain).samples).all()
    assert set(repeated.samples.tolist()) <= set(repeated.numbers.tolist())
    dealt = [entries.samples for rank in range(3) for entries in plain.batches(rank, 3)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(split)))


@pytest.mark.ray
def test_an_epoch_resumes_at_any_batch(shards: Path) -> None:
    split = read_split(shards, "train")
    rates = sampling_weights.rates(split.targets, split.labels, 0.9, 0.0, ())
    shown = epoch_order.of_epoch(config(shards, batch_size=16), split, rates, 2, augmented=True)
    whole = list(shown.batches(1, 2))
    assert len(whole) == len(shown.bounds(2)) - 1
    for first in (0, 3, len(whole)):
        for one, two in zip(whole[first:], shown.batches(1, 2, first), strict=True):
            assert all(map(np.array_equal, one, two))


def test_a_checkpoint_within_an_epoch_of_another_order_is_refused() -> None:
    epoch_order.check({"done": 3, "order": epoch_order.VERSION}, Path("run"))
    epoch_order.check({"done": 0}, Path("run"))
    with pytest.raises(ConfigError, match="run was stopped within an epoch by a version of mlic with another order"):
        epoch_order.check({"done": 3}, Path("run"))


@pytest.mark.ray
def test_unshuffled_samples_come_in_the_order_of_their_keys(shards: Path) -> None:
    split = read_split(shards, "train")
    for epoch in (0, 1):
        found = epoch_order.of_epoch(config(shards, shuffle=False), split, None, epoch, augmented=True)
        keys = [split.key(i) for i in all_entries(found).samples.tolist()]
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
