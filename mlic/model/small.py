"""The default network: a small residual network that learns from scratch in minutes on CPUs."""

from __future__ import annotations

import torch
from torch import nn


def small(
    num_labels: int, channels: int, image_size: int, width: float = 16, depth: float = 1, dropout: float = 0.2
) -> nn.Module:
    """From (B, channels, image_size, image_size) to logits (B, num_labels); 0.5 million parameters by default.

    The network has plain 3x3 convolutions, which CPUs and GPUs compute best, with batch norm and ReLU. The first has
    stride 2. Three more have widths of 2, 4 and 8 times `width`, and each halves the image. The last two are followed
    by `depth` residual blocks. The mean over the map and dropout come last. The design follows the ResNet-9 of Page,
    How to Train Your ResNet (2018). Raises ValueError for images below 16 pixels, of which nothing would be left.
    """
    if image_size < 16:
        raise ValueError("it needs at least 16 pixels")
    w, blocks = int(width), int(depth)
    return nn.Sequential(
        _convolution(channels, w, stride=2),
        _convolution(w, 2 * w),
        nn.MaxPool2d(2),
        _convolution(2 * w, 4 * w),
        nn.MaxPool2d(2),
        *(_Residual(4 * w) for _ in range(blocks)),
        _convolution(4 * w, 8 * w),
        nn.MaxPool2d(2),
        *(_Residual(8 * w) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * w, num_labels),
    )


class _Residual(nn.Module):
    """Two convolutions, whose result is added to what they were given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = features + self.change(features)
        return changed


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
