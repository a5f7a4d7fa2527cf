"""Average the best trials of a search into one model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.base import Model
from mlic.config.data import Preprocessing
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data.shards import read_index
from mlic.metrics import bootstrap
from mlic.metrics.decision import Settled, value_of
from mlic.metrics.measurement import Measurement
from mlic.model import bundle, losses
from mlic.model.ensemble import joined
from mlic.model.ensemble_member import Member
from mlic.runs.files import disk_errors
from mlic.runs.run import Run, read_state
from mlic.train import checkpoints, setup
from mlic.train.launch import decide, expected, measured
from mlic.tune.trial_store import Trials

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_RESAMPLES = 1000


class Ensemble(Model):
    """A model of several trials, measured on the validation split with cross-fitted thresholds.

    `asked` is the number of trials that it was to have, `lead` its lead over the winner alone in the search's
    objective, with the 95% interval over images.
    """

    model: Path
    asked: int
    trials: tuple[int, ...]
    objective: str
    measurement: Measurement
    lead: tuple[float, float, float]

    def verdict(self) -> str:
        """In words, whether it is better than the winner."""
        return verdict(self.lead)

    def lines(self) -> list[str]:
        value, (low, high) = self.measurement.values[self.objective], self.measurement.intervals[self.objective]
        lead, least, most = self.lead
        return [
            f"average of trials {', '.join(str(number) for number in self.trials)}: {self.objective} {value:.4f} "
            f"({low:.4f}-{high:.4f}), {lead:+.4f} ({least:+.4f} to {most:+.4f}) to the winner alone: {self.verdict()}",
            f"average {self.model}",
        ]


def verdict(lead: tuple[float, float, float]) -> str:
    """A lead and the ends of its interval in words."""
    _, least, most = lead
    return (
        "significantly better"
        if least > 0
        else "significantly worse"
        if most < 0
        else "no significant difference on these images"
    )


def ensemble(config: TuneConfig, trials: Trials, run: Run[Any]) -> Ensemble | None:
    """Write the bundle of the average of the best `config.ensemble` trials that see the same images as the winner.

    Its thresholds and calibration are fitted to the average's own scores, by the policy of the winner. If fewer such
    trials have their checkpoints, the average is made of those, with a warning. Returns None if there are fewer than
    two.
    """
    plans = {number: config.plan(trials.draw(number) or {}) for number in trials.distinct(trials.ranking())}
    numbers = _chosen(config, trials, plans)
    if len(numbers) < config.ensemble:
        logger.warning("an ensemble of %d was asked for: %s", config.ensemble, lack(config, len(numbers)))
    if len(numbers) < 2:
        return None
    winner = plans[numbers[0]]
    bests = [checkpoints.read_best(trials.fitted(number)) for number in numbers]
    folder, index = run.folder / "ensemble", read_index(config.shards)
    state = read_state(run.folder) or {}
    settled, measurement = fuse(
        folder,
        bests,
        [_member(plans[number]) for number in numbers],
        tuple(index["labels"]),
        setup.preprocessing(winner),
        winner.threshold_policy,
        winner.calibration,
        config.seed,
        config.objective,
        {
            "run": run.folder.name,
            "trials": numbers,
            "shards": index["fingerprint"],
            "seed": config.seed,
            "versions": state.get("versions"),
            "git_commit": state.get("git_commit"),
        },
    )
    weight = bundle.read(run.folder).provenance["pos_weight"]
    alone, _ = decide(winner.threshold_policy, winner.calibration, bests[0], weight, winner.seed, config.objective)
    return Ensemble(
        model=folder / "model",
        asked=config.ensemble,
        trials=tuple(numbers),
        objective=config.objective,
        measurement=measurement,
        lead=lead(config.objective, settled, alone, bests[0].targets, config.seed),
    )


def lack(config: TuneConfig, count: int) -> str:
    """Why an ensemble has fewer trials than requested, and what to do."""
    return (
        f"{count} of {config.trials} trials finished with images of the winner's size and colour; "
        "give one --color to all trials, or more --num-samples."
    )


def fuse(
    folder: Path,
    bests: Sequence[checkpoints.Best],
    members: Sequence[Member],
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    policy: str,
    calibration: str,
    seed: int,
    objective: str,
    provenance: dict[str, Any],
) -> tuple[Settled, Measurement]:
    """Write the bundle of the average of networks, and its validation scores, to `folder`.

    `bests` and `members` are of the same networks, over one validation split. Thresholds and calibration are fitted to
    the average's own scores. `provenance` has at least the fingerprint of the "shards".
    """
    scores = bests[0].scores.copy()
    for best in bests[1:]:
        scores += best.scores
    together = dataclasses.replace(bests[0], epoch=0, metrics={}, state={}, scores=scores / len(bests))
    unweighted = [1.0] * len(labels)  # weights may differ between members, so the mean of their scores has none
    settled, fit = decide(policy, calibration, together, unweighted, seed, objective)
    fit |= {"fitted_on": "val", "split": "val", "data": provenance["shards"], "samples": len(together.targets)}
    measurement = measured(labels, settled, together.targets, seed)
    with disk_errors(folder):
        checkpoints.write_best(folder, together)
    model = bundle.Bundle(
        "average",
        {},
        labels,
        preprocessing,
        "none",
        tuple(float(value) for value in settled.thresholds),
        fit | expected(measurement),
        settled.calibration.plain(),
        provenance | {"checkpoint": ".", "pos_weight": unweighted},
        members=tuple(members),
    )
    with disk_errors(folder):
        bundle.save(model, joined([best.state for best in bests]), folder / "model")
    return settled, measurement


def _chosen(config: TuneConfig, trials: Trials, plans: Mapping[int, TrainConfig]) -> list[int]:
    """The best trials, of those that keep their checkpoints and see the images that the winner sees."""
    images = {number: setup.preprocessing(plan).pixels for number, plan in plans.items()}
    wanted = next(iter(images.values()))
    return [
        number
        for number in plans
        if images[number] == wanted and (trials.fitted(number) / "checkpoints" / "best.pt").is_file()
    ][: config.ensemble]


def _member(plan: TrainConfig) -> Member:
    preprocessing = setup.preprocessing(plan)
    return Member(plan.arch, plan.arch_options, losses.activation(plan.loss), preprocessing.mean, preprocessing.std)


def lead(objective: str, one: Settled, two: Settled, targets: Array, seed: int) -> tuple[float, float, float]:
    """By how much the objective of the first is above that of the second, with the 95% interval over images."""
    values, drawn = [], []
    for each in (one, two):
        values.append(value_of(objective, each.decisions, each.ranked, targets))
        drawn.append(bootstrap.draws(each.decisions, targets, each.scores, _RESAMPLES, seed, each.ranked)[objective])
    low, high = np.nanquantile(np.subtract(*drawn), [0.025, 0.975])
    return values[0] - values[1], float(low), float(high)
