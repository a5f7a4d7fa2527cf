"""Is the winner of a search better? Retrain it, the runner-up and the defaults with new seeds.

The best of many trials looks better than it is, because it was lucky on the validation split. So the candidates are
compared again, with seeds that the search did not use and, if the shards have one, on a test split that it never saw.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.cluster.connect import connect
from mlic.config.base import Model
from mlic.config.predict import PredictConfig
from mlic.config.space import Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data.shards import read_index
from mlic.errors import RunError
from mlic.evaluate.evaluate import join
from mlic.metrics import bootstrap, metrics
from mlic.metrics.measurement import aligned
from mlic.model import bundle
from mlic.runs.run import Run
from mlic.train import checkpoints, epoch_choice
from mlic.train.launch import finish
from mlic.tune.early_stopping import Rule, Search
from mlic.tune.run_trials import train_on
from mlic.tune.trial_store import Trials

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_RESAMPLES = 1000


class Confirmation(Model):
    """The objective on `split` of each candidate with `seeds` seeds, and the winner's lead over the others.

    Each lead has a 95% interval over images and seeds; the winner is significantly better if the interval is above 0.
    """

    split: str
    samples: int
    seeds: int
    objective: str
    values: dict[str, tuple[float, ...]]
    lead: dict[str, tuple[float, float, float]]

    def lines(self) -> list[str]:
        rows = [[f"{self.objective} on {self.split}", "mean", "lowest", "highest", "winner's lead", "95% interval"]]
        for name, values in self.values.items():
            lead = self.lead.get(name)
            ends = ["", ""] if lead is None else [f"{lead[0]:+.4f}", f"{lead[1]:+.4f} to {lead[2]:+.4f}"]
            rows.append([name, f"{np.mean(values):.4f}", f"{min(values):.4f}", f"{max(values):.4f}", *ends])
        verdicts = [self.verdict(name) for name in self.lead]
        return [f"retrained with {self.seeds} new seeds, {self.samples:,} samples", *aligned(rows), *verdicts]

    def verdict(self, name: str) -> str:
        """In words, whether the winner is better than another."""
        lead, low, high = self.lead[name]
        if low > 0:
            return (
                f"the winner is significantly better than {name}: by {lead:.4f}, 95% interval {low:.4f} to {high:.4f}"
            )
        if high < 0:
            return f"the winner is significantly worse than {name}: by {-lead:.4f}"
        return f"no significant difference between the winner and {name} on these images and seeds"


def confirm(config: TuneConfig, contest: Sequence[Mapping[str, Value]], run: Run[Any]) -> Confirmation:
    """Retrain the first two trials and the defaults with `config.confirm` new seeds, and compare them.

    Raises RunError when one of the trainings fails.
    """
    names = [*("winner", "runner-up")[: len(contest)], "default"]
    count = config.confirm
    seeds = [(config.seed + 1 + number) % 2**31 for number in range(count)]
    settings: list[dict[str, Value]] = [
        {**candidate, "seed": seed} for candidate in (*contest, _default(config)) for seed in seeds
    ]
    search = Search(Rule("none", config.epochs, 1, 2), len(settings))
    trials = Trials(search, run.folder / "confirm", lambda number: settings[number], config.plan, config)
    for number, candidate in enumerate(settings):
        folder = trials.folder(number)
        if folder.is_dir() and json.loads((folder / "trial.json").read_text(encoding="utf-8")) != candidate:
            shutil.rmtree(folder)  # from an earlier winner, before the search had more trials
    trials.recall(epoch_choice.objective(config))
    split = "test" if read_index(config.shards)["splits"].get("test", {}).get("samples") else "val"
    with connect(config.address) as cluster:
        if not search.done:
            train_on(cluster, config.model_copy(update={"scheduler": "none"}), trials, run, timed=False)
        failed = next((reason for number in range(trials.count) if (reason := trials.failure(number))), None)
        if failed is not None:
            raise RunError(f"a training of the contest failed: {failed}", "lower --confirm to 0 for the search alone.")
        found, values = [], []
        for number in range(trials.count):
            found.append(_decided(config, trials, number, split))
            values.append(_value(config.objective, *found[-1]))
            who, seed = names[number // count], settings[number]["seed"]
            logger.info("contest  %s, seed %s | %s %.4f on %s", who, seed, config.objective, values[-1], split)
    drawn = [
        bootstrap.draws(decisions, targets, scores, _RESAMPLES, config.seed)[config.objective]
        for decisions, targets, scores in found
    ]
    by_name = {name: slice(i * count, (i + 1) * count) for i, name in enumerate(names)}
    first = by_name["winner"]
    return Confirmation(
        split=split,
        samples=len(found[0][1]),
        seeds=count,
        objective=config.objective,
        values={name: tuple(values[part]) for name, part in by_name.items()},
        lead={
            name: _lead(values[first], values[part], np.array(drawn[first]), np.array(drawn[part]))
            for name, part in by_name.items()
            if name != "winner"
        },
    )


def _default(config: TuneConfig) -> dict[str, Value]:
    """The defaults of the searched settings."""
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    return {name: defaults[name] for name in config.space if "." not in name}


def _decided(config: TuneConfig, trials: Trials, number: int, split: str) -> tuple[Array, Array, Array]:
    """Decisions (N, L), targets and scores of a training on a split that no threshold of it was fitted to."""
    folder = trials.folder(number)
    settings = trials.draw(number) or {}
    if not (folder / "model" / bundle.SPEC).is_file():
        finish(trials.plan(settings), folder, folder, warn=False)
    if split == "val":
        best = checkpoints.read_best(folder)
        return best.decisions, best.targets, best.scores
    out = folder / f"{split}.parquet"
    where = {"address": config.address, "workers": config.workers}
    predict(PredictConfig(model=folder, images=config.shards, split=split, out=out, values="both", **where))
    predictions = prediction_files.read(out)
    joined = join(predictions, config.shards, split)
    if predictions.scores is None or predictions.decisions is None:
        raise RunError(f"{out} has no scores.", "remove it and run the same command again.")
    return predictions.decisions[joined.rows], joined.targets, predictions.scores[joined.rows]


def _value(objective: str, decisions: Array, targets: Array, scores: Array) -> float:
    measured = metrics.decision_metrics(decisions, targets) | metrics.score_metrics(scores, targets)
    return float(measured[objective])


def _lead(one: Sequence[float], two: Sequence[float], drawn: Array, other: Array) -> tuple[float, float, float]:
    """Difference of means and its 95% interval, over seeds and images; `drawn` and `other` are (S, R), a row a seed.

    The interval covers what other seeds and other images would give. With few seeds, their deviation is not known well,
    so the seeds count by Student's t with the pooled variance of both recipes. The images count by the normal
    distribution. Their variance is the effect of resampled images on both recipes, beyond the effect on each single
    seed, because the deviation over seeds contains that effect already (W. G. Cochran, Approximate significance levels
    of the Behrens-Fisher test, Biometrics 1964).
    """
    from scipy.stats import norm, t

    seeds = len(one)
    of_seeds = (float(np.var(one, ddof=1)) + float(np.var(two, ddof=1))) / seeds
    means = [draws.mean(axis=0) for draws in (drawn, other)]
    within = sum(float((draws - mean).var(axis=1).mean()) for draws, mean in zip((drawn, other), means, strict=True))
    of_images = max(0.0, float(np.nanvar(means[0] - means[1])) - within / (seeds - 1))
    reach = math.sqrt(t.ppf(0.975, 2 * seeds - 2) ** 2 * of_seeds + norm.ppf(0.975) ** 2 * of_images)
    lead = float(np.mean(one) - np.mean(two))
    return lead, lead - reach, lead + reach
