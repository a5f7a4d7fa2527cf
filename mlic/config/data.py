"""Settings of `mlic pack`, `mlic explore` and `mlic doctor`, and how an image becomes the input of a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from mlic.config.base import Model, setting
from mlic.config.fit import Color, Interpolation, Resize, ShardSettings
from mlic.config.labels import LabelSettings, NotAnnotated
from mlic.config.types import (
    AnyPath,
    LocalPath,
    Names,
    Operations,
    Options,
    Share,
    Shares,
)


class Preprocessing(Model):
    """How an image file becomes a model's input; stored in the bundle and used by every stage alike.

    An image is resized so that both sides (squash), the short side (crop) or the long side (pad) are `scale` pixels.
    The square of `image_size` in its middle is the input; what the image does not cover has the colour `mean`. With
    `bands`, images have and keep that many channels, and `color` does not count.
    """

    image_size: int
    color: Color
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize
    # Bundles of earlier versions lack the settings with a default, which say what those versions did.
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0
    bands: int = 0
    bits: Literal[8, 16] = 8

    @property
    def channels(self) -> int:
        return self.bands or (3 if self.color == "rgb" else 1)

    @property
    def is_deep(self) -> bool:
        """Whether images keep what 8-bit colours would lose."""
        return self.bands > 0 or self.bits == 16

    @property
    def dtype(self) -> Literal["uint8", "uint16"]:
        """Of the decoded pixels."""
        return "uint16" if self.bits == 16 else "uint8"

    @property
    def top(self) -> int:
        """The largest value of a pixel; `mean` and `std` are fractions of it."""
        return int(2**self.bits - 1)

    @property
    def scale(self) -> int:
        """The side in pixels that an image is resized to, before its middle is taken."""
        return math.floor(self.image_size / self.crop_fraction)

    @property
    def pixels(self) -> str:
        """All that decides the decoded pixels, as text."""
        decisive = {"image_size", "color", "resize", "interpolation", "crop_fraction", "bands", "bits"}
        if self.resize == "pad":
            decisive.add("mean")
        return self.model_dump_json(include=decisive)


class PackConfig(LabelSettings):
    """Pack images and their labels into WebDataset tar shards."""

    images: AnyPath = setting(
        ...,
        "Images: a folder, a .tar or .zip, a list of paths, a folder of shards, or s3://...",
        cli="argument",
        runtime=True,
    )
    labels: AnyPath = setting(
        ...,
        "Label files: a folder of LABEL.txt lists, a table, or another format of docs/label-files.md",
        cli="flag",
        runtime=True,
        group="labels",
    )
    corrections: AnyPath | None = setting(
        None,
        "Table of suspected label errors from mlic noise; its verdicts are applied to the labels",
        cli="flag",
        runtime=True,
        group="labels",
    )
    out: AnyPath = setting(
        Path("shards"), "Folder to write the shards to, or s3://...", cli="flag", runtime=True, validate_default=True
    )
    append: bool = setting(
        False,
        "Pack new images into new shards beside those in --out, which stay as they are; the test split gets none",
        cli="flag",
        runtime=True,
    )
    dry_run: bool = setting(
        False, "Show what was understood of the images and labels, and write nothing", cli="flag", runtime=True
    )
    not_annotated: NotAnnotated = setting(
        "auto",
        "Images that the label files do not name: leave-out, negative for all labels, unknown, or fail; auto: negative "
        "if the format lists positive labels only, else leave-out",
        cli="flag",
        group="labels",
    )
    unlabelled: Literal["keep", "drop", "as-label"] = setting(
        "keep", "Images without a label: keep them, drop them, or give them the label none", cli="flag", group="labels"
    )
    unlabelled_label: str = setting("none", "Name of the label that --unlabelled as-label gives")
    split: Shares = setting(
        {"train": 0.8, "val": 0.1, "test": 0.1}, "Names of the splits and their fractions", cli="flag"
    )
    split_by: Literal["stratified", "random"] = setting(
        "stratified", "stratified: each label is as frequent in every split as overall", cli="flag"
    )
    split_column: str | None = setting(None, "Column of the label table with the split of each image", cli="flag")
    split_names: Options = setting(
        {}, "What splits are called in the column or files, such as 0=train,1=val,2=test", cli="flag"
    )
    split_files: AnyPath | None = setting(
        None,
        "Files that list the images of each split, in any label format; IMAGES itself: its folders are the splits",
        cli="flag",
        runtime=True,
    )
    keep_test: AnyPath | None = setting(
        None, "Earlier shards whose test images stay the test images", cli="flag", runtime=True
    )
    limit: int | None = setting(
        None, "Maximum number of images to pack, drawn at random; for a quick try", cli="flag", ge=2
    )
    folds: int = setting(
        0, "Number of cross-validation folds, outside the test split, for mlic train --fold", cli="flag", ge=0
    )
    group_by: Literal["near-duplicates", "identical", "none"] = setting(
        "near-duplicates", "Which images must stay in the same split", cli="flag"
    )
    group_column: str | None = setting(
        None, "Column of the label table, such as a patient, whose images must stay in the same split", cli="flag"
    )
    expand: int = setting(0, "Number of augmented copies to write of each training image", cli="flag", ge=0, le=1000)
    expand_by: Operations = setting(
        ("rotate", "shift", "flip"), "Augmentations of the copies: rotate, shift, flip, erase, brightness, contrast"
    )
    thin: Share = setting(
        0.0, "Probability of dropping a copy of a training image without rare labels", cli="flag", ge=0, le=1
    )
    thin_labels: Names = setting((), "Frequent labels: images with no other label are thinned")
    seed: int = setting(
        42, "Seed of the split and of the order of the training samples", cli="flag", ge=0, le=2**31 - 1
    )
    shard_mb: float = setting(64.0, "Target size of a shard in MB", cli="flag", gt=0)
    min_shards: int = setting(
        4, "Minimum number of shards per split; use the number of processes that read it at once", cli="flag", ge=1
    )
    on_bad: Literal["quarantine", "fail"] = setting(
        "quarantine", "Unreadable images: skip and list them, or stop", cli="flag"
    )
    max_bad: Share = setting(
        0.01,
        "Maximum fraction of unreadable images, such as 1%; ten are always allowed",
        cli="flag",
        ge=0,
        le=1,
    )
    max_pixels: int = setting(
        100_000_000, "Maximum number of pixels of an image; larger ones count as unreadable", ge=1
    )
    verify: bool = setting(False, "Read every shard again and compare it with the index", cli="flag", runtime=True)

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
        sources = [name for name in ("split_column", "split_files", "keep_test") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{sources[0]} and {sources[1]} both say what the splits are; give one of them")
        if self.keep_test is not None and not 0 < self.split.get("test", 0) < 1:
            raise ValueError("keep_test needs a split named test, and others beside it")
        return self

    @model_validator(mode="after")
    def _can_be_appended(self) -> Self:
        if self.append:
            for name in ("fresh", "limit", "corrections"):
                if getattr(self, name):
                    raise ValueError(f"append leaves what is packed as it is, and {name} does not; give one of them")
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


class ExploreConfig(LabelSettings):
    """Show what a data set is like: its labels, images, splits and duplicates, as a page with figures."""

    data: AnyPath = setting(
        Path("shards"), "Shards, or images as for mlic pack", cli="argument", runtime=True, validate_default=True
    )
    labels: AnyPath | None = setting(None, "Label files, if the data are images", cli="flag", runtime=True)
    out: LocalPath = setting(
        Path("explore"),
        "Folder for the page, its figures and explore.json",
        cli="flag",
        runtime=True,
        validate_default=True,
    )
    max_images: int = setting(
        20_000, "Maximum number of images to open; labels are counted over all images", cli="flag", ge=1
    )
    seed: int = setting(42, "Seed for choosing the images", ge=0, le=2**31 - 1)


class DoctorConfig(ShardSettings):
    """Examine shards: do the labels belong to the images, and can every label be learnt and measured?"""

    max_samples: int = setting(10_000, "Maximum number of training samples to check", cli="flag", ge=100)
    ranks: int = setting(1, "Number of training workers that will read the shards", cli="flag", ge=1, runtime=True)
    seed: int = setting(42, "Seed for choosing samples and for shuffling", ge=0, le=2**31 - 1)
