"""Average several trained models: the scores of the new model are the means of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlic.average.soup import soup
from mlic.config.base import Model
from mlic.config.predict import AverageConfig
from mlic.errors import DataError
from mlic.metrics.decision import Settled
from mlic.metrics.measurement import Measurement
from mlic.model import bundle
from mlic.model.ensemble_member import Member
from mlic.runs.run import Run
from mlic.train import checkpoints
from mlic.train.launch import decide
from mlic.tune.ensemble import fuse, lead, verdict

_OBJECTIVE = "f1_micro"


class AverageReport(Model):
    """A model of several, measured on the validation split that they share, with cross-fitted thresholds.

    `alone` has each model's own value, `best` the best of them, `lead` the lead over it with the 95% interval over
    images. `weights_of` are the models whose weights were averaged, None if scores are.
    """

    model: Path
    weights_of: tuple[str, ...] | None = None
    objective: str
    alone: dict[str, float]
    best: str
    lead: tuple[float, float, float]
    measurement: Measurement

    def text(self) -> str:
        ahead, least, most = self.lead
        return "\n".join(
            [
                self.measurement.table(),
                "",
                *(f"{name}  {self.objective} {value:.4f} alone" for name, value in self.alone.items()),
                f"the average  {self.objective} {self.measurement.values[self.objective]:.4f}, {ahead:+.4f} "
                f"({least:+.4f} to {most:+.4f}) to {self.best}: {verdict(self.lead)}",
                *self._soup(),
                f"model  {self.model}",
            ]
        )

    def _soup(self) -> list[str]:
        if self.weights_of is None:
            return []
        return [
            f"weights of {len(self.weights_of)} of {len(self.alone)}: {', '.join(self.weights_of)}",
            "Chosen on these images, so the value is too high: mlic evaluate measures it on others.",
        ]


def average(config: AverageConfig) -> AverageReport:
    """Write the average of the models of runs, of scores or of weights, with thresholds and a calibration of its own.

    Raises DataError for runs that do not share their labels, their images' size and colour and their validation split.
    """
    models = {_name(path): bundle.read(path) for path in config.runs}
    if len(models) < len(config.runs):
        raise DataError(f"{config.runs[-1].name} is the name of two of the runs.", "name each run once.")
    inputs = {"models": " ".join(sorted(model.fingerprint for model in models.values()))}
    with Run.open(config.out, "average", config, inputs, config.fresh) as run:
        if run.finished:
            return AverageReport(**run.report)
        bests = dict(zip(models, (_best(path) for path in config.runs), strict=True))
        first = next(iter(models))
        for name in models:
            _check_same(first, models[first], bests[first], name, models[name], bests[name])
        taken: tuple[str, ...] | None = None
        if config.weights:
            settled, measurement, taken = soup(config, models, bests)
        else:
            settled, measurement = _fuse(config, models, bests)
        alone = {
            name: decide(
                config.policy,
                config.calibration,
                bests[name],
                models[name].provenance["pos_weight"],
                config.seed,
                _OBJECTIVE,
            )[0]
            for name in models
        }
        leads = {
            name: lead(_OBJECTIVE, settled, loaded, bests[first].targets, config.seed) for name, loaded in alone.items()
        }
        best = min(leads, key=lambda name: leads[name][0])
        value = measurement.values[_OBJECTIVE]
        report = AverageReport(
            model=config.out / "model",
            weights_of=taken,
            objective=_OBJECTIVE,
            alone={name: value - loaded[0] for name, loaded in leads.items()},
            best=best,
            lead=leads[best],
            measurement=measurement,
        )
        run.finish(report)
    return report


def _fuse(
    config: AverageConfig, models: Mapping[str, bundle.Bundle], bests: Mapping[str, checkpoints.Best]
) -> tuple[Settled, Measurement]:
    """Write the bundle of the average; returns its decisions and their measurement."""
    model = next(iter(models.values()))
    provenance = {
        "run": config.out.name,
        "runs": list(models),
        "shards": model.provenance["shards"],
        "seed": config.seed,
    }
    return fuse(
        config.out,
        list(bests.values()),
        [_member(loaded) for loaded in models.values()],
        model.labels,
        model.preprocessing,
        config.policy,
        config.calibration,
        config.seed,
        _OBJECTIVE,
        provenance,
    )


def _name(path: Path) -> str:
    folder = bundle.find(path)
    return folder.parent.name if folder.name == "model" else folder.name


def _best(path: Path) -> checkpoints.Best:
    """The validation scores of a run, and the weights of its bundle."""
    model, net = bundle.load_model(path)
    if model.members:
        raise DataError(f"{path} is an average itself.", "name the runs that it was made of.")
    run = bundle.find(path).parent / model.provenance.get("checkpoint", ".")
    best = checkpoints.read_best(run)
    return checkpoints.Best(
        best.epoch, best.metrics, net.state_dict(), best.thresholds, best.scores, best.targets, best.decisions
    )


def _member(model: bundle.Bundle) -> Member:
    prep = model.preprocessing
    return Member(model.arch, model.arch_options, model.activation, prep.mean, prep.std)


def _check_same(
    first: str, one: bundle.Bundle, best: checkpoints.Best, name: str, other: bundle.Bundle, others: checkpoints.Best
) -> None:
    """Raise DataError where two models cannot be averaged, or not be measured by the same images."""
    prep, expected = one.preprocessing, other.preprocessing
    for what, a, b in (
        ("labels", one.labels, other.labels),
        ("images", prep.pixels, expected.pixels),
        ("shards", one.provenance["shards"], other.provenance["shards"]),
    ):
        if a != b:
            raise DataError(f"{first} and {name} have other {what}: {a} and {b}.", "average models that share them.")
    if best.targets.shape != others.targets.shape or (best.targets != others.targets).any():
        raise DataError(
            f"{first} and {name} were validated on other images.", "average models of one split: without --fold."
        )
