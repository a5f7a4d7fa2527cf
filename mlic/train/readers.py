"""What a run reads its samples with: images of shards, or the features that a frozen backbone makes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from mlic.config.data import Preprocessing
from mlic.config.train import TrainConfig
from mlic.data.augment import margin
from mlic.data.loader import FeatureReader, ShardReader
from mlic.data.shards import Split
from mlic.train import feature_cache


def decoded_side(config: TrainConfig) -> int:
    """The side in pixels of the training images that are kept decoded: more than the network's where parts are cut."""
    return margin(config.image_size) if config.crop < 1 else config.image_size


def open_readers(
    config: TrainConfig, prep: Preprocessing, splits: tuple[Split, Split], stack: ExitStack
) -> tuple[ShardReader, ShardReader]:
    """Readers of the images of the training and the validation split, closed with `stack`."""
    train, val = (
        stack.enter_context(ShardReader(split, prep.model_copy(update={"image_size": size})))
        for split, size in zip(splits, (decoded_side(config), prep.image_size), strict=True)
    )
    for reader in (train, val):
        reader.use_cache(config.cache_gb, config.loader_threads)
    return train, val


def of_features(
    config: TrainConfig,
    prep: Preprocessing,
    splits: tuple[Split, Split],
    readers: tuple[ShardReader, ShardReader],
    net: nn.Module,
    head: nn.Module,
    normalize: Callable[..., torch.Tensor],
) -> tuple[FeatureReader, FeatureReader]:
    """Readers of what the network `net` before its `head` makes of the images of both splits."""
    train, val = (
        feature_cache.feature_reader(config, prep, split, reader, net, head, normalize)
        for split, reader in zip(splits, readers, strict=True)
    )
    return train, val
