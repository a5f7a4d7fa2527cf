"""The order of the training samples in an epoch, and the random draws of their augmentation.

Both are pure functions of the seed, the epoch and a position. So no rank stores an order, and a run resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mlic.config.fit import FitSettings
from mlic.data.loader import train_bounds
from mlic.data.pixels.augment import crops, distort, distortions, mirrors
from mlic.data.pixels.rand_augment import rand_augment
from mlic.data.seeded_random import permuted, uniform
from mlic.data.shards import Split, natural_order
from mlic.errors import ConfigError

Array = np.ndarray[Any, Any]

VERSION = 1  # of the order: a run that stopped with another one cannot resume within an epoch
_BLOCK = 128  # samples that one draw decides on together
_MANY = 4096  # blocks that are drawn at once
_ORDER, _WITHIN, _START, _OFFSET = 40, 41, 42, 43  # streams of random numbers


def check(last: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError when the `last` checkpoint lies within an epoch of another version's order."""
    if last["done"] and last.get("order") != VERSION:
        raise ConfigError(
            f"{folder} was stopped within an epoch by a version of mlic with another order of samples.",
            "--fresh starts again from the beginning.",
        )


class EpochOrder:
    """The S entries of an epoch in their order. A sample with rate 1.4 occurs once or twice, one with 0.5 once or not.

    Every epoch has the same number of them. The whole part of a rate is shown always. The rest is sampled by blocks of
    128 samples: systematically, that is in equal steps along the sum of the rates, over the blocks, and again within a
    block, whose samples are in random order for that. The choice varies then, and the number does not. The order is a
    permutation without rates.
    """

    least_batch = 0

    def __init__(self, num_samples: int, rates: Array | None, seed: int, epoch: int) -> None:
        """`rates` float64 (N,) say how often an epoch shows each sample on average; None: each once."""
        self.num_samples, self._rates, self.seed, self.epoch = num_samples, rates, seed, epoch
        self._length = num_samples
        if rates is not None:
            starts = np.arange(0, len(rates), _BLOCK)
            whole = np.floor(rates)
            ends = np.cumsum(np.add.reduceat(rates - whole, starts))
            count = round(float(ends[-1]))
            steps = np.floor(ends / max(ends[-1], 1e-300) * count + self._uniform(np.zeros(1), _START))
            self._extra = np.diff(np.minimum(steps, count), prepend=0).astype(np.int64)
            self._ends = np.cumsum(np.add.reduceat(whole, starts).astype(np.int64) + self._extra)
            self._length = int(self._ends[-1])

    def __len__(self) -> int:
        return self._length

    def at(self, positions: Array) -> tuple[Array, Array]:
        """The samples int64 (B,) at some positions (B,), and how often the epoch shows each before, int64 (B,)."""
        entries = permuted(positions, self._length, self.seed, self.epoch, _ORDER)
        if self._rates is None:
            return entries, np.zeros_like(entries)
        blocks = np.unique(np.searchsorted(self._ends, entries, side="right"))
        times = self._times(self._rates, blocks)
        before = np.where(blocks > 0, self._ends[blocks - 1], 0)
        ends = (before[:, None] + times.cumsum(axis=1)).ravel()
        index = np.searchsorted(ends, entries, side="right")
        samples = blocks[index // _BLOCK] * _BLOCK + index % _BLOCK
        return samples, entries - (ends[index] - times.ravel()[index])

    def batch(self, start: int, end: int, rank: int, world_size: int) -> tuple[Array, Array, Array]:
        """The samples and earlier showings, int64 (B,), of a batch, and which of them a rank reads."""
        samples, times = self.at(np.arange(start, end))
        return samples, times, np.arange(rank, end - start, world_size)

    def shown(self, first: int, last: int) -> tuple[Array, Array]:
        """The samples from `first` to `last` as often as the epoch shows them, and how often it shows each before."""
        if self._rates is None:
            rows = np.arange(first, last)
            return rows, np.zeros_like(rows)
        block = first // _BLOCK
        times = self._times(self._rates, np.arange(block, -(-last // _BLOCK))).ravel()
        times = times[first - block * _BLOCK : last - block * _BLOCK]
        samples = np.repeat(np.arange(first, last), times)
        return samples, np.arange(len(samples)) - np.repeat(times.cumsum() - times, times)

    def totals(self, bounds: Array) -> Array:
        """How many entries the samples between each two of the `bounds` (K + 1,) have, int64 (K,)."""
        if self._rates is None:
            return np.diff(bounds)
        entries = np.zeros(len(bounds) - 1, np.int64)
        for start in range(0, len(self._ends), _MANY):
            blocks = np.arange(start, min(start + _MANY, len(self._ends)))
            times = self._times(self._rates, blocks).ravel()
            rows = blocks[0] * _BLOCK + np.flatnonzero(times)
            numbers = np.searchsorted(bounds, rows, side="right") - 1
            entries += np.bincount(numbers, times[times > 0], len(entries)).astype(np.int64)
        return entries

    def _times(self, all_rates: Array, blocks: Array) -> Array:
        """How often the epoch shows each sample of some blocks, int64 (K, 128)."""
        rows = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
        rates = np.where(rows < self.num_samples, all_rates[np.minimum(rows, self.num_samples - 1)], 0.0)
        whole = np.floor(rates)
        order = np.argsort(self._uniform(rows, _WITHIN), axis=1)
        ends = np.take_along_axis(rates - whole, order, axis=1).cumsum(axis=1)
        total, extra = np.maximum(ends[:, -1:], 1e-300), self._extra[blocks][:, None]
        steps = np.floor(ends / total * extra + self._uniform(blocks[:, None], _OFFSET))
        drawn = np.empty_like(rates)
        np.put_along_axis(drawn, order, np.diff(np.minimum(steps, extra), axis=1, prepend=0), axis=1)
        return (whole + drawn).astype(np.int64)

    def _uniform(self, numbers: Array, stream: int) -> Array:
        return uniform(numbers, self.seed, self.epoch, stream) * (1 - 1e-9)


class Order(Protocol):
    """The entries of an epoch: an EpochOrder, or that of streamed shards."""

    @property
    def num_samples(self) -> int:
        """The number of samples of the split."""

    @property
    def least_batch(self) -> int:
        """The number of samples that a last batch has at least; a smaller rest joins the batch before it."""

    def __len__(self) -> int: ...

    def batch(self, start: int, end: int, rank: int, world_size: int) -> tuple[Array, Array, Array]:
        """The samples and earlier showings, int64 (B,), of a batch, and which of them a rank reads."""


class Entries(NamedTuple):
    """Some entries of an epoch: their `samples` int64 (B,), and `numbers` int64 (B,), one for each showing of a sample.

    The random draws for an entry depend on its number. The first time that an epoch shows a sample, this is the
    sample's own number, whatever else the epoch shows. `batch` int64 (W,) are the samples of the whole batch.
    """

    samples: Array
    numbers: Array
    batch: Array


@dataclass(frozen=True)
class Shown:
    """What an epoch shows. With `listed` samples and their earlier showings, it is these in their order."""

    order: Order
    listed: tuple[Array, Array] | None
    config: FitSettings
    epoch: int
    augmented: bool

    def __len__(self) -> int:
        return len(self.order)

    def bounds(self, world_size: int) -> Array:
        """The first position of each batch, and the end."""
        return train_bounds(len(self.order), self.config.batch_size, world_size, self.order.least_batch)

    def batches(self, rank: int, world_size: int, first: int = 0) -> Iterator[Entries]:
        """This rank's part of each batch, from the batch `first` on."""
        for start, end in pairwise(self.bounds(world_size)[first:].tolist()):
            if self.listed is None:
                samples, times, mine = self.order.batch(start, end, rank, world_size)
            else:
                samples, times = (column[start:end] for column in self.listed)
                mine = np.arange(rank, end - start, world_size)
            numbers = samples + times * self.order.num_samples
            yield Entries(samples[mine], numbers[mine], samples)

    def mirror(self, entries: Entries) -> torch.Tensor | None:
        """Which of some entries are mirrored, bool (B,); None where none is."""
        if not (self.config.hflip and self.augmented):
            return None
        return mirrors(entries.numbers, self.config.seed, self.epoch)

    def crop(self, entries: Entries) -> Array:
        """The part (B, 4) of the image that each of some entries shows."""
        return crops(entries.numbers, self.config.crop, self.config.seed, self.epoch)

    def change(self, images: torch.Tensor, entries: Entries) -> torch.Tensor:
        """Images uint8 (B, H, W, C) of some entries, as augmentation changes them."""
        config, numbers = self.config, entries.numbers
        if config.augment:
            images = distort(images, distortions(numbers, config.augment, config.seed, self.epoch))
        if config.rand_augment:
            images = rand_augment(images, numbers, config.rand_augment, config.rand_magnitude, config.seed, self.epoch)
        return images


def of_epoch(
    config: FitSettings,
    split: Split,
    rates: Array | None,
    epoch: int,
    augmented: bool,
    streamed: Callable[[EpochOrder], Order] | None = None,
) -> Shown:
    """What an epoch shows of a training split whose samples are shown at some `rates` (N,), or once each.

    `streamed` makes the order of streamed shards.
    """
    order, listed = EpochOrder(len(split), rates, config.seed, epoch), None
    if streamed is not None:
        return Shown(streamed(order), None, config, epoch, augmented)
    if not config.shuffle:
        samples, times = order.at(np.arange(len(order)))
        rank_of = np.empty(len(split), np.int64)
        rank_of[natural_order(split.keys.to_pylist())] = np.arange(len(split))
        by_key = np.argsort(rank_of[samples], kind="stable")
        listed = samples[by_key], times[by_key]
    return Shown(order, listed, config, epoch, augmented)
