"""uint8 batches to float32 on the device, with the augmentation of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Normalizer:
    """Turns uint8 images (B, H, W, C) into normalised float32 (B, C, H, W) in channels-last memory on `device`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        shape = (1, len(mean), 1, 1)
        self._device = device
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(shape)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(shape)

    def __call__(self, images: torch.Tensor, mirror: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise; images whose `mirror` (B,) is true are flipped left to right first, while they are still uint8."""
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        if mirror is not None and mirror.any():
            chosen = mirror.to(images.device)
            images[chosen] = images[chosen].flip(2)
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(self._scale).add_(self._shift)


def mirrors(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Which samples (N,) an epoch shows mirrored: a fair coin each, the same for any number of workers."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 2]).random(num_samples) < 0.5)
