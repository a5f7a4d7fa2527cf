"""The settings of fitting one model, which `train`, `tune` and `noise` share: samples, loss, optimiser, network."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ValidationInfo, model_validator

from mlic.config.base import Settings, setting
from mlic.config.fit import CALIBRATION, FitSettings, RunSettings, ShardSettings
from mlic.config.fit_checks import check_fit, unused
from mlic.config.types import (
    Calibrator,
    LocalPath,
    Policy,
    Share,
    Trained,
    Weights,
)


class NetworkSettings(Settings):
    """What `train`, `tune` and `noise` share of the network: which one, what it begins with, and what is trained."""

    arch: str = setting(
        "small",
        "Architecture: small, a reference net such as b-final, a torchvision classifier or timm/NAME",
        cli="flag",
        group="model",
    )
    arch_options: dict[str, float] = setting(
        {},
        "Options of the architecture, such as hidden or dropout; head_hidden, head_decoder and head_dropout are "
        "for all",
    )
    weights: Weights = setting(
        "none",
        "Weights to begin with: none, default (those published for the architecture), a file or a run",
        cli="flag",
        place=True,
        group="model",
    )
    train: Trained = setting(
        "all",
        "What is trained; head: the last layer alone, on features that are computed once, or in each epoch "
        "where images are augmented; a number: that many of the last stages, and the head; none: nothing, it is "
        "measured as it begins",
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
        "Go on with as few workers as this when a lost node does not come back; default: wait for it",
        cli="flag",
        place=True,
        ge=1,
        group="resources",
    )
    max_failures: int = setting(3, "How often a group of workers that lost a member is started anew", ge=0, place=True)


class TrainConfig(ModelSettings, FitSettings, RunSettings):
    """Train one model, data-parallel over the workers of a Ray cluster."""

    cross_validate: bool = setting(
        False,
        "Train on all folds of the shards but one in turn, and measure each by the model of the others",
        cli="flag",
        group="data",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self, info: ValidationInfo) -> Self:
        check_fit(self, self.train, self.pos_weight_power, unused(info))
        if self.cross_validate and self.fold is not None:
            raise ValueError("cross_validate goes over all folds; leave fold out")
        return self


class NoiseConfig(ModelSettings, FitSettings, ShardSettings):
    """Find suspected label errors: train on every fold, and list what disagrees with the models that did not see it."""

    out: LocalPath = setting(
        Path("noise"),
        "Folder for the table of suspects, noise.json and the runs of the folds",
        cli="flag",
        place=True,
        validate_default=True,
    )
    max_suspects: int | None = setting(
        None,
        "Rows of the table, at most; default: as many as errors are estimated, and all exceptions to rules",
        cli="flag",
        ge=1,
        place=True,
    )
    rule_support: int = setting(30, "Samples with a label, at least, for it to imply another", ge=1)
    rule_confidence: Share = setting(
        0.9, "Share of the samples with a label that have another, at least, for a rule", gt=0.5, le=1
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        check_fit(self, self.train, self.pos_weight_power)
        return self
