"""Architectures by name: the small reference CNNs and every torchvision classifier, with a head for L labels."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mlic.config import Color
from mlic.errors import ConfigError

REFERENCE = ("a-cnn1", "b-final")


def default_color(arch: str) -> Color:
    """The colour mode that an architecture was made for."""
    return "gray" if arch == "b-final" else "rgb"


def check(arch: str) -> None:
    """Raise ConfigError, with the nearest name, when there is no such architecture."""
    if arch in REFERENCE:
        return
    known = _torchvision_names()
    if arch not in known:
        near = difflib.get_close_matches(arch, [*REFERENCE, *known], n=1, cutoff=0.4)
        names = f"did you mean {near[0]}?" if near else f"the small ones are {', '.join(REFERENCE)}."
        raise ConfigError(f"unknown architecture {arch!r}.", names)


def build(arch: str, num_labels: int, channels: int, image_size: int, options: Mapping[str, float]) -> nn.Module:
    """Build a network from (B, channels, image_size, image_size) float32 to logits (B, num_labels), untrained.

    `options` go to the architecture: `hidden` and `dropout` of the reference CNNs, any number that a torchvision
    builder takes. Raises ConfigError for an unknown name, an option it does not have or an image too small for it.
    """
    check(arch)
    make = {"a-cnn1": _a_cnn1, "b-final": _b_final}.get(arch) or partial(_torchvision, arch)
    try:
        model = make(num_labels, channels, image_size, **options)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, channels, image_size, image_size))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{arch} cannot be built for {image_size} px and options {dict(options)}: {line}.",
            "change image_size or arch_options.",
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_labels):
        raise ConfigError(f"{arch} does not give one logit a label.", "choose another architecture.")
    return model


def set_head_bias(model: nn.Module, bias: torch.Tensor) -> None:
    """Set the output biases (L,) of the last layer that has as many.

    Raises ConfigError when the network ends without such a layer.
    """
    for module in reversed(list(model.modules())):
        own = getattr(module, "bias", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and own is not None and own.shape == bias.shape:
            with torch.no_grad():
                own.copy_(bias)
            return
    raise ConfigError("this architecture has no output bias to start at the labels' shares.", "--set head_prior=false.")


def _a_cnn1(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.0) -> nn.Module:
    """Reference system A, CNN1: conv 6, 16 and 32 with 4x4 kernels and no padding, two poolings, one hidden layer.

    The size of the hidden layer is not in A's report; 128 is that of A's plain feed-forward net.
    """
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 4), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 16, 4), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 32, 4), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    flat = _flat_size(features, channels, image_size)
    return nn.Sequential(
        *features,
        nn.Linear(flat, int(hidden)),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(int(hidden), num_labels),
    )


def _b_final(num_labels: int, channels: int, image_size: int, hidden: float = 256, dropout: float = 0.5) -> nn.Module:
    """Reference system B, final net: conv 32, 64, 128, 256 (3x3, ReLU, batch norm), 2x2 pooling after the first three.

    B was written in Keras, where convolutions pad nothing by default and a truncated normal has a deviation of 0.05.
    """
    layers: list[nn.Module] = []
    widths = [channels, 32, 64, 128, 256]
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3), nn.ReLU(), nn.BatchNorm2d(after)]
        if i < 3:
            layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers, nn.Flatten())
    dense = nn.Linear(_flat_size(features, channels, image_size), int(hidden))
    nn.init.trunc_normal_(dense.weight, std=0.05, a=-0.1, b=0.1)
    nn.init.zeros_(dense.bias)
    return nn.Sequential(*features, dense, nn.ReLU(), nn.Dropout(dropout), nn.Linear(int(hidden), num_labels))


def _flat_size(features: nn.Module, channels: int, image_size: int) -> int:
    training = features.training
    with torch.no_grad():
        size = features.eval()(torch.zeros(1, channels, image_size, image_size)).shape[1]
    features.train(training)
    return int(size)


def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision(arch: str, num_labels: int, channels: int, image_size: int, **options: float) -> nn.Module:
    import torchvision

    arguments: dict[str, Any] = {"weights": None, "num_classes": num_labels, **options}
    builder = torchvision.models.get_model_builder(arch)
    if arch.startswith("vit_"):
        arguments["image_size"] = image_size
    if arch in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": True}
    model = builder(**arguments)
    if channels != 3:
        _replace_first_conv(model, channels)
    return model  # type: ignore[no-any-return]


def _replace_first_conv(model: nn.Module, channels: int) -> None:
    """Give the first convolution `channels` inputs in place of three."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            wanted = inspect.signature(nn.Conv2d).parameters.keys() - {
                "in_channels",
                "device",
                "dtype",
                "bias",
            }
            arguments = {key: getattr(module, key) for key in wanted}
            parent, _, leaf = name.rpartition(".")
            fresh = nn.Conv2d(channels, bias=module.bias is not None, **arguments)
            setattr(model.get_submodule(parent), leaf, fresh)
            return
    raise ValueError(f"no convolution with 3 inputs to change to {channels}")
