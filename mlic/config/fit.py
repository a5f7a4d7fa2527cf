"""The settings of fitting one model, which train, tune and noise share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mlic.config.base import Settings, setting
from mlic.config.log import Trackers
from mlic.config.types import (
    AnyPath,
    Distortion,
    FeatureEngine,
    LocalPath,
    Loss,
    Names,
    Optimizer,
    Precision,
    Share,
)

Color = Literal["rgb", "gray"]
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
Objective = Literal["f1_micro", "f1_macro", "map", "subset_accuracy", "hamming_accuracy"]
KeptEpoch = Literal["best", "lowest-loss", "last"]
_MOST_AUGMENT = {"shift": 1.0, "invert": 1.0, "erase": 1.0, "hue": 0.5}
# Settings that a network's training can continue with when they are changed in its middle.
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
    "Calibration of scores; auto: the one with the best objective at cross-fitted thresholds, then the lowest log loss"
)


class ShardSettings(Settings):
    """What every command that fits models to shards has."""

    shards: AnyPath = setting(
        Path("shards"),
        "Folder of shards that mlic pack wrote, or s3://...",
        cli="argument",
        runtime=True,
        validate_default=True,
        group="data",
    )


class RunSettings(ShardSettings):
    """What `train` and `tune` share: the run's folder, and what is held out."""

    runs: LocalPath = setting(
        Path("runs"), "Folder that holds the run folders", cli="flag", runtime=True, validate_default=True, group="run"
    )
    name: str | None = setting(
        None,
        "Name of the run; default: the recipe or the architecture, and tune for a search",
        cli="flag",
        runtime=True,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        group="run",
    )
    log_to: Trackers = setting(
        (),
        "Experiment trackers to send the run to: mlflow, wandb, tensorboard; see mlic log",
        cli="flag",
        runtime=True,
        group="run",
    )
    fold: int | None = setting(
        None,
        "Validate on this fold and train on the others; default: use the splits",
        cli="flag",
        ge=0,
        group="data",
    )


class FitSettings(Settings):
    """What `train`, `tune` and `noise` share: how one model is fitted."""

    epochs: int = setting(10, "Passes over the training split", cli="flag", ge=1, group="optimisation")
    batch_size: int = setting(64, "Samples per step, over all workers", cli="flag", ge=2, group="optimisation")
    lr: float = setting(2e-3, "Peak learning rate", cli="flag", gt=0, group="optimisation")
    optimizer: Optimizer = setting("adamw", "Optimiser", cli="flag", group="optimisation")
    weight_decay: float = setting(
        0.02, "Weight decay, decoupled for adamw, else L2", ge=0, cli="flag", group="optimisation"
    )
    loss: Loss = setting("bce", "Loss function", cli="flag", group="optimisation")
    objective: Objective = setting(
        "f1_micro",
        "Validation metric, at cross-fitted thresholds, that selects the best epoch",
        cli="flag",
        group="optimisation",
    )
    patience: int = setting(
        0,
        "Epochs without improvement of stop_on before training stops; 0: never stop early",
        ge=0,
        cli="flag",
        group="optimisation",
    )
    stop_on: str = setting("val/loss", "Metric that patience monitors", pattern=r"^val/[a-z0-9_.]+$")
    keep_epoch: KeptEpoch = setting(
        "best",
        "Epoch to keep and measure: best objective, lowest validation loss, or the last one",
    )
    loss_options: dict[str, float] = setting({}, "Options of the loss, such as gamma of focal")
    label_smoothing: float = setting(0.0, "Label smoothing: how far targets move towards 0.5", ge=0, lt=1)
    pos_weights: dict[str, float] = setting({}, "Positive weight per label, instead of the computed ones")
    pos_weight_cap: float = setting(0.0, "Maximum positive weight; 0: no maximum", ge=0)
    pos_weight_by_min: bool = setting(False, "Divide all positive weights by the smallest one")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = setting("one-cycle", "Learning rate schedule")
    warmup_epochs: float = setting(0.0, "Warm-up epochs of the learning rate; one-cycle has its own warm-up", ge=0)
    step_epochs: int = setting(10, "Epochs between two drops of the step schedule", ge=1)
    step_factor: float = setting(0.1, "Factor of the learning rate at each drop of the step schedule", gt=0, lt=1)
    momentum: float = setting(0.9, "Momentum of sgd and rmsprop", ge=0, lt=1)
    layer_decay: float = setting(
        1.0, "Factor of the learning rate from each stage of the network to the stage before it", gt=0, le=1
    )
    clip_norm: float = setting(0.0, "Maximum gradient norm; 0: no clipping", ge=0)
    accumulate: int = setting(
        1, "Number of parts a step's samples are processed in, to save memory (gradient accumulation)", ge=1
    )
    ema: float = setting(0.99, "Decay of the EMA weights, which are evaluated and kept; 0: no EMA", ge=0, lt=1)
    repeat_below: Share = setting(
        0.0, "Oversample images with a label rarer than this fraction, by repeat factors", ge=0, le=1
    )
    thin: Share = setting(
        0.0, "Probability of skipping a training image without rare labels, drawn again in each epoch", ge=0, lt=1
    )
    thin_labels: Names = setting((), "Frequent labels: images with no other label are thinned")
    image_size: int = setting(128, "Side of the square input in pixels", cli="flag", ge=8, le=4096, group="data")
    color: Color | Literal["auto"] = setting(
        "auto", "rgb, gray, or auto: the one that the architecture was made for", cli="flag", group="data"
    )
    resize: Literal["squash", "crop", "pad", "weights"] = setting(
        "squash",
        "How an image becomes a square: squash: both sides are resized; crop: the middle of it; pad: the whole, with "
        "borders; weights: as the architecture's published weights were evaluated",
        cli="flag",
        group="data",
    )
    interpolation: Literal["auto", "bilinear", "bicubic"] = setting(
        "auto",
        "Interpolation of resized images, antialiased; auto: that of the architecture's published weights",
        cli="flag",
        group="data",
    )
    channels: int = setting(
        0,
        "Channels that images have and keep, such as 4 or 13 of a satellite's TIFF; 0: those of --color",
        cli="flag",
        ge=0,
        le=512,
        group="data",
    )
    bits: Literal[8, 16] = setting(
        8, "Bits that each channel keeps; 16: values of PNG and TIFF stay as they are", cli="flag", group="data"
    )
    normalization: Literal["auto", "imagenet", "none", "measured"] = setting(
        "auto",
        "Mean and standard deviation to normalise with; auto: those of the architecture's published weights, or "
        "measured for 16 bits or own channels; measured: of training images; none: pixels from 0 to 1",
    )
    mean: tuple[float, ...] | None = setting(
        None, "Mean of each channel, as a fraction of the largest value; default: as normalization says"
    )
    std: tuple[float, ...] | None = setting(
        None, "Standard deviation of each channel, as a fraction of the largest value; given with mean"
    )
    limit: int | None = setting(
        None, "Maximum number of training samples, drawn at random; for a quick try", cli="flag", ge=2, group="data"
    )
    shuffle: bool = setting(
        True, "Shuffle the training samples in each epoch; otherwise they come in the order of their keys"
    )
    hflip: bool = setting(True, "Flip training images horizontally at random")
    crop: Share = setting(1.0, "Minimum fraction of the image in a random crop; 1: no cropping", gt=0, le=1)
    augment: dict[Distortion, float] = setting(
        {},
        "Other random augmentations: rotate (degrees), shift, brightness, contrast, saturation "
        "(fractions), hue (fraction of the colour circle), invert, erase (probabilities)",
    )
    rand_augment: int = setting(0, "Number of RandAugment operations per training image; 0: none", ge=0, le=10)
    rand_magnitude: int = setting(9, "RandAugment magnitude, from 0 to 30", ge=0, le=30)
    mixup: float = setting(
        0.0, "Mixup alpha: mixing fractions are drawn from Beta(alpha, alpha); 0: no mixup", ge=0, le=10
    )
    cutmix: float = setting(
        0.0, "CutMix alpha; with mixup, each batch uses one of the two at random; 0: no CutMix", ge=0, le=10
    )
    feature_mixup: float = setting(
        0.0,
        "Mixup alpha for the features of a frozen backbone (train head), which are still computed once; 0: none",
        ge=0,
        le=10,
    )
    head_prior: bool = setting(
        True, "Initialise the output biases with the log-odds of the labels in the training split"
    )
    precision: Precision = setting(
        "auto",
        "Training precision, the same for a whole run or search; auto: bf16 on GPUs that support it, "
        "fp16 on other GPUs with tensor cores, else fp32",
    )
    compile: bool = setting(False, "Compile the network with torch.compile", cli="flag", group="resources")
    non_finite: Literal["stop", "skip"] = setting(
        "stop", "When the loss or gradient of a step is not finite: stop, or skip the step with a warning"
    )
    checkpoint_minutes: float = setting(
        5.0,
        "Minutes between checkpoints within an epoch",
        cli="flag",
        gt=0,
        runtime=True,
        group="resources",
    )
    checkpoint_copy: AnyPath | None = setting(
        None,
        "Folder or s3://... for a second copy of the checkpoints, used if the run folder is lost",
        runtime=True,
    )
    changes: dict[int, dict[str, bool | int | float]] = setting(
        {},
        f"Settings to change during training, by epoch, such as {{5: {{lr: 1e-4}}}}; allowed: {', '.join(MOVABLE)}",
    )
    max_bad: Share = setting(0.01, "Maximum fraction of samples that cannot be decoded", ge=0, le=1)
    doctor: bool = setting(True, "Check the shards first, as mlic doctor does", cli="flag", runtime=True, group="run")
    cache_gb: float = setting(
        8.0,
        "Maximum size of a node's cache of decoded images, in GB; 0: no cache",
        cli="flag",
        runtime=True,
        ge=0,
        group="resources",
    )
    stream: Literal["auto", "always", "never"] = setting(
        "auto",
        "Read the shards of an object store in sequence, each once an epoch by one worker, instead of copying them to "
        "each node; auto: if they do not fit on a node's disk",
        cli="flag",
        group="resources",
    )
    stream_gb: float = setting(
        20.0, "Maximum size of shards that the workers of a run have fetched ahead, in GB", runtime=True, gt=0
    )
    stream_groups: int = setting(
        64, "Number of sequences of streamed shards, at most; the number of workers has to divide it", ge=1
    )
    loader_threads: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = setting(
        "auto",
        "Threads that decode images ahead of each worker; auto: 2 on CPUs, all CPUs of the worker on GPUs; 0: decode "
        "in the worker itself",
        runtime=True,
    )
    feature_engine: FeatureEngine = setting(
        "auto",
        "What computes the features of a frozen backbone on CPUs; auto: OpenVINO or ONNX Runtime, if it is installed "
        "and agrees with PyTorch, for 2,000 images and more",
    )
    deterministic: bool = setting(
        True,
        "On GPUs, use only convolutions that give the same bits each time; false: the fastest ones",
    )
    seed: int = setting(
        42, "Seed for weights, order of samples and augmentation", cli="flag", ge=0, le=2**31 - 1, group="run"
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
                raise ValueError(
                    f"changes.{epochs}: {odd} cannot change during training; allowed: {', '.join(MOVABLE)}"
                )
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
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std go together, with one number for each channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std should be above 0, not {min(self.std):g}")
        if self.thin_labels and not self.thin:
            raise ValueError("thin_labels says what is thinned, and thin is 0; give thin a probability")
        return self
