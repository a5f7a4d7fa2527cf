"""Several backbones, or an image and its mirror image, whose features go into one head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Scale = tuple[tuple[float, ...], tuple[float, ...]]  # factor and shift of each channel


class Joined(nn.Module):
    """From images (B, C, H, W) to the output of `head` for the joined features (B, F) of all backbones.

    Images are normalised as the first backbone expects it; `scales` turn them into what each backbone expects, None for
    the same. With `mirror`, features are the mean of those of the image and of its mirror image.
    """

    def __init__(
        self, backbones: Sequence[nn.Module], scales: Sequence[Scale | None], head: nn.Module, mirror: bool
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.head = head
        self.scales, self._mirror = scales, mirror

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self._features(images)
        if self._mirror:
            features = (features + self._features(images.flip(-1))) / 2
        logits: torch.Tensor = self.head(features)
        return logits

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for backbone, scale in zip(self.backbones, self.scales, strict=True):
            scaled = images
            if scale is not None:
                factor, shift = (images.new_tensor(values).view(-1, 1, 1) for values in scale)
                scaled = images * factor + shift
            parts.append(backbone(scaled))
        return torch.cat(parts, dim=1)


def scale_between(first: Scale, other: Scale) -> Scale | None:
    """What turns images normalised by the (mean, deviation) `first` into those normalised by `other`."""
    if first == other:
        return None
    (means, deviations), (other_means, other_deviations) = first, other
    factor = tuple(a / b for a, b in zip(deviations, other_deviations, strict=True))
    shift = tuple((a - b) / c for a, b, c in zip(means, other_means, other_deviations, strict=True))
    return factor, shift
