"""The initial state of a run: preprocessing, positive weights, network and trained layers."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from mlic.config.data import Preprocessing
from mlic.config.fit import Color, FitSettings
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.config.types import WEIGHTED
from mlic.data import sample_columns, storage
from mlic.data.pixels import deep_images
from mlic.data.pixels.images import MAX_PIXELS, BadImage
from mlic.data.shards import Split, read_index, read_split, with_unlabelled
from mlic.errors import ConfigError, DataError
from mlic.metrics import metrics
from mlic.model import layer_groups, losses, weights, zoo

logger = logging.getLogger(__name__)

_Fit = TypeVar("_Fit", TrainConfig, TuneConfig)
_BLOCK = 100_000  # samples whose labels are counted at once
_MEASURED = 200  # images whose pixels are measured
_LEAST_STD = 1e-4  # of a channel that is the same everywhere
_NORMALIZATIONS = {"imagenet": zoo.IMAGENET, "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


def train_split(config: TrainConfig, checked: bool = False) -> Split:
    """The samples that a configuration trains on: the training split, or as many of it as it is limited to.

    Those of `unlabelled_shards` come after them.
    """
    split = read_split(config.shards, "train", config.fold, checked=checked)
    if config.limit is not None and config.limit < len(split):
        rows = np.random.default_rng([config.seed, 18]).permutation(len(split))[: config.limit]
        split = dataclasses.replace(split.take(np.sort(rows)), name=f"{split.name} {config.limit} {config.seed}")
    if config.unlabelled_shards is None:
        return split
    return with_unlabelled(split, read_split(config.unlabelled_shards, "train", checked=checked))


def soft_targets(config: TrainConfig, train: Split) -> torch.Tensor | None:
    """Scores float32 (N, L) that the samples of `train` are fitted to beside their labels; None without such tables.

    Raises DataError for a table that cannot be read, or that lacks a label or a sample.
    """
    if not config.soft_targets:
        return None
    keys = train.keys
    count = len(keys) if config.unlabelled_shards is None else len(read_split(config.shards, "train", checked=True))
    count = min(count, config.limit or count)
    parts = [
        _scores_of(path, part, train.labels)
        for path, part in zip(config.soft_targets, (keys[:count], keys[count:]), strict=False)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _scores_of(path: Path, keys: pa.Array, labels: tuple[str, ...]) -> np.ndarray[Any, Any]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["key", *labels])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot read the soft targets {path}: {error}.", "run mlic distill again.") from None
    rows = pc.index_in(keys.cast(pa.string()), value_set=table.column("key").cast(pa.string()).combine_chunks())
    if rows.null_count:
        odd = keys.filter(pc.is_null(rows))[0]
        raise DataError(
            f"{path} has no scores of {odd}, and of {rows.null_count:,} training images in all.",
            "predict the same shards again, by mlic distill.",
        )
    taken = table.take(rows)
    return np.stack([taken.column(label).to_numpy().astype(np.float32) for label in labels], axis=1)


def blended(targets: torch.Tensor, soft: torch.Tensor, weight: float) -> torch.Tensor:
    """Targets float (B, L): known ones mixed with the soft ones by `weight`, unknown ones as the soft ones."""
    return torch.where(targets >= 0, torch.lerp(targets.clamp(min=0).float(), soft, weight), soft)


def has_fixed_features(config: TrainConfig) -> bool:
    """Whether only a head is trained, on features of a frozen backbone, which are the same in every epoch."""
    return config.train == "head" and not any(is_augmented(config.after(epochs)) for epochs in (0, *config.changes))


def is_augmented(config: TrainConfig) -> bool:
    """Whether an epoch shows randomly changed images. A head alone gets unchanged images by default."""
    asked = config.augment or config.rand_augment or config.mixup or config.cutmix or config.crop < 1
    return config.train != "head" or bool(asked)


def preprocessing(config: TrainConfig) -> Preprocessing:
    """The preprocessing that a configuration asks for."""
    color = zoo.default_color(config.arch) if config.color == "auto" else config.color
    published = zoo.published(config.arch)
    channels = config.channels or (3 if color == "rgb" else 1)
    mean, std = _NORMALIZATIONS.get(config.normalization, (published.mean, published.std))
    mean, std = (config.mean, config.std) if config.mean and config.std else (mean, std)
    return Preprocessing(
        image_size=config.image_size,
        color=color,
        bands=config.channels,
        bits=config.bits,
        mean=zoo.for_channels(mean, channels),
        std=zoo.for_channels(std, channels),
        resize=published.resize if config.resize == "weights" else config.resize,
        interpolation=published.interpolation if config.interpolation == "auto" else config.interpolation,
        crop_fraction=published.crop_fraction if config.resize == "weights" else 1.0,
    )


def with_statistics(config: _Fit) -> _Fit:
    """The configuration with the mean and deviation of training images, where it asks for measured ones.

    They are those of the pixels of the same few images at each call. Raises DataError if none can be decoded.
    """
    is_asked = config.normalization == "measured" or (
        config.normalization == "auto" and (config.channels > 0 or config.bits == 16)
    )
    if not is_asked or config.mean is not None:
        return config
    index = read_index(config.shards)
    split = read_split(config.shards, "train" if "train" in index["splits"] else None, checked=True)
    rows = np.sort(np.random.default_rng(31).permutation(len(split))[:_MEASURED])
    color: Color = "rgb" if config.color == "auto" else config.color
    totals, reasons = [], list[str]()
    with split.take(rows).opened() as read:
        for number in range(len(rows)):
            try:
                pixels = deep_images.decode(read(number), color, config.channels, config.bits, MAX_PIXELS)
            except BadImage as error:
                reasons.append(f"{split.key(rows[number])}: {error}")
                continue
            shares = pixels.reshape(-1, pixels.shape[2]) / (2**config.bits - 1)
            totals.append((len(shares), shares.sum(axis=0), (shares**2).sum(axis=0)))
    if not totals:
        raise DataError(
            f"none of {len(rows)} training images can be decoded ({reasons[0]}).", "see --channels, --bits."
        )
    count = sum(pixels for pixels, _, _ in totals)
    mean = np.sum([sums for _, sums, _ in totals], axis=0) / count
    variance = np.sum([squares for _, _, squares in totals], axis=0) / count - mean**2
    std = np.sqrt(np.maximum(variance, _LEAST_STD**2))
    rounded = [tuple(float(f"{value:.4g}") for value in values) for values in (mean, std)]
    logger.info("%d training images have the mean %s and the deviation %s", len(totals), *(_shown(v) for v in rounded))
    return config.model_copy(update={"mean": rounded[0], "std": rounded[1]})


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def positive_weights(train: Split, config: TrainConfig) -> torch.Tensor:
    """The weights (L,) of positives in the loss, by the counts of the training split; 1 where the loss has none.

    Raises ConfigError when a label of pos_weights is not in the shards.
    """
    positives, negatives = label_counts(train)
    if config.loss not in WEIGHTED:
        return torch.ones(len(positives))
    if config.loss == "class-balanced":
        weight = losses.balanced_weight(positives, negatives, config.loss_options.get("beta", losses.BETA))
    else:
        weight = losses.pos_weight(positives, negatives, config.pos_weight_power)
    check_names(config, train.labels)
    for name, value in config.pos_weights.items():
        weight[train.labels.index(name)] = value
    return losses.limited(weight, config.pos_weight_cap, config.pos_weight_by_min)


def check_names(config: FitSettings, labels: tuple[str, ...]) -> None:
    """Raise ConfigError when settings of a fit name labels that the shards do not have, or no metric of an epoch."""
    metric = config.stop_on.removeprefix("val/")
    known = ("loss", *metrics.DECISION_METRICS, *metrics.SCORE_METRICS)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
        hint = f"did you mean val/{near[0]}?" if near else f"there are {', '.join(f'val/{name}' for name in known)}."
        raise ConfigError(f"stop_on names {config.stop_on!r}, which is not an epoch metric.", hint)
    _check_labels("pos_weights", config.pos_weights, labels)
    _check_labels("thin_labels", config.thin_labels, labels)


def _check_labels(setting: str, names: Iterable[str], labels: tuple[str, ...]) -> None:
    """Raise ConfigError, with the nearest label, when a setting names one that the shards do not have."""
    odd = next((name for name in names if name not in labels), None)
    if odd is not None:
        near = difflib.get_close_matches(odd, labels, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"the labels are {', '.join(labels[:20])}."
        raise ConfigError(f"{setting} names {odd!r}, which is not a label of the shards.", hint)


def label_counts(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each label (L,) is given and is not; of a mapped split, counted once by each node."""
    counts = None
    if len(split) >= sample_columns.MAPPED:
        known_by, needed = f"label counts 1 {split.fingerprint} {split.name}", 16 * len(split.labels)
        path = storage.made_here(known_by, needed, lambda sink: sink.write(_count(split).tobytes()))
        with contextlib.suppress(FileNotFoundError):  # another process has made room meanwhile
            counts = None if path is None else np.fromfile(path, np.int64).reshape(2, -1)
    positives, negatives = torch.from_numpy(_count(split) if counts is None else counts)
    return positives, negatives


def _count(split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each label is given and is not, int64 (2, L)."""
    counts = np.zeros((2, len(split.labels)), np.int64)
    for start in range(0, len(split), _BLOCK):
        targets = split.targets[start : start + _BLOCK]
        counts += [(targets == value).sum(axis=0) for value in (1, 0)]
    return counts


def network(config: TrainConfig, train: Split, prep: Preprocessing) -> tuple[nn.Module, nn.Module, str]:
    """The network, its head, and what its weights are. What is not to be trained has no gradients.

    With `train` none, gradients are left as they are, because nothing uses them. Random numbers come from PyTorch's
    own generator. Raises what `zoo.build`, `weights` and `depth` raise.
    """
    net = zoo.build(config.arch, len(train.labels), prep.channels, prep.image_size, config.arch_options)
    head = zoo.head(net, len(train.labels))
    expected = zoo.published(config.arch)
    given = (prep.mean, prep.std)
    if zoo.is_rescaled(net) and given != tuple(zoo.for_channels(v, prep.channels) for v in expected[:2]):
        raise ConfigError(
            f"{config.arch} joins networks that expect other normalisations, and images are normalised by {given}.",
            "leave --normalization, mean and std out: each network then gets what its weights expect.",
        )
    paths = weights.resolve(config.arch, config.weights)
    continues = bool(paths) and paths[0].is_dir()
    if continues:
        begins_with = f"{paths[0]}, {weights.continue_from(net, train.labels, paths[0])}"
    else:
        archs = config.arch.split(zoo.JOINT)
        texts = [
            f"{path.name}, {weights.load_into(part, head, path, _converter(arch, config, prep))}"
            for arch, part, path in zip(archs, zoo.backbones(net), paths, strict=bool(paths))
        ]
        begins_with = "; ".join(texts) or "random weights"
    if config.head_prior and not continues:
        zoo.set_head_bias(net, losses.head_bias(*label_counts(train), positive_weights(train, config)))
    if isinstance(config.train, int):
        layer_groups.train_last(net, head, config.train)
    elif config.train == "head":
        layer_groups.train_last(net, head, 0)
    return net, head, begins_with


def _converter(arch: str, config: TrainConfig, prep: Preprocessing) -> weights.Converter | None:
    """How timm reads the weights of one of its architectures; None for others."""
    if not arch.startswith(zoo.TIMM):
        return None
    return lambda state: zoo.as_timm_loads(arch, state, prep.channels, prep.image_size, config.arch_options)
