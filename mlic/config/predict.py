"""Settings of `mlic batch-predict`, `mlic average` and `mlic export`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from mlic.config.base import Model, Settings, setting
from mlic.config.fit import CALIBRATION
from mlic.config.types import (
    STDOUT,
    AnyPath,
    Backend,
    Calibrator,
    Engine,
    LocalPath,
    Output,
    Paths,
    Policy,
    Precise,
    Reduced,
    Share,
    Workers,
)


class PredictConfig(Settings):
    """Predict every image of a folder or of shards with a trained model."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", place=True)
    images: AnyPath = setting(
        ..., "Images as for mlic pack, a folder of its shards, or one image", cli="argument", place=True
    )
    out: Output | None = setting(
        None,
        "File to write: .tsv, .csv, .txt, .jsonl or .parquet; a name without ending is a folder of Parquet "
        "files, and - the standard output; default: predictions.tsv, and - for one image",
        cli="flag",
        place=True,
    )
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
        "fp32",
        "bf16: faster on some machines; the share of the decisions that stay the same is measured on the first "
        "batch, and below 99% it is not used",
        cli="flag",
    )
    tta: Literal["none", "mirror"] = setting(
        "none",
        "Test-time augmentation; mirror: the mean of the scores of an image and of its mirror image, at twice "
        "the time, decided by the thresholds of the model",
        cli="flag",
    )
    backend: Backend | Literal["auto"] = setting(
        "auto",
        "What computes on CPUs; auto: for many images the fastest that is installed; each is checked against "
        "torch on the first batch",
        cli="flag",
    )
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

    runs: Paths = setting(
        ..., "Runs of mlic train or mlic tune, on the same shards", cli="argument", min_length=2, place=True
    )
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
        "fp32",
        "What openvino computes in; bf16 and int8 are faster, and change decisions: how many is measured",
        cli="flag",
    )
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
