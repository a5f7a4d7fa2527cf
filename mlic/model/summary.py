"""A table of the layers of a network: output shapes and parameter counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Layer:
    """One layer in the order of computation; `shape` is that of its output for one image, without the batch."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def layers(net: nn.Module, channels: int, image_size: int) -> list[Layer]:
    """The layers that one image of zeros passes, each at its first use.

    A module that holds others is listed only if it has parameters that none of these reports. For example, attention
    uses the parameters of its inner layers without calling these layers.
    """
    seen: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        seen.setdefault(name, (module, tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()))

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in net.named_modules()]
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, channels, image_size, image_size))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    counts = dict.fromkeys(seen, 0)
    for name, values in net.named_parameters():
        holder = name.rpartition(".")[0]
        while holder not in counts:
            holder = holder.rpartition(".")[0]
        counts[holder] += values.numel()
    return [
        Layer(name or type(module).__name__, type(module).__name__, shape, counts[name])
        for name, (module, shape) in seen.items()
        if counts[name] or not any(True for _ in module.children())
    ]


def parameters(net: nn.Module) -> int:
    """How many numbers the network learns."""
    return sum(p.numel() for p in net.parameters())
