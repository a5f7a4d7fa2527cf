"""A head that attends to each position of the feature map for each label, instead of averaging them."""

from __future__ import annotations

import torch
from torch import nn


def places_of(features: torch.Tensor, channels: int) -> torch.Tensor:
    """Tokens (B, places, channels), from a map (B, channels * places), (B, channels, H, W) or (B, H, W, channels)."""
    if features.ndim > 2 and features.shape[1] != channels and features.shape[-1] == channels:
        return features.flatten(1, -2)
    return features.reshape(len(features), channels, -1).transpose(1, 2)


class MeanOfPlaces(nn.Module):
    """The mean (B, channels) over the places of a feature map, or over tokens, see `places_of`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return places_of(features, self.channels).mean(dim=1)


class MLDecoder(nn.Module):
    """ML-Decoder (Ridnik et al., ML-Decoder: Scalable and Versatile Classification Head, WACV 2023).

    From a feature map (B, channels * places), (B, channels, H, W) or (B, H, W, channels), or from tokens
    (B, places, channels), to logits (B, out_features). Each label has a fixed random query that attends to the places.
    The queries do not attend to each other. A fully connected layer per label follows. Raises ValueError where the
    features have one place only.
    """

    def __init__(self, channels: int, num_labels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.channels, self.out_features = channels, num_labels
        heads = next(count for count in (8, 4, 2, 1) if width % count == 0)
        self.embed = nn.Linear(channels, width)
        self.queries = nn.Parameter(torch.randn(num_labels, width), requires_grad=False)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout))
        self.outer = nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(num_labels, width))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        places = places_of(features, self.channels)
        if places.shape[1] < 2:
            raise ValueError("its head is given one place of the feature map, which leaves nothing to attend to")
        memory = torch.relu(self.embed(places))
        queries = self.norms[0](self.queries + self.dropout(self.queries)).expand(len(memory), -1, -1)
        seen = self.attention(queries, memory, memory, need_weights=False)[0]
        state = self.norms[1](queries + self.dropout(seen))
        state = self.norms[2](state + self.dropout(self.outer(self.inner(state))))
        logits: torch.Tensor = (state * self.weight).sum(dim=2) + self.bias
        return logits
