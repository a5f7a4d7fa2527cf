"""Shards to uint8 batches, exactly once, for any number of ranks.

Every rank knows the whole table of a split and reads its own part of each batch by offset, so there is nothing to deal
out between ranks: no padding, no repeated sample, no hang when there are fewer shards than ranks. The order of training
depends on the seed and the epoch alone, and a global batch holds the same samples for any number of ranks.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mlic.config import Preprocessing
from mlic.data import images
from mlic.data.shards import Split
from mlic.errors import DataError

MAX_PIXELS = 100_000_000
_AHEAD = 3  # batches decoded ahead of the one in use, for each thread

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Batch:
    """A rank's part of one batch.

    `images` is uint8 (B, H, W, C), `index` int64 (B,) numbers the samples in their split, `targets` int8 (B, L).
    A sample that does not decode is all zeros with all its labels unknown, so that it counts nowhere, and is named in
    `bad` with its reason.
    """

    images: torch.Tensor
    index: np.ndarray[tuple[int], np.dtype[np.int64]]
    targets: torch.Tensor
    bad: tuple[tuple[str, str], ...]


def train_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int, seed: int, epoch: int
) -> list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """The batches of one epoch as (this rank's sample numbers, the whole batch's sample numbers).

    Every sample is in exactly one batch. A last batch too small to give each rank two samples, which batch norm needs,
    joins the one before it. Raises DataError when there are fewer than two samples a rank.
    """
    if num_samples < 2 * world_size:
        raise DataError(f"{num_samples} training samples are too few for {world_size} workers.", "use fewer --workers.")
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    batch_size = max(batch_size, 2 * world_size)
    bounds = list(range(0, num_samples, batch_size))
    if len(bounds) > 1 and num_samples - bounds[-1] < 2 * world_size:
        bounds.pop()
    ends = [*bounds[1:], num_samples]
    return [(order[a:b][rank::world_size], order[a:b]) for a, b in zip(bounds, ends, strict=True)]


def eval_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """This rank's sample numbers of an evaluation, in batches; over all ranks every sample is there exactly once."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


class ShardReader:
    """Reads images out of shards by offset; keeps the shards' files open."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._split, self._preprocessing = split, preprocessing
        self._files: dict[int, int] = {}

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def batches(self, batches: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], threads: int) -> Iterator[Batch]:
        """Load batches of sample numbers in their order, decoding ahead in `threads` threads."""
        for i in {int(s) for batch in batches for s in self._split.shard[batch]} - self._files.keys():
            self._files[i] = os.open(self._split.shards[i], os.O_RDONLY)
        yield from ahead(self._load, batches, threads)

    def _load(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        split = self._split
        blobs = [
            (
                split.keys[i],
                lambda i=i: os.pread(self._files[int(split.shard[i])], int(split.sizes[i]), int(split.offsets[i])),
            )
            for i in index
        ]
        pixels, bad = decode_batch(blobs, self._preprocessing, MAX_PIXELS)
        targets = split.targets[index]
        for position in bad:
            targets[position] = -1
        named = tuple((split.keys[index[position]], reason) for position, reason in bad.items())
        return Batch(pixels, index, torch.from_numpy(targets), named)


def decode_batch(
    blobs: Sequence[tuple[str, Callable[[], bytes]]], preprocessing: Preprocessing, max_pixels: int
) -> tuple[torch.Tensor, dict[int, str]]:
    """Decode (name, reader of bytes) pairs into uint8 (B, H, W, C); positions that fail stay zero and get a reason."""
    size, channels = preprocessing.image_size, preprocessing.channels
    pixels = torch.zeros(len(blobs), size, size, channels, dtype=torch.uint8)
    array = pixels.numpy()
    bad: dict[int, str] = {}
    for position, (_, read) in enumerate(blobs):
        try:
            array[position] = images.load(read(), preprocessing, max_pixels)
        except images.BadImage as error:
            bad[position] = str(error)
    return pixels, bad


def file_reader(path: Path) -> Callable[[], bytes]:
    """A reader of a whole image file, for `decode_batch`."""
    return lambda: images.read_file(path)


def ahead(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """`map(work, items)` in order, computed ahead of the consumer in threads."""
    waiting: deque[Future[R]] = deque()
    todo = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        try:
            waiting.extend(pool.submit(work, item) for item in islice(todo, threads * _AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(todo, 1))
        finally:
            for future in waiting:
                future.cancel()
