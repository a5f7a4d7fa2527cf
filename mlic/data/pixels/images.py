"""Decode image bytes to uint8 arrays: JPEG through libjpeg-turbo, all else through Pillow with a pixel limit."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mlic.config.fit import Color

Array = np.ndarray[Any, Any]

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k"}
    | {".heic", ".heif"}  # read where pillow-heif is installed
)

_EXIF_ORIENTATION = 274
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # Pillow's modes of one channel with more than 8 bits
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNELS = "TIFF of "  # and their number: what only tifffile reads
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits of the integers that cameras and scanners write
_HALF = "premature end of data segment"  # libjpeg's warning
# Orientation tag -> (turns by 90 degrees counter-clockwise, mirror left-right afterwards). TIFF 6.0, tag 274.
_TURNS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


MAX_BYTES = 512 * 2**20  # a larger file is not a photograph and would fill a worker's memory
MAX_PIXELS = 100_000_000  # of the largest image that is decoded, unless a setting says otherwise

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would refuse what `max_pixels` allows, with another reason


try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    _HAS_HEIF = True
except ImportError:
    _HAS_HEIF = False


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, worded to follow the file's name."""


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image says, and the range that pixels of more than 8 bits are scaled from, if looked at."""

    format: str
    width: int
    height: int
    scaled_from: str = ""

    @property
    def kind(self) -> str:
        """The format, with the range of pixels of more than 8 bits."""
        return f"{self.format} ({self.scaled_from})" if self.scaled_from else self.format


def looks_like_image(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of an image format that is read."""
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in _BRANDS


_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n\x87\n")
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")
_BRANDS = (*_HEIF, b"ftypavif", b"ftypavis")


def read_file(path: Path | bytes) -> bytes:
    """Read a whole image file. Raises BadImage when it is larger than MAX_BYTES and OSError when it is not read."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for ever
    try:
        size = os.fstat(file).st_size
        check_bytes(size)
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):
            data += more
    finally:
        os.close(file)
    return data


def check_bytes(size: int) -> None:
    """Raise BadImage for a file of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise BadImage(f"larger than {MAX_BYTES // 2**20} MB")


def probe(data: Any, max_pixels: int) -> ImageInfo:
    """Read an image's header and make sure, as cheaply as its format allows, that the file is whole.

    `data` is bytes or a view of some. A JPEG that ends with its end marker is taken to be whole; one that does not is
    decoded to find out. Other formats are decoded by Pillow. Raises BadImage.
    """
    info = header(data, max_pixels)
    if info.format == "JPEG":
        if data[-2:] != b"\xff\xd9":
            decode(bytes(data), "rgb", max_pixels)
        return info
    if info.format.startswith(_CHANNELS):
        tiff_values(bytes(data), max_pixels)
        return info
    with _pillow(data, max_pixels) as image:
        try:
            image.load()
            if image.mode in _DEEP:
                return replace(info, scaled_from=to_8_bits(np.asarray(image))[1])
        except Exception as error:  # Pillow's decoders raise many types, and all of them mean this
            raise BadImage(_reason(error)) from None
    return info


def header(data: Any, max_pixels: int) -> ImageInfo:
    """Read an image's header alone. Raises BadImage."""
    if not len(data):
        raise BadImage("zero bytes")
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise BadImage(f"broken JPEG header ({error})") from None
        check_pixels(width, height, max_pixels)
        return ImageInfo("JPEG", width, height)
    if is_tiff(data) and (bands := _more_than_colors(data, max_pixels)):
        return bands
    with _pillow(data, max_pixels) as image:
        return ImageInfo(image.format or "", image.width, image.height)


def is_tiff(data: Any) -> bool:
    """Whether a file is a TIFF by its first bytes."""
    return bytes(data[:4]) in _TIFF


def _more_than_colors(data: Any, max_pixels: int) -> ImageInfo | None:
    """What the header of a TIFF says that Pillow does not read, but tifffile does. Raises BadImage."""
    try:
        _pillow(data, max_pixels).close()
    except BadImage:
        height, width, channels = tiff_values(bytes(data), max_pixels, header_only=True).shape
        return ImageInfo(f"{_CHANNELS}{channels} channels", width, height)
    return None


def tiff_values(data: bytes, max_pixels: int, header_only: bool = False) -> Array:
    """The values of a TIFF (height, width, channels), upright, of the type that the file has; zeros with `header_only`.

    The channels may lie in one page or in a page each. Raises BadImage, also without tifffile.
    """
    try:
        import tifffile
    except ImportError:
        raise BadImage("a TIFF whose channels need the packages tifffile and imagecodecs") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            if "Y" not in axes or "X" not in axes or len(axes) > 3:
                raise BadImage(f"a TIFF with the axes {axes}, which are more than rows, columns and channels")
            row, column = axes.index("Y"), axes.index("X")
            check_pixels(shape[column], shape[row], max_pixels)
            values = np.broadcast_to(np.uint8(0), shape) if header_only else series.asarray()
            tag = series.keyframe.tags.get("Orientation")
            values = np.moveaxis(values, [row, column], [0, 1])
            return upright(values.reshape(*values.shape[:2], -1), 1 if tag is None else int(tag.value))
    except BadImage:
        raise
    except Exception as error:  # broken files raise many types, and all of them mean this
        raise BadImage(_reason(error)) from None


def is_gray_file(data: bytes) -> bool:
    """Whether an image is stored with a single channel. Raises BadImage."""
    if data[:2] == b"\xff\xd8":
        try:
            return bool(simplejpeg.decode_jpeg_header(data)[2] == "Gray")
        except ValueError as error:
            raise BadImage(f"broken JPEG header ({error})") from None
    if is_tiff(data) and _more_than_colors(data, MAX_PIXELS):
        return False
    with _pillow(data, MAX_PIXELS) as image:
        return image.mode in ("1", "L", "LA", *_DEEP)


class Scratch:
    """Memory that images are decoded into one after another.

    New memory for each would cost a quarter of the decoding: the system clears its pages.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def shaped(self, shape: tuple[int, ...]) -> Array:
        """An array uint8 of this shape, in the memory of the one before it."""
        size = math.prod(shape)
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].reshape(shape)


def decode(
    data: bytes,
    color: Color,
    max_pixels: int,
    side: int = 0,
    out: Array | None = None,
    scratch: Scratch | None = None,
) -> Array:
    """Decode to uint8 (height, width, channels), channels 3 for rgb and 1 for gray, upright by its EXIF tag.

    With `side`, a JPEG is decoded at a half, quarter or eighth of its size, if both of its sides are at least twice
    `side`. This is cheaper, and never gives a side below `side`. If a decoded JPEG has the shape of `out`, and `out` is
    contiguous, it is decoded straight into `out`, and `out` is returned. With `scratch`, the result may lie in its
    memory, until the next image is decoded. Transparent pixels are laid on white; pixels
    of more than 8 bits are scaled to 8. Raises BadImage for anything that is broken, truncated, or above `max_pixels`.
    """
    if not data:
        raise BadImage("zero bytes")
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data, color, max_pixels, side, out, scratch)
        if pixels is not None:
            return pixels
    if is_tiff(data) and (bands := _more_than_colors(data, max_pixels)):
        raise BadImage(f"a {bands.format}, which are no colours; --channels keeps them")
    with _pillow(data, max_pixels) as image:
        try:
            image.seek(0)
            pixels = _pillow_pixels(image, color)
            return upright(pixels, image.getexif().get(_EXIF_ORIENTATION, 1))
        except Exception as error:  # Pillow's decoders raise many types, and all of them mean this
            raise BadImage(_reason(error)) from None


def _decode_jpeg(
    data: bytes, color: Color, max_pixels: int, side: int, out: Array | None, scratch: Scratch | None
) -> Array | None:
    """Decode by libjpeg-turbo, or return None if Pillow has to decide.

    Pillow decides for CMYK and YCCK, which libjpeg-turbo does not convert, and after any warning of the decoder. The
    decoder warns both of harmless extra bytes and of missing data, and Pillow distinguishes the two.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImage(f"broken JPEG header ({error})") from None
    check_pixels(width, height, max_pixels)
    if space in ("CMYK", "YCCK"):
        return None
    factor = 1
    while factor < 8 and side and min(width, height) >= side * factor * 2:
        factor *= 2
    high, wide = -(-height // factor), -(-width // factor)
    shape = (high, wide, 1 if color == "gray" else 3)
    into = out if out is not None and out.shape == shape and out.flags.c_contiguous else None
    if into is None and scratch is not None:
        into = scratch.shaped(shape)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if color == "gray" else "RGB",
            min_height=high if factor > 1 else 0,
            min_width=wide if factor > 1 else 0,
            buffer=into,
        )
    except ValueError as error:
        if _HALF in str(error):  # Pillow would fill what is missing with grey
            raise BadImage("cut off within its image data") from None
        return None
    if into is not None and pixels.shape == shape:
        pixels = into
    if _has_exif(data):
        with _pillow(data, max_pixels) as image:
            return upright(pixels, image.getexif().get(_EXIF_ORIENTATION, 1))
    return pixels  # type: ignore[no-any-return]


def _has_exif(data: bytes) -> bool:
    """Whether a JPEG has an Exif segment before its image data, wherever among its segments that is."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # the image data
            return False
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill bytes, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _pillow(data: Any, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if bytes(data[4:12]) in _HEIF and not _HAS_HEIF:
            raise BadImage("a HEIC image, which needs the package pillow-heif") from None
        if bytes(data[4:12]) in _BRANDS:
            raise BadImage("an AVIF image, which needs Pillow 11.3 or newer") from None
        raise BadImage("not an image") from None
    except Exception as error:  # Pillow's parsers raise many types on broken headers
        raise BadImage(_reason(error)) from None
    check_pixels(image.width, image.height, max_pixels)
    return image


def _pillow_pixels(image: Image.Image, color: Color) -> Array:
    mode: Literal["RGB", "L"] = "RGB" if color == "rgb" else "L"
    if image.mode in _DEEP:
        image = Image.fromarray(to_8_bits(np.asarray(image))[0])
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert(mode))
    return pixels.reshape(pixels.shape[0], pixels.shape[1], -1)


def decode_all_channels(data: bytes, max_pixels: int) -> Array:
    """Decode to uint8 (height, width, channels) with the channels that the file has, upright. Raises BadImage."""
    with _pillow(data, max_pixels) as image:
        try:
            image.seek(0)
            mode = {"P": "RGBA" if "transparency" in image.info else "RGB", "1": "L"}.get(image.mode)
            colors = image if mode is None else image.convert(mode)
            pixels = np.asarray(colors)
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            return upright(to_8_bits(pixels)[0], image.getexif().get(_EXIF_ORIENTATION, 1))
        except Exception as error:  # Pillow's decoders raise many types, and all of them mean this
            raise BadImage(_reason(error)) from None


def to_8_bits(values: Array) -> tuple[Array, str]:
    """Integers or floats (H, W, ...) as uint8, and the range that they were scaled from, in words.

    A file does not say how many bits a camera has used of 16 or 32, so the smallest usual depth that holds the largest
    value counts. Floats count as 0 to 1 or as 0 to 255, if they fit. Values outside of that are scaled from their own
    range.
    """
    if values.dtype == np.uint8:
        return values, "8 bits"
    real = np.nan_to_num(values.astype(np.float64))
    low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    if values.dtype.kind == "f":
        top, said = (1, "0 to 1") if high <= 1 else (255, "0 to 255")
    else:
        bits = next((bits for bits in _DEPTHS if high < 2**bits), 32)
        top, said = 2**bits - 1, f"{bits} bits"
    if low < 0 or high > top:
        return ((real - low) * (255 / max(high - low, 1e-9))).astype(np.uint8), "own range"
    return np.floor(real * 255 / top).astype(np.uint8), said


def upright(pixels: Array, orientation: int) -> Array:
    """Pixels (H, W, ...) turned and mirrored as the orientation tag of TIFF and Exif says."""
    turns, mirror = _TURNS.get(orientation, (0, False))
    if turns:
        pixels = np.rot90(pixels, turns)
    if mirror:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImage for an image of more pixels than are allowed."""
    if width * height > max_pixels:
        raise BadImage(f"{width:,} x {height:,} pixels, above the limit of {max_pixels:,}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
