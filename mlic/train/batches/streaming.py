"""Training on shards in an object store that do not fit on the disks of the nodes: they are read in sequence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlic.config.train import TrainConfig
from mlic.data import storage
from mlic.data.loader import eval_batches
from mlic.data.shard_window import ShardWindow, Use
from mlic.data.shards import Split
from mlic.errors import ConfigError
from mlic.train.batches import stream_order
from mlic.train.batches.epoch_order import EpochOrder, Shown
from mlic.train.batches.stream_order import StreamOrder
from mlic.train.rank import RankContext
from mlic.train.setup import has_fixed_features

Array = np.ndarray[Any, Any]


def decide(config: TrainConfig, context: RankContext, train: Split, val: Split, last: Mapping[str, Any] | None) -> int:
    """The number of groups in which the training shards are streamed, 0 if they are not; the same on all ranks.

    A run that resumes from the checkpoint `last` goes on as it began. Raises ConfigError when the ranks cannot share
    the groups.
    """
    if last is not None:
        groups = int(last.get("groups", 0))
    elif not any(context.gather(_is_wanted(config, train, val))):
        return 0
    else:
        groups = stream_order.num_groups(config.stream_groups, len(train.shards), config.batch_size)
        size = sum(train.shard_sizes) / 1e9
        context.say(
            f"streams {len(train.shards):,} training shards ({size:.3g} GB) in {groups} groups, each once an epoch"
        )
    if groups:
        stream_order.check(groups, context.world_size)
    return groups


def _is_wanted(config: TrainConfig, train: Split, val: Split) -> bool:
    """Whether this node has no room for the shards, or the settings ask for streams anyway. Raises ConfigError."""
    against = _against(config, train)
    if config.stream == "always" and against is not None:
        raise ConfigError(f"the shards cannot be streamed: {against}.", "leave --stream out.")
    if config.stream != "auto" or against is not None or not storage.is_remote(config.shards):
        return config.stream == "always"
    folder = storage.node_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free < sum(train.shard_sizes) + sum(val.shard_sizes) + storage.KEEP_FREE


def _against(config: TrainConfig, train: Split) -> str | None:
    """Why shards cannot be streamed; None if they can."""
    if has_fixed_features(config):
        return "a head is trained on features, which are computed once"
    if not config.shuffle:
        return "without shuffling, the samples come in the order of their keys"
    return None if bool((np.diff(train.shard) >= 0).all()) else "their samples are not sorted by shards"


def first_rows(split: Split) -> Array:
    """The first row (S + 1,) of each shard of a split whose rows are sorted by shards, and the number of rows."""
    return np.searchsorted(split.shard, np.arange(len(split.shards) + 1))


def order_of(split: Split, groups: int) -> Callable[[EpochOrder], StreamOrder] | None:
    """What makes the order of streamed shards, for 0 groups nothing."""
    if not groups:
        return None
    rows = first_rows(split)
    return lambda once: StreamOrder(once, rows, groups)


def train_window(
    shown: Shown, split: Split, config: TrainConfig, context: RankContext, done: int
) -> ShardWindow | None:
    """The shards that a rank reads in an epoch, from the batch `done` on; none if they are not streamed."""
    if not isinstance(shown.order, StreamOrder):
        return None
    uses = shown.order.uses(shown.bounds(context.world_size).tolist(), context.rank, context.world_size)
    window = _window(split, uses, config, context)
    window.skip(done)
    return window


def val_batches(
    split: Split, config: TrainConfig, context: RankContext, groups: int
) -> tuple[list[Array], ShardWindow | None]:
    """A rank's batches of an evaluation, with every sample once over all ranks, and the window of streamed shards.

    They are every so many samples, or, with streamed shards, those of a range of shards.
    """
    size = config.batch_size
    if not groups:
        return eval_batches(len(split), size, context.rank, context.world_size), None
    rows = first_rows(split)
    ranks = np.arange(context.rank, context.rank + 2)
    start, end = rows[np.searchsorted(rows, ranks * len(split) / context.world_size)].tolist()
    batches = [np.arange(first, min(first + size, end)) for first in range(start, end, size)]
    uses = [
        Use(shard, int(max(rows[shard] - start, 0)) // size, int(rows[shard + 1] - start - 1) // size)
        for shard in range(len(rows) - 1)
        if start <= rows[shard] < rows[shard + 1] <= end
    ]
    return batches, _window(split, uses, config, context)


def _window(split: Split, uses: list[Use], config: TrainConfig, context: RankContext) -> ShardWindow:
    report: Callable[[str], None] = lambda line: context.say(f"rank {context.rank}: {line}", everyone=True)  # noqa: E731
    return ShardWindow(split, uses, config.stream_gb * 1e9 / context.world_size, report)
