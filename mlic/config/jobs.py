"""Settings of SLURM jobs and Ray jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from mlic.config.base import Model, setting
from mlic.config.types import LocalPath, Names, Options

Stage = Literal["pack", "train", "tune", "noise", "batch-predict", "evaluate"]

STAGES: tuple[Stage, ...] = ("pack", "train", "tune", "noise", "batch-predict", "evaluate")

_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
_ARRAY = re.compile(r"(fold|seed)=(\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?)")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")


class SlurmConfig(Model):
    """What to ask SLURM for when a stage runs in an allocation."""

    stage: Stage = setting(..., "Stage to run")
    arguments: tuple[str, ...] = setting((), "Arguments of the stage")
    nodes: int = setting(1, "Number of nodes", cli="flag", ge=1)
    cpus_per_task: int = setting(8, "CPUs per node", cli="flag", ge=1)
    gpus_per_node: int = setting(0, "GPUs per node", cli="flag", ge=0)
    mem: str | None = setting(None, "Memory per node, such as 64G; default: that of the site", cli="flag")
    time: str = setting("04:00:00", "Time limit", cli="flag")
    grace: int = setting(
        120, "Seconds before the time limit at which the job writes a checkpoint and is queued again", cli="flag", ge=10
    )
    partition: str | None = setting(None, "Partition", cli="flag")
    account: str | None = setting(None, "Account", cli="flag")
    job_name: str | None = setting(None, "Name of the job; default: mlic-STAGE", cli="flag")
    array: str | None = setting(
        None, "Job array over folds or seeds, such as fold=0-4 or seed=1-10%2 (two at a time)", cli="flag"
    )
    exclusive: bool = setting(False, "Use whole nodes and start Ray with ray symmetric-run", cli="flag")
    options: Options = setting({}, "More options of sbatch, such as qos=high,no-kill=", cli="flag")
    modules: Names = setting((), "Environment modules to load first", cli="flag")
    venv: LocalPath | None = setting(None, "Virtual environment to activate first", cli="flag")
    container: LocalPath | None = setting(None, "Apptainer image to run in", cli="flag")
    container_options: tuple[str, ...] = setting((), "More options of apptainer exec, such as --bind=/data")
    scratch: Path | None = setting(None, "Local storage of each node; default: /tmp", cli="flag")

    @model_validator(mode="after")
    def _values_are_slurms(self) -> Self:
        lines = {name: getattr(self, name) for name in ("mem", "time", "partition", "account", "job_name")}
        options = {name: value for name, value in self.options.items() if value}  # an option may have no value
        for field, value in {**lines, **options}.items():
            if value is not None and (not value.strip() or any(ord(c) < 32 for c in value)):
                raise ValueError(f"{field} should be one line of text, not {value!r}")
        if not _TIME.fullmatch(self.time):
            raise ValueError(f"time should be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, not {self.time!r}")
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise ValueError(f"mem should be a number with K, M, G or T, such as 64G, not {self.mem!r}")
        for name in self.options:
            if not _OPTION.fullmatch(name):
                raise ValueError(f"options should be named as sbatch names them, such as qos, not {name!r}")
        if self.array is not None and not _ARRAY.fullmatch(self.array):
            raise ValueError(f"array should look like fold=0-4 or seed=1-10%2, not {self.array!r}")
        if self.array is not None and self.stage not in ("train", "tune"):
            raise ValueError(f"an array is of train or tune, not of {self.stage}")
        if self.scratch is not None and len(str(self.scratch)) > 20:
            raise ValueError(f"scratch should be at most 20 characters long, for sockets' sake, not {self.scratch}")
        return self


class PipelineConfig(Model):
    """The data of a chain of jobs: pack, tune, train the best settings, and predict."""

    images: LocalPath = setting(..., "Training images", cli="argument")
    labels: LocalPath = setting(..., "Label files of the training images", cli="flag")
    test: LocalPath | None = setting(None, "Images to predict", cli="flag")
    out: LocalPath = setting(..., "Folder for shards, runs and predictions, on storage that all nodes see", cli="flag")
    num_samples: int | None = setting(None, "Number of trials; default: that of mlic tune", cli="flag", ge=1)
    jobs: LocalPath | None = setting(
        None, "Folder with pack.yaml, tune.yaml or batch_predict.yaml for other settings", cli="flag"
    )

    @model_validator(mode="after")
    def _has_its_folders(self) -> Self:
        for name in ("images", "labels", "test", "jobs"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise ValueError(f"{name}: {path} does not exist")
        return self

    def stages(self) -> dict[Stage, tuple[str, ...]]:
        """The stages in their order, each with its arguments."""
        shards, runs = self.out / "shards", self.out / "runs"
        commands: dict[Stage, tuple[str, ...]] = {
            "pack": (f"{self.images}", "--labels", f"{self.labels}", "--out", f"{shards}"),
            "tune": (f"{shards}", "--runs", f"{runs}", "--name", "tune"),
            "train": (f"{shards}", "--config", f"{runs / 'tune' / 'best.yaml'}", "--runs", f"{runs}", "--name", "best"),
        }
        if self.num_samples is not None:
            commands["tune"] += ("--num-samples", f"{self.num_samples}")
        if self.test is not None:
            commands["batch-predict"] = (f"{runs / 'best'}", f"{self.test}", "--out", f"{self.out / 'preds.tsv'}")
        return {stage: (*arguments, *self._own_file(stage)) for stage, arguments in commands.items()}

    def _own_file(self, stage: Stage) -> tuple[str, ...]:
        if self.jobs is None or stage == "train":  # which takes what the search has found
            return ()
        file = self.jobs / f"{stage.replace('-', '_')}.yaml"
        return ("--config", f"{file}") if file.is_file() else ()


class SubmitConfig(Model):
    """A stage as a job of a Ray cluster."""

    job: LocalPath = setting(..., "Configuration file of the stage, such as jobs/train.yaml", cli="argument")
    arguments: tuple[str, ...] = setting((), "Arguments of the stage")
    address: str = setting(
        "http://127.0.0.1:8265", "Address of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else", cli="flag"
    )
    stage: Stage | None = setting(None, "Stage to run; default: the name of the file", cli="flag")
    name: str | None = setting(None, "Name of the job; if a job of this name is running, attach to it", cli="flag")

    @model_validator(mode="after")
    def _has_a_stage(self) -> Self:
        if not self.job.is_file():
            raise ValueError(f"there is no file {self.job}")
        if self.stage is None and self.named_after not in STAGES:
            raise ValueError(f"{self.job.name} is named after no stage; give --stage, one of {', '.join(STAGES)}")
        return self

    @property
    def named_after(self) -> str:
        return self.job.stem.replace("_", "-")


class ClusterCheckConfig(Model):
    """Whether the nodes of a Ray cluster can work together."""

    folder: LocalPath | None = setting(None, "Folder for shards and runs that all nodes share", cli="argument")
    address: str | None = setting(
        None, "Ray cluster to check; default: RAY_ADDRESS, else Ray inside this process", cli="flag"
    )
