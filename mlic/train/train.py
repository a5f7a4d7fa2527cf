"""`mlic train`: train one model, or one model per fold."""

from __future__ import annotations

from mlic.config.train import TrainConfig
from mlic.log.log import following
from mlic.pack.foreign_shards import index_if_needed
from mlic.train import setup
from mlic.train.cross_validation import FoldsReport, cross_validate
from mlic.train.launch import TrainReport, fit


def train(config: TrainConfig) -> TrainReport | FoldsReport:
    """Train one model, or with `cross_validate` one for each fold; see `fit` and `cross_validate`.

    Shards of another program are indexed first.
    """
    index_if_needed(config.shards, config.address)
    config = setup.with_statistics(config)
    if config.cross_validate:
        return cross_validate(config)
    with following(config.log_to, config.folder):
        return fit(config)
