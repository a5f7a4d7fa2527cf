"""Settings of fitting that exclude each other, or that a run would ignore."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import ValidationInfo

from mlic.config.fit import FitSettings
from mlic.config.types import (
    WEIGHTED,
    Trained,
)


def _check_weighting(fit: FitSettings, power: float) -> None:
    """Raise ValueError for weights of positives that the loss would ignore, and targets that it cannot smooth."""
    if fit.loss not in WEIGHTED and (power or fit.pos_weights or fit.pos_weight_cap or fit.pos_weight_by_min):
        raise ValueError(f"the loss {fit.loss} does not weight positives; leave pos_weight settings at 0")
    if fit.loss == "class-balanced" and power:
        raise ValueError("the loss class-balanced has weights of its own; leave pos_weight_power out")
    if fit.loss == "softmax" and fit.label_smoothing:
        raise ValueError("the loss softmax has no targets to smooth; leave label_smoothing out")


def _check_pixels(fit: FitSettings) -> None:
    """Raise ValueError for augmentations that are made for colours of 8 bits, and settings that others ignore."""
    if fit.channels and fit.color != "auto":
        raise ValueError(f"channels {fit.channels} keeps what the images have; leave color out")
    counts = (fit.channels,) if fit.channels else {"auto": (1, 3), "rgb": (3,), "gray": (1, 3)}[fit.color]
    if fit.mean is not None and len(fit.mean) not in counts:
        needed = " or ".join(str(count) for count in counts)
        raise ValueError(f"mean and std have {len(fit.mean)} numbers, and images have {needed} channels")
    if not fit.channels and fit.bits == 8:
        return
    for name in ("augment", "rand_augment"):
        if _ever(fit, name):
            raise ValueError(f"{name} changes colours of 8 bits; leave it out with bits 16 or channels")


# The context in which settings of an earlier run are read, which may have some that are refused today.
STORED = {"stored": True}


def unused(info: ValidationInfo) -> Collection[str] | None:
    """The settings that may be there without being used: None for all, which an earlier run may have, and those that
    are fixed in a search, where other draws use them."""
    context = info.context or {}
    fixed: Collection[str] = context.get("fixed", ())
    return None if context.get("stored") else fixed


def check_fit(config: FitSettings, train: Trained, power: float, unused: Collection[str] | None = ()) -> None:
    """Raise ValueError for settings of a fit that others of it would have ignored.

    `unused` are settings that may be there without being used, None for all.
    """
    _check_weighting(config, power)
    _check_pixels(config)
    if isinstance(train, int) and train < 1:
        raise ValueError(f"train should be all, head, none or a number of stages, not {train}")
    for names, needed, fits in (
        (("momentum",), "optimizer sgd or rmsprop", config.optimizer in ("sgd", "rmsprop")),
        (("step_epochs", "step_factor"), "schedule step", config.schedule == "step"),
        (("warmup_epochs",), "another schedule than one-cycle", config.schedule != "one-cycle"),
        (("stop_on",), "patience above 0", config.patience > 0),
        (("rand_magnitude",), "rand_augment above 0", _ever(config, "rand_augment")),
        (TRAINING, f"train all or head, not {train}", train != "none"),
        (("feature_mixup",), "train head without augmented images", train == "head" and not _augments(config)),
        (("layer_decay",), f"stages to decay over, not train {train}", train not in ("head", "none")),
    ):
        if fits or unused is None:
            continue
        ignored = [name for name in names if name not in unused and not _is_default(config, name)]
        if ignored:
            value = getattr(config, ignored[0])
            raise ValueError(f"{ignored[0]} {value} needs {needed}, and would be ignored; leave it out")


TRAINING = (
    "epochs",
    "lr",
    "optimizer",
    "weight_decay",
    "momentum",
    "schedule",
    "warmup_epochs",
    "step_epochs",
    "step_factor",
    "clip_norm",
    "accumulate",
    "ema",
    "patience",
    "stop_on",
    "repeat_below",
    "thin",
    "limit",
    "shuffle",
    "crop",
    "augment",
    "rand_augment",
    "rand_magnitude",
    "mixup",
    "cutmix",
    "feature_mixup",
    "label_smoothing",
)  # what a network that is not trained has no use for


def _is_default(config: FitSettings, name: str) -> bool:
    """Whether a setting has its default, or a value that says that there is nothing of the kind."""
    value = getattr(config, name)
    nothing: dict[str, Any] = {"ema": 0.0, "epochs": 1, "weight_decay": 0.0}
    return bool(value == type(config).model_fields[name].default or value == nothing.get(name, object()))


def _ever(config: FitSettings, name: str) -> bool:
    """Whether a setting that can change is above 0 in some epoch."""
    return bool(getattr(config, name)) or any(changed.get(name) for changed in config.changes.values())


def _augments(config: FitSettings) -> bool:
    """Whether images are changed at random in some epoch, so that features have to be computed again."""
    return config.crop < 1 or bool(config.augment) or any(_ever(config, n) for n in ("rand_augment", "mixup", "cutmix"))
