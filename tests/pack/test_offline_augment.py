from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mlic.data.pixels.images import BadImage
from mlic.pack import offline_augment


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC)


def pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.mark.parametrize("operation", list(offline_augment._OPERATIONS))
def test_each_operation_changes_an_image_by_its_seed(operation: str) -> None:
    data = jpeg(picture())
    found = [offline_augment.render(data, [operation], [1, 2, i], 10**6) for i in range(8)]
    assert [pixels(version).shape for version in found] == [(60, 80, 3)] * 8
    assert found[0] == offline_augment.render(data, [operation], [1, 2, 0], 10**6)
    assert len(set(found)) > (1 if operation == "flip" else 7)
    changed = [np.abs(pixels(version) - pixels(data)).mean() for version in found]
    assert max(changed) > 4
    assert min(changed) < 40


def test_a_grey_image_stays_grey_and_a_turned_one_is_upright() -> None:
    assert (
        Image.open(io.BytesIO(offline_augment.render(jpeg(picture().convert("L")), ["shift"], [1], 10**6))).mode == "L"
    )
    exif = Image.Exif()
    exif[274] = 6
    out = io.BytesIO()
    picture().save(out, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(offline_augment.render(out.getvalue(), [], [1], 10**6))).size == (60, 80)


def test_a_broken_image_is_a_bad_image() -> None:
    with pytest.raises(BadImage):
        offline_augment.render(b"no", ["flip"], [1], 10**6)
