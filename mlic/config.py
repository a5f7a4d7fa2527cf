"""Every setting of every command, once: its default, its help and its limits.

The command line, the README's tables and the JSON schemas are made from these models, so that no fact about a setting
stands in a second place. Values come from `defaults < --config FILE < --set key=value < flags that were given`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from mlic.schema import Model, Settings, setting
from mlic.values import (
    WEIGHTED,
    AnyPath,
    Calibrator,
    Distortion,
    Gates,
    Interval,
    LocalPath,
    Loss,
    Names,
    Operations,
    Optimizer,
    Paths,
    Policy,
    Share,
    Shares,
    Weights,
    Workers,
    parse_policy,
)  # fmt: skip

Color = Literal["rgb", "gray"]
LabelFormat = Literal["auto", "lists", "wide", "delimited", "long", "jsonl", "coco", "voc", "folders", "webdataset"]
Stage = Literal["pack", "train", "tune", "noise", "batch-predict", "evaluate"]

STAGES: tuple[Stage, ...] = ("pack", "train", "tune", "noise", "batch-predict", "evaluate")


_SLURM_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_SLURM_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)


class Preprocessing(Model):
    """How an image file becomes a model's input; stored in the bundle and used by every stage alike."""

    image_size: int
    color: Color
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["squash"] = "squash"

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1


class PackConfig(Settings):
    """Pack images and their labels into WebDataset tar shards."""

    images: AnyPath = setting(
        ..., "Images: a folder, a .tar or .zip, a list of paths, a folder of shards, or s3://...", cli="argument",
        place=True,
    )  # fmt: skip
    labels: AnyPath = setting(
        ...,
        "Label files: a folder of LABEL.txt lists, a table, or another format of the README",
        cli="flag",
        place=True,
    )
    format: LabelFormat = setting("auto", "Format of the label files, when it is not to be recognised", cli="flag")
    corrections: AnyPath | None = setting(
        None, "Table of suspected label errors of mlic noise, whose verdicts are applied first", cli="flag", place=True
    )
    out: AnyPath = setting(
        Path("shards"), "Folder to write the shards to, or s3://...", cli="flag", place=True, validate_default=True
    )
    unlabelled: Literal["keep", "drop", "as-label"] = setting(
        "keep", "Images without a label: keep them, leave them out, or give them the label none", cli="flag"
    )
    unlabelled_label: str = setting("none", "The label that --unlabelled as-label gives")
    split: Shares = setting({"train": 0.8, "val": 0.1, "test": 0.1}, "Names of the splits and their shares", cli="flag")
    split_by: Literal["stratified", "random"] = setting(
        "stratified", "stratified: each split has its share of every label", cli="flag"
    )
    split_column: str | None = setting(None, "Column of the label table that names each image's split", cli="flag")
    split_files: AnyPath | None = setting(
        None, "Files that say which image is in which split, in any format of labels", cli="flag", place=True
    )
    keep_test: AnyPath | None = setting(
        None, "Earlier shards, whose test images are the test images again", cli="flag", place=True
    )
    folds: int = setting(0, "Also number the samples outside of test by fold, for mlic train --fold", cli="flag", ge=0)
    group_by: Literal["near-duplicates", "identical", "none"] = setting(
        "near-duplicates", "Images that a stratified split never parts", cli="flag"
    )
    group_column: str | None = setting(
        None, "Column of the label table whose values are not parted either, such as a patient", cli="flag"
    )
    expand: int = setting(0, "Augmented versions to write beside each training image", cli="flag", ge=0, le=1000)
    expand_by: Operations = setting(
        ("rotate", "shift", "flip"), "What changes a version: rotate, shift, flip, erase, brightness, contrast"
    )
    thin: Share = setting(
        0.0, "Leave out versions of training images without rare labels with this probability", cli="flag", ge=0, le=1
    )
    thin_labels: Names = setting((), "Labels that are not rare: images with no others are thinned")
    seed: int = setting(
        42, "Seed of the split and of the order of the training samples", cli="flag", ge=0, le=2**31 - 1
    )
    shard_mb: float = setting(64.0, "Target size of a shard in MB", cli="flag", gt=0)
    min_shards: int = setting(
        4, "Fewest shards of a split, as far as it has samples: as many as will read it at once", cli="flag", ge=1
    )
    on_bad: Literal["quarantine", "fail"] = setting(
        "quarantine", "Unreadable images: leave them out and list them, or stop", cli="flag"
    )
    max_bad: Share = setting(
        0.01,
        "Largest share of unreadable images before pack stops, such as 1%; ten are always allowed",
        cli="flag",
        ge=0,
        le=1,
    )
    max_pixels: int = setting(100_000_000, "Largest image, in pixels, that is decoded at all", ge=1)
    verify: bool = setting(False, "Read every shard again and compare it with the index", cli="flag", place=True)

    @model_validator(mode="after")
    def _splits_make_sense(self) -> Self:
        wrong = [name for name in self.split if not is_split_name(name)]
        if wrong:
            raise ValueError(f"the name of a split is one lower-case word, not {wrong[0]!r}")
        if any(share < 0 for share in self.split.values()) or abs(sum(self.split.values()) - 1) > 1e-6:
            total = sum(self.split.values())
            raise ValueError(f"the shares of the splits should sum to 1, not {total:g}")
        if self.folds == 1:
            raise ValueError("folds should be 0 or at least 2, not 1")
        given = [name for name in ("split_column", "split_files", "keep_test") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say what the splits are; give one of them")
        if self.keep_test is not None and not 0 < self.split.get("test", 0) < 1:
            raise ValueError("keep_test needs a split named test, and others beside it")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.group_column is not None and self.split_by == "random":
            raise ValueError("random splits part groups; give split_by stratified with a group_column")
        if self.thin_labels and not self.thin:
            raise ValueError("thin_labels says what is thinned, and thin is 0; give thin a probability")
        return self


def is_split_name(name: str) -> bool:
    """Whether a split may have this name, which is part of file names."""
    return name.isidentifier() and name.isascii() and name == name.lower()


class ExploreConfig(Settings):
    """Show what a data set is like: its labels, images, splits and duplicates, as a page with figures."""

    data: AnyPath = setting(..., "Shards, or images as for mlic pack", cli="argument", place=True)
    labels: AnyPath | None = setting(None, "Label files, where the data are images", cli="flag", place=True)
    format: LabelFormat = setting("auto", "Format of the label files, when it is not to be recognised", cli="flag")
    out: LocalPath = setting(
        Path("explore"), "Folder for the page, its figures and explore.json", cli="flag", place=True,
        validate_default=True,
    )  # fmt: skip
    max_images: int = setting(20_000, "Images to open, at most; labels are counted over all", cli="flag", ge=1)
    seed: int = setting(42, "Seed of the choice of images", ge=0, le=2**31 - 1)


class DoctorConfig(Settings):
    """Examine shards: do the labels belong to the images, and can every label be learnt and measured?"""

    shards: AnyPath = setting(..., "Folder of shards that mlic pack wrote, or s3://...", cli="argument", place=True)
    max_samples: int = setting(10_000, "Training samples to look at, at most", cli="flag", ge=100)
    ranks: int = setting(1, "Training workers that are to read the shards", cli="flag", ge=1, place=True)
    seed: int = setting(42, "Seed of the choice of samples and of the shuffles", ge=0, le=2**31 - 1)


class ShardSettings(Settings):
    """What every command that fits models to shards has."""

    shards: AnyPath = setting(..., "Folder of shards that mlic pack wrote, or s3://...", cli="argument", place=True)


class RunSettings(ShardSettings):
    """What `train` and `tune` share: the run's folder, and what is held out."""

    runs: LocalPath = setting(
        Path("runs"), "Folder that holds the run folders", cli="flag", place=True, validate_default=True
    )
    name: str | None = setting(
        None, "Name of the run; default: the recipe's stem, else the architecture, or tune", cli="flag", place=True,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )  # fmt: skip
    fold: int | None = setting(
        None, "Validate on this fold of the shards and train on the others; default: the splits", cli="flag", ge=0
    )


class FitSettings(Settings):
    """What `train`, `tune` and `noise` share: how one model is fitted."""

    epochs: int = setting(10, "Passes over the training split", cli="flag", ge=1)
    batch_size: int = setting(64, "Samples in a step, over all workers together", cli="flag", ge=2)
    loss: Loss = setting("bce", "Loss function", cli="flag")
    loss_options: dict[str, float] = setting({}, "Options of the loss, such as gamma of focal")
    label_smoothing: float = setting(0.0, "How far targets are moved towards a half", ge=0, lt=1)
    pos_weight_cap: float = setting(0.0, "Largest weight of positives; 0: none", ge=0)
    pos_weight_by_min: bool = setting(False, "Divide the weights of positives by the smallest of them")
    optimizer: Optimizer = setting("adam", "Optimiser", cli="flag")
    lr: float = setting(1e-3, "Learning rate, the highest of the run", cli="flag", gt=0)
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = setting(
        "cosine", "How the learning rate changes over the run"
    )
    warmup_epochs: float = setting(0.0, "Epochs over which the learning rate rises; one-cycle has its own", ge=0)
    step_epochs: int = setting(10, "Epochs between the drops of the schedule step", ge=1)
    step_factor: float = setting(0.1, "What the schedule step multiplies the learning rate by", gt=0, lt=1)
    momentum: float = setting(0.9, "Momentum of sgd and rmsprop", ge=0, lt=1)
    weight_decay: float = setting(0.0, "Weight decay (L2)", ge=0)
    clip_norm: float = setting(0.0, "Largest norm of the gradient; 0: any", ge=0)
    accumulate: int = setting(1, "Parts that the samples of a step go through one after another, for memory", ge=1)
    ema: float = setting(0.0, "Decay of the moving average of weights that is evaluated and kept; 0: none", ge=0, lt=1)
    patience: int = setting(0, "Epochs without a better value of stop_on after which the run stops; 0: never", ge=0)
    stop_on: str = setting("val/loss", "Metric of an epoch that patience waits for", pattern=r"^val/[a-z0-9_.]+$")
    image_size: int = setting(128, "Side of the square input in pixels", cli="flag", ge=8, le=4096)
    color: Color | Literal["auto"] = setting("auto", "rgb, gray, or what the architecture was made for")
    hflip: bool = setting(True, "Mirror training images at random")
    crop: Share = setting(1.0, "Smallest share of a training image that a random crop shows; 1: no crops", gt=0, le=1)
    augment: dict[Distortion, float] = setting(
        {}, "What else changes training images at random: rotate (degrees), shift, brightness, contrast, saturation "
        "(shares), invert, erase (probabilities)",
    )  # fmt: skip
    mixup: float = setting(0.0, "Mix each training image with another, in shares of Beta(a, a); 0: no", ge=0, le=10)
    cutmix: float = setting(0.0, "The same by a rectangle of the other; with mixup, one of them at random", ge=0, le=10)
    head_prior: bool = setting(True, "Start the output biases at the labels' log-odds in the training split")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 on GPUs that have it, fp32 elsewhere")
    checkpoint_steps: int = setting(
        500, "Steps after which an epoch's position is kept, so that a stopped run goes on from there", ge=1, place=True
    )
    max_bad: Share = setting(0.01, "Largest share of undecodable samples before the run stops", ge=0, le=1)
    doctor: bool = setting(True, "Examine the shards first, as mlic doctor does", cli="flag", place=True)
    cache_gb: float = setting(
        8.0, "Largest cache of decoded images that a node keeps, in GB; 0: none", cli="flag", place=True, ge=0
    )
    loader_threads: int = setting(
        2, "Threads that decode ahead of each worker; 0: none, which is least work where there is no GPU to keep busy",
        ge=0, le=64,
    )  # fmt: skip
    seed: int = setting(42, "Seed of weights, order of samples and augmentation", cli="flag", ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _amounts_make_sense(self) -> Self:
        for name, amount in self.augment.items():
            if amount < 0 or (name in ("shift", "invert", "erase") and amount > 1):
                raise ValueError(f"augment.{name} should be from 0 to 1, not {amount:g}")
        return self


class ModelSettings(Settings):
    """What `train` and `noise` share: which model is fitted, by which loss."""

    arch: str = setting(
        "b-final", "Architecture: a reference net such as b-final, a torchvision classifier or timm/NAME", cli="flag"
    )
    arch_options: dict[str, float] = setting(
        {}, "Options of the architecture, such as hidden or dropout; head_hidden and head_dropout are for all"
    )
    weights: Weights = setting(
        "none", "Weights to begin with: none, default (those published for the architecture), a file or a run",
        cli="flag", place=True,
    )  # fmt: skip
    train: Literal["all", "head", "none"] = setting(
        "all", "What is trained; head: the last layer alone, on features that are computed once, not augmented; none: "
        "nothing, the network is measured as it begins", cli="flag",
    )  # fmt: skip
    pos_weight_power: float = setting(
        0.0,
        "Weight positives of a label by (negatives/positives)^power; 0: no weighting",
        cli="flag",
        ge=0,
        le=1,
    )
    threshold_policy: Policy = setting(
        "per-label", "How decision thresholds are fitted; see mlic threshold", cli="flag"
    )
    calibration: Calibrator = setting("auto", "How scores are calibrated; auto: where it surely helps", cli="flag")
    max_failures: int = setting(3, "How often a group of workers that lost a member is started anew", ge=0, place=True)


def _check_weighting(fit: FitSettings, power: float) -> None:
    """Raise ValueError for weights of positives that the loss would ignore, and targets that it cannot smooth."""
    if fit.loss not in WEIGHTED and (power or fit.pos_weight_cap or fit.pos_weight_by_min):
        raise ValueError(f"the loss {fit.loss} does not weight positives; leave pos_weight settings at 0")
    if fit.loss == "class-balanced" and power:
        raise ValueError("the loss class-balanced has weights of its own; leave pos_weight_power out")
    if fit.loss == "softmax" and fit.label_smoothing:
        raise ValueError("the loss softmax has no targets to smooth; leave label_smoothing out")


def _check_fit(config: TrainConfig | NoiseConfig) -> None:
    """Raise ValueError for settings of a fit that others of it would have ignored."""
    _check_weighting(config, config.pos_weight_power)
    changes = [name for name in ("augment", "mixup", "cutmix") if getattr(config, name)]
    if config.train != "all" and (config.crop < 1 or changes):
        what = " and ".join(["crop"] * (config.crop < 1) + changes)
        raise ValueError(f"with train {config.train} images are taken as they are; leave {what} out")


class TrainConfig(ModelSettings, FitSettings, RunSettings):
    """Train one model, data-parallel over the workers of a Ray cluster."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        _check_fit(self)
        return self


class TuneConfig(FitSettings, RunSettings):
    """Search architecture, loss weighting and threshold policy; ASHA stops weak trials early."""

    num_samples: int = setting(10, "Number of trials", cli="flag", ge=1)
    archs: Names = setting(("a-cnn1", "b-final"), "Architectures to choose from, by commas", cli="flag", min_length=1)
    pos_weight_powers: Interval = setting(
        (0.0, 1.0), "Interval that the exponent of the loss weighting is drawn from, as low,high"
    )
    lrs: Interval = setting((3e-4, 3e-3), "Interval that the learning rate is drawn from (log-uniform), as low,high")
    threshold_policies: Names = setting(("global", "per-label"), "Threshold policies to choose from, by commas")
    grace_epochs: int = setting(1, "Epochs that every trial may run", ge=1)
    reduction_factor: int = setting(3, "ASHA goes on with one in so many trials at each rung", ge=2)
    cpus_per_trial: float = setting(1.0, "CPUs of a trial", cli="flag", gt=0)
    gpus_per_trial: float | None = setting(
        None, "GPUs of a trial; a share of one is fine; default: 1 where the cluster has any", cli="flag", ge=0
    )

    @model_validator(mode="after")
    def _space_makes_sense(self) -> Self:
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs is {self.grace_epochs}, more than epochs, which is {self.epochs}")
        _check_weighting(self, max(self.pos_weight_powers))
        low, high = self.pos_weight_powers
        if not 0 <= low <= high <= 1:
            raise ValueError(f"pos_weight_powers should be low,high within 0 and 1, not {low:g},{high:g}")
        if not 0 < self.lrs[0] <= self.lrs[1]:
            raise ValueError(f"lrs should be low,high and above 0, not {self.lrs[0]:g},{self.lrs[1]:g}")
        for policy in self.threshold_policies:
            parse_policy(policy)
        return self


class NoiseConfig(ModelSettings, FitSettings, ShardSettings):
    """Find suspected label errors: train on every fold, and list what disagrees with the models that did not see it."""

    out: LocalPath = setting(
        Path("noise"), "Folder for the table of suspects, noise.json and the runs of the folds", cli="flag",
        place=True, validate_default=True,
    )  # fmt: skip
    max_suspects: int | None = setting(
        None, "Rows of the table, at most; default: as many as errors are estimated, and all exceptions to rules",
        cli="flag", ge=1, place=True,
    )  # fmt: skip
    rule_support: int = setting(30, "Samples with a label, at least, for it to imply another", ge=1)
    rule_confidence: Share = setting(
        0.9, "Share of the samples with a label that have another, at least, for a rule", gt=0.5, le=1
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        _check_fit(self)
        return self


class PredictConfig(Settings):
    """Predict every image of a folder or of shards with a trained model."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", place=True)
    images: AnyPath = setting(..., "Images as for mlic pack, or a folder of its shards", cli="argument", place=True)
    out: LocalPath = setting(..., "File to write: .tsv, .csv, .jsonl or .parquet", cli="flag", place=True)
    split: str | None = setting(None, "Split of the shards to predict; default: all", cli="flag")
    values: Literal["auto", "decisions", "scores", "both"] = setting(
        "auto", "What to write; auto: decisions for .tsv, both for the rest", cli="flag"
    )
    batch_size: int = setting(64, "Images in a forward pass", cli="flag", ge=1)
    chunk: int = setting(500, "Images in a part, the unit that is written and resumed", ge=1)
    max_pixels: int = setting(100_000_000, "Largest image, in pixels, that is decoded at all", ge=1)

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.out.suffix not in {".tsv", ".csv", ".jsonl", ".parquet"}:
            raise ValueError(
                f"out should end in .tsv, .csv, .jsonl or .parquet, not {self.out.suffix or self.out.name!r}"
            )
        return self


class EvaluateConfig(Settings):
    """Measure predictions against labels, with trivial baselines and intervals beside every number."""

    predictions: LocalPath = setting(..., "Predictions file, or a run to predict and measure", cli="argument")
    labels: AnyPath | None = setting(
        None, "Shards, or label files as for mlic pack; default: the shards of the run", cli="flag"
    )
    format: LabelFormat = setting("auto", "Format of the label files, when it is not to be recognised")
    split: str = setting("test", "Split to measure, when labels are shards", cli="flag")
    out: LocalPath | None = setting(
        None, "Folder for metrics.json, report.html and its figures; default: beside the predictions", cli="flag"
    )
    threshold: float | None = setting(
        None, "Threshold to decide by, where the predictions are scores alone", cli="flag", ge=0, le=1
    )
    gate: Gates = setting(
        (), "Conditions, by commas, such as f1_micro>=0.8 or f1_micro.low>=0.8; not met: exit code 5", cli="flag"
    )
    resamples: int = setting(1000, "Bootstrap resamples of the images for the intervals", cli="flag", ge=100)
    seed: int = setting(42, "Seed of the bootstrap", ge=0, le=2**31 - 1)


class ThresholdConfig(Settings):
    """Fit the decision thresholds of a trained model again, and its calibration, without training."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", place=True)
    policy: Policy = setting(
        "per-label",
        "fixed=T, global, per-label, one-at-a-time=T, joint, f-beta=B, precision=P, recall=R, cost=C, cardinality or "
        "top-k=K",
        cli="flag",
    )
    calibration: Calibrator = setting("auto", "How scores are calibrated; auto: where it surely helps", cli="flag")
    labels: AnyPath | None = setting(
        None, "Shards to predict and fit to; default: the validation scores of the run", cli="flag", place=True
    )
    split: str = setting("val", "Split to fit to, with --labels", cli="flag")
    resamples: int = setting(1000, "Bootstrap resamples of the images for the intervals", cli="flag", ge=100)
    seed: int = setting(42, "Seed of the folds and of the bootstrap", ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.labels is None and self.split != "val":
            raise ValueError("a split is of the shards that --labels names; give --labels too")
        return self


class ReportConfig(Model):
    """Write the page of a run, or of several beside each other: training, thresholds, errors and their causes."""

    runs: Paths = setting(..., "Runs of mlic train or mlic tune; the first one is shown whole", cli="argument",
                          min_length=1)  # fmt: skip
    out: LocalPath | None = setting(
        None, "Folder for report.html, its figures and report.json; default: RUN/report", cli="flag"
    )
    seed: int = setting(42, "Seed of the bootstrap and of the choice of images", ge=0, le=2**31 - 1)


class DemoConfig(Settings):
    """Run the whole pipeline on a small generated corpus."""

    out: LocalPath = setting(
        Path("mlic-demo"), "Folder for everything the demo writes", cli="flag", place=True, validate_default=True
    )
    samples: int = setting(480, "Images to generate", cli="flag", ge=60)
    seed: int = setting(42, "Seed of the corpus, the split and the training", cli="flag", ge=0, le=2**31 - 1)
    workers: Workers = setting(2, "Training workers, or auto", cli="flag", place=True)


class SlurmConfig(Model):
    """What to ask SLURM for when a stage runs in an allocation."""

    stage: Stage = setting(..., "Stage to run", cli="argument")
    nodes: int = setting(1, "Nodes", cli="flag", ge=1)
    cpus_per_task: int = setting(8, "CPUs of each node", cli="flag", ge=1)
    gpus_per_node: int = setting(0, "GPUs of each node", cli="flag", ge=0)
    mem: str | None = setting(None, "Memory of each node, such as 64G; default: the site's", cli="flag")
    time: str = setting("04:00:00", "Time limit", cli="flag")
    partition: str | None = setting(None, "Partition", cli="flag")
    account: str | None = setting(None, "Account", cli="flag")
    job_name: str | None = setting(None, "Name of the job; default: mlic-STAGE", cli="flag")

    @model_validator(mode="after")
    def _values_are_slurms(self) -> Self:
        for field in ("mem", "time", "partition", "account", "job_name"):
            value = getattr(self, field)
            if value is not None and (not value.strip() or any(ord(c) < 32 for c in value)):
                raise ValueError(f"{field} should be one line of text, not {value!r}")
        if not _SLURM_TIME.fullmatch(self.time):
            raise ValueError(f"time should be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, not {self.time!r}")
        if self.mem is not None and not _SLURM_MEMORY.fullmatch(self.mem):
            raise ValueError(f"mem should be a number with K, M, G or T, such as 64G, not {self.mem!r}")
        return self
