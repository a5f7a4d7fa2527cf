"""Early stopping, and which epoch is kept and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mlic.config.fit import FitSettings
from mlic.config.train import TrainConfig
from mlic.metrics import metrics


def objective(config: FitSettings) -> str:
    """The name, in an epoch's metrics, of the metric that is highest in the best epoch."""
    return f"val/{config.objective}"


def is_done(config: TrainConfig, history: list[dict[str, float]]) -> bool:
    """Whether a run has all its epochs, or its patience has run out."""
    if len(history) >= (1 if config.train == "none" else config.epochs):
        return True
    if not config.patience or not history:
        return False
    sign = 1 if config.stop_on in _LOWER_IS_BETTER else -1
    # If the metric of an epoch is not defined, or not a number, the epoch counts as the worst.
    values = [sign * row.get(config.stop_on, math.nan) for row in history]
    values = [value if math.isfinite(value) else math.inf for value in values]
    return len(values) - 1 - values.index(min(values)) >= config.patience


def kept_epoch(config: FitSettings, history: Sequence[Mapping[str, float]]) -> int:
    """The index, in a history of one epoch or more, of the epoch that is kept and measured; the first of equal ones."""
    if config.keep_epoch == "last":
        return len(history) - 1
    if config.keep_epoch == "lowest-loss":
        return min(range(len(history)), key=lambda i: history[i]["val/loss"])
    return max(range(len(history)), key=lambda i: history[i][objective(config)])


_LOWER_IS_BETTER = {f"val/{name}" for name in ("loss", *metrics.LOWER_IS_BETTER)}
