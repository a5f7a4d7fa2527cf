"""Images whose channels or bits would be lost as colours of 8 bits: bands of satellites, 16 bits of scanners.

TIFF is read through tifffile, 16-bit PNG through imagecodecs, everything else as `images` reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlic.config.fit import Color
from mlic.data.pixels import images
from mlic.data.pixels.images import BadImage

Array = np.ndarray[Any, Any]

_PNG = b"\x89PNG\r\n\x1a\n"
_LUMA = np.array([19595, 38470, 7471], np.int64)  # ITU-R 601 in 65536ths, as Pillow has it


def decode(data: bytes, color: Color, bands: int, bits: int, max_pixels: int) -> Array:
    """Decode to uint8 or, for 16 `bits`, uint16 (height, width, channels), upright by its orientation tag.

    With `bands`, an image has as many channels, and keeps them as they are. Without, it becomes `color`. For 16 bits,
    integers stay what they are, those of 8 bits are spread over 16, and floats count as 0 to 1. For 8 bits, deep pixels
    are scaled as `images.decode` scales them. Raises BadImage, also for other channels, and values that do not fit.
    """
    pixels = _pixels(data, color, bands, max_pixels)
    if bands and pixels.shape[2] != bands:
        raise BadImage(f"{pixels.shape[2]} channels where --channels is {bands}")
    values = _in_16_bits(pixels) if bits == 16 else images.to_8_bits(pixels)[0]
    return values if bands else _in_color(values, color)


def picture(data: bytes, color: Color, max_pixels: int, side: int = 0) -> Array:
    """An image to look at, uint8 (height, width, 3 or 1), as `images.decode`; the first bands of one that has more."""
    if images.is_tiff(data):
        try:
            return images.decode(data, color, max_pixels, side)
        except BadImage:
            pixels = images.tiff_values(data, max_pixels)
        shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        return _in_color(images.to_8_bits(shown)[0], color)
    return images.decode(data, color, max_pixels, side)


def _pixels(data: bytes, color: Color, bands: int, max_pixels: int) -> Array:
    """The values of an image (height, width, channels), of the type that the file has."""
    if not data:
        raise BadImage("zero bytes")
    if images.is_tiff(data):
        return images.tiff_values(data, max_pixels)
    if data[:8] == _PNG and data[24:25] == b"\x10":  # bits a channel, in the header
        return _deep_png(data, max_pixels)
    if bands not in (0, 1, 3):
        return images.decode_all_channels(data, max_pixels)
    return images.decode(data, color if not bands else "gray" if bands == 1 else "rgb", max_pixels)


def _deep_png(data: bytes, max_pixels: int) -> Array:
    try:
        import imagecodecs
    except ImportError:
        raise BadImage("a PNG of 16 bits, which needs the package imagecodecs") from None
    images.header(data, max_pixels)
    try:
        values = imagecodecs.png_decode(data)
    except Exception as error:  # as above
        raise BadImage(" ".join(str(error).split()).rstrip(".") or type(error).__name__) from None
    return values.reshape(*values.shape[:2], -1)


def _in_16_bits(values: Array) -> Array:
    """Values as uint16. Raises BadImage for those that would be changed by more than rounding."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values.astype(np.uint16) * 257
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if kind == "f":
        if not (low >= 0 and high <= 1):  # also where one is not a number
            raise BadImage(f"floats from {low:g} to {high:g}; write them from 0 to 1, or integers of 16 bits")
        return np.round(values.astype(np.float64) * 65535).astype(np.uint16)
    if kind not in "ui" or low < 0 or high > 65535:
        raise BadImage(f"values from {low} to {high}, which 16 bits do not hold")
    return values.astype(np.uint16)


def _in_color(values: Array, color: Color) -> Array:
    """Values (height, width, C) of 1 to 4 channels as rgb or gray; what is after the colours is transparency."""
    channels = values.shape[2]
    if channels > 4:
        raise BadImage(f"{channels} channels, which are no colours; --channels {channels} keeps them")
    colors = values[:, :, :1] if channels < 3 else values[:, :, :3]
    if color == "gray" and channels >= 3:
        colors = ((colors.astype(np.int64) @ _LUMA + 0x8000) >> 16).astype(values.dtype)[:, :, None]
    if color == "rgb" and channels < 3:
        colors = np.repeat(colors, 3, axis=2)
    return np.ascontiguousarray(colors)
