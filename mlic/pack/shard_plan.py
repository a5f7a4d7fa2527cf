"""Plan the shards: which sample goes into which shard.

A plan is a pure function of the samples and the settings. A shard is a pure function of its plan and its images: every
header field of a tar that could depend on the machine or the clock is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from mlic.config.data import PackConfig
from mlic.config.types import Operation
from mlic.data.sources.image_listing import Listing

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """N samples in columns: their images and `targets` int8 (N, L).

    `split`, `group` and `fold` (N,) are numbers for each sample: its split, its group of identical or near-duplicate
    images, and its fold. `digest` uint8 (N, 32) is the sha256 of its file, and `hash` uint8 (N, 16) its perceptual
    hash. The last four are None if they are not known.
    """

    listing: Listing
    targets: Array
    split: Array
    group: Array | None = None
    fold: Array | None = None
    digest: Array | None = None
    hash: Array | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Array) -> Samples:
        """The samples with these numbers, in this order."""
        return replace(
            self,
            listing=self.listing.take(rows),
            targets=self.targets[rows],
            split=self.split[rows],
            group=_rows(self.group, rows),
            fold=_rows(self.fold, rows),
            digest=_rows(self.digest, rows),
            hash=_rows(self.hash, rows),
        )


def _rows(column: Array | None, rows: Array) -> Array | None:
    return None if column is None else column[rows]


@dataclass(frozen=True)
class Expansion:
    """Versions of the training images: the original and `versions` augmented ones of each, made by `operations`.

    If all labels of an image are among `thin_labels`, each of its versions is left out with the probability `thin`, but
    at least one is kept.
    """

    versions: int = 0
    operations: tuple[Operation, ...] = ()
    thin: float = 0.0
    thin_labels: tuple[int, ...] = ()
    seed: int = 0


NO_EXPANSION = Expansion()


def expansion(config: PackConfig, labels: Sequence[str]) -> Expansion:
    """The versions of training images that the settings ask for."""
    thin_labels = tuple(labels.index(name) for name in config.thin_labels)
    return Expansion(config.expand, config.expand_by, config.thin, thin_labels, config.seed)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split, and the numbers (n,) and versions (n,) of its samples.

    Version 0 is the image itself.
    """

    name: str
    split: str
    rows: Array
    versions: Array


@dataclass(frozen=True)
class Written:
    """The result of writing one shard.

    `bad` holds (file, reason) of the images that were left out. `label_counts` are the numbers of samples with each
    label, `unlabelled` is the number of samples without any.
    """

    name: str
    split: str
    size: int
    sha256: str
    samples: int
    label_counts: tuple[int, ...]
    unlabelled: int
    bad: tuple[tuple[str, str], ...]


def plan(
    samples: Samples,
    splits: Sequence[str],
    shard_mb: float,
    min_shards: int,
    seed: int,
    expansion: Expansion = NO_EXPANSION,
    first_numbers: Mapping[str, int] = MappingProxyType({}),
) -> tuple[ShardPlan, ...]:
    """Assign the samples of each split to shards of about `shard_mb` MB.

    Training samples are put in a seeded random order, so that a reader that reads shards in sequence gets a mixture;
    the others keep the order of their keys. `first_numbers` are the numbers that the shards of a split begin with, if
    there are some already.
    """
    shards: list[ShardPlan] = []
    for number, split in enumerate(splits):
        rows = np.flatnonzero(samples.split == number)
        versions = np.zeros(len(rows), np.int16)
        if split == "train":
            rows, versions = _versions(rows, samples.targets[rows], expansion)
            order = np.random.default_rng([seed, 1]).permutation(len(rows))
            rows, versions = rows[order], versions[order]
        total = int(samples.listing.sizes[rows].sum())
        count = min(len(rows), max(min_shards, round(total / (shard_mb * 1e6))))
        bounds = np.linspace(0, len(rows), count + 1).round().astype(int)
        shards += [
            ShardPlan(f"{split}-{i:06d}.tar", split, rows[a:b], versions[a:b])
            for i, (a, b) in enumerate(pairwise(bounds), first_numbers.get(split, 0))
        ]
    return tuple(shards)


def _versions(rows: Array, targets: Array, expansion: Expansion) -> tuple[Array, Array]:
    """The versions of the training images that are packed, as rows and version numbers."""
    count = expansion.versions + 1
    is_kept = np.ones((len(rows), count), dtype=bool)
    if expansion.thin:
        rng = np.random.default_rng([expansion.seed, 9])
        others = np.setdiff1d(np.arange(targets.shape[1]), expansion.thin_labels)
        common = ~(targets[:, others] == 1).any(axis=1)
        is_kept = ~(common[:, None] & (rng.random(is_kept.shape) < expansion.thin))
        is_kept[np.arange(len(rows)), rng.integers(0, count, len(rows))] |= ~is_kept.any(axis=1)
    number, version = np.nonzero(is_kept)
    return rows[number], version.astype(np.int16)
