"""The order of the training samples of an epoch whose shards are streamed: each shard is read once, by one rank.

The shards, in random order, are dealt to a fixed number of groups. A group walks its shards two at a time, and shows
the samples of such a block in random order; each batch has samples of all groups, in proportion to their length. A rank
reads some of the groups. So batches are the same for any number of ranks that divides the number of groups.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.data.seeded_random import permuted
from mlic.data.shard_window import Use
from mlic.errors import ConfigError
from mlic.train.batches.epoch_order import EpochOrder

Array = np.ndarray[Any, Any]

_SHARDS, _WITHIN = 44, 45  # streams of random numbers
_IN_BLOCK = 2  # shards whose samples are mixed
_SHARDS_OF_GROUP = 8  # at least, so that groups are about equally long
_OF_BATCH = 4  # samples that a batch has of a group, at least and about


def num_groups(wanted: int, num_shards: int, batch_size: int) -> int:
    """The number of groups: the largest power of two that the settings, the shards and the batches allow."""
    most = min(wanted, num_shards // _SHARDS_OF_GROUP, batch_size // _OF_BATCH)
    return 1 << (max(1, most).bit_length() - 1)


def check(groups: int, world_size: int) -> None:
    """Raise ConfigError when the groups cannot be dealt to the ranks."""
    if groups % world_size:
        raise ConfigError(
            f"shards are streamed in {groups} groups, which {world_size} workers do not divide.",
            f"use --workers {1 << (min(groups, world_size).bit_length() - 1)}, smaller shards or larger batches, or "
            "--stream never.",
        )


@dataclass(frozen=True)
class _Block:
    """Shards of a group that are mixed: its number, the group's first entry in it, and its end."""

    number: int
    shards: Array
    start: int
    end: int


class StreamOrder:
    """The entries of an epoch in the order in which shards are streamed."""

    def __init__(self, once: EpochOrder, first_rows: Array, groups: int) -> None:
        """`once` says how often the epoch shows each sample; shard s has the rows from `first_rows` (S + 1,)[s] on."""
        self._once, self._rows, self.num_samples = once, first_rows, once.num_samples
        seed, epoch = once.seed, once.epoch
        order = permuted(np.arange(len(first_rows) - 1), len(first_rows) - 1, seed, epoch, _SHARDS)
        entries = once.totals(first_rows)
        self._blocks = [self._blocks_of(order[group::groups], entries) for group in range(groups)]
        lengths = [blocks[-1].end if blocks else 0 for blocks in self._blocks]
        self._bounds = np.concatenate([[0], np.cumsum(lengths)])
        self._mixed: dict[int, tuple[int, Array, Array]] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def least_batch(self) -> int:
        """The number of samples that a last batch has at least; a smaller rest joins the batch before it."""
        return _OF_BATCH * len(self._blocks)

    @staticmethod
    def _blocks_of(shards: Array, entries: Array) -> list[_Block]:
        blocks, start = list[_Block](), 0
        for number, first in enumerate(range(0, len(shards), _IN_BLOCK)):
            some = shards[first : first + _IN_BLOCK]
            end = start + int(entries[some].sum())
            blocks.append(_Block(number, some, start, end))
            start = end
        return blocks

    def batch(self, start: int, end: int, rank: int, world_size: int) -> tuple[Array, Array, Array]:
        """The samples and earlier showings, int64 (B,), of a batch, and which of them a rank reads."""
        parts: list[tuple[Array, Array]] = []
        mine: list[Array] = []
        before, after = self._taken(start), self._taken(end)
        for group in range(len(self._blocks)):
            samples, times = self._entries(group, int(before[group]), int(after[group]))
            parts.append((samples, times))
            mine.append(np.full(len(samples), group % world_size == rank))
        samples, times = (np.concatenate(column) for column in zip(*parts, strict=True))
        return samples, times, np.flatnonzero(np.concatenate(mine))

    def _taken(self, position: int) -> Array:
        """How many entries of each group lie before a position of the epoch (G,); their sum is the position."""
        return np.diff(position * self._bounds // len(self))

    def _entries(self, group: int, start: int, end: int) -> tuple[Array, Array]:
        samples, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        blocks = self._blocks[group]
        for number in range(bisect_right(blocks, start, key=lambda block: block.end), len(blocks)):
            block = blocks[number]
            if block.start >= end:
                break
            of_block = self._mix(group, block)
            part = slice(max(0, start - block.start), end - block.start)
            samples.append(of_block[0][part])
            times.append(of_block[1][part])
        return np.concatenate(samples), np.concatenate(times)

    def _mix(self, group: int, block: _Block) -> tuple[Array, Array]:
        """The samples of a block in their order, and how often the epoch shows each before; kept for the next batch."""
        held = self._mixed.get(group)
        if held is None or held[0] != block.number:
            shown = [self._once.shown(int(self._rows[shard]), int(self._rows[shard + 1])) for shard in block.shards]
            samples, times = (np.concatenate(column) for column in zip(*shown, strict=True))
            key = (self._once.seed, self._once.epoch, _WITHIN, group, block.number)
            order = permuted(np.arange(len(samples)), len(samples), *key)
            held = self._mixed[group] = (block.number, samples[order], times[order])
        return held[1], held[2]

    def uses(self, bounds: Sequence[int], rank: int, world_size: int) -> list[Use]:
        """The shards that a rank reads, with the first and the last batch that each is used by, sorted by the first.

        `bounds` are the first positions of the batches, and the end.
        """
        positions, found = np.asarray(bounds), list[Use]()
        for group in range(rank, len(self._blocks), world_size):
            before, after = (positions * bound // len(self) for bound in self._bounds[group : group + 2])
            taken = after - before
            for block in self._blocks[group]:
                if block.end > block.start:
                    first = int(np.searchsorted(taken[1:], block.start, side="right"))
                    last = int(np.searchsorted(taken[:-1], block.end, side="left")) - 1
                    found += [Use(int(shard), first, last) for shard in block.shards]
        return sorted(found, key=lambda use: (use.first, use.last, use.shard))
