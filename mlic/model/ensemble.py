"""Several networks as one network that averages their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlic.config.data import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn


import torch
from torch import nn

from mlic.model import losses, zoo
from mlic.model.ensemble_member import Member


class Average(nn.Module):
    """Takes images (B, C, H, W) that are normalised by the `mean` and `std` of `prep`; returns scores (B, L)."""

    def __init__(self, members: Sequence[Member], num_labels: int, prep: Preprocessing) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            zoo.build(member.arch, num_labels, prep.channels, prep.image_size, member.arch_options)
            for member in members
        )
        self.activations = [member.activation for member in members]
        self.scales: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        for member in members:
            same = (member.mean, member.std) == (prep.mean, prep.std)
            mean, std, own_mean, own_std = (
                torch.tensor(values).view(-1, 1, 1) for values in (prep.mean, prep.std, member.mean, member.std)
            )
            self.scales.append(None if same else (std / own_std, (mean - own_mean) / own_std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for net, activation, scale in zip(self.nets, self.activations, self.scales, strict=True):
            resized = images
            if scale is not None:
                factor, shift = (tensor.to(images.device, images.dtype) for tensor in scale)
                resized = images * factor + shift
            scores = losses.scores(activation, net(resized))
            total = scores if total is None else total + scores
        if total is None:
            raise ValueError("an average needs a network")
        return total / len(self.nets)


def joined(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The state dict of an `Average` from those of its members."""
    return {f"nets.{i}.{name}": tensor for i, state in enumerate(states) for name, tensor in state.items()}
