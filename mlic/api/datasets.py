"""The samples of shards as data sets of PyTorch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils import data

from mlic.config.types import location
from mlic.data import shards
from mlic.data.pixels import decoding, images
from mlic.errors import DataError

Sample = tuple[Any, torch.Tensor]
Transform = Callable[[torch.Tensor], Any]


class Dataset(data.Dataset[Sample]):
    """Samples of shards by number: an image uint8 (3, H, W) and targets int8 (L,) with 1, 0, and -1 for unknown.

    Images have their own sizes; with `size` all are resized to (3, size, size), antialiased, as a batch needs it.
    `split` is the name of one, None for all samples. `transform` is applied to the image, as those of torchvision.v2
    are. `labels` are the names of the targets, `keys` those of the samples. Processes of a DataLoader open the shards
    themselves. Raises DataError for shards or an image that cannot be read.
    """

    def __init__(
        self,
        folder: Any,
        split: str | None = None,
        transform: Transform | None = None,
        size: int | None = None,
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        self._split = shards.read_split(location(folder), split)
        self._transform, self._size, self._max_pixels = transform, size, max_pixels
        self.labels = self._split.labels
        self._opened: tuple[int, Callable[[int], bytes]] | None = None
        self._stack = contextlib.ExitStack()

    @property
    def keys(self) -> list[str]:
        """The keys of the samples in order."""
        return [str(key) for key in self._split.keys.to_pylist()]

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """The targets int8 (N, L) of all samples."""
        return np.asarray(self._split.targets)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, number: int) -> Sample:
        number = range(len(self))[number]  # raises IndexError, which ends a loop over the data set
        try:
            pixels = images.decode(self._read(number), "rgb", self._max_pixels)
        except images.BadImage as error:
            raise DataError(f"{self._split.key(number)} cannot be decoded: {error}.", "leave it out.") from None
        if self._size is not None:
            pixels = decoding.resize(pixels, (self._size, self._size), "bilinear")
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        targets = torch.from_numpy(np.array(self._split.targets[number], np.int8))
        return (image if self._transform is None else self._transform(image)), targets

    def __repr__(self) -> str:
        return f"mlic.Dataset({len(self):,} samples of {self._split.name}, {len(self.labels)} labels)"

    def _read(self, number: int) -> bytes:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked process has files of its own
            self._stack = contextlib.ExitStack()
            self._opened = os.getpid(), self._stack.enter_context(self._split.opened())
        return self._opened[1](number)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_stack": None}


class IterableDataset(data.IterableDataset[Sample]):
    """The samples of a `Dataset`, each once an epoch over all processes and all ranks of torch.distributed.

    They come in a random order of `seed` and the epoch that `set_epoch` names, or, with shuffle=False, in their own.
    """

    def __init__(
        self,
        folder: Any,
        split: str | None = None,
        transform: Transform | None = None,
        size: int | None = None,
        shuffle: bool = True,
        seed: int = 42,
    ) -> None:
        self.samples = Dataset(folder, split, transform, size)
        self.labels = self.samples.labels
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration have the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        rank, world = _rank()
        return len(range(rank, len(self.samples), world))

    def __iter__(self) -> Iterator[Sample]:
        rank, world = _rank()
        worker = data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = np.arange(len(self.samples))
        if self._shuffle:
            order = np.random.default_rng([self._seed, 41, self._epoch]).permutation(len(self.samples))
        for i in order[rank::world][number::count].tolist():
            yield self.samples[i]


def _rank() -> tuple[int, int]:
    """The rank of this process and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
