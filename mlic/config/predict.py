"""Settings of `mlic batch-predict`, `mlic average` and `mlic export`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

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
    Location,
    Output,
    Paths,
    Policy,
    Precise,
    Reduced,
    Share,
    Workers,
)


class InferenceSettings(Settings):
    """What `batch-predict` and `embed` share: a model, images, and how they go through its network."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", runtime=True)
    images: AnyPath = setting(
        ..., "Images as for mlic pack, a folder of its shards, or one image", cli="argument", runtime=True
    )
    out: Output | None = setting(None, "File to write", cli="flag", runtime=True)
    split: str | None = setting(None, "Split of the shards to predict; default: all", cli="flag")
    max_bad: Share = setting(
        0.01,
        "Fraction of unreadable images from which the command ends with exit code 3, though all others are predicted; "
        "ten are always allowed",
        cli="flag",
        ge=0,
        le=1,
        runtime=True,
    )
    batch_size: Workers = setting(
        "auto",
        "Images per forward pass on a GPU, or of another engine than PyTorch, which takes 16 on a CPU; auto: 8, or as "
        "many as fit into the GPU's memory",
        cli="flag",
    )
    workers_per_gpu: int = setting(
        1,
        "Processes on each GPU, which share its memory; several decode faster where the GPU waits for images",
        cli="flag",
        ge=1,
        le=16,
        runtime=True,
        group="resources",
    )
    tta: Literal["none", "mirror"] = setting(
        "none",
        "Test-time augmentation; mirror: average what an image and its mirror image give, which takes twice the time",
        cli="flag",
    )
    chunk: int = setting(500, "Images per part; a part is written and resumed as a whole", ge=1)
    max_pixels: int = setting(
        100_000_000, "Maximum number of pixels of an image; larger ones count as unreadable", ge=1
    )

    @model_validator(mode="after")
    def _batch_is_known(self) -> Self:
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError(f"batch_size should be auto or at least 1, not {self.batch_size}")
        return self


class PredictConfig(InferenceSettings):
    """Predict every image of a folder or of shards with a trained model."""

    gives: ClassVar[Literal["scores", "features"]] = "scores"

    out: Output | None = setting(
        None,
        "File to write: .tsv, .csv, .txt, .jsonl or .parquet; a name without extension: a folder of "
        "Parquet files; -: standard output; default: predictions.tsv, or - for one image",
        cli="flag",
        runtime=True,
    )
    values: Literal["auto", "decisions", "scores", "both"] = setting(
        "auto",
        "What to write; auto: decisions for .tsv and .txt, scores and decisions for other formats",
        cli="flag",
        runtime=True,
    )
    top_k: int = setting(
        0,
        "Predict this many labels with the highest scores per image; 0: use the thresholds of the model",
        cli="flag",
        ge=0,
        runtime=True,
    )
    update: bool = setting(
        False,
        "Take new and changed images into an output that exists: images that have the size and the time of their last "
        "change that they had are not predicted again",
        cli="flag",
        runtime=True,
    )
    gone: Literal["fail", "keep", "drop"] = setting(
        "fail",
        "What an update does with the rows of images that are no longer there",
        cli="flag",
        runtime=True,
    )
    precision: Reduced = setting(
        "fp32",
        "bf16, or fp16 on GPUs: faster on some machines; used only if at least 99% of the decisions of the first batch "
        "stay the same",
        cli="flag",
    )
    backend: Backend | Literal["auto"] = setting(
        "auto",
        "Inference engine on CPUs; auto: the fastest installed one for many images; it is compared "
        "with torch on the first batch",
        cli="flag",
    )

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.update and self.out == STDOUT:
            raise ValueError("update is for an output in a file; give out as one")
        if self.gone != "fail" and not self.update:
            raise ValueError("gone is for an update; give update too")
        if self.out is None or self.out == STDOUT:
            return self
        ending = self.out.suffix
        if ending not in {".tsv", ".csv", ".txt", ".jsonl", ".parquet", ""}:
            raise ValueError(
                f"out should end in .tsv, .csv, .txt, .jsonl or .parquet, or, as a folder, not at all; not in {ending}"
            )
        if ending == ".txt" and self.values == "both":
            raise ValueError("a .txt file has one number for each label; give values as decisions or scores")
        return self


class EmbedConfig(InferenceSettings):
    """Write what a trained model sees in each image: the features that its head gets, as one vector for each."""

    gives: ClassVar[Literal["scores", "features"]] = "features"
    precision: ClassVar[Reduced] = "fp32"
    backend: ClassVar[Backend] = "torch"

    out: Output | None = setting(
        Path("embeddings.parquet"), "Parquet file to write", cli="flag", runtime=True, validate_default=True
    )
    near: LocalPath | None = setting(
        None, "An image: list the embedded images that are nearest to it, by cosine", cli="flag", runtime=True
    )
    count: int = setting(10, "How many of the nearest images to list", cli="flag", ge=1, runtime=True)

    @property
    def file(self) -> Location:
        """Where the embeddings go. Raises ValueError if that is no Parquet file."""
        if self.out is None or self.out == STDOUT or self.out.suffix != ".parquet":
            raise ValueError(f"out should end in .parquet, not be {self.out}")
        return self.out

    @model_validator(mode="after")
    def _is_parquet(self) -> Self:
        _ = self.file
        return self


class AverageConfig(Model):
    """Make one model of several trained ones: its scores, or its weights, are the means of theirs."""

    runs: Paths = setting(
        ..., "Runs of mlic train or mlic tune, on the same shards", cli="argument", min_length=2, runtime=True
    )
    out: LocalPath = setting(Path("runs/average"), "Folder to write", cli="flag", runtime=True, validate_default=True)
    weights: bool = setting(
        False,
        "Average the weights of runs of one architecture: one network, as fast as one. From the best run on, each "
        "one stays in that does not lower the validation value",
        cli="flag",
    )
    policy: Policy = setting("per-label", "Threshold policy, as for mlic threshold", cli="flag")
    calibration: Calibrator = setting("auto", CALIBRATION, cli="flag")
    fresh: bool = setting(False, "Delete the content of the folder and start again", cli="flag", runtime=True)
    seed: int = setting(42, "Seed for the folds and the bootstrap", ge=0, le=2**31 - 1)


class ExportConfig(Model):
    """Write a trained model for another engine, in a folder that predicts without PyTorch and Ray."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument")
    to: Engine = setting("onnx", "Engine: onnx (ONNX Runtime), openvino or torchscript", cli="flag")
    out: LocalPath | None = setting(None, "Folder to write; default: RUN/export-ENGINE", cli="flag")
    precision: Precise = setting(
        "fp32",
        "Precision for openvino; bf16 and int8 are faster and change some decisions, which are counted",
        cli="flag",
    )
    images: AnyPath | None = setting(
        None, "Images for the comparison and for the int8 ranges; default: the shards of the run", cli="flag"
    )
    split: str | None = setting(None, "Split of the shards for the comparison; default: val", cli="flag")
    samples: int = setting(256, "Maximum number of images for the comparison", cli="flag", ge=2)
    min_agreement: Share = setting(
        0.99, "Minimum fraction of bf16 or int8 decisions that equal the fp32 decisions", cli="flag", gt=0, le=1
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.precision != "fp32" and self.to != "openvino":
            raise ValueError(f"{self.to} is written in fp32; give to as openvino for {self.precision}")
        if self.precision == "fp32" and self.min_agreement != type(self).model_fields["min_agreement"].default:
            raise ValueError("min_agreement is for bf16 and int8; in fp32 all decisions have to be the same")
        return self
