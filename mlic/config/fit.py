"""The settings of fitting one model, which train, tune and noise share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from mlic.config.base import Settings, setting
from mlic.config.types import (
    AnyPath,
    Distortion,
    LocalPath,
    Loss,
    Names,
    Optimizer,
    Precision,
    Share,
)

Color = Literal["rgb", "gray"]
Objective = Literal["f1_micro", "f1_macro", "map", "subset_accuracy", "hamming_accuracy"]
KeptEpoch = Literal["best", "lowest-loss", "last"]
_MOST_AUGMENT = {"shift": 1.0, "invert": 1.0, "erase": 1.0, "hue": 0.5}
# Settings that a network's training can go on with when they are changed in its middle.
MOVABLE = (
    "lr",
    "weight_decay",
    "momentum",
    "clip_norm",
    "label_smoothing",
    "hflip",
    "rand_augment",
    "rand_magnitude",
    "mixup",
    "cutmix",
)
CALIBRATION = (
    "How scores are calibrated; auto: what gives the best objective at cross-fitted thresholds, of equals the one with "
    "the lowest log loss"
)


class ShardSettings(Settings):
    """What every command that fits models to shards has."""

    shards: AnyPath = setting(
        Path("shards"),
        "Folder of shards that mlic pack wrote, or s3://...",
        cli="argument",
        place=True,
        validate_default=True,
        group="data",
    )


class RunSettings(ShardSettings):
    """What `train` and `tune` share: the run's folder, and what is held out."""

    runs: LocalPath = setting(
        Path("runs"), "Folder that holds the run folders", cli="flag", place=True, validate_default=True, group="run"
    )
    name: str | None = setting(
        None,
        "Name of the run; default: the recipe's stem, else the architecture, or tune",
        cli="flag",
        place=True,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        group="run",
    )
    fold: int | None = setting(
        None,
        "Validate on this fold of the shards and train on the others; default: the splits",
        cli="flag",
        ge=0,
        group="data",
    )


class FitSettings(Settings):
    """What `train`, `tune` and `noise` share: how one model is fitted."""

    epochs: int = setting(10, "Passes over the training split", cli="flag", ge=1, group="optimisation")
    batch_size: int = setting(
        64, "Samples in a step, over all workers together", cli="flag", ge=2, group="optimisation"
    )
    lr: float = setting(2e-3, "Learning rate, the highest of the run", cli="flag", gt=0, group="optimisation")
    optimizer: Optimizer = setting("adamw", "Optimiser", cli="flag", group="optimisation")
    weight_decay: float = setting(
        0.02, "Weight decay, decoupled for adamw, else L2", ge=0, cli="flag", group="optimisation"
    )
    loss: Loss = setting("bce", "Loss function", cli="flag", group="optimisation")
    objective: Objective = setting(
        "f1_micro",
        "Metric of the validation split, at cross-fitted thresholds, by which the best epoch is chosen",
        cli="flag",
        group="optimisation",
    )
    patience: int = setting(
        0,
        "Epochs without a better value of stop_on after which the run stops; 0: never",
        ge=0,
        cli="flag",
        group="optimisation",
    )
    stop_on: str = setting("val/loss", "Metric of an epoch that patience waits for", pattern=r"^val/[a-z0-9_.]+$")
    keep_epoch: KeptEpoch = setting(
        "best",
        "Which epoch is kept and measured: the best by the objective, the one with the lowest validation loss, "
        "or the last",
    )
    loss_options: dict[str, float] = setting({}, "Options of the loss, such as gamma of focal")
    label_smoothing: float = setting(0.0, "How far targets are moved towards a half", ge=0, lt=1)
    pos_weights: dict[str, float] = setting({}, "Weights of positives by label, in place of those that are computed")
    pos_weight_cap: float = setting(0.0, "Largest weight of positives; 0: none", ge=0)
    pos_weight_by_min: bool = setting(False, "Divide the weights of positives by the smallest of them")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = setting(
        "one-cycle", "How the learning rate changes over the run"
    )
    warmup_epochs: float = setting(0.0, "Epochs over which the learning rate rises; one-cycle has its own", ge=0)
    step_epochs: int = setting(10, "Epochs between the drops of the schedule step", ge=1)
    step_factor: float = setting(0.1, "What the schedule step multiplies the learning rate by", gt=0, lt=1)
    momentum: float = setting(0.9, "Momentum of sgd and rmsprop", ge=0, lt=1)
    layer_decay: float = setting(
        1.0, "What the learning rate is multiplied by from each stage of the network to the one before it", gt=0, le=1
    )
    clip_norm: float = setting(0.0, "Largest norm of the gradient; 0: any", ge=0)
    accumulate: int = setting(1, "Parts that the samples of a step go through one after another, for memory", ge=1)
    ema: float = setting(0.99, "Decay of the moving average of weights that is evaluated and kept; 0: none", ge=0, lt=1)
    repeat_below: Share = setting(
        0.0, "Show images with a label that fewer than this share have more often, by repeat factors", ge=0, le=1
    )
    thin: Share = setting(
        0.0, "Leave out training images without rare labels with this probability, anew in each epoch", ge=0, lt=1
    )
    thin_labels: Names = setting((), "Labels that are not rare: images with no others are thinned")
    image_size: int = setting(128, "Side of the square input in pixels", cli="flag", ge=8, le=4096, group="data")
    color: Color | Literal["auto"] = setting(
        "auto", "rgb, gray, or what the architecture was made for", cli="flag", group="data"
    )
    normalization: Literal["auto", "imagenet", "none"] = setting(
        "auto",
        "Mean and deviation that are taken from pixels; auto: those of the architecture's published weights; "
        "none: pixels from 0 to 1",
    )
    limit: int | None = setting(
        None, "Training samples, at most, drawn by the seed: for a quick try", cli="flag", ge=2, group="data"
    )
    shuffle: bool = setting(True, "Show the training samples in another order in each epoch, else in that of the keys")
    hflip: bool = setting(True, "Mirror training images at random")
    crop: Share = setting(1.0, "Smallest share of a training image that a random crop shows; 1: no crops", gt=0, le=1)
    augment: dict[Distortion, float] = setting(
        {},
        "What else changes training images at random: rotate (degrees), shift, brightness, contrast, saturation "
        "(shares), hue (share of the colour circle), invert, erase (probabilities)",
    )
    rand_augment: int = setting(0, "Operations of RandAugment on each training image; 0: none", ge=0, le=10)
    rand_magnitude: int = setting(9, "How strong they are, out of 30", ge=0, le=30)
    mixup: float = setting(0.0, "Mix each training image with another, in shares of Beta(a, a); 0: no", ge=0, le=10)
    cutmix: float = setting(0.0, "The same by a rectangle of the other; with mixup, one of them at random", ge=0, le=10)
    head_prior: bool = setting(True, "Start the output biases at the labels' log-odds in the training split")
    precision: Precision = setting(
        "auto",
        "Arithmetic of a step, the same for a whole run or search; auto: bf16 on GPUs that have it, fp16 on "
        "other GPUs with tensor cores, fp32 elsewhere",
    )
    compile: bool = setting(False, "Compile the network with torch.compile", cli="flag", group="resources")
    non_finite: Literal["stop", "skip"] = setting(
        "stop", "What a step whose loss or gradient is not finite does: stop the run, or be left out and named"
    )
    checkpoint_minutes: float = setting(
        5.0,
        "Minutes after which an epoch's position is kept, so that a stopped run goes on from there",
        cli="flag",
        gt=0,
        place=True,
        group="resources",
    )
    checkpoint_copy: AnyPath | None = setting(
        None,
        "Folder, s3://... perhaps, that gets a copy of the checkpoints, to go on from where the run's is lost",
        place=True,
    )
    changes: dict[int, dict[str, bool | int | float]] = setting(
        {},
        "Settings that change after so many epochs, such as {5: {lr: 1e-4}}; of those that can: "
        f"{', '.join(MOVABLE)}",
    )
    max_bad: Share = setting(0.01, "Largest share of undecodable samples before the run stops", ge=0, le=1)
    doctor: bool = setting(True, "Examine the shards first, as mlic doctor does", cli="flag", place=True, group="run")
    cache_gb: float = setting(
        8.0,
        "Largest cache of decoded images that a node keeps, in GB; 0: none",
        cli="flag",
        place=True,
        ge=0,
        group="resources",
    )
    loader_threads: int = setting(
        2,
        "Threads that decode ahead of each worker; 0: none, which is least work where there is no GPU to keep busy",
        ge=0,
        le=64,
    )
    seed: int = setting(
        42, "Seed of weights, order of samples and augmentation", cli="flag", ge=0, le=2**31 - 1, group="run"
    )

    def after(self, epochs: int) -> Self:
        """The settings that hold after so many epochs."""
        changed = {
            name: value for when in sorted(self.changes) if when <= epochs for name, value in self.changes[when].items()
        }
        return self.model_copy(update=changed) if changed else self

    @model_validator(mode="after")
    def _changes_make_sense(self) -> Self:
        for epochs in sorted(self.changes):
            odd = next((name for name in self.changes[epochs] if name not in MOVABLE), None)
            if odd is not None:
                raise ValueError(f"changes.{epochs}: {odd} cannot change in a run; what can is {', '.join(MOVABLE)}")
            if not 0 < epochs < self.epochs:
                raise ValueError(f"changes.{epochs}: give a number of epochs from 1 to {self.epochs - 1}")
            try:
                plain = {**dict(self.after(epochs)), "changes": {}}
                if not plain["rand_augment"]:  # epochs before may have used its magnitude
                    del plain["rand_magnitude"]
                type(self)(**plain)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                what = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"changes.{epochs}: {where + ': ' if where else ''}{what}") from None
        return self

    @model_validator(mode="after")
    def _amounts_make_sense(self) -> Self:
        for name, amount in self.augment.items():
            most = _MOST_AUGMENT.get(name, math.inf)
            if not 0 <= amount <= most:
                upto = "at least 0" if most == math.inf else f"from 0 to {most:g}"
                raise ValueError(f"augment.{name} should be {upto}, not {amount:g}")
        odd = next((name for name, weight in self.pos_weights.items() if weight <= 0), None)
        if odd is not None:
            raise ValueError(f"pos_weights.{odd} should be above 0, not {self.pos_weights[odd]:g}")
        if self.thin_labels and not self.thin:
            raise ValueError("thin_labels says what is thinned, and thin is 0; give thin a probability")
        return self
