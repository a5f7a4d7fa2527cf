"""A network layer by layer: what goes out of each, and how many numbers it learns."""

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
    """The layers that one image of zeros passes, each at its first use. Modules that hold others are not listed, except
    with parameters of their own."""
    names = {module: name for name, module in net.named_modules()}
    found: dict[str, Layer] = {}

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        shape = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()
        own = any(True for _ in module.children())
        parameters = sum(p.numel() for p in module.parameters(recurse=not own))
        if not own or parameters:
            found.setdefault(name, Layer(name or type(module).__name__, type(module).__name__, shape, parameters))

    hooks = [module.register_forward_hook(partial(note, name)) for module, name in names.items()]
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, channels, image_size, image_size))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return list(found.values())


def parameters(net: nn.Module) -> int:
    """How many numbers the network learns."""
    return sum(p.numel() for p in net.parameters())
