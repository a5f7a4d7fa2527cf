"""A member of an average: what its scores need besides its weights. Free of PyTorch, as bundles are."""

from __future__ import annotations

from dataclasses import dataclass

from mlic.config.types import Activation


@dataclass(frozen=True)
class Member:
    """One of the networks of an average: `activation` makes scores of its logits; `mean`, `std` are of its images."""

    arch: str
    arch_options: dict[str, float]
    activation: Activation
    mean: tuple[float, ...]
    std: tuple[float, ...]
