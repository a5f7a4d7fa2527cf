"""uint8 batches to float32 on the device, and what training changes about an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

_RATIO = (3 / 4, 4 / 3)  # of a crop's sides, as in torchvision's RandomResizedCrop
_MARGIN = 8 / 7  # a network of 224 pixels is fed from images of 256


class Normalizer:
    """Turns uint8 images (B, H, W, C) into normalised float32 (B, C, H, W) in channels-last memory on `device`.

    On a CPU the result lies in a buffer that the next call writes to again: fresh memory for every batch costs more
    than the arithmetic, and so do several passes over a batch instead of one over each image while it is in the cache.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._device = device
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._buffer = torch.empty(0)

    def __call__(self, images: torch.Tensor, mirror: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise; images whose `mirror` (B,) is true are flipped left to right first, while they are still uint8."""
        if self._device.type == "cpu":
            return self._on_cpu(images, None if mirror is None else mirror.tolist())
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        if mirror is not None and mirror.any():
            chosen = mirror.to(images.device)
            images[chosen] = images[chosen].flip(2)
        shape = (1, -1, 1, 1)
        scale, shift = self._scale.view(shape), self._shift.view(shape)
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)

    def _on_cpu(self, images: torch.Tensor, mirror: list[bool] | None) -> torch.Tensor:
        count, height, width, channels = images.shape
        if self._buffer.shape[0] < count or self._buffer.shape[1:] != images.shape[1:]:
            self._buffer = torch.empty(images.shape)
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        for i, image in enumerate(images.unbind()):
            if mirror is not None and mirror[i]:
                image = image.flip(1)
            rows, out = image.reshape(height, width * channels), self._buffer[i].view(height, width * channels)
            torch.addcmul(shift, rows, scale, out=out)
        return self._buffer[:count].permute(0, 3, 1, 2)


def mirrors(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Which samples (N,) an epoch shows mirrored: a fair coin each, the same for any number of workers."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 2]).random(num_samples) < 0.5)


def crops(num_samples: int, smallest: float, seed: int, epoch: int) -> Array:
    """The part (N, 4) of each image that an epoch shows, as top, left, bottom and right in shares of its sides.

    Its area is uniform between `smallest` and 1, its ratio of sides log-uniform between 3/4 and 4/3, its place uniform:
    the random resized crop of Szegedy and others, Going Deeper with Convolutions (2015), as torchvision draws it.
    """
    rng = np.random.default_rng([seed, epoch, 3])
    area = rng.uniform(smallest, 1, num_samples)
    ratio = np.exp(rng.uniform(np.log(_RATIO[0]), np.log(_RATIO[1]), num_samples))
    height, width = np.minimum(1, np.sqrt(area / ratio)), np.minimum(1, np.sqrt(area * ratio))
    top, left = rng.random(num_samples) * (1 - height), rng.random(num_samples) * (1 - width)
    return np.stack([top, left, top + height, left + width], axis=1)


def margin(image_size: int) -> int:
    """The side in pixels of images that crops of `image_size` are taken from."""
    return round(image_size * _MARGIN)
