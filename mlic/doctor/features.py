"""Simple image features, enough to test whether labels are related to images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mlic.data.pixels import deep_images

_SIDE, _GRID, _BINS = 32, 4, 6

NUM_FEATURES = _GRID * _GRID * (3 + 3 + _BINS)


def extract(data: bytes, max_pixels: int) -> np.ndarray[Any, Any]:
    """Features float32 (NUM_FEATURES,) of an image file: colours, contrasts and edge directions on a 4 x 4 grid.

    Raises BadImage.
    """
    image = Image.fromarray(deep_images.picture(data, "rgb", max_pixels, side=_SIDE))
    pixels = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).astype(np.float32) / 255
    cells = _cells(pixels)  # (16, 64, 3)
    gray = pixels.mean(axis=2)
    dy, dx = np.gradient(gray)
    strength = np.hypot(dx, dy)
    direction = ((np.arctan2(dy, dx) % np.pi) / np.pi * _BINS).astype(int).clip(0, _BINS - 1)
    edges = strength[:, :, None] * (direction[:, :, None] == np.arange(_BINS))
    parts = [cells.mean(axis=1), cells.std(axis=1), _cells(edges).mean(axis=1)]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _cells(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(32, 32, C) as 16 cells of 64 pixels: (16, 64, C)."""
    step = _SIDE // _GRID
    split = values.reshape(_GRID, step, _GRID, step, -1).transpose(0, 2, 1, 3, 4)
    return split.reshape(_GRID * _GRID, step * step, -1)
