"""Decode image files to uint8 batches in background threads. PyTorch is used if it is installed."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from mlic.config.data import Preprocessing
from mlic.data import images

Array = np.ndarray[Any, Any]

_AHEAD = 3  # batches decoded ahead of the one in use, for each thread

T = TypeVar("T")
R = TypeVar("R")


def decode_batch(
    readers: Sequence[Callable[[], bytes]], preprocessing: Preprocessing, max_pixels: int
) -> tuple[Array, dict[int, str]]:
    """Decode what `readers` read into uint8 (B, H, W, C); positions that fail are zero and get a reason."""
    size, channels = preprocessing.image_size, preprocessing.channels
    pixels = np.empty((len(readers), size, size, channels), np.uint8)
    bad: dict[int, str] = {}
    for position, (read, target) in enumerate(zip(readers, pixels, strict=True)):
        try:
            image = images.decode(read(), preprocessing.color, max_pixels, side=size, out=target)
            if image.shape[:2] != (size, size):
                target[:] = resize(image, size)
            elif image is not target:
                target[:] = image
        except images.BadImage as error:
            target[:] = 0
            bad[position] = str(error)
    return pixels, bad


def resize(pixels: Array, size: int) -> Array:
    """uint8 (H, W, C) to (size, size, C), bilinear with antialiasing.

    A process that has loaded PyTorch uses PyTorch, which takes a fifth of Pillow's time. Other processes use NumPy,
    with the same result to the last bit: predictions must not depend on what happens to be installed.
    """
    return _resize_by_torch(pixels, size) if "torch" in sys.modules else resize_by_numpy(pixels, size)


def _resize_by_torch(pixels: Array, size: int) -> Array:
    import torch

    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def resize_by_numpy(pixels: Array, size: int) -> Array:
    """uint8 (H, W, C) to (size, size, C) as PyTorch's `interpolate` does it: one side after the other, in integers.

    Source: ATen/native/cpu/UpSampleKernelAVXAntialias.h. The products are integers below 2**24, so float32 holds them
    exactly, and matrix products are fast in float32.
    """
    height, width, channels = pixels.shape
    resized = pixels
    if width != size:
        weights, bits = _weights(width, size)
        columns = resized.transpose(1, 0, 2).reshape(width, -1).astype(np.float32)
        resized = _rounded(weights @ columns, bits).reshape(size, height, channels).transpose(1, 0, 2)
    if height != size:
        weights, bits = _weights(height, size)
        resized = _rounded(weights @ resized.reshape(height, -1).astype(np.float32), bits)
    return resized.reshape(size, size, channels)


def _rounded(products: Array, bits: int) -> Array:
    return ((products.astype(np.int32) + (1 << (bits - 1))) >> bits).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _weights(source: int, size: int) -> tuple[Array, int]:
    """The weights (size, source) of the source pixels of a side for each resized pixel, times 2**bits, and the bits."""
    scale = source / size
    support = max(scale, 1.0)
    centers = scale * (np.arange(size) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(int), 0)[:, None]
    last = np.minimum((centers + support + 0.5).astype(int), source)[:, None]
    at = np.arange(source)
    weights = (1 - np.abs((at - centers[:, None] + 0.5) / support)).clip(0) * ((first <= at) & (at < last))
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return np.floor(weights * 2**bits + 0.5).astype(np.float32), bits


def ahead(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """`map(function, items)` in order. Threads compute it ahead of the consumer; 0 threads: computed on demand."""
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    todo = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(todo, threads * _AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(todo, 1))
        finally:
            for future in waiting:
                future.cancel()
