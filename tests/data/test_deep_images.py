"""Images of more than 8 bits or other channels than colours: what is kept, what is refused, and how they look."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.data import PackConfig, Preprocessing
from mlic.config.predict import ExportConfig, PredictConfig
from mlic.config.train import TrainConfig
from mlic.data.pixels import deep_images, images
from mlic.data.pixels.decoding import decode_batch, resize
from mlic.data.pixels.images import BadImage
from mlic.errors import DataError
from mlic.export.export import export
from mlic.model import bundle
from mlic.pack.pack import pack
from mlic.train.train import train

LIMIT = 1_000_000
RNG = np.random.default_rng(3)
BANDS = RNG.integers(0, 10_000, (24, 30, 13), dtype=np.uint16)
COLORS = RNG.integers(0, 65_536, (24, 30, 3), dtype=np.uint16)


def tiff(values: Any, **more: Any) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, values, **({"photometric": "minisblack"} | more))
    return data.getvalue()


def deep_png(values: Any) -> bytes:
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


@pytest.mark.parametrize(
    "data",
    [
        tiff(BANDS, planarconfig="contig"),
        tiff(BANDS, planarconfig="contig", compression="lzw", predictor=True),
        tiff(BANDS, planarconfig="contig", tile=(16, 16), compression="zlib"),
        tiff(BANDS.transpose(2, 0, 1), planarconfig="separate"),
        tiff(BANDS.transpose(2, 0, 1)),
        tiff(BANDS, planarconfig="contig", bigtiff=True),
        tiff(BANDS, planarconfig="contig", byteorder=">"),
    ],
)
def test_all_bands_of_a_tiff_stay_what_they_are(data: bytes) -> None:
    pixels = deep_images.decode(data, "rgb", 13, 16, LIMIT)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, BANDS)
    small = deep_images.decode(data, "rgb", 13, 8, LIMIT)
    assert small.dtype == np.uint8
    assert np.abs(small / 255 - BANDS / (2**14 - 1)).max() <= 1 / 255


def test_a_turned_tiff_is_upright() -> None:
    data = tiff(BANDS, planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(deep_images.decode(data, "rgb", 13, 16, LIMIT), np.rot90(BANDS, 3))


def test_16_bits_of_colours_and_greys() -> None:
    assert np.array_equal(deep_images.decode(deep_png(COLORS), "rgb", 0, 16, LIMIT), COLORS)
    gray = deep_images.decode(deep_png(COLORS), "gray", 0, 16, LIMIT)
    assert np.abs(gray[:, :, 0] - COLORS @ [0.299, 0.587, 0.114]).max() <= 1
    one = deep_images.decode(deep_png(COLORS[:, :, 0]), "rgb", 0, 16, LIMIT)
    assert np.array_equal(one, np.repeat(COLORS[:, :, :1], 3, axis=2))
    floats = deep_images.decode(tiff((COLORS / 65_535).astype(np.float32), planarconfig="contig"), "rgb", 3, 16, LIMIT)
    assert np.array_equal(floats, COLORS)


def test_8_bits_are_spread_over_16() -> None:
    data = io.BytesIO()
    four = RNG.integers(0, 256, (8, 9, 4), dtype=np.uint8)
    Image.fromarray(four).save(data, "PNG")
    assert np.array_equal(deep_images.decode(data.getvalue(), "rgb", 4, 16, LIMIT), four.astype(np.uint16) * 257)
    assert np.array_equal(deep_images.decode(data.getvalue(), "rgb", 4, 8, LIMIT), four)


@pytest.mark.parametrize(
    ("data", "bands", "bits", "reason"),
    [
        (tiff(BANDS, planarconfig="contig"), 4, 16, "13 channels where --channels is 4"),
        (tiff(BANDS, planarconfig="contig"), 0, 16, "--channels 13 keeps them"),
        (tiff(BANDS, planarconfig="contig")[:3000], 13, 16, "."),
        (tiff(BANDS.astype(np.int32) - 5, planarconfig="contig"), 13, 16, "16 bits do not hold"),
        (tiff(BANDS.astype(np.float32), planarconfig="contig"), 13, 16, "floats from . to"),
        (tiff(np.zeros((2, 3, 8, 9), np.uint8), metadata={"axes": "TZYX"}), 3, 8, "the axes TZYX"),
        (deep_png(COLORS)[:300], 0, 16, "."),
        (b"", 3, 8, "zero bytes"),
        (b"nothing", 4, 8, "not an image"),
        (tiff(np.zeros((2000, 2000, 5), np.uint8), planarconfig="contig"), 5, 8, "above the limit"),
    ],
)
def test_what_cannot_be_kept_is_refused(data: bytes, bands: int, bits: int, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        deep_images.decode(data, "rgb", bands, bits, LIMIT)


def test_more_bands_than_colours_are_no_colours_unless_to_look_at() -> None:
    data = tiff(BANDS, planarconfig="contig")
    assert images.probe(data, LIMIT) == images.ImageInfo("TIFF of 13 channels", 30, 24)
    assert not images.is_gray_file(data)
    with pytest.raises(BadImage, match="TIFF of 13 channels, which are no colours; --channels keeps them"):
        images.decode(data, "rgb", LIMIT)
    assert deep_images.picture(data, "rgb", LIMIT).shape == (24, 30, 3)
    assert deep_images.picture(data, "gray", LIMIT).shape == (24, 30, 1)
    with pytest.raises(BadImage):
        images.probe(data[:3000], LIMIT)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_16_bits_are_resized_as_8_are(interpolation: Any) -> None:
    pixels = RNG.integers(0, 256, (37, 23, 3), dtype=np.uint8)
    coarse = resize(pixels, (16, 11), interpolation)
    fine = resize(pixels.astype(np.uint16) * 257, (16, 11), interpolation)
    assert fine.dtype == np.uint16
    assert np.abs(fine / 257 - coarse).max() < 1.01


@pytest.mark.parametrize("way", ["squash", "crop", "pad"])
def test_a_batch_of_bands(way: Any) -> None:
    prep = Preprocessing(image_size=16, color="rgb", mean=(0.1,) * 13, std=(0.2,) * 13, resize=way, bands=13, bits=16)
    pixels, bad = decode_batch([lambda: tiff(BANDS, planarconfig="contig"), lambda: b"x"], prep, LIMIT)
    assert pixels.shape == (2, 16, 16, 13)
    assert pixels.dtype == np.uint16
    assert bad == {1: "not an image"}
    assert abs(float(pixels[0].mean()) - 5000) < 600


def test_settings_that_contradict_each_other() -> None:
    for more in (
        {"channels": 4, "color": "gray"},
        {"bits": 16, "rand_augment": 2},
        {"mean": (0.5,)},
        {"bits": 12},
        {"channels": 4, "mean": (0.1,) * 3, "std": (0.1,) * 3},
        {"mean": (0.1,) * 2, "std": (0.1,) * 2},
    ):
        with pytest.raises(ValidationError):
            TrainConfig(**more)  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.slow
def test_bands_from_files_to_an_export(tmp_path: Path) -> None:
    """A label shows in the low bits of the fourth channel alone, which 8-bit colours would lose."""
    folder, rng = tmp_path / "photos", np.random.default_rng(5)
    folder.mkdir()
    lines = ["image,field,water"]
    for number in range(160):
        field, water = (int(value) for value in rng.integers(0, 2, 2))
        values = rng.integers(200, 240, (32, 32, 4)).astype(np.uint16)
        values[8:24, 8:24, 3] += 60 * field
        values[:8, :, 1] += 60 * water
        (folder / f"{number:03d}.tif").write_bytes(tiff(values, planarconfig="contig"))
        lines.append(f"{number:03d}.tif,{field},{water}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    shards = tmp_path / "shards"
    pack(PackConfig(images=folder, labels=tmp_path / "labels.csv", out=shards, group_by="none"))
    with pytest.raises(DataError, match="which are no colours"):
        train(TrainConfig(shards=shards, runs=tmp_path, name="colours", epochs=1, workers=1, arch="a-cnn1"))
    config = TrainConfig(
        shards=shards,
        runs=tmp_path,
        name="bands",
        workers=1,
        epochs=12,
        batch_size=16,
        image_size=32,
        channels=4,
        bits=16,
        lr=3e-3,
        doctor=False,
    )
    report = train(config)
    assert report == train(config)
    assert report.measurement.values["f1_micro"] > 0.9
    model = bundle.read(report.model)
    assert (model.preprocessing.channels, model.preprocessing.bits) == (4, 16)
    assert model.preprocessing.mean == pytest.approx((0.0034, 0.0036, 0.0034, 0.0035), abs=3e-4)
    state = json.loads((report.run / "config.json").read_text())
    assert len(state["settings"]["mean"] if "settings" in state else state["mean"]) == 4
    predict(PredictConfig(model=report.model, images=folder, out=tmp_path / "all.parquet", values="both"))
    predicted = prediction_files.read(tmp_path / "all.parquet")
    for engine in ("onnx", "openvino", "torchscript"):
        made = export(ExportConfig(model=report.model, to=engine, images=folder))  # type: ignore[arg-type]
        assert made.max_difference < 1e-4
        out = tmp_path / f"{engine}.parquet"
        predict(PredictConfig(model=made.export, images=folder, out=out, values="both"))
        assert prediction_files.read(out).scores == pytest.approx(predicted.scores, abs=1e-4)
