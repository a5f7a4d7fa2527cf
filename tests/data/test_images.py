from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mlic.config.data import Preprocessing
from mlic.data.pixels import images
from mlic.data.pixels.decoding import decode_batch
from mlic.data.pixels.images import BadImage

LIMIT = 10_000_000


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth gradient, which JPEG keeps almost exactly."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], axis=2).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_formats(format: str) -> None:
    data = encoded(picture(), format, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
    assert images.probe(data, LIMIT) == images.ImageInfo(format, 40, 30)
    pixels = images.decode(data, "rgb", LIMIT)
    assert (pixels.shape, pixels.dtype) == ((30, 40, 3), np.uint8)
    assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F", "I"])
def test_modes_become_rgb_and_gray(mode: str) -> None:
    gray = np.asarray(picture().convert("L"))
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode in ("F", "I"):
        image = Image.fromarray(gray.astype(np.float32) if mode == "F" else gray.astype(np.int32) * 257)
    else:
        image = picture().convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "F", "I") else "PNG")
    assert images.decode(data, "rgb", LIMIT).shape == (30, 40, 3)
    got = images.decode(data, "gray", LIMIT)
    assert got.shape == (30, 40, 1)
    difference = got[:, :, 0].astype(int) - gray
    assert abs(difference.mean() if mode in "1P" else np.abs(difference).mean()) < 12  # these two are dithered


def test_cmyk_jpeg() -> None:
    pixels = images.decode(encoded(picture().convert("CMYK"), "JPEG", quality=95), "rgb", LIMIT)
    assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 6


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.decode(encoded(clear, "PNG"), "rgb", LIMIT) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(), format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.abs(images.decode(data, "rgb", LIMIT).astype(int) - upright).mean() < 2


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (images.decode(data, "rgb", LIMIT)[0, 0] == (255, 0, 0)).all()


GOOD = encoded(picture(64, 64), "JPEG")
BAD = {
    "zero bytes": (b"", "zero bytes"),
    "truncated JPEG": (GOOD[:-200], "truncated"),
    "JPEG header alone": (GOOD[:30], "JPEG"),
    "text": (b"this is a letter", "not an image"),
    "truncated PNG": (encoded(picture(64, 64), "PNG")[:120], "trunc|broken|incomplete|Truncated|damaged"),
    "bomb": (encoded(Image.new("1", (5000, 5000)), "PNG"), "25,000,000|5,000 x 5,000 pixels, above the limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_say_why(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadImage, match=reason):
        images.probe(data, LIMIT)
    with pytest.raises(BadImage, match=reason):
        images.decode(data, "rgb", LIMIT)


def test_extra_bytes_after_a_whole_jpeg_are_harmless() -> None:
    assert images.probe(GOOD + b"\0" * 10, LIMIT).width == 64
    assert images.decode(GOOD + b"\0" * 10, "gray", LIMIT).shape == (64, 64, 1)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(40, 30), (128, 128), (700, 400), (1200, 1100)])
def test_what_the_loader_makes_of_it(color: Any, size: tuple[int, int]) -> None:
    prep = Preprocessing(image_size=128, color=color, mean=(0.5,), std=(0.5,), resize="squash")
    image = picture(*size)
    data = encoded(image, "JPEG", quality=95)
    batch, bad = decode_batch([lambda: data, lambda: b""], prep, LIMIT)
    assert (batch.shape, batch.dtype) == ((2, 128, 128, prep.channels), np.uint8)
    assert bad == {1: "zero bytes"}
    assert not batch[1].any()
    pixels = batch[0]
    whole = np.asarray(image.convert("RGB" if color == "rgb" else "L").resize((128, 128), Image.Resampling.BILINEAR))
    assert np.abs(pixels.astype(int) - whole.reshape(pixels.shape)).mean() < 4


def test_a_jpeg_is_decoded_straight_into_the_batch() -> None:
    data = encoded(picture(64, 48), "JPEG")
    out = np.zeros((48, 64, 3), np.uint8)
    assert images.decode(data, "rgb", LIMIT, out=out) is out
    assert (out == images.decode(data, "rgb", LIMIT)).all()
    assert images.decode(data, "rgb", LIMIT, out=np.zeros((64, 48, 3), np.uint8)).shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["I;16", "I"])
@pytest.mark.parametrize(("bits", "top"), [(10, 1023), (12, 4095), (12, 3000), (14, 16000), (16, 65535)])
def test_deep_images_are_scaled_from_the_depth_that_holds_them(mode: str, bits: int, top: int) -> None:
    ramp = np.linspace(0, top, 64).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint16 if mode == "I;16" else np.int32)).save(file, "TIFF")
    pixels = images.decode(file.getvalue(), "gray", 100)
    assert np.abs(pixels[:, :, 0] - ramp * 255 / (2**bits - 1)).max() < 1.5
    assert images.probe(file.getvalue(), 100).kind == f"TIFF ({bits} bits)"


@pytest.mark.parametrize(("low", "high", "said"), [(-1024, 3071, "own range"), (0, 2**20, "24 bits")])
def test_integers_beyond_16_bits_are_neither_cut_nor_black(low: int, high: int, said: str) -> None:
    ramp = np.linspace(low, high, 64).reshape(8, 8).astype(np.int32)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "TIFF")
    pixels = images.decode(file.getvalue(), "gray", 100)
    assert len(np.unique(pixels)) == (64 if said == "own range" else len(np.unique(ramp * 255 // (2**24 - 1))))
    assert images.probe(file.getvalue(), 100).scaled_from == said


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 3000.0)])
def test_floats_of_another_range_are_scaled_from_their_own(low: float, high: float) -> None:
    ramp = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "TIFF")
    pixels = images.decode(file.getvalue(), "gray", 100)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert images.probe(file.getvalue(), 100).kind == "TIFF (own range)"


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_images_of_both_conventions(top: float) -> None:
    ramp = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    pixels = images.decode(encoded(Image.fromarray(ramp), "TIFF"), "gray", LIMIT)
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)
