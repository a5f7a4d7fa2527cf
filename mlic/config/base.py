"""Base classes of settings and reports."""

from __future__ import annotations

import difflib
import html
from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlic.config.types import Workers

Group = Literal["", "labels", "data", "model", "optimisation", "search", "resources", "run"]


def setting(default: Any, help: str, *, cli: str = "", runtime: bool = False, group: Group = "", **limits: Any) -> Any:
    """Declare one setting.

    `cli` is "argument", "flag" or "" (reached by --set alone). `runtime` marks what only says where a command runs and
    where its files lie: it may differ when a stopped run is started again. What input files hold is compared by
    their fingerprints instead. `group` is the heading that its flag stands under in the help.
    """
    extra: dict[str, Any] = {"cli": cli, "runtime": runtime} | ({"group": group} if group else {})
    return Field(default, description=help, json_schema_extra=extra, **limits)


class Model(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _repr_html_(self) -> str | None:
        """A report in a notebook is the text that its command prints."""
        text = getattr(self, "text", None)
        return f"<pre>{html.escape(text())}</pre>" if callable(text) else None


class Settings(Model):
    """What every command that runs on Ray has."""

    address: str | None = setting(
        None,
        "Ray cluster to use; default: RAY_ADDRESS, else Ray inside this process",
        cli="flag",
        runtime=True,
        group="resources",
    )
    workers: Workers = setting("auto", "Parallel workers, or auto", cli="flag", runtime=True, group="resources")
    fresh: bool = setting(
        False,
        "Delete the results of an earlier run of this name and start again",
        cli="flag",
        runtime=True,
        group="run",
    )

    @model_validator(mode="after")
    def _workers_are_positive(self) -> Self:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError(f"workers should be auto or at least 1, not {self.workers}")
        return self


def result_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that decide a stage's result, as plain values: all but those of where and how often it runs."""
    plain = config.model_dump(mode="json")
    return {key: plain[key] for key, field in type(config).model_fields.items() if not _extra(field).get("runtime")}


def _extra(field: Any) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def group_of(field: Any) -> Group:
    """The heading that the flag of a field stands under in the help, "" for none."""
    group: Group = _extra(field).get("group", "")
    return group


def cli_kind(field: Any) -> str:
    """ "argument", "flag" or "" for a field of a configuration."""
    return str(_extra(field).get("cli", ""))


# What settings are called elsewhere.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "model": "arch",
    "architecture": "arch",
    "backbone": "arch",
    "net": "arch",
    "network": "arch",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "optim": "optimizer",
    "optimiser": "optimizer",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "criterion": "loss",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "warmup": "warmup_epochs",
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "resolution": "image_size",
    "size": "image_size",
    "early_stopping": "patience",
    "early_stop": "patience",
    "metric": "objective",
    "monitor": "objective",
    "pretrained": "weights",
    "checkpoint": "weights",
    "resume": "weights",
    "pos_weight": "pos_weight_power",
    "class_weights": "pos_weights",
    "num_workers": "workers",
    "n_workers": "workers",
    "nproc": "workers",
    "n_trials": "num_samples",
    "trials": "num_samples",
    "num_trials": "num_samples",
    "samples": "num_samples",
    "unlabeled": "unlabelled",
    "unlabeled_label": "unlabelled_label",
    "output": "out",
    "output_dir": "out",
    "out_dir": "out",
    "dest": "out",
    "annotations": "labels",
    "label_dir": "labels",
    "val_split": "split",
    "thresholds": "threshold_policy",
    "random_seed": "seed",
    "random_state": "seed",
    "grayscale": "color",
    "colour": "color",
    "amp": "precision",
    "mixed_precision": "precision",
    "fp16": "precision",
    "label_smooth": "label_smoothing",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "run": "name",
    "run_name": "name",
    "experiment": "name",
    "normalisation": "normalization",
    "normalize": "normalization",
    "max_samples": "limit",
    "subset": "limit",
    "hyperparameters": "space",
    "search_space": "space",
    "force": "fresh",
    "overwrite": "fresh",
    "restart": "fresh",
}


def near_setting(name: str, known: Collection[str]) -> str | None:
    """The setting, of those that are known, that a name for it probably means."""
    plain = name.strip("-").replace("-", "_").lower()
    meant = _ALSO_CALLED.get(plain)
    if meant in known:
        return meant
    return near_name(plain, known)


def near_name(name: str, known: Collection[str]) -> str | None:
    """The one of some names that another looks like."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)
