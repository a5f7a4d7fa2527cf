"""Load batches from shards, each sample exactly once for any number of ranks.

Every rank knows the whole table of a split and reads its own part of each batch by offset. So ranks do not have to
exchange anything: no padding, no repeated sample, no hang when there are fewer shards than ranks. The order of training
depends on the seed and the epoch alone, and a global batch holds the same samples for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlic.config.data import Preprocessing
from mlic.data import cache, images, storage
from mlic.data.decoding import ahead, decode_batch, resize
from mlic.data.shards import Split
from mlic.errors import DataError

_CACHE_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """A rank's part of one batch.

    `images` is uint8 (B, H, W, C), `index` int64 (B,) numbers the samples in their split, `targets` int8 (B, L).
    A sample that cannot be decoded is all zeros, and all its labels are unknown, so it counts nowhere. `bad` holds its
    key and the reason.
    """

    images: torch.Tensor
    index: np.ndarray[tuple[int], np.dtype[np.int64]]
    targets: torch.Tensor
    bad: tuple[tuple[str, str], ...]


def train_batches(
    order: np.ndarray[Any, Any], batch_size: int, rank: int, world_size: int
) -> list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """The batches of one epoch, the samples `order` int64, as (this rank's sample numbers, the whole batch's).

    Each entry of the order is in exactly one batch. A last batch too small to give each rank two samples, which batch
    norm needs, joins the one before it. Raises DataError when there are fewer than two samples a rank.
    """
    num_samples = len(order)
    if num_samples < 2 * world_size:
        raise DataError(f"{num_samples} training samples are too few for {world_size} workers.", "use fewer --workers.")
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
    """Reads images out of shards by offset, or out of the node's cache of decoded ones; keeps the files open.

    `preprocessing` sets the size of the images that are read and cached; crops of them may be smaller.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._split, self._preprocessing = split, preprocessing
        self._files: dict[int, storage.File] = {}
        self._decoded: cache.Decoded | None = None

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._decoded = None

    def use_cache(self, limit_gb: float, threads: int, folder: Path | None = None) -> bool:
        """Decode the whole split once into the cache, if it fits, and read from there; returns whether it fits."""

        def decode() -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[int, str]]]:
            for batch in self.batches(eval_batches(len(self._split), _CACHE_BATCH, 0, 1), threads):
                named = dict(batch.bad)
                reasons = (
                    {i: named[key] for i in map(int, batch.index) if (key := self._split.key(i)) in named}
                    if named
                    else {}
                )
                yield batch.index, batch.images.numpy(), reasons

        where = folder or storage.node_folder()
        self._decoded = cache.decoded(self._split, self._preprocessing, limit_gb, where, decode)
        return self._decoded is not None

    def batches(
        self,
        batches: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]],
        threads: int,
        crops: Sequence[np.ndarray[Any, Any] | None] | None = None,
        size: int = 0,
    ) -> Iterator[Batch]:
        """Load batches of sample numbers in their order, decoding ahead in `threads` threads, or in this one with 0.

        `crops` has an array (B, 4) for each batch: top, left, bottom and right as fractions of an image's sides. That
        part of each image is resized to `size` pixels.
        """
        if self._decoded is None:
            for i in {int(s) for batch in batches for s in self._split.shard[batch]} - self._files.keys():
                self._files[i] = self._split.open_shard(i)
        elif crops is None:
            # Copying decoded images takes less time than passing them from one core to another.
            yield from (self._load(index, None, size) for index in batches)
            return
        boxes = [None] * len(batches) if crops is None else crops
        asked = list(zip(batches, boxes, strict=True))
        yield from ahead(lambda pair: self._load(pair[0], pair[1], size), asked, threads)

    def _load(
        self, index: np.ndarray[tuple[int], np.dtype[np.int64]], crops: np.ndarray[Any, Any] | None, size: int
    ) -> Batch:
        split = self._split
        if self._decoded is not None:
            pixels = torch.from_numpy(self._decoded.images[index])
            bad = {row: self._decoded.bad[int(i)] for row, i in enumerate(index) if int(i) in self._decoded.bad}
        else:
            decoded, bad = decode_batch(self._readers(index), self._preprocessing, images.MAX_PIXELS)
            pixels = torch.from_numpy(decoded)
        if crops is not None:
            pixels = _cropped(pixels, crops, size)
        targets = split.targets[index]
        for row in bad:
            targets[row] = -1
        named = tuple((split.key(index[row]), reason) for row, reason in bad.items())
        return Batch(pixels, index, torch.from_numpy(targets), named)

    def _readers(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[Callable[[], bytes]]:
        split = self._split
        places = (column[index].tolist() for column in (split.shard, split.offsets, split.sizes))
        return [partial(self._files[shard].read_at, offset, size) for shard, offset, size in zip(*places, strict=True)]


class FeatureReader:
    """Reads features that stand for images, float32 (N, F), as a ShardReader reads images."""

    def __init__(self, split: Split, features: cache.Decoded) -> None:
        self._split, self._features = split, features

    def batches(
        self, batches: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], threads: int, *_: object
    ) -> Iterator[Batch]:
        """Load batches of sample numbers in their order; in memory, so without threads."""
        del threads
        bad = self._features.bad
        for index in batches:
            targets = self._split.targets[index]
            named = tuple((self._split.key(i), bad[i]) for i in index.tolist() if i in bad)
            if named:
                targets[[int(i) in bad for i in index]] = -1
            yield Batch(torch.from_numpy(self._features.images[index]), index, torch.from_numpy(targets), named)


def _cropped(pixels: torch.Tensor, boxes: np.ndarray[Any, Any], size: int) -> torch.Tensor:
    """Parts of images (B, S, S, C) given by `boxes` (B, 4) in shares of the sides, as (B, size, size, C)."""
    side = pixels.shape[1]
    edges = np.concatenate([np.floor(boxes[:, :2] * side), np.ceil(boxes[:, 2:] * side)], axis=1).astype(int)
    out = torch.empty(len(pixels), size, size, pixels.shape[3], dtype=torch.uint8)
    for i, (top, left, bottom, right) in enumerate(edges.clip(0, side).tolist()):
        out[i] = torch.from_numpy(resize(pixels[i, top:bottom, left:right].numpy(), size))
    return out
