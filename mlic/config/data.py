"""Every setting of every command, once: its default, its help and its limits.

The command line, the README's tables and the JSON schemas are made from these models, so that no fact about a setting
stands in a second place. Values come from `defaults < --config FILE < --set key=value < flags that were given`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from mlic.fitting import CALIBRATION, Color, FitSettings, ModelSettings, ShardSettings, check_fit
from mlic.fitting import TrainConfig as TrainConfig
from mlic.scheduling import STAGES as STAGES
from mlic.scheduling import ClusterCheckConfig as ClusterCheckConfig
from mlic.scheduling import PipelineConfig as PipelineConfig
from mlic.scheduling import SlurmConfig as SlurmConfig
from mlic.scheduling import SubmitConfig as SubmitConfig
from mlic.schema import Model, Settings, setting
from mlic.searching import TuneConfig as TuneConfig
from mlic.values import (
    STDOUT,
    AnyPath,
    Backend,
    Calibrator,
    Engine,
    Gates,
    LocalPath,
    Names,
    Operations,
    Output,
    Paths,
    Policy,
    Precise,
    Reduced,
    Share,
    Shares,
    Weights,
    Workers,
)  # fmt: skip

LabelFormat = Literal["auto", "lists", "wide", "delimited", "long", "jsonl", "coco", "voc", "folders", "webdataset"]


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
    limit: int | None = setting(None, "Images to pack, at most, drawn by the seed: for a quick try", cli="flag", ge=2)
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
        for name, needed, is_used in (
            ("expand_by", "expand above 0", self.expand > 0),
            ("unlabelled_label", "unlabelled as-label", self.unlabelled == "as-label"),
            ("max_bad", "on_bad quarantine", self.on_bad == "quarantine"),
        ):
            if not is_used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} needs {needed}, and would be ignored; leave it out")
        return self


def is_split_name(name: str) -> bool:
    """Whether a split may have this name, which is part of file names."""
    return name.isidentifier() and name.isascii() and name == name.lower()


class ExploreConfig(Settings):
    """Show what a data set is like: its labels, images, splits and duplicates, as a page with figures."""

    data: AnyPath = setting(
        Path("shards"), "Shards, or images as for mlic pack", cli="argument", place=True, validate_default=True
    )
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

    shards: AnyPath = setting(
        Path("shards"), "Folder of shards that mlic pack wrote, or s3://...", cli="argument", place=True,
        validate_default=True,
    )  # fmt: skip
    max_samples: int = setting(10_000, "Training samples to look at, at most", cli="flag", ge=100)
    ranks: int = setting(1, "Training workers that are to read the shards", cli="flag", ge=1, place=True)
    seed: int = setting(42, "Seed of the choice of samples and of the shuffles", ge=0, le=2**31 - 1)


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
        check_fit(self, self.train, self.pos_weight_power)
        return self


class PredictConfig(Settings):
    """Predict every image of a folder or of shards with a trained model."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", place=True)
    images: AnyPath = setting(
        ..., "Images as for mlic pack, a folder of its shards, or one image", cli="argument", place=True
    )
    out: Output | None = setting(
        None, "File to write: .tsv, .csv, .txt, .jsonl or .parquet; a name without ending is a folder of Parquet "
        "files, and - the standard output; default: predictions.tsv, and - for one image",
        cli="flag", place=True,
    )  # fmt: skip
    split: str | None = setting(None, "Split of the shards to predict; default: all", cli="flag")
    values: Literal["auto", "decisions", "scores", "both"] = setting(
        "auto", "What to write; auto: decisions for .tsv and .txt, both for the rest", cli="flag", place=True
    )
    top_k: int = setting(
        0, "Decide for the so many best labels of each image; 0: as the model decides", cli="flag", ge=0, place=True
    )
    batch_size: Workers = setting(
        "auto", "Images in a forward pass; auto: 8 or 16 on CPUs, on a GPU as many as its memory takes", cli="flag"
    )
    precision: Reduced = setting(
        "fp32", "bf16: faster on some machines; the share of the decisions that stay the same is measured on the first "
        "batch, and below 99% it is not used",
        cli="flag",
    )  # fmt: skip
    tta: Literal["none", "mirror"] = setting(
        "none", "Test-time augmentation; mirror: the mean of the scores of an image and of its mirror image, at twice "
        "the time, decided by the thresholds of the model",
        cli="flag",
    )  # fmt: skip
    backend: Backend | Literal["auto"] = setting(
        "auto", "What computes on CPUs; auto: for many images the fastest that is installed; each is checked against "
        "torch on the first batch",
        cli="flag",
    )  # fmt: skip
    chunk: int = setting(500, "Images in a part, the unit that is written and resumed", ge=1)
    max_pixels: int = setting(100_000_000, "Largest image, in pixels, that is decoded at all", ge=1)

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.out is None or self.out == STDOUT:
            return self._batch_is_known()
        ending = PurePosixPath(urlsplit(self.out).path if isinstance(self.out, str) else self.out).suffix
        if ending not in {".tsv", ".csv", ".txt", ".jsonl", ".parquet", ""}:
            raise ValueError(
                f"out should end in .tsv, .csv, .txt, .jsonl or .parquet, or, as a folder, not at all; not in {ending}"
            )
        if ending == ".txt" and self.values == "both":
            raise ValueError("a .txt file has one number for each label; give values as decisions or scores")
        return self._batch_is_known()

    def _batch_is_known(self) -> Self:
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError(f"batch_size should be auto or at least 1, not {self.batch_size}")
        return self


class AverageConfig(Model):
    """Make one model of several trained ones: its scores are the means of theirs, its thresholds its own."""

    runs: Paths = setting(..., "Runs of mlic train or mlic tune, on the same shards", cli="argument", min_length=2,
                          place=True)  # fmt: skip
    out: LocalPath = setting(Path("runs/average"), "Folder to write", cli="flag", place=True, validate_default=True)
    policy: Policy = setting("per-label", "How its thresholds are fitted, as for mlic threshold", cli="flag")
    calibration: Calibrator = setting("auto", CALIBRATION, cli="flag")
    fresh: bool = setting(False, "Throw away what is in the folder and start again", cli="flag", place=True)
    seed: int = setting(42, "Seed of the folds and of the bootstrap", ge=0, le=2**31 - 1)


class ExportConfig(Model):
    """Write a trained model for another engine, in a folder that predicts without PyTorch and Ray."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument")
    to: Engine = setting("onnx", "Engine: onnx (ONNX Runtime), openvino or torchscript", cli="flag")
    out: LocalPath | None = setting(None, "Folder to write; default: RUN/export-ENGINE", cli="flag")
    precision: Precise = setting(
        "fp32", "What openvino computes in; bf16 and int8 are faster, and change decisions: how many is measured",
        cli="flag",
    )  # fmt: skip
    images: AnyPath | None = setting(
        None, "Images to compare on, and to find the ranges of int8; default: the shards of the run", cli="flag"
    )
    split: str | None = setting(None, "Split of the shards to compare on; default: val", cli="flag")
    samples: int = setting(256, "Images to compare on, at most", cli="flag", ge=2)
    min_agreement: Share = setting(
        0.99, "Share of the decisions in bf16 or int8, at least, that are those in fp32", cli="flag", gt=0, le=1
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.precision != "fp32" and self.to != "openvino":
            raise ValueError(f"{self.to} is written in fp32; give to as openvino for {self.precision}")
        if self.precision == "fp32" and self.min_agreement != type(self).model_fields["min_agreement"].default:
            raise ValueError("min_agreement is for bf16 and int8; in fp32 all decisions have to be the same")
        return self


class EvaluateConfig(Settings):
    """Measure predictions against labels, with trivial baselines and intervals beside every number."""

    predictions: LocalPath = setting(..., "Predictions file, or a run to predict and measure", cli="argument")
    labels: AnyPath | None = setting(
        None, "Shards, or label files as for mlic pack; default: the shards of the run", cli="flag"
    )
    format: LabelFormat = setting("auto", "Format of the label files, when it is not to be recognised")
    split: str = setting("test", "Split to measure, when labels are shards", cli="flag")
    unlabelled: Literal["auto", "skip", "negative"] = setting(
        "auto", "Predicted images that the label files do not name: skip leaves them out, negative counts them as "
        "without a label; auto: skip, and negative only where each label has a list of its images",
        cli="flag",
    )  # fmt: skip
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
    calibration: Calibrator = setting("auto", CALIBRATION, cli="flag")
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


class ReproduceConfig(Settings):
    """Pack, train and measure as one of the five reference systems did, and lay its reported numbers beside ours."""

    system: Literal["a", "b", "c", "d", "e"] = setting(..., "Reference system", cli="argument")
    row: str | None = setting(
        None, "Recipe of the system, such as cnn1-2 or search, or all; default: the one that its report rests on",
        cli="argument",
    )  # fmt: skip
    images: AnyPath = setting(Path("images"), "Images, as for mlic pack", cli="flag", place=True, validate_default=True)
    labels: AnyPath = setting(
        Path("annotations"), "Label files, as for mlic pack", cli="flag", place=True, validate_default=True
    )
    out: LocalPath = setting(
        Path("reproduced"), "Folder for shards, runs and the comparison", cli="flag", place=True, validate_default=True
    )
    epochs: int | None = setting(None, "Epochs, at most, in place of the recipe's", cli="flag", ge=1)
    limit: int | None = setting(None, "Images to pack, at most, drawn by the seed", cli="flag", ge=20)
    num_samples: int | None = setting(None, "Trials of a search, at most", cli="flag", ge=1)
    weights: Weights | None = setting(
        None, "File of weights for recipes that begin with published ones; default: PyTorch's cache", cli="flag",
        place=True,
    )  # fmt: skip
    overrides: dict[str, Any] = setting({}, "Settings over those of the recipe, such as {image_size: 64}")


class DemoConfig(Settings):
    """Run the whole pipeline on a small generated corpus."""

    out: LocalPath = setting(
        Path("mlic-demo"), "Folder for everything the demo writes", cli="flag", place=True, validate_default=True
    )
    samples: int = setting(480, "Images to generate", cli="flag", ge=60)
    seed: int = setting(42, "Seed of the corpus, the split and the training", cli="flag", ge=0, le=2**31 - 1)
    workers: Workers = setting(2, "Training workers, or auto", cli="flag", place=True)
