"""The images of a report: kinds of images, thumbnails and saliency maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mlic.config.data import Preprocessing
from mlic.config.train import TrainConfig
from mlic.data.loader import ShardReader
from mlic.data.pixels import deep_images, images
from mlic.data.pixels.augment import Normalizer
from mlic.data.pixels.decoding import input_box
from mlic.data.shards import Split
from mlic.model import saliency
from mlic.report.evidence import Training
from mlic.train import setup

Array = np.ndarray[Any, Any]

SIDE = 176  # of a thumbnail in pixels
_GRAY_WITHIN = 4  # levels between channels: what JPEG makes of three equal ones
_BATCH = 16


@dataclass(frozen=True)
class Look:
    """What was seen of some of N images: `gray` int8 (N,), 1, 0 or -1 for not seen; `brightness` (N,), NaN likewise."""

    gray: Array
    brightness: Array
    seen: int


@dataclass(frozen=True)
class Picture:
    """A thumbnail and, by label, overlays of what speaks for that label, as JPEG files."""

    thumbnail: bytes
    overlays: dict[str, bytes]


def look(source: Split, most: int, seed: int) -> Look:
    """Decode at most `most` of the images, drawn at random."""
    rows = np.sort(np.random.default_rng([seed, 17]).permutation(len(source))[:most])
    gray, brightness = np.full(len(source), -1, np.int8), np.full(len(source), np.nan)
    part, seen = source.take(rows), 0
    with part.opened() as read:
        for number, row in enumerate(rows):
            try:
                pixels = deep_images.picture(read(number), "rgb", images.MAX_PIXELS, side=64)
            except images.BadImage:
                continue
            gray[row] = int((pixels.max(axis=2).astype(int) - pixels.min(axis=2)).max()) <= _GRAY_WITHIN
            brightness[row] = pixels.mean()
            seen += 1
    return Look(gray, brightness, seen)


def pictures(
    source: Split,
    rows: Sequence[int],
    about: Sequence[Sequence[int]],
    labels: Sequence[str],
    training: Training | None,
    budget: int,
) -> tuple[dict[int, Picture], str]:
    """Thumbnails by row of `source`, with overlays for the labels that `about` numbers, within `budget` bytes.

    Rows are taken in order; images that do not fit or cannot be decoded are missing. Also returns how overlays were
    made.
    """
    part = source.take(np.array(rows, np.int64))
    maps, method = ({}, "") if training is None else _maps(part, about, training)
    pictures_of: dict[int, Picture] = {}
    spent = 0
    with part.opened() as read:
        for number, row in enumerate(rows):
            try:
                small = Image.fromarray(deep_images.picture(read(number), "rgb", images.MAX_PIXELS, side=SIDE))
            except images.BadImage:
                continue
            small.thumbnail((SIDE, SIDE))
            overlays = {
                labels[i]: _jpeg(_overlay(small, maps[number, i], training.config))
                for i in about[number]
                if training is not None and (number, i) in maps
            }
            picture = Picture(_jpeg(small), overlays)
            spent += sum(4 * len(data) // 3 for data in (picture.thumbnail, *overlays.values()))
            if spent > budget:
                break
            pictures_of[row] = picture
    return pictures_of, method


def _maps(part: Split, about: Sequence[Sequence[int]], training: Training) -> tuple[dict[tuple[int, int], Array], str]:
    """Saliency maps (H, W) by number in `part` and label."""
    prep: Preprocessing = setup.preprocessing(training.config)
    wanted = [(number, label) for number, some in enumerate(about) for label in some]
    normalize = Normalizer(prep.mean, prep.std, torch.device("cpu"), prep.top)
    maps_of: dict[tuple[int, int], Array] = {}
    method = ""
    with ShardReader(part, prep) as reader:
        chunks = [wanted[i : i + _BATCH] for i in range(0, len(wanted), _BATCH)]
        batches = reader.batches([np.array([number for number, _ in chunk]) for chunk in chunks], 0)
        for chunk, batch in zip(chunks, batches, strict=True):
            numbers = np.array([label for _, label in chunk])
            values, method = saliency.maps(training.net, normalize(batch.images), numbers)
            maps_of.update(zip(chunk, values, strict=True))
    return maps_of, method


def _overlay(image: Image.Image, heat: Array, config: TrainConfig) -> Image.Image:
    """The image in grey, with warm colours where the map of what the model saw of it is high."""
    left, top, right, bottom = input_box(image.height, image.width, setup.preprocessing(config))
    corner = round(left * image.width), round(top * image.height)
    sides = round((right - left) * image.width), round((bottom - top) * image.height)
    enlarged = Image.new("L", image.size)
    enlarged.paste(Image.fromarray((255 * heat).astype(np.uint8)).resize(sides, Image.Resampling.BILINEAR), corner)
    strength = np.asarray(enlarged, dtype=np.float32)[:, :, None] / 255
    gray = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) * 0.75
    warm = np.concatenate([np.full_like(strength, 255), 60 + 170 * strength, 30 * np.ones_like(strength)], axis=2)
    return Image.fromarray((gray * (1 - 0.65 * strength) + warm * 0.65 * strength).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
