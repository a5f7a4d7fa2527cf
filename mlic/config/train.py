"""Settings of `mlic train` and `mlic noise`: the network, its initial weights and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ValidationInfo, model_validator

from mlic.config.base import Settings, setting
from mlic.config.fit import CALIBRATION, FitSettings, RunSettings, ShardSettings
from mlic.config.fit_checks import check_fit, unused
from mlic.config.types import (
    AnyPath,
    Calibrator,
    LocalPath,
    Paths,
    Policy,
    Share,
    Trained,
    Weights,
)


class NetworkSettings(Settings):
    """What `train`, `tune` and `noise` share of the network: which one, what it begins with, and what is trained."""

    arch: str = setting(
        "small",
        "Architecture: small, a reference network such as b-final, a torchvision classifier or timm/NAME; + joins the "
        "features of several",
        cli="flag",
        group="model",
    )
    arch_options: dict[str, float] = setting(
        {},
        "Options of the architecture, such as hidden or dropout; all have head_hidden, head_decoder, head_mirror and "
        "head_dropout",
    )
    weights: Weights = setting(
        "none",
        "Initial weights: none, default (published for the architecture), a file or a run; with joined architectures, "
        "a file for each, separated by commas",
        cli="flag",
        runtime=True,
        group="model",
    )
    train: Trained = setting(
        "all",
        "What to train; head: only the last layer, on features computed once (in each epoch if images"
        " are augmented); a number: that many of the last stages, and the head; none: nothing, only "
        "measure the initial weights",
        cli="flag",
        group="model",
    )


class ModelSettings(NetworkSettings):
    """What `train`, `tune` and `noise` share: how positives are weighted, thresholds fitted and scores calibrated."""

    pos_weight_power: float = setting(
        0.0,
        "Weight positives of a label by (negatives/positives)^power; 0: no weighting",
        cli="flag",
        group="optimisation",
        ge=0,
        le=1,
    )
    threshold_policy: Policy = setting(
        "per-label", "How decision thresholds are fitted; see mlic threshold", cli="flag", group="model"
    )
    calibration: Calibrator = setting("auto", CALIBRATION, cli="flag", group="model")
    min_workers: int | None = setting(
        None,
        "Minimum number of workers to continue with after a node is lost; default: wait for the node",
        cli="flag",
        runtime=True,
        ge=1,
        group="resources",
    )
    max_failures: int = setting(3, "How often training restarts after it loses a worker", ge=0, runtime=True)


class TrainConfig(ModelSettings, FitSettings, RunSettings):
    """Train one model, data-parallel over the workers of a Ray cluster."""

    cross_validate: bool = setting(
        False,
        "Cross-validate: train one model per fold and measure each fold with the model that did not see it",
        cli="flag",
        group="data",
    )

    soft_targets: Paths = setting(
        (),
        "Parquet tables of scores, with a column key and one per label, that training images are fitted to beside "
        "their labels: one for the shards, and one for unlabelled_shards; mlic distill writes them",
    )
    soft_weight: Share = setting(
        0.5,
        "Weight of the soft targets; known labels have the rest, and unknown ones count as the soft targets",
        gt=0,
        le=1,
    )
    unlabelled_shards: AnyPath | None = setting(
        None,
        "Shards of further images, whose labels are taken as unknown: their soft targets alone count",
    )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        part = "-folds" if self.cross_validate else "" if self.fold is None else f"-fold{self.fold}"
        return self.runs / (self.name or self.arch + part)

    @model_validator(mode="after")
    def _nothing_is_ignored(self, info: ValidationInfo) -> Self:
        check_fit(self, self.train, self.pos_weight_power, unused(info))
        if self.cross_validate and self.fold is not None:
            raise ValueError("cross_validate goes over all folds; leave fold out")
        wanted = 1 + (self.unlabelled_shards is not None)
        if (self.soft_targets or self.unlabelled_shards) and len(self.soft_targets) != wanted:
            raise ValueError(
                f"soft_targets has {len(self.soft_targets)} tables; give one for the shards, and one more for "
                "unlabelled_shards if these are given"
            )
        return self


class DistillConfig(TrainConfig):
    """Train a model on the scores of trained ones (teachers), beside the labels, and on images without labels."""

    teachers: Paths = setting(
        ...,
        "Runs, bundles, averages or exports whose mean score is learnt; the last argument may be the shards",
        cli="argument",
        min_length=1,
        runtime=True,
    )
    shards: AnyPath = setting(
        Path("shards"), "Folder of shards to train on", cli="flag", runtime=True, validate_default=True, group="data"
    )
    images: AnyPath | None = setting(
        None,
        "Images without labels, which the teachers label: a folder, an archive or a list",
        cli="flag",
        runtime=True,
        group="data",
    )
    compare: bool = setting(
        True, "Train the same model without the teachers too, and report the difference", cli="flag", group="run"
    )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.runs / (self.name or "distilled")

    @model_validator(mode="before")
    @classmethod
    def _last_may_be_shards(cls, values: Any) -> Any:
        teachers = values.get("teachers") if isinstance(values, dict) else None
        if not isinstance(teachers, list | tuple) or len(teachers) < 2:
            return values
        is_shards = (Path(teachers[-1]) / "samples.parquet").is_file()
        return values | {"teachers": teachers[:-1], "shards": teachers[-1]} if is_shards else values

    @model_validator(mode="after")
    def _is_one_run(self) -> Self:
        if self.cross_validate or self.fold is not None:
            raise ValueError("a teacher has seen the images of all folds; leave fold and cross_validate out")
        if self.soft_targets or self.unlabelled_shards:
            raise ValueError("soft_targets and unlabelled_shards are made from teachers and images; leave them out")
        return self


class NoiseConfig(ModelSettings, FitSettings, ShardSettings):
    """Find suspected label errors: train on every fold, and list what disagrees with the models that did not see it."""

    out: LocalPath = setting(
        Path("noise"),
        "Folder for the table of suspects, noise.json and the runs of the folds",
        cli="flag",
        runtime=True,
        validate_default=True,
    )
    max_suspects: int | None = setting(
        None,
        "Maximum rows of the table; default: the estimated number of errors, and all exceptions to rules",
        cli="flag",
        ge=1,
        runtime=True,
    )
    rule_support: int = setting(30, "Minimum samples of a label for a rule (label A implies label B)", ge=1)
    rule_confidence: Share = setting(
        0.9, "Minimum fraction of a label's samples that have the other label, for a rule", gt=0.5, le=1
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        check_fit(self, self.train, self.pos_weight_power)
        return self
