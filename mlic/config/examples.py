"""Settings of `mlic reproduce` and `mlic demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mlic.config.base import Settings, setting
from mlic.config.types import (
    AnyPath,
    LocalPath,
    Weights,
    Workers,
)


class ReproduceConfig(Settings):
    """Pack, train and measure as one of the five reference systems did, and lay its reported numbers beside ours."""

    system: Literal["a", "b", "c", "d", "e"] = setting(..., "Reference system", cli="argument")
    row: str | None = setting(
        None,
        "Recipe of the system, such as cnn1-2 or search, or all; default: the main result of its report",
        cli="argument",
    )
    images: AnyPath = setting(
        Path("images"), "Images, as for mlic pack", cli="flag", runtime=True, validate_default=True
    )
    labels: AnyPath = setting(
        Path("annotations"), "Label files, as for mlic pack", cli="flag", runtime=True, validate_default=True
    )
    out: LocalPath = setting(
        Path("reproduced"),
        "Folder for shards, runs and the comparison",
        cli="flag",
        runtime=True,
        validate_default=True,
    )
    epochs: int | None = setting(None, "Maximum number of epochs, instead of the recipe's", cli="flag", ge=1)
    limit: int | None = setting(None, "Maximum number of images to pack, drawn at random", cli="flag", ge=20)
    num_samples: int | None = setting(None, "Maximum number of trials of a search", cli="flag", ge=1)
    weights: Weights | None = setting(
        None,
        "Weights file for recipes that start from published weights; default: PyTorch's cache",
        cli="flag",
        runtime=True,
    )
    overrides: dict[str, Any] = setting({}, "Settings that replace those of the recipe, such as {image_size: 64}")


class DemoConfig(Settings):
    """Run the whole pipeline on a small generated corpus."""

    out: LocalPath = setting(
        Path("mlic-demo"), "Folder for all files of the demo", cli="flag", runtime=True, validate_default=True
    )
    samples: int = setting(480, "Number of images to generate", cli="flag", ge=60)
    seed: int = setting(42, "Seed for the corpus, the split and the training", cli="flag", ge=0, le=2**31 - 1)
    workers: Workers = setting(2, "Training workers, or auto", cli="flag", runtime=True)
