"""Images as programs have them: paths, bytes, Pillow images, arrays and tensors, each as an encoded image file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mlic.data.pixels import images
from mlic.errors import DataError

Reader = Callable[[], bytes]
Array = np.ndarray[Any, Any]

_MOST_16_BITS = 65_535


def named_readers(inputs: Any) -> list[tuple[str, Reader]]:
    """A key and a function that reads an encoded image, for one image or a sequence or batch of images.

    The key is a path's stem, else the position. An array is uint8 (H, W), (H, W, C) or a batch (B, H, W, C), a tensor
    (C, H, W) or (B, C, H, W), uint8 or float from 0 to 1. The reader raises BadImage. Raises DataError for other input.
    """
    return [(_key(one, number), _reader(one, number)) for number, one in enumerate(_apart(inputs))]


def _apart(inputs: Any) -> Iterator[Any]:
    """The single images."""
    if isinstance(inputs, bytearray | memoryview):
        yield bytes(inputs)
    elif hasattr(inputs, "read") and not isinstance(inputs, str | Path):
        yield inputs.read()
    elif isinstance(inputs, str | Path | bytes | Image.Image):
        yield inputs
    elif _is_tensor(inputs) or isinstance(inputs, np.ndarray):
        yield from inputs if inputs.ndim == 4 else [inputs]
    elif hasattr(inputs, "__iter__") and not isinstance(inputs, Mapping):
        for one in inputs:
            yield from _apart(one)
    else:
        raise DataError(f"{type(inputs).__name__} is no image.", "give paths, bytes, Pillow images, arrays or tensors.")


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "ndim")


def _key(one: Any, number: int) -> str:
    return Path(one).stem if isinstance(one, str | Path) else str(number)


def _reader(one: Any, number: int) -> Reader:
    if isinstance(one, str | Path):
        return lambda: _read(Path(one).expanduser())
    if isinstance(one, bytes):
        return lambda: one
    if isinstance(one, Image.Image):
        encoded = _encoded(_picture(one, number))
    else:
        encoded = _encoded(Image.fromarray(_pixels(one, number)))
    return lambda: encoded


def _picture(image: Image.Image, number: int) -> Image.Image:
    """A Pillow image as its file would be decoded: upright, and with all of its bits."""
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"image {number} cannot be decoded: {error}.", "open it again, or leave it out.") from None
    if image.mode == "F" or image.mode == "I":
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > _MOST_16_BITS:
            raise DataError(
                f"image {number} has the mode {image.mode}, whose scale is unknown.",
                "convert it to L or RGB, or give an array of floats from 0 to 1.",
            )
        return Image.fromarray(values.astype(np.uint16))
    return image if image.mode in ("L", "RGB", "RGBA", "P", "1", "LA", "I;16") else image.convert("RGB")


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder among images.", "give the folder alone, or the files in it.")
    try:
        return images.read_file(path)
    except OSError as error:
        raise images.BadImage(f"{path}: {error.strerror or 'cannot be read'}") from None


def _pixels(one: Any, number: int) -> Array:
    """uint8 (H, W), (H, W, 3) or (H, W, 4) of an array, or of a tensor with its channels first."""
    values = _of_tensor(one) if _is_tensor(one) else one
    if _is_tensor(one) and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        first = "channels first" if _is_tensor(one) else "channels last"
        raise DataError(
            f"image {number} has the shape {tuple(one.shape)}.", f"give images of 1, 3 or 4 channels, {first}."
        )
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"image {number} has values from {low:.6g} to {high:.6g}.",
                "give uint8, or floats from 0 to 1 that are not normalised: the model does that.",
            )
        values = np.round(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"image {number} is of {values.dtype}.", "give uint8, or floats from 0 to 1.")
    return np.ascontiguousarray(values)


def _of_tensor(tensor: Any) -> Array:
    values = tensor.detach().cpu()
    return np.asarray(values.float() if values.is_floating_point() else values)


def _encoded(image: Image.Image) -> bytes:
    """The image as a file without loss, so that it is decoded as all images are."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
