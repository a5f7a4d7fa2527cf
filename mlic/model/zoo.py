"""Architectures by name: the small reference CNNs and every torchvision classifier, with a head for L labels."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from mlic.config import Color
from mlic.errors import ConfigError
from mlic.model import reference

REFERENCE = tuple(reference.NETS)


def default_color(arch: str) -> Color:
    """The colour mode that an architecture was made for."""
    return reference.NETS[arch][1] if arch in REFERENCE else "rgb"


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
    make = reference.NETS[arch][0] if arch in REFERENCE else partial(_torchvision, arch)
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
