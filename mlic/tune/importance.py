"""Importance of settings in a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic.config.space import Dimension, Value

_FEWEST = 10  # trials
_TREES, _REPEATS = 300, 10


class Importance(NamedTuple):
    """How much worse a forest predicts the trials' values when a setting is shuffled, as shares that sum to 1.

    `explained` is the share of the values' variance (R squared) that the forest predicts, for trials that each tree has
    not seen. If it is not above 0, the shares mean nothing.
    """

    shares: dict[str, float]
    explained: float


def importance(
    space: Mapping[str, Dimension], settings: Sequence[Mapping[str, Value]], values: Sequence[float], seed: int
) -> Importance | None:
    """Permutation importance (Breiman, Random Forests, 2001) of each setting; None of fewer than ten trials.

    The value of a trial is its best value, so a trial that was stopped early keeps the low value that it had then.
    """
    if len(values) < _FEWEST or len(set(values)) < 2:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.array([[code(space[name], drawn.get(name)) for name in space] for drawn in settings])
    columns[columns < 0] = 0.5  # whether it was drawn is known from the setting that it depends on
    forest = RandomForestRegressor(_TREES, oob_score=True, min_samples_leaf=2, random_state=seed).fit(columns, values)
    permuted: Any = permutation_importance(forest, columns, values, n_repeats=_REPEATS, random_state=seed)
    losses = permuted.importances_mean.clip(0)
    total = float(losses.sum()) or 1.0
    return Importance(
        {name: float(loss) / total for name, loss in zip(space, losses, strict=True)}, float(forest.oob_score_)
    )


def code(dimension: Dimension, value: Value) -> float:
    """A setting as a number from 0 to 1: its place in a list, or in an interval; -1 where it was not drawn."""
    if dimension.listed is not None:
        if value not in dimension.listed:
            return -1.0
        return dimension.listed.index(value) / max(1, len(dimension.listed) - 1)
    if not isinstance(value, int | float):
        return -1.0
    low, high = dimension.bounds
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5
