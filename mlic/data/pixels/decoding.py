"""Decode image files to uint8 batches in background threads. PyTorch is used if it is installed."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from mlic.config.data import Preprocessing
from mlic.config.fit import Interpolation
from mlic.data.pixels import deep_images, images

Array = np.ndarray[Any, Any]

_SWITCH_S = 1e-4
_LONGEST = 8  # times the short side: what is left of a long image before its middle is taken
_AHEAD = 3  # batches decoded ahead of the one in use, for each thread

T = TypeVar("T")
R = TypeVar("R")


def decode_batch(
    readers: Sequence[Callable[[], bytes]], preprocessing: Preprocessing, max_pixels: int, out: Array | None = None
) -> tuple[Array, dict[int, str]]:
    """Decode what `readers` read into (B, H, W, C) of the preprocessing's dtype; bad ones are zero and get a reason.

    The result lies in `out`, where it is given.
    """
    size, scale, channels = preprocessing.image_size, preprocessing.scale, preprocessing.channels
    pixels = np.empty((len(readers), size, size, channels), preprocessing.dtype) if out is None else out
    bad, scratch = dict[int, str](), images.Scratch()
    for position, (read, target) in enumerate(zip(readers, pixels, strict=True)):
        try:
            if preprocessing.is_deep:
                image = deep_images.decode(
                    read(), preprocessing.color, preprocessing.bands, preprocessing.bits, max_pixels
                )
            else:
                into = target if scale == size else None
                image = images.decode(read(), preprocessing.color, max_pixels, side=scale, out=into, scratch=scratch)
            if image is not target:
                _to_square(image, preprocessing, target)
        except images.BadImage as error:
            target[:] = 0
            bad[position] = str(error)
    return pixels, bad


def _to_square(pixels: Array, preprocessing: Preprocessing, out: Array) -> None:
    """Write pixels (H, W, C) as the square input of a model to `out`."""
    size = preprocessing.image_size
    if preprocessing.resize == "crop":
        pixels = _middle(pixels)
    height, width, top, left = _fitted(pixels.shape[0], pixels.shape[1], preprocessing)
    resized = resize(pixels, (height, width), preprocessing.interpolation)
    if height < size or width < size:
        out[:] = np.round(preprocessing.top * np.array(preprocessing.mean)).astype(out.dtype)
    rows, columns = (slice(max(0, -start), max(0, -start) + size) for start in (top, left))
    part = resized[max(0, top) : max(0, top) + size, max(0, left) : max(0, left) + size]
    out[rows, columns][: part.shape[0], : part.shape[1]] = part


def _middle(pixels: Array) -> Array:
    """The middle of a very long image. The resized whole might not fit the memory."""
    starts = [max(0, (side - _LONGEST * min(pixels.shape[:2])) // 2) for side in pixels.shape[:2]]
    return pixels[starts[0] : len(pixels) - starts[0], starts[1] : pixels.shape[1] - starts[1]]


def _fitted(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """The height and width that an image is resized to, and the first row and column of the model's input in it.

    They are negative where the image does not cover the input. The rounding is that of torchvision's Resize and
    CenterCrop, and of timm's ResizeKeepRatio.
    """
    scale, size = preprocessing.scale, preprocessing.image_size
    if preprocessing.resize == "squash":
        height, width = scale, scale
    elif preprocessing.resize == "crop":
        short = min(height, width)
        height, width = int(scale * height / short), int(scale * width / short)
    else:
        long = max(height, width)
        height, width = (max(1, round(side * scale / long)) for side in (height, width))
    top, left = (round((side - size) / 2) if side >= size else -((size - side) // 2) for side in (height, width))
    return height, width, top, left


def input_box(height: int, width: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """The part of an image that a model sees: left, top, right and bottom in fractions of its sides.

    They are below 0 or above 1 where the input has borders.
    """
    high, wide, top, left = _fitted(height, width, preprocessing)
    size = preprocessing.image_size
    return left / wide, top / high, (left + size) / wide, (top + size) / high


def resize(pixels: Array, shape: tuple[int, int], interpolation: Interpolation) -> Array:
    """uint8 or uint16 (H, W, C) to (*shape, C), antialiased.

    For uint8, a process that has loaded PyTorch uses PyTorch, which takes a fifth of Pillow's time. Other processes use
    NumPy, with the same result to the last bit: predictions must not depend on what happens to be installed.
    """
    if pixels.shape[:2] == shape:
        return pixels
    by = _resize_by_torch if "torch" in sys.modules and pixels.dtype == np.uint8 else resize_by_numpy
    return by(pixels, shape, interpolation)


def _resize_by_torch(pixels: Array, shape: tuple[int, int], interpolation: Interpolation) -> Array:
    import torch

    # The dimension of the batch comes first, so that PyTorch sees channels-last memory, and writes such.
    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(batch, shape, mode=interpolation, antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def resize_by_numpy(pixels: Array, shape: tuple[int, int], interpolation: Interpolation) -> Array:
    """Pixels (H, W, C) to (*shape, C) as PyTorch's `interpolate` does it for uint8: each side by itself, in integers.

    They are uint8 or uint16. Source: ATen/native/cpu/UpSampleKernelAVXAntialias.h.
    """
    (height, width, channels), (high, wide) = pixels.shape, shape
    resized = pixels
    if width != wide:
        columns = resized.transpose(1, 0, 2).reshape(width, -1)
        weighted = _weighted(columns, wide, interpolation)
        resized = weighted.reshape(wide, height, channels).transpose(1, 0, 2)
    if height != high:
        resized = _weighted(resized.reshape(height, -1), high, interpolation)
    return resized.reshape(high, wide, channels)


def _weighted(rows: Array, size: int, interpolation: Interpolation) -> Array:
    """uint8 or uint16 (H, N) to (size, N). The sums are integers; where float32 holds them, its products are fast."""
    weights, bits = _weights(len(rows), size, interpolation)
    top = np.iinfo(rows.dtype).max
    exact = np.float32 if np.abs(weights).sum(axis=1).max() * top < 2**24 else np.float64
    products: Array = (weights.astype(exact) @ rows.astype(exact)).astype(np.int64)
    return ((products + (1 << (bits - 1))) >> bits).clip(0, top).astype(rows.dtype)


@lru_cache(maxsize=256)
def _weights(source: int, size: int, interpolation: Interpolation) -> tuple[Array, int]:
    """The weights (size, source) of the source pixels of a side for each resized pixel, times 2**bits, and the bits."""
    scale = source / size
    stretch = max(scale, 1.0)
    support = stretch * (1 if interpolation == "bilinear" else 2)
    centers = scale * (np.arange(size) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(int), 0)[:, None]
    last = np.minimum((centers + support + 0.5).astype(int), source)[:, None]
    at = np.arange(source)
    distances = np.abs((at - centers[:, None] + 0.5) / stretch)
    weights = (_triangle if interpolation == "bilinear" else _cubic)(distances) * ((first <= at) & (at < last))
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return np.trunc(weights * 2**bits + np.copysign(0.5, weights)), bits


def _triangle(distances: Array) -> Array:
    return (1 - distances).clip(0)


def _cubic(distances: Array) -> Array:
    """Keys's cubic convolution with a = -0.5, as Pillow and PyTorch's antialiased resize have it."""
    x, a = distances, -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@contextmanager
def loader_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that decode beside the thread that computes.

    Python lets a thread keep the interpreter for 5 ms. A thread that decodes asks for it some ten times an image, so
    beside a thread that computes in Python, such as one that sends work to a GPU, it would decode 30 images a second.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_S))
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="loader") as pool:
            yield pool
    finally:
        sys.setswitchinterval(before)


def ahead(function: Callable[[T], R], items: Sequence[T], threads: int) -> Generator[R, None, None]:
    """`map(function, items)` in order. Threads compute it ahead of the consumer; 0 threads: computed on demand."""
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    todo = iter(items)
    with loader_threads(threads) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(todo, threads * _AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(todo, 1))
        finally:
            for future in waiting:
                future.cancel()
