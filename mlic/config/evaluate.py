"""Settings of `mlic evaluate`, `mlic threshold` and `mlic report`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from mlic.config.base import Model, Settings, setting
from mlic.config.fit import CALIBRATION
from mlic.config.labels import LabelSettings
from mlic.config.types import (
    AnyPath,
    Calibrator,
    Gates,
    LocalPath,
    Paths,
    Policy,
)


class EvaluateConfig(LabelSettings):
    """Measure predictions against labels, with trivial baselines and intervals beside every number."""

    predictions: LocalPath = setting(..., "Predictions file, or a run to predict and measure", cli="argument")
    labels: AnyPath | None = setting(
        None, "Shards, or label files as for mlic pack; default: the shards of the run", cli="flag", group="labels"
    )
    split: str = setting("test", "Split to measure, when labels are shards", cli="flag")
    unlabelled: Literal["auto", "skip", "negative"] = setting(
        "auto",
        "Predicted images that are not in the label files: skip them, or count them as negative for "
        "all labels; auto: negative if the labels are one list of images per label, else skip",
        cli="flag",
    )
    out: LocalPath | None = setting(
        None, "Folder for metrics.json, report.html and its figures; default: beside the predictions", cli="flag"
    )
    threshold: float | None = setting(
        None, "Decision threshold, if the predictions are scores only", cli="flag", ge=0, le=1
    )
    logits: bool = setting(
        False, "The scores of the predictions are logits, which a sigmoid makes probabilities", cli="flag"
    )
    gate: Gates = setting(
        (),
        "Conditions, separated by commas, such as f1_micro>=0.8 or f1_micro.low>=0.8; exit code 5 if one is not met",
        cli="flag",
    )
    resamples: int = setting(1000, "Number of bootstrap resamples for the intervals", cli="flag", ge=100)
    seed: int = setting(42, "Seed for the bootstrap", ge=0, le=2**31 - 1)


class ThresholdConfig(Settings):
    """Fit the decision thresholds of a trained model again, and its calibration, without training."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", runtime=True)
    policy: Policy = setting(
        "per-label",
        "fixed=T, global, per-label, one-at-a-time=T, joint, f-beta=B, precision=P, recall=R, 'precision>=P', "
        "'recall>=R', cost=C, cardinality or top-k=K",
        cli="flag",
    )
    calibration: Calibrator = setting("auto", CALIBRATION, cli="flag")
    labels: AnyPath | None = setting(
        None,
        "Shards to predict and to fit thresholds on; default: the validation scores of the run",
        cli="flag",
        runtime=True,
    )
    split: str = setting("val", "Split to fit thresholds on, with --labels", cli="flag")
    resamples: int = setting(1000, "Number of bootstrap resamples for the intervals", cli="flag", ge=100)
    seed: int = setting(42, "Seed for the folds and the bootstrap", ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.labels is None and self.split != "val":
            raise ValueError("a split is of the shards that --labels names; give --labels too")
        return self


class ReportConfig(Model):
    """Write the page of a run, or of several beside each other: training, thresholds, errors and their causes."""

    runs: Paths = setting(
        ..., "Runs of mlic train or mlic tune; the first one is shown in full", cli="argument", min_length=1
    )
    out: LocalPath | None = setting(
        None, "Folder for report.html, its figures and report.json; default: RUN/report", cli="flag"
    )
    seed: int = setting(42, "Seed for the bootstrap and for choosing images", ge=0, le=2**31 - 1)


class CardConfig(Model):
    """Write a model card of a trained model as Markdown: data, numbers beside baselines, labels, limits, use."""

    run: LocalPath = setting(..., "Run folder", cli="argument")
    out: LocalPath | None = setting(None, "File to write; default: RUN/CARD.md", cli="flag")
    split: str | None = setting(
        None,
        "Split whose numbers by mlic evaluate are shown; default: test, or those of the training if there are none",
        cli="flag",
    )
    fresh: bool = setting(False, "Write the card again, even if a person has edited it", cli="flag")
