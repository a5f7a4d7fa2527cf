"""The order of the training samples in an epoch, and the random draws of their augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlic.config.fit import FitSettings
from mlic.data.augment import crops, distort, distortions, mirrors
from mlic.data.loader import train_batches
from mlic.data.rand_augment import rand_augment
from mlic.data.shards import Split, natural_order

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shown:
    """An epoch of S entries. `samples` int64 (S,) are their numbers in the split.

    The random draws for entry i are at `draws[i]` of the drawn arrays. The first time that an epoch shows a sample,
    this is the sample's own number, whatever else the epoch shows. When the sample is shown again, it is a number above
    those of all samples.
    """

    samples: Array
    draws: Array
    mirrored: torch.Tensor | None
    parts: Array | None
    distorted: Mapping[str, Array]
    config: FitSettings
    epoch: int

    def batches(self, rank: int, world_size: int) -> list[tuple[Array, Array]]:
        """The entries of each batch: this rank's, and those of all ranks."""
        return train_batches(np.arange(len(self.samples)), self.config.batch_size, rank, world_size)

    def mirror(self, entries: Array) -> torch.Tensor | None:
        """Which of some entries are mirrored, bool (B,); None where none is."""
        return None if self.mirrored is None else self.mirrored[self.draws[entries]]

    def crop(self, entries: Array) -> Array | None:
        """The part (B, 4) of the image that each of some entries shows; None for whole images."""
        return None if self.parts is None else self.parts[self.draws[entries]]

    def change(self, images: torch.Tensor, entries: Array) -> torch.Tensor:
        """Images uint8 (B, H, W, C) of some entries, as augmentation changes them."""
        config, draws = self.config, self.draws[entries]
        if self.distorted:
            images = distort(images, draws, self.distorted)
        if config.rand_augment:
            images = rand_augment(images, draws, config.rand_augment, config.rand_magnitude, config.seed, self.epoch)
        return images


def of_epoch(config: FitSettings, split: Split, rates: Array, epoch: int, augmented: bool) -> Shown:
    """What an epoch shows of a training split whose samples are shown at some `rates` (N,)."""
    samples = epoch_order(rates, config.seed, epoch)
    if not config.shuffle:
        rank_of = np.empty(len(split), np.int64)
        rank_of[natural_order(split.keys.to_pylist())] = np.arange(len(split))
        samples = samples[np.argsort(rank_of[samples], kind="stable")]
    draws, count = draw_numbers(samples, len(split))
    return Shown(
        samples,
        draws,
        mirrors(count, config.seed, epoch) if config.hflip and augmented else None,
        crops(count, config.crop, config.seed, epoch) if config.crop < 1 else None,
        distortions(count, config.augment, config.seed, epoch) if config.augment else {},
        config,
        epoch,
    )


def draw_numbers(samples: Array, count: int) -> tuple[Array, int]:
    """The index of each entry's (S,) draws in arrays of random draws, and the number of draws.

    For the first entry of a sample, the index is the sample's number, below `count`. For each further entry, it is
    `count` or more.
    """
    order = np.argsort(samples, kind="stable")
    again = np.diff(samples[order], prepend=-1) == 0
    draws = np.empty(len(samples), np.int64)
    draws[order] = np.where(again, count + np.cumsum(again) - 1, samples[order])
    return draws, count + int(again.sum())


def epoch_order(rates: Array, seed: int, epoch: int) -> Array:
    """The samples of an epoch in their order, int64; every epoch has the same number of them.

    A sample with rate 1.4 occurs once or twice, one with rate 0.5 once or not at all. The draw is systematic (equal
    steps along the sum of the rates, in random order), so that the choice varies but the count does not. If all rates
    are 1, the result is a permutation.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(rates))
    if (rates == 1).all():
        return order
    count = max(1, round(float(rates.sum())))
    ends = np.cumsum(rates[order])
    ends *= count / ends[-1]
    steps = np.floor(ends + rng.random() * (1 - 1e-9))
    steps[-1] = count  # the sum is rounded; this one is known
    times = np.diff(steps, prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(order, times))
