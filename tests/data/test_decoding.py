from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlic.config.data import Preprocessing
from mlic.data.pixels import decoding


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 171, 128), (128, 300, 128), (333, 128, 128), (40, 30, 64), (1, 500, 32), (97, 1, 64), (500, 701, 224)],
)
def test_the_resize_without_pytorch_is_the_one_with_it(
    height: int, width: int, size: int, channels: int, interpolation: Any
) -> None:
    """To the last bit: predictions do not depend on which of the two computed them."""
    rng = np.random.default_rng(height + width)
    for pixels in (
        rng.integers(0, 256, (height, width, channels), dtype=np.uint8),
        (rng.integers(0, 2, (height, width, channels)) * 255).astype(np.uint8),
    ):
        whole = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(whole, (size, size), mode=interpolation, antialias=True)[0]
        found = decoding.resize_by_numpy(pixels, (size, size), interpolation)
        assert found.dtype == np.uint8
        assert (found == expected.permute(1, 2, 0).numpy()).all()
        assert (decoding.resize(pixels, (size, size), interpolation) == found).all()


def _square(image: Image.Image, **settings: Any) -> np.ndarray[Any, Any]:
    """What a model of 64 px sees of an image, uint8 (64, 64, 3)."""
    file = io.BytesIO()
    image.save(file, "PNG")
    prep = Preprocessing(image_size=64, color="rgb", mean=(0.2, 0.4, 0.6), std=(1.0,) * 3, **settings)
    pixels, bad = decoding.decode_batch([file.getvalue], prep, 10**8)
    assert not bad
    return pixels[0]


def _photo(width: int, height: int) -> Image.Image:
    """A smooth image, on which two ways to round differ by little."""
    noise = np.random.default_rng(width * height).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 311), (64, 64), (40, 30), (256, 255), (640, 630)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("mode", "resize"), [("squash", "squash"), ("center", "crop"), ("border", "pad")])
def test_an_image_becomes_the_square_that_timm_makes_of_it(
    mode: str, resize: str, interpolation: str, crop_pct: float, width: int, height: int
) -> None:
    timm_data = pytest.importorskip("timm.data")
    image = _photo(width, height)
    transform = timm_data.create_transform(
        64, mean=(0.2, 0.4, 0.6), std=(1, 1, 1), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode
    )
    transform.transforms.pop()  # the normalisation
    expected = (255 * transform(image)).permute(1, 2, 0).round().numpy()
    pixels = _square(image, resize=resize, interpolation=interpolation, crop_fraction=crop_pct)
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_the_middle_of_a_very_long_image_needs_no_more_memory_than_the_image() -> None:
    tracemalloc.start()
    pixels = _square(_photo(40_000, 5), resize="crop", interpolation="bilinear")
    assert pixels.shape == (64, 64, 3)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("resize", "crop_fraction", "box"),
    [
        ("squash", 1.0, (0, 0, 1, 1)),
        ("squash", 0.5, (0.25, 0.25, 0.75, 0.75)),
        ("crop", 1.0, (0.25, 0, 0.75, 1)),
        ("pad", 1.0, (0, -0.5, 1, 1.5)),
    ],
)
def test_the_part_of_an_image_that_a_model_sees(resize: Any, crop_fraction: float, box: tuple[float, ...]) -> None:
    prep = Preprocessing(
        image_size=64, color="gray", mean=(0.5,), std=(1.0,), resize=resize, crop_fraction=crop_fraction
    )
    assert decoding.input_box(100, 200, prep) == box


def test_decoding_loads_no_pytorch() -> None:
    script = (
        "import sys, numpy\nfrom mlic.data.pixels import decoding\n"
        "decoding.resize(numpy.zeros((9, 8, 3), numpy.uint8), (4, 4), 'bicubic')\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def _jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_images_that_are_decoded_into_the_same_memory() -> None:
    """Each has the pixels that it has alone, whatever the size of the one before it."""
    files = [_jpeg(_photo(*shape)) for shape in ((300, 200), (64, 64), (640, 480), (90, 311), (30, 20))]
    files += [b"\xff\xd8 no image", _jpeg(_photo(301, 200), orientation=6), _jpeg(_photo(300, 200).convert("L"))]
    prep = Preprocessing(image_size=64, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3, resize="squash")
    together, bad = decoding.decode_batch([lambda data=data: data for data in files], prep, 10**8)  # type: ignore[misc]
    assert list(bad) == [5]
    for pixels, data in zip(together, files, strict=True):
        alone, _ = decoding.decode_batch([lambda data=data: data], prep, 10**8)  # type: ignore[misc]
        assert (pixels == alone[0]).all()


def test_a_resized_image_lies_in_memory_as_the_batch_does() -> None:
    """Else each is copied value by value, which takes half as long as the resizing."""
    for channels in (1, 3, 5):
        pixels = np.zeros((100, 150, channels), np.uint8)
        assert decoding.resize(pixels, (64, 64), "bilinear").flags.c_contiguous
