"""Load batches from shards, each sample exactly once for any number of ranks.

Every rank can look up any sample of a split and reads its own part of each batch by offset. So ranks do not have to
exchange anything: no padding, no repeated sample, no hang when there are fewer shards than ranks. The order of training
depends on the seed and the epoch alone, and a global batch holds the same samples for any number of ranks.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mlic.config.data import Preprocessing
from mlic.config.fit import Interpolation
from mlic.data import cache, storage
from mlic.data.pixels import images
from mlic.data.pixels.decoding import decode_batch, loader_threads, resize
from mlic.data.shard_window import ShardWindow
from mlic.data.shards import Split
from mlic.errors import DataError

_CACHE_BATCH = 256
_DTYPES = {8: torch.uint8, 16: torch.uint16}
_PIECE = 32  # images that one thread loads at a time
_PIECES_AHEAD = 6  # loaded ahead of the batch in use, for each thread


@dataclass(frozen=True)
class Batch:
    """A rank's part of one batch.

    `images` is uint8 or uint16 (B, H, W, C), `index` int64 (B,) numbers the samples in their split, and `targets` is
    int8 (B, L). A sample that cannot be decoded is all zeros, and all its labels are unknown, so it counts nowhere.
    `bad` holds its key and the reason.
    """

    images: torch.Tensor
    index: np.ndarray[tuple[int], np.dtype[np.int64]]
    targets: torch.Tensor
    bad: tuple[tuple[str, str], ...]


def train_bounds(
    num_samples: int, batch_size: int, world_size: int, least: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The first position of each batch of an epoch, and the number of samples at the end; int64 (steps + 1,).

    Each rank has every `world_size`-th position of a batch. A last batch too small to give each rank two samples, which
    batch norm needs, or smaller than `least`, joins the one before it. Raises DataError when there are fewer than two
    samples a rank.
    """
    if num_samples < 2 * world_size:
        raise DataError(f"{num_samples} training samples are too few for {world_size} workers.", "use fewer --workers.")
    bounds = np.arange(0, num_samples, max(batch_size, 2 * world_size))
    if len(bounds) > 1 and num_samples - bounds[-1] < max(least, 2 * world_size):
        bounds = bounds[:-1]
    return np.append(bounds, num_samples)


def eval_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """This rank's sample numbers of an evaluation, in batches; over all ranks every sample is there exactly once."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


class _Piece(NamedTuple):
    """Some rows of a batch: their samples, boxes to crop if there are any, the images to write, and the first row."""

    samples: np.ndarray[tuple[int], np.dtype[np.int64]]
    boxes: np.ndarray[Any, Any] | None
    images: torch.Tensor
    first: int


@dataclass(frozen=True)
class _LoadingBatch:
    """A batch whose images are being loaded."""

    split: Split
    index: np.ndarray[tuple[int], np.dtype[np.int64]]
    boxes: np.ndarray[Any, Any] | None
    images: torch.Tensor
    pinned: bool

    @property
    def pieces(self) -> list[_Piece]:
        """The parts that one thread each loads."""
        parts = [slice(start, start + _PIECE) for start in range(0, len(self.index), _PIECE)]
        boxes = self.boxes
        return [
            _Piece(self.index[part], None if boxes is None else boxes[part], self.images[part], part.start)
            for part in parts
        ]

    def loaded(self, reasons: Sequence[dict[int, str]]) -> Batch:
        """The batch, from the reasons of the bad samples of its pieces."""
        bad = {row: reason for of_piece in reasons for row, reason in of_piece.items()}
        targets = self.split.targets[self.index]
        targets[list(bad)] = -1
        named = tuple((self.split.key(self.index[row]), reason) for row, reason in bad.items())
        of_labels = torch.from_numpy(targets)
        return Batch(self.images, self.index, of_labels.pin_memory() if self.pinned else of_labels, named)


class ShardReader:
    """Reads images out of shards by offset, or out of the node's cache of decoded ones; keeps the files open.

    `preprocessing` sets the size of the images that are read and cached; crops of them may be smaller.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._split, self._preprocessing = split, preprocessing
        self._files: dict[int, storage.File] = {}
        self._streamed: dict[int, storage.File] = {}
        self._window: ShardWindow | None = None
        self._decoded: cache.Decoded | None = None

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._decoded = None

    @contextmanager
    def reading(self, window: ShardWindow | None) -> Iterator[None]:
        """Read the next batches from streamed shards, if there is a window of them."""
        self._window = window
        try:
            yield
        finally:
            self._window = None
            self._streamed.clear()

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
        batches: Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]],
        threads: int,
        crops: Iterable[np.ndarray[Any, Any]] | None = None,
        size: int = 0,
        pinned: bool = False,
    ) -> Iterator[Batch]:
        """Load batches of sample numbers in their order, decoding ahead in `threads` threads, or in this one with 0.

        `crops` has an array (B, 4) for each batch: top, left, bottom and right as fractions of an image's sides. That
        part of each image is resized to `size` pixels. `pinned` images and targets lie in memory that a GPU copies
        from without a wait; the threads decode straight into it.
        """
        asked = ((batch, None) for batch in batches) if crops is None else zip(batches, crops, strict=True)
        if self._decoded is not None and crops is None and not pinned:
            threads = 0  # copying decoded images takes less time than passing them from one core to another
        if threads == 0:
            for index, boxes in asked:
                batch = self._begin(index, boxes, size, pinned)
                yield self._ended(batch, [self._load(piece) for piece in batch.pieces])
            return
        yield from self._ahead(asked, threads, size, pinned)

    def _ahead(
        self,
        asked: Iterable[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[Any, Any] | None]],
        threads: int,
        size: int,
        pinned: bool,
    ) -> Iterator[Batch]:
        """Batches in their order. Several threads load a batch together, so a large one is soon there."""
        waiting: deque[tuple[_LoadingBatch, list[Future[dict[int, str]]]]] = deque()
        with loader_threads(threads) as pool:
            try:
                for index, boxes in asked:
                    batch = self._begin(index, boxes, size, pinned)
                    waiting.append((batch, [pool.submit(self._load, piece) for piece in batch.pieces]))
                    if sum(len(pieces) for _, pieces in waiting) >= threads * _PIECES_AHEAD and len(waiting) > 2:
                        first, pieces = waiting.popleft()
                        yield self._ended(first, [piece.result() for piece in pieces])
                while waiting:
                    first, pieces = waiting.popleft()
                    yield self._ended(first, [piece.result() for piece in pieces])
            finally:
                for _, pieces in waiting:
                    for piece in pieces:
                        piece.cancel()

    def _begin(
        self, index: np.ndarray[tuple[int], np.dtype[np.int64]], boxes: Any, size: int, pinned: bool
    ) -> _LoadingBatch:
        shards = set(self._split.shard[index].tolist()) if self._decoded is None else set()
        if self._window is not None:
            self._streamed |= self._window.begin(shards)
        else:
            for number in shards - self._files.keys():
                self._files[number] = self._split.open_shard(number)
        prep = self._preprocessing
        side = prep.image_size if boxes is None else size
        images = torch.empty((len(index), side, side, prep.channels), dtype=_DTYPES[prep.bits], pin_memory=pinned)
        return _LoadingBatch(self._split, index, boxes, images, pinned)

    def _ended(self, batch: _LoadingBatch, reasons: Sequence[dict[int, str]]) -> Batch:
        """A batch whose images are there; shards that no further batch needs are dropped."""
        if self._window is not None:
            self._window.end()
        return batch.loaded(reasons)

    def _load(self, piece: _Piece) -> dict[int, str]:
        """Load a piece of a batch into its place; returns the reasons of bad samples by their row in the batch."""
        index, boxes, out, first = piece
        target = out.numpy() if boxes is None else None
        if self._decoded is not None:
            # mode: without it NumPy would write to a buffer first, in case that a number is out of bounds
            pixels = np.take(self._decoded.images, index, axis=0, out=target, mode="clip")
            bad = {row: self._decoded.bad[int(i)] for row, i in enumerate(index) if int(i) in self._decoded.bad}
        else:
            pixels, bad = decode_batch(self._readers(index), self._preprocessing, images.MAX_PIXELS, target)
        if boxes is not None:
            _crop(torch.from_numpy(pixels), boxes, out, self._preprocessing.interpolation)
        return {first + row: reason for row, reason in bad.items()}

    def _readers(self, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[Callable[[], bytes]]:
        split = self._split
        places = (column[index].tolist() for column in (split.shard, split.offsets, split.sizes))
        files = self._files if self._window is None else self._streamed
        return [partial(files[shard].read_at, offset, size) for shard, offset, size in zip(*places, strict=True)]


class FeatureReader:
    """Reads features that stand for images, float32 (N, F), as a ShardReader reads images."""

    def __init__(self, split: Split, features: cache.Decoded) -> None:
        self._split, self._features = split, features

    def batches(
        self,
        batches: Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]],
        threads: int,
        *_: object,
        pinned: bool = False,
    ) -> Iterator[Batch]:
        """Load batches of sample numbers in their order; in memory, so without threads."""
        del threads, pinned
        bad = self._features.bad
        for index in batches:
            targets = self._split.targets[index]
            named = tuple((self._split.key(i), bad[i]) for i in index.tolist() if i in bad)
            if named:
                targets[[int(i) in bad for i in index]] = -1
            yield Batch(torch.from_numpy(self._features.images[index]), index, torch.from_numpy(targets), named)


def _crop(pixels: torch.Tensor, boxes: np.ndarray[Any, Any], out: torch.Tensor, interpolation: Interpolation) -> None:
    """Write parts of images (B, S, S, C) given by `boxes` (B, 4) in shares of the sides to `out` (B, size, size, C)."""
    side, size = pixels.shape[1], out.shape[1]
    edges = np.concatenate([np.floor(boxes[:, :2] * side), np.ceil(boxes[:, 2:] * side)], axis=1).astype(int)
    for i, (top, left, bottom, right) in enumerate(edges.clip(0, side).tolist()):
        out[i] = torch.from_numpy(resize(pixels[i, top:bottom, left:right].numpy(), (size, size), interpolation))


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device. On a GPU, each is copied while the batch before it is in use, if its memory is pinned."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, targets = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.targets))
            following = dataclasses.replace(batch, images=images, targets=targets)
            event = stream.record_event()
        if copied is not None:
            yield _usable(*copied)
        copied = following, event
    if copied is not None:
        yield _usable(*copied)


def _usable(batch: Batch, event: torch.cuda.Event) -> Batch:
    """A batch that the current stream uses after its copy; its memory is kept until that stream has used it."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(event)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch
