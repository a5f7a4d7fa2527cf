"""Optimisers, learning rate schedules and EMA weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mlic.config.train import TrainConfig

_ONE_CYCLE_RISE, _ONE_CYCLE_START, _ONE_CYCLE_END = 0.3, 25.0, 1e4


def optimizer(
    config: TrainConfig, parameters: Iterable[dict[str, Any]], device: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimiser that a configuration asks for, over groups of parameters, which lie on `device`.

    Weight decay is L2, but decoupled for adamw. On a GPU, one kernel updates all parameters where PyTorch has one.
    """
    lr, decay = config.lr, config.weight_decay
    fused: dict[str, Any] = {"fused": True} if device is not None and device.type == "cuda" else {}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=config.momentum, **fused)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, weight_decay=decay, momentum=config.momentum)
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adamax": torch.optim.Adamax,
        "adadelta": torch.optim.Adadelta,
        "adagrad": torch.optim.Adagrad,
    }
    options = fused if config.optimizer in ("adam", "adamw") else {}
    return kinds[config.optimizer](parameters, lr=lr, weight_decay=decay, **options)  # type: ignore[no-any-return]


def adjust(config: TrainConfig, optimizer: torch.optim.Optimizer) -> None:
    """Apply a configuration's optimiser settings, except the learning rate, which each step sets."""
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
        if "momentum" in group:
            group["momentum"] = config.momentum


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The factor of the learning rate at a step; steps are counted from 0 over all epochs.

    one-cycle: a cosine from 1/25 of the rate up to the rate over three tenths of the run, then a cosine down to
    1/250,000 (Smith and Topin, Super-Convergence, 2018, as PyTorch has it). The other schedules rise linearly over
    `warmup_epochs`.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "one-cycle":
        rise = _ONE_CYCLE_RISE * total
        if step < rise:
            return _cosine(1 / _ONE_CYCLE_START, 1.0, step / rise)
        return _cosine(1.0, 1 / (_ONE_CYCLE_START * _ONE_CYCLE_END), (step - rise) / max(1.0, total - rise))
    warm = config.warmup_epochs * steps_per_epoch
    factor = min(1.0, (step + 1) / warm) if warm else 1.0
    if config.schedule == "cosine":
        return factor * _cosine(1.0, 0.0, max(0.0, step - warm) / max(1.0, total - warm))
    if config.schedule == "step":
        return factor * float(config.step_factor ** (step // (config.step_epochs * steps_per_epoch)))
    return factor


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def average(ema_weights: dict[str, torch.Tensor], net: nn.Module, decay: float, updates: int) -> None:
    """Move averaged weights towards those of a network, in place.

    Over the first updates the decay grows to its value, so that the average forgets the untrained weights. Counters,
    which are no floats, are copied. Frozen weights stay as they are.
    """
    state = {
        name: tensor
        for name, tensor in net.state_dict(keep_vars=True).items()
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }
    averaged = [name for name, tensor in state.items() if tensor.is_floating_point()]
    # On a GPU, one kernel updates all tensors. One kernel for each tensor would take as long as a small step.
    now = min(decay, (1 + updates) / (10 + updates))
    move = get_ema_multi_avg_fn(now)  # type: ignore[no-untyped-call]
    move([ema_weights[name] for name in averaged], [state[name] for name in averaged], updates)
    for name in state.keys() - set(averaged):
        ema_weights[name].copy_(state[name])
