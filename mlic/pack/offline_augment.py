"""Offline augmentation: write augmented copies of training images into the shards."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from mlic.config.types import Operation
from mlic.data.pixels import images

_DEGREES, _SHIFT = 15.0, 0.1  # the largest change in either direction; the shift as a share of a side
_ERASED = (0.02, 0.2)  # share of the area that is painted over
_FACTOR = 0.3
_QUALITY = 92


def render(data: bytes, operations: Sequence[Operation], seed: Sequence[int], max_pixels: int) -> bytes:
    """Apply the operations to an image file one after another, with amounts drawn from the seed; returns a JPEG.

    The image is upright and keeps its size; a grey image stays grey. Raises BadImage. The operations are those that the
    reference systems B (rotate, shift, flip) and E (erase, brightness, contrast) used.
    """
    pixels = images.decode(data, "rgb", max_pixels)
    gray = bool((pixels[:, :, :1] == pixels).all())
    image = Image.fromarray(pixels[:, :, 0] if gray else pixels)
    rng = np.random.default_rng(list(seed))
    for operation in operations:
        image = _OPERATIONS[operation](image, rng)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(rng.uniform(-_DEGREES, _DEGREES), Image.Resampling.BILINEAR, fillcolor=_mean(image))


def _shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    dx, dy = rng.uniform(-_SHIFT, _SHIFT, 2) * image.size
    matrix = (1, 0, float(dx), 0, 1, float(dy))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_mean(image))


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _erase(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    share, ratio = rng.uniform(*_ERASED), np.exp(rng.uniform(-1, 1))
    w, h = min(1.0, float(np.sqrt(share * ratio))), min(1.0, float(np.sqrt(share / ratio)))
    x, y = int(rng.uniform(0, 1 - w) * width), int(rng.uniform(0, 1 - h) * height)
    erased = image.copy()
    erased.paste(_mean(image), (x, y, x + max(1, int(w * width)), y + max(1, int(h * height))))
    return erased


def _brightness(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(1 - _FACTOR, 1 + _FACTOR))


def _contrast(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(rng.uniform(1 - _FACTOR, 1 + _FACTOR))


def _mean(image: Image.Image) -> Any:
    """The colour that uncovered corners get: the image's mean, so that an edge is not a feature to learn."""
    mean = np.asarray(image).reshape(-1, len(image.getbands())).mean(axis=0).astype(int).tolist()
    return mean[0] if len(mean) == 1 else tuple(mean)


_OPERATIONS: dict[Operation, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "rotate": _rotate,
    "shift": _shift,
    "flip": _flip,
    "erase": _erase,
    "brightness": _brightness,
    "contrast": _contrast,
}
