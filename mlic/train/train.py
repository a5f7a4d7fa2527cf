"""`mlic train`: train one model, or one model per fold."""

from __future__ import annotations

from mlic.config.train import TrainConfig
from mlic.train.cross_validation import FoldsReport, cross_validate
from mlic.train.launch import TrainReport, fit


def train(config: TrainConfig) -> TrainReport | FoldsReport:
    """Train one model, or with `cross_validate` one for each fold; see `fit` and `cross_validate`."""
    return cross_validate(config) if config.cross_validate else fit(config)
