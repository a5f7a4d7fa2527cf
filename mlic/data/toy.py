"""A small, learnable, generated corpus with the shape of the reference one.

Like the reference photographs it has per-label lists of bare image numbers, frequent and rare labels, a near-logical
implication (ring => disc), greyscale files among colour ones and images without any label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

LABELS = ("cross", "disc", "night", "ring", "square", "stripes")
_SHARES = {"disc": 0.45, "square": 0.3, "stripes": 0.2, "night": 0.2, "cross": 0.15}
_RING_GIVEN_DISC = 0.25
_GRAY_SHARE = 0.08


def generate(folder: Path, num_samples: int, num_unlabelled: int, seed: int, size: int = 64) -> None:
    """Write `images/imN.jpg`, `annotations/LABEL.txt` (bare numbers) and `unlabelled/imN.jpg` below `folder`."""
    rng = np.random.default_rng(seed)
    lists: dict[str, list[int]] = {label: [] for label in LABELS}
    for name in ("images", "annotations", "unlabelled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, num_samples + num_unlabelled + 1):
        labels = {label for label, share in _SHARES.items() if rng.random() < share}
        if "disc" in labels and rng.random() < _RING_GIVEN_DISC:
            labels.add("ring")
        labelled = number <= num_samples
        image = _draw(labels, size, rng)
        image.save(folder / ("images" if labelled else "unlabelled") / f"im{number}.jpg", quality=90)
        if labelled:
            for label in labels:
                lists[label].append(number)
    for label, numbers in lists.items():
        (folder / "annotations" / f"{label}.txt").write_text("".join(f"{number}\n" for number in numbers))


def _draw(labels: set[str], size: int, rng: np.random.Generator) -> Image.Image:
    low, high = (5, 45) if "night" in labels else (120, 190)
    background = _color(rng, low, high)
    image = Image.new("RGB", (size, size), background)
    draw = ImageDraw.Draw(image)
    if "stripes" in labels:
        ink = tuple(min(255, value + 45) for value in background)
        step = int(rng.integers(6, 10))
        for x in range(int(rng.integers(0, step)), size, step):
            draw.line([(x, 0), (x, size)], fill=ink, width=2)
    for shape in ("square", "disc", "cross"):
        if shape in labels:
            r = int(rng.integers(size // 8, size // 5))
            x, y = (int(v) for v in rng.integers(r, size - r, 2))
            _shape(draw, shape, (x, y, r), _color(rng, 150, 255) if "night" in labels else _color(rng, 0, 90))
            if shape == "disc" and "ring" in labels:
                box = (x - r - 4, y - r - 4, x + r + 4, y + r + 4)
                draw.ellipse(box, outline=_color(rng, 230, 255), width=2)
    noise = rng.normal(0, 6, (size, size, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return image.convert("L") if rng.random() < _GRAY_SHARE else image


def _shape(draw: ImageDraw.ImageDraw, shape: str, at: tuple[int, int, int], ink: tuple[int, ...]) -> None:
    x, y, r = at
    if shape == "disc":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    else:
        draw.line([(x - r, y - r), (x + r, y + r)], fill=ink, width=4)
        draw.line([(x - r, y + r), (x + r, y - r)], fill=ink, width=4)


def _color(rng: np.random.Generator, low: int, high: int) -> tuple[Any, ...]:
    return tuple(int(value) for value in rng.integers(low, high, 3))
