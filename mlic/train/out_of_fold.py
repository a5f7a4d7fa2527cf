"""Out-of-fold decisions in cross-validation, at epochs that the other folds chose.

The best epoch of a fold, chosen on that very fold, looks better than it is: it is the highest of many noisy values. So
each fold is measured at the epoch where the mean curve of the other folds is best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.fit import FitSettings
from mlic.config.train import TrainConfig
from mlic.errors import RunError
from mlic.metrics import decision
from mlic.train import checkpoints, epoch_choice, setup

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OutOfFold:
    """One fold's samples at its `epoch`: `targets` int8 (N, L), `scores` float32 (N, L) and `decisions` bool (N, L).

    `ranked` (N, L) are the scores that order samples within a label, `metrics` those of the epoch.
    """

    epoch: int
    metrics: Mapping[str, float]
    targets: Array
    scores: Array
    ranked: Array
    decisions: Array


def chosen_epochs(config: FitSettings, histories: Sequence[Sequence[Mapping[str, float]]]) -> list[int]:
    """The index of the epoch at which each fold is measured, chosen by the mean curve of the other folds.

    Only epochs that all folds have are considered. If the last epoch is kept, each fold uses its own last epoch. Raises
    RunError for a fold without an epoch.
    """
    if not histories or not all(histories):
        raise RunError("a fold has no finished epoch.", "run the same command again.")
    if config.keep_epoch == "last":
        return [len(history) - 1 for history in histories]
    name, sign = ("val/loss", -1) if config.keep_epoch == "lowest-loss" else (epoch_choice.objective(config), 1)
    common = min(len(history) for history in histories)
    curves = sign * np.array([[row[name] for row in history[:common]] for history in histories])
    others = curves.sum(axis=0) - curves
    return [int(position) for position in others.argmax(axis=1)]


def read(config: TrainConfig, parts: Sequence[Path]) -> list[OutOfFold]:
    """The folds of a cross-validation from the folders of their models, which keep the scores of all epochs."""
    histories = [checkpoints.read_history(part) for part in parts]
    folds = []
    for fold, (part, position) in enumerate(zip(parts, chosen_epochs(config, histories), strict=True)):
        of_fold = config.model_copy(update={"fold": fold, "cross_validate": False})
        targets = checkpoints.read_best(part).targets
        scores = checkpoints.read_scores(part, position + 1)
        weights = setup.positive_weights(setup.train_split(of_fold), of_fold)
        decided = decision.decide(
            config.threshold_policy,
            config.calibration,
            scores,
            targets,
            np.array(weights.tolist()),
            config.seed,
            config.objective,
        )
        folds.append(
            OutOfFold(position + 1, histories[fold][position], targets, scores, decided.ranked, decided.decisions)
        )
    return folds


def together(folds: Sequence[OutOfFold]) -> OutOfFold:
    """All folds joined into one, in their order; its epoch is 0 and its metrics are empty."""
    arrays = ("targets", "scores", "ranked", "decisions")
    joined = {name: np.concatenate([getattr(fold, name) for fold in folds]) for name in arrays}
    return dataclasses.replace(folds[0], epoch=0, metrics={}, **joined)


def value(config: TrainConfig, parts: Sequence[Path]) -> float:
    """The objective of all samples of the folds together, by the functions that the report is made by."""
    all_folds = together(read(config, parts))
    return decision.value_of(config.objective, all_folds.decisions, all_folds.ranked, all_folds.targets)
