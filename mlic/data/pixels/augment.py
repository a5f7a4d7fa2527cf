"""Augmentation: uint8 batches to float32 on the device, changed at random for training.

All random draws for an image depend on the seed, the epoch and the image alone, so they are the same for any number of
workers and after any interruption. The functions of torchvision.transforms.v2 take one parameter for a whole batch.
Here each image has its own parameter, and an operation is one kernel for the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch.nn import functional

from mlic.config.types import Distortion
from mlic.data.seeded_random import uniform

Array = np.ndarray[Any, Any]

_RATIO = (3 / 4, 4 / 3)  # of a crop's sides, as in torchvision's RandomResizedCrop
_MARGIN = 8 / 7  # crops for a network of 224 pixels are taken from images of 256


class Normalizer:
    """Turns images uint8 or uint16 (B, H, W, C) into normalised float32 (B, C, H, W), channels last, on `device`.

    On a CPU, the result lies in a buffer that the next call overwrites: new memory for every batch would cost more than
    the arithmetic. Several passes over a batch would cost more, too. So each image is processed in one pass while it is
    in the cache.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, top: int = 255) -> None:
        """`mean` and `std` (C,) are fractions of `top`, the largest value of a pixel."""
        self._device = device
        self._scale = torch.tensor([1 / (top * s) for s in std], device=device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._buffer = torch.empty(0)

    def __call__(self, images: torch.Tensor, mirror: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise; images whose `mirror` (B,) is true are flipped left to right first, while they are still uint8."""
        if self._device.type == "cpu":
            return self._on_cpu(images, None if mirror is None else mirror.tolist())
        images = on_device(images, self._device)
        images = images.float() if images.dtype == torch.uint16 else images  # not all operations know uint16
        if mirror is not None:  # torch.where: an index by booleans would wait for the GPU to count them
            images = torch.where(_each(on_device(mirror, self._device)), images.flip(2), images)
        shape = (1, -1, 1, 1)
        scale, shift = self._scale.view(shape), self._shift.view(shape)
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)

    def _on_cpu(self, images: torch.Tensor, mirror: list[bool] | None) -> torch.Tensor:
        count, height, width, channels = images.shape
        if self._buffer.shape[0] < count or self._buffer.shape[1:] != images.shape[1:]:
            self._buffer = torch.empty(images.shape)
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        for i, image in enumerate(images.unbind()):
            image = image.float() if image.dtype == torch.uint16 else image  # not all operations know uint16
            if mirror is not None and mirror[i]:
                image = image.flip(1)
            rows, out = image.reshape(height, width * channels), self._buffer[i].view(height, width * channels)
            torch.addcmul(shift, rows, scale, out=out)
        return self._buffer[:count].permute(0, 3, 1, 2)


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on a device. Nothing waits for a GPU: they are copied from pinned memory, in the order of its work."""
    if values.device.type == device.type:
        return values
    if device.type == "cuda":
        values = values if values.is_pinned() else values.pin_memory()
    return values.to(device, non_blocking=True)


def distortions(numbers: Array, augment: Mapping[Distortion, float], seed: int, epoch: int) -> dict[str, Array]:
    """The random changes (B, ...) of the entries `numbers` (B,) of an epoch, by operation; each draws for itself.

    For the value x of an operation: rotate turns by up to x degrees in either direction. shift moves by up to x of the
    side. brightness, contrast and saturation change by a factor from 1 - x to 1 + x, and hue by up to x of the colour
    circle in either direction, as in torchvision's ColorJitter. invert happens with probability x. erase happens with
    probability x, and covers a rectangle of 2 to 33% of the area, as in Zhong et al., Random Erasing Data Augmentation
    (2020).
    """
    drawn: dict[str, Array] = {}
    for number, name in enumerate(get_args(Distortion)):
        amount = augment.get(name, 0.0)
        if not amount:
            continue
        one, two, three, four, five = (uniform(numbers, seed, epoch, 20 + number, part) for part in range(5))
        if name in ("brightness", "contrast", "saturation"):
            drawn[name] = _between(one, max(0.0, 1 - amount), 1 + amount)
        elif name == "hue":
            drawn[name] = _between(one, -amount, amount)
        elif name == "rotate":
            drawn[name] = np.deg2rad(_between(one, -amount, amount))
        elif name == "shift":
            drawn[name] = _between(np.stack([one, two], axis=1), -amount, amount)
        elif name == "invert":
            drawn[name] = one < amount
        else:
            area, ratio = _between(one, 0.02, 0.33), np.exp(_between(two, -1.2, 1.2))
            size = np.minimum(1, np.sqrt(np.stack([area * ratio, area / ratio], axis=1)))
            size[three >= amount] = 0
            start = np.stack([four, five], axis=1) * (1 - size)
            drawn[name] = np.concatenate([start, start + size], axis=1)
    return drawn


def _between(shares: Array, low: float, high: float) -> Array:
    """Numbers between two by their shares of the way, in [0, 1)."""
    return low + shares * (high - low)


def distort(images: torch.Tensor, drawn: Mapping[str, Array]) -> torch.Tensor:
    """Images uint8 (B, H, W, C), changed as `distortions` drew; a new uint8 tensor."""
    mine = {
        name: on_device(torch.from_numpy(np.asarray(values, dtype=np.float32)), images.device)
        for name, values in drawn.items()
    }
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    if "rotate" in mine or "shift" in mine:
        pixels = _moved(pixels, mine)
    if "brightness" in mine:
        pixels = (pixels * _each(mine["brightness"])).clamp_(0, 1)
    if "contrast" in mine:
        grey = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
        pixels = torch.lerp(grey.expand_as(pixels), pixels, _each(mine["contrast"])).clamp_(0, 1)
    if "saturation" in mine and pixels.shape[1] == 3:
        pixels = torch.lerp(_grey(pixels).expand_as(pixels), pixels, _each(mine["saturation"])).clamp_(0, 1)
    if "hue" in mine and pixels.shape[1] == 3:
        pixels = _hue_turned(pixels, mine["hue"])
    if "invert" in mine:
        pixels = torch.where(_each(mine["invert"]) > 0, 1 - pixels, pixels)
    if "erase" in mine:
        pixels = pixels * ~_within(mine["erase"], pixels.shape[2], pixels.shape[3])
    return pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def mix(
    images: torch.Tensor, targets: torch.Tensor, mixup: float, cutmix: float, seed: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image float (B, C, H, W) with another image of its batch, and targets float (B, L) in the same shares.

    mixup: the sum of both images, weighted (Zhang et al., mixup, ICLR 2018), or of their features float (B, F) (Verma
    et al., Manifold Mixup, ICML 2019). cutmix: a rectangle of the other image
    (Yun et al., CutMix, ICCV 2019). The share is drawn once per batch from Beta(a, a), where a is the value of `mixup`
    or `cutmix`. If both are set, one of them is chosen at random. A label that is unknown in one of the two images is
    unknown.
    """
    rng = np.random.default_rng(seed)
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    spread = cutmix if cut else mixup
    share = float(rng.beta(spread, spread))
    other = on_device(torch.from_numpy(rng.permutation(len(images))), images.device)
    if cut:
        height, width = images.shape[2:]
        side = (1 - share) ** 0.5
        down, across = round(height * side), round(width * side)
        top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
        mixed = images.clone()
        mixed[:, :, top : top + down, left : left + across] = images[other, :, top : top + down, left : left + across]
        share = 1 - down * across / (height * width)
    else:
        mixed = torch.lerp(images[other], images, share)
    known = (targets >= 0) & (targets[other] >= 0)
    both = share * targets.float() + (1 - share) * targets[other].float()
    return mixed, torch.where(known, both, -1.0)


def _moved(images: torch.Tensor, mine: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images rotated about their centre and shifted; uncovered pixels are black."""
    angle = mine.get("rotate", torch.zeros(len(images), device=images.device))
    shift = mine.get("shift", torch.zeros(len(images), 2, device=images.device)) * 2
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _hue_turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Images float (B, 3, H, W) with their hue turned by shares (B,) of the circle; grey stays grey."""
    high, where = images.max(dim=1)
    low = images.amin(dim=1)
    span = high - low
    safe = torch.where(span > 0, span, torch.ones_like(span))
    red, green, blue = images.unbind(dim=1)
    sides = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    sixth = sides.gather(1, where[:, None])[:, 0] + 6 * turns.view(-1, 1, 1)
    # Each channel as a function of the hue in sixths of the circle (Smith, Color Gamut Transform Pairs, 1978).
    sector = (_on_each_channel((5.0, 3.0, 1.0), images.device) + sixth[:, None]) % 6
    return high[:, None] - span[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1)


def _within(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Which pixels (B, 1, H, W) lie in boxes (B, 4), top, left, bottom and right in shares of the sides."""
    rows, columns = (torch.arange(n, device=boxes.device)[None] + 0.5 for n in (height, width))
    top, left, bottom, right = (boxes[:, i : i + 1] for i in range(4))
    down = (rows >= top * height) & (rows < bottom * height)
    across = (columns >= left * width) & (columns < right * width)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Brightness (B, 1, H, W), by the weights of ITU-R 601 as everywhere."""
    if images.shape[1] == 1:
        return images
    return (images * _on_each_channel((0.299, 0.587, 0.114), images.device)).sum(dim=1, keepdim=True)


def _on_each_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return on_device(torch.tensor(values), device).view(1, -1, 1, 1)


def _each(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def mirrors(numbers: Array, seed: int, epoch: int) -> torch.Tensor:
    """Which of the entries `numbers` (B,) an epoch shows mirrored: a fair coin each, the same for any ranks."""
    return torch.from_numpy(uniform(numbers, seed, epoch, 2) < 0.5)


def crops(numbers: Array, smallest: float, seed: int, epoch: int) -> Array:
    """The part (B, 4) of each image that an epoch shows, as top, left, bottom and right in shares of its sides.

    Its area is uniform between `smallest` and 1, its ratio of sides log-uniform between 3/4 and 4/3, its place uniform:
    the random resized crop of Szegedy and others, Going Deeper with Convolutions (2015), as torchvision draws it.
    """
    of_area, of_ratio, of_top, of_left = (uniform(numbers, seed, epoch, 3, part) for part in range(4))
    area = _between(of_area, smallest, 1)
    ratio = np.exp(_between(of_ratio, np.log(_RATIO[0]), np.log(_RATIO[1])))
    height, width = np.minimum(1, np.sqrt(area / ratio)), np.minimum(1, np.sqrt(area * ratio))
    top, left = of_top * (1 - height), of_left * (1 - width)
    return np.stack([top, left, top + height, left + width], axis=1)


def margin(image_size: int) -> int:
    """The side in pixels of images that crops of `image_size` are taken from."""
    return round(image_size * _MARGIN)
