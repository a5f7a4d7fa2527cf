"""The evidence of a report: a model's decisions on one split, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError
from torch import nn

from mlic.config.base import Settings
from mlic.config.fit_checks import STORED
from mlic.config.train import TrainConfig
from mlic.config.types import Location
from mlic.data import shards, storage
from mlic.data.shards import INDEX, Split
from mlic.errors import DataError
from mlic.metrics import decision, thresholds
from mlic.metrics.calibration import Calibration
from mlic.metrics.measurement import Measurement
from mlic.model import bundle, zoo
from mlic.runs.run import read_state
from mlic.train import checkpoints, setup
from mlic.train.launch import measured

Array = np.ndarray[Any, Any]

_KEPT = {"best": "was the best", "lowest-loss": "had the lowest loss", "last": "was the last"}
_CHOSE = " The split also chose the epoch, so new images may give a little less."
_OF_FOLDS = " The headlines are of all folds together, everything below them is of the first fold and its model."
_SAID = {"best": _CHOSE, "lowest-loss": _CHOSE, "last": ""}


@dataclass(frozen=True)
class Training:
    """How a model was fitted: its settings, the metrics of its epochs, the best epoch, and its network."""

    config: TrainConfig
    history: list[dict[str, float]]
    best_epoch: int
    net: nn.Module


@dataclass(frozen=True)
class Evidence:
    """Decisions bool (N, L), targets int8 (N, L) and, where there are any, scores (N, L) and thresholds (L,).

    `keys` name the samples. If the shards are gone, they are numbers, which mean the same samples in another run with
    the same `data`. `images` are the samples in this order, `sizes` (N, 2) their width and height in pixels,
    `train_targets` (M, L) the targets of the training split. `notes` say what is not on the page, and why.
    """

    name: str
    about: str
    data: str
    labels: tuple[str, ...]
    keys: tuple[str, ...]
    targets: Array
    decisions: Array
    scores: Array | None
    thresholds: Array | None
    measurement: Measurement
    training: Training | None = None
    images: Split | None = None
    sizes: Array | None = None
    train_targets: Array | None = None
    notes: tuple[str, ...] = field(default=())


def of_run(run: Path) -> Evidence:
    """The validation split of a finished run of mlic train or mlic tune, decided by cross-fitted thresholds.

    Raises DataError when it is no such run and RunError when no epoch of it was finished.
    """
    config, fitted = _plan(run)
    best = checkpoints.read_best(fitted)
    model = bundle.read(run)
    labels = model.labels
    settled = _settled(model, best)
    state = read_state(run) or {}
    data = f"{state.get('inputs', {}).get('shards')} fold {config.fold}"
    images, sizes, train, notes = _from_shards(config, state.get("inputs", {}).get("shards"), len(best.targets))
    prep = model.preprocessing
    net = zoo.build(model.arch, len(labels), prep.channels, prep.image_size, model.arch_options)
    net.load_state_dict(best.state)
    keys = tuple(str(i) for i in range(len(best.targets))) if images is None else tuple(images.keys.to_pylist())
    history = checkpoints.read_history(fitted)
    return Evidence(
        name=run.name,
        about=f"Validation split, {config.arch}, epoch {best.epoch} of {len(history)}, which "
        f"{_KEPT[config.keep_epoch]}. Each image is decided by "
        f"{_by(str(model.threshold_fit['policy']))}."
        f"{_SAID[config.keep_epoch]}" + (_OF_FOLDS if fitted.name == "fold0" else ""),
        data=data,
        labels=labels,
        keys=keys,
        targets=best.targets,
        decisions=settled.decisions,
        scores=settled.scores,
        thresholds=np.array(model.thresholds),
        measurement=_measured(run) or measured(labels, settled, best.targets, config.seed),
        training=Training(config, history, best.epoch, net),
        images=images,
        sizes=sizes,
        train_targets=train,
        notes=notes,
    )


def _by(policy: str) -> str:
    """What decides an image, in words."""
    if policy.startswith(("fixed", "top-k")):
        return f"the policy {policy}, to which nothing was fitted"
    return f"{policy} thresholds that were fitted without it"


def _settled(model: bundle.Bundle, best: checkpoints.Best) -> decision.Settled:
    """The validation split as the bundle decides it, by maps and thresholds that were fitted without each image."""
    fit = model.threshold_fit
    if fit["fitted_on"] == "val":
        weights = np.array(model.provenance["pos_weight"])
        return decision.settle(
            fit["policy"],
            model.calibration["method"],
            best.scores,
            best.targets,
            weights,
            fit["seed"],
            fit.get("objective", "f1_micro"),
        )
    calibration, cuts = Calibration.read(model.calibration), np.array(model.thresholds)
    scores = calibration.apply(best.scores)
    decisions = thresholds.decide(scores, cuts, model.top_k)
    return decision.Settled(calibration, cuts, None, scores, scores, decisions, {}, {})


def of_predictions(
    name: str,
    labels: tuple[str, ...],
    keys: Sequence[str],
    targets: Array,
    decisions: Array,
    scores: Array | None,
    measurement: Measurement,
    truth: Location,
    split: str,
) -> Evidence:
    """Predictions of the samples `keys`, with their images where the truth is a folder of shards.

    The rows are then in the order of the split, as `evaluate.join` gives them.
    """
    images = sizes = train = None
    notes: tuple[str, ...] = ("The page of mlic report also has the training, the settings and the layers.",)
    if storage.size(truth / INDEX) is not None:
        images, sizes = shards.read_split(truth, split), _sizes(truth, split, None)
        keys = images.keys.to_pylist()
        if "train" in shards.read_index(truth)["splits"]:
            train = shards.read_split(truth, "train").targets
    else:
        notes = ("No images: they are shown where the labels come from shards.", *notes)
    return Evidence(
        name=name,
        about=f"Split {split}." if images is not None else "",
        data=str(truth),
        labels=labels,
        keys=tuple(keys),
        targets=targets,
        decisions=decisions,
        scores=scores,
        thresholds=None,
        measurement=measurement,
        images=images,
        sizes=sizes,
        train_targets=train,
        notes=notes,
    )


def _plan(run: Path) -> tuple[TrainConfig, Path]:
    """The settings that fitted the model of a run, and the folder with its epochs."""
    state = read_state(run) if run.is_dir() else None
    kind = (state or {}).get("kind")
    if kind not in ("train", "tune"):
        raise DataError(
            f"{run} is not a run of mlic train or mlic tune.", "name the folder of a run, such as runs/b-final."
        )
    if kind == "train":
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return TrainConfig.model_validate(settings, context=STORED), run
    try:
        settings = yaml.safe_load((run / "best.yaml").read_text(encoding="utf-8"))
        number = json.loads((run / "report.json").read_text(encoding="utf-8"))["trials"][0]["number"]
    except FileNotFoundError:
        raise DataError(f"the search {run} is not finished.", "run the same mlic tune command again.") from None
    config, fitted = TrainConfig.model_validate(settings, context=STORED), run / "trials" / f"{number:05d}"
    if (fitted / "fold0").is_dir():  # the model of a cross-validated search is that of the first fold
        return config.model_copy(update={"fold": 0}), fitted / "fold0"
    return config, fitted


def _measured(run: Path) -> Measurement | None:
    """The measurement in the run's report; None if the run is not finished or another version wrote the report."""
    try:
        return Measurement(**json.loads((run / "report.json").read_text(encoding="utf-8"))["measurement"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _from_shards(
    config: TrainConfig, fingerprint: str | None, samples: int
) -> tuple[Split | None, Array | None, Array | None, tuple[str, ...]]:
    """Images, sizes and training targets of a run, or notes that say why there are none."""
    lost = "so there are no pictures, no kinds of images and no training counts on this page."
    try:
        if shards.read_index(config.shards)["fingerprint"] != fingerprint:
            return None, None, None, (f"The shards {config.shards} are no longer those of this run, {lost}",)
        images = shards.read_split(config.shards, "val", config.fold)
        train = setup.train_split(config).targets
        sizes = _sizes(config.shards, "val", config.fold)
    except (DataError, OSError):
        return None, None, None, (f"The shards {config.shards} are not there, {lost}",)
    if len(images) != samples:
        return None, None, None, (f"The shards {config.shards} are no longer those of this run, {lost}",)
    return images, sizes, train, ()


def _sizes(folder: Location, split: str, fold: int | None) -> Array:
    """Width and height (N, 2) in the order of `read_split`."""
    rows = shards.rows_of_split(split) if fold is None else shards.rows_of_fold(fold)
    table = shards.read_table(folder, ["width", "height"], rows)
    return np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1)


def _plain(value: Any) -> Any:
    """A default as it would be after JSON, so that `()` is `[]`."""
    return json.loads(json.dumps(value, default=str))


def settings_of(config: TrainConfig) -> dict[str, tuple[Any, Any, str]]:
    """Each setting that makes the model what it is: its value, its default and its meaning."""
    settings = config.model_dump(mode="json")
    return {
        key: (settings[key], _plain(field.get_default(call_default_factory=True)), str(field.description))
        for key, field in TrainConfig.model_fields.items()
        if key not in Settings.model_fields and key not in ("name", "runs")
    }
