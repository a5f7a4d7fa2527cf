"""Pack, train and measure a reference system as its team did, and compare with its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlic.cluster.connect import connect
from mlic.config.base import Model, near_name
from mlic.config.data import PackConfig
from mlic.config.evaluate import EvaluateConfig
from mlic.config.examples import ReproduceConfig
from mlic.config.load import build, read_file
from mlic.config.recipes import Told, recipes, reported
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data.shards import read_index
from mlic.errors import ConfigError
from mlic.evaluate.evaluate import evaluate
from mlic.metrics.baselines import best_baseline
from mlic.metrics.measurement import SHOWN, Measurement, aligned
from mlic.model import weights, zoo
from mlic.pack.pack import pack
from mlic.runs.files import write_json
from mlic.train.launch import TrainReport, fit
from mlic.tune.result import TuneReport
from mlic.tune.tune import tune

logger = logging.getLogger(__name__)

# The recipes that each report rests on.
_HEADLINES = {
    "a": ("a-cnn1-2",),
    "b": ("b-final",),
    "c": ("c-final",),
    "d": ("d-densenet121-full-weighted",),
    "e": ("e-cnn", "e-cnn-second"),
}
_GOES_ON = {"e-cnn-second": "e-cnn"}  # a recipe that begins with the weights of another one's run
_FILE = "reproduced.json"


class Reproduced(Model):
    """A recipe: what was `reported` of it by metric, and what was measured on `split`, after `epochs` of `of`.

    `asked` epochs were allowed. `why` says why the two may differ.
    """

    recipe: str
    run: Path
    split: str
    epochs: int
    asked: int
    of: int
    reported: dict[str, float]
    measurement: Measurement
    why: str

    def lines(self) -> list[str]:
        """A table of the metrics that were reported and of the usual ones."""
        measurement = self.measurement
        rows = [["metric", "reported", "measured", "95% interval", "best trivial"]]
        for name in dict.fromkeys([*self.reported, *SHOWN]):
            if name in measurement.values:
                told = f"{self.reported[name]:.4f}" if name in self.reported else "-"
                low, high = measurement.intervals[name]
                trivial, best = best_baseline(name, measurement.baselines)
                beside = f"{best:.4f} {trivial.replace('_', '-')}"
                rows.append([name, told, f"{measurement.values[name]:.4f}", f"{low:.4f}-{high:.4f}", beside])
        cut = self.epochs == self.asked < self.of
        return [
            f"{self.recipe}: {self.epochs} of {self.of} epochs, "
            f"{measurement.samples:,} samples of the split {self.split}",
            *aligned(rows),
            *(f"Warning: {text}" for text in measurement.warnings),
            f"They may differ: {self.why}" + (f" It had {self.epochs} of its {self.of} epochs." if cut else ""),
        ]


class ReproduceReport(Model):
    """The recipes of a system that were run, and where they are."""

    system: str
    out: Path
    rows: tuple[Reproduced, ...]

    def text(self) -> str:
        lines = [line for row in self.rows for line in [*row.lines(), f"run  {row.run}", ""]]
        return "\n".join([*lines, f"comparison  {self.out / _FILE}"])


def reproduce(config: ReproduceConfig) -> ReproduceReport:
    """Pack as the team did, train or search, and compare; started again, it continues with what is not done.

    Raises ConfigError for a row that the system does not have, and, before anything is done, for published weights that
    are not on this machine; and what `pack`, `fit` and `tune` raise.
    """
    told = reported()
    names = _chosen(config, told)
    files = {recipe.name: recipe.path for recipe in recipes()}
    plans = {name: read_file(files[name]) for name in names}
    for settings in plans.values():
        _check_weights(config, settings)
    if config.num_samples is not None and not any(name.startswith("tune-") for name in names):
        raise ConfigError(f"{names[0]} is not a search, which num_samples is for.", "leave --num-samples out.")
    if config.weights is not None and not any(settings.get("weights") == "default" for settings in plans.values()):
        raise ConfigError(f"{names[0]} begins with no published weights.", "leave --weights out.")
    rows = []
    with connect(config.address):
        packed = {told[name].pack: read_file(files[told[name].pack]) for name in names}
        folders = {name: _shards(config, told[name]) for name in names}
        for folder, name in {folder: name for name, folder in folders.items()}.items():
            _pack(config, told[name], packed[told[name].pack], folder)
        for name, settings in plans.items():
            shards = folders[name]
            rows.append(_reproduced(config, name, told[name], settings, shards))
            _keep(config.out, rows[-1])
    return ReproduceReport(system=config.system, out=config.out, rows=tuple(rows))


def _chosen(config: ReproduceConfig, told: Mapping[str, Told]) -> list[str]:
    """The names of the recipes to run, in an order in which each finds what it resumes from."""
    recipes_of = [name for name in told if name.startswith(f"{config.system}-")]
    search = f"tune-{config.system}"
    if config.row is None:
        return list(_HEADLINES[config.system])
    if config.row == "all":
        return recipes_of
    names = {name.removeprefix(f"{config.system}-"): name for name in recipes_of} | {name: name for name in recipes_of}
    if search in told:
        names |= {"search": search, search: search}
    if config.row not in names:
        near = near_name(config.row, names)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(recipes_of)}."
        raise ConfigError(f"system {config.system} has no row {config.row!r}.", hint)
    name = names[config.row]
    return [_GOES_ON[name], name] if name in _GOES_ON else [name]


def _check_weights(config: ReproduceConfig, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where published weights are neither given nor on this machine."""
    if settings.get("weights") == "default":
        zoo.check(settings["arch"])
        weights.resolve(settings["arch"], config.weights or "default")


def _shards(config: ReproduceConfig, told: Told) -> Path:
    """Where the shards of a recipe are."""
    folds = told.pack_settings.get("folds", 0)
    return config.out / (f"shards-{told.pack.removeprefix('pack-')}" + (f"-{folds}-folds" if folds else ""))


def _pack(config: ReproduceConfig, told: Told, recipe_settings: Mapping[str, Any], out: Path) -> None:
    """Pack the shards that a recipe is for, as its team packed them."""
    settings: dict[str, Any] = {"images": config.images, "labels": config.labels, "out": out, "limit": config.limit}
    settings |= {"address": config.address, "workers": config.workers, "fresh": config.fresh}
    pack(build(PackConfig, recipe_settings, told.pack_settings, settings))


def _reproduced(
    config: ReproduceConfig, name: str, told: Told, recipe_settings: dict[str, Any], shards: Path
) -> Reproduced:
    """Run a recipe and measure it: on the test split where its team held one out, else where it measured itself."""
    logger.info("%s on %s", name, shards)
    runs = config.out / "runs"
    settings: dict[str, Any] = {"shards": shards, "runs": runs, "name": name, "address": config.address}
    settings |= {"fresh": config.fresh, "workers": config.workers}
    if recipe_settings.get("weights") == "default" and config.weights is not None:
        settings["weights"] = config.weights
    if name in _GOES_ON:
        settings["weights"] = str(runs / _GOES_ON[name])
    of = int(recipe_settings.get("epochs", 1))
    if config.epochs is not None and "epochs" in recipe_settings:
        settings["epochs"] = min(of, config.epochs)
    report: TrainReport | TuneReport
    if name.startswith("tune-"):
        if config.num_samples is not None:
            settings["num_samples"] = min(config.num_samples, recipe_settings.get("num_samples", config.num_samples))
        report = tune(build(TuneConfig, recipe_settings, config.overrides, settings))
        epochs = max(trial.epochs for trial in report.trials)
    else:
        report = fit(build(TrainConfig, recipe_settings, config.overrides, settings))
        epochs = report.epochs
    split, measurement = "val", report.measurement
    if read_index(shards)["splits"].get("test", {}).get("samples"):
        split = "test"
        measured = EvaluateConfig(predictions=runs / name, labels=shards, out=config.out / "measured" / name)
        measurement = evaluate(measured.model_copy(update={"address": config.address})).measurement
    return Reproduced(
        recipe=name,
        run=runs / name,
        split=split,
        epochs=epochs,
        asked=min(of, config.epochs or of),
        of=of,
        reported=told.reported,
        measurement=measurement,
        why=told.why,
    )


def _keep(out: Path, row: Reproduced) -> None:
    """Add a row to the comparison of all that were run in this folder."""
    try:
        before = json.loads((out / _FILE).read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        before = {}
    rows = before | {row.recipe: row.model_dump(mode="json")}
    write_json(out / _FILE, {"format": 1, "kind": "reproduce", "rows": rows})


def read_rows(out: Path) -> Sequence[Reproduced]:
    """The rows of all recipes that were run in a folder."""
    document = json.loads((out / _FILE).read_text(encoding="utf-8"))
    return [Reproduced(**row) for row in document["rows"].values()]
