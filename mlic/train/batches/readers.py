"""Readers of training data: images of shards, or cached features of a frozen backbone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.config.data import Preprocessing
from mlic.config.train import TrainConfig
from mlic.data import cache, storage
from mlic.data.loader import Batch, FeatureReader, ShardReader, eval_batches, to_device
from mlic.data.pixels.augment import margin
from mlic.data.shard_window import ShardWindow
from mlic.data.shards import Split
from mlic.model import runtimes
from mlic.train.batches import feature_engine

_CPU_THREADS = 2  # on a CPU, the network needs the others
_GPU_BATCH = 256


def decoded_side(config: TrainConfig) -> int:
    """The side in pixels of the decoded training images: larger than the network's input if crops are used."""
    return margin(config.image_size) if config.crop < 1 else config.image_size


def threads_of(config: TrainConfig, device: torch.device) -> int:
    """The threads that load batches ahead. Those of a GPU's process are all CPUs of its share, one less for itself."""
    if config.loader_threads != "auto":
        return config.loader_threads
    return _CPU_THREADS if device.type == "cpu" else max(_CPU_THREADS, runtimes.threads() - 1)


def open_readers(
    config: TrainConfig,
    prep: Preprocessing,
    splits: tuple[Split, Split],
    stack: ExitStack,
    threads: int,
    cached: bool = True,
) -> tuple[ShardReader, ShardReader]:
    """Readers of the images of the training and the validation split, closed with `stack`; `cached` if they fit."""
    train, val = (
        stack.enter_context(ShardReader(split, prep.model_copy(update={"image_size": size})))
        for split, size in zip(splits, (decoded_side(config), prep.image_size), strict=True)
    )
    for reader in (train, val) if cached else ():
        reader.use_cache(config.cache_gb, threads)
    return train, val


def loaded(
    reader: ShardReader | FeatureReader,
    samples: Any,
    window: ShardWindow | None,
    parts: Any = None,
    size: int = 0,
    *,
    device: torch.device,
    threads: int,
) -> Iterator[Batch]:
    """The batches of sample numbers on a device, from streamed shards if there is a `window` of them.

    `parts` are cropped from images and resized to `size`.
    """
    with ExitStack() as stack:
        if window is not None and isinstance(reader, ShardReader):
            stack.enter_context(reader.reading(stack.enter_context(window)))
        yield from to_device(reader.batches(samples, threads, parts, size, pinned=device.type == "cuda"), device)


def of_features(
    config: TrainConfig,
    prep: Preprocessing,
    splits: tuple[Split, Split],
    readers: tuple[ShardReader, ShardReader],
    net: nn.Module,
    head: nn.Module,
    normalize: Callable[..., torch.Tensor],
    say: Callable[[str], None],
) -> tuple[FeatureReader, FeatureReader]:
    """Readers of the features of both splits, which are the output of the network `net` before its `head`.

    `say` is told what computes them, unless they are in the cache.
    """
    device = next(net.parameters()).device
    engine = feature_engine.chosen(config.feature_engine, sum(map(len, splits)), device.type)
    backbone = _Backbone(engine, prep, net, head, normalize, say)
    train, val = (
        feature_reader(config, prep, split, reader, backbone) for split, reader in zip(splits, readers, strict=True)
    )
    return train, val


def feature_reader(
    config: TrainConfig, prep: Preprocessing, split: Split, reader: ShardReader, backbone: _Backbone
) -> FeatureReader:
    """The features of a split, from the node's cache if they are there.

    The cache identifies them by the data, the preprocessing, the engine and the backbone's own tensors, so they are
    never stale.
    """
    device = backbone.device
    first = next(reader.batches([np.array([0])], 0))
    shape = (len(split), *backbone.by_torch(first).shape[1:])
    size, threads = feature_engine.BATCH if device.type == "cpu" else _GPU_BATCH, threads_of(config, device)

    def parts() -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[int, str]]]:
        batches = reader.batches(eval_batches(len(split), size, 0, 1), threads, pinned=device.type == "cuda")
        for batch in to_device(batches, device):
            named = dict(batch.bad)
            features = backbone.features(batch)
            yield batch.index, features, {i: named[k] for i in batch.index.tolist() if (k := split.key(i)) in named}

    known_by = f"{split.fingerprint} {split.name} {backbone.digest} {backbone.engine} {prep.model_dump_json()}"
    stored = cache.stored(known_by, shape, np.dtype(np.float32), config.cache_gb, storage.node_folder(), parts)
    if stored is None:  # no room on the disk, or none is allowed: this process keeps its own
        by_sample = np.zeros(shape, np.float32)
        bad: dict[int, str] = {}
        for index, features, reasons in parts():
            by_sample[index] = features
            bad |= reasons
        stored = cache.Decoded(by_sample, bad)
    return FeatureReader(split, stored)


class _Backbone:
    """A frozen network up to its head, by an engine that is made for the first batch, or by PyTorch."""

    def __init__(
        self,
        engine: feature_engine.Engine,
        prep: Preprocessing,
        net: nn.Module,
        head: nn.Module,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.device = engine, next(net.parameters()).device
        self._prep, self._net, self._head, self._normalize, self._say = prep, net.eval(), head, normalize, say
        self._run: feature_engine.Extractor | None = None
        self._is_made = engine == "torch"

    @functools.cached_property
    def digest(self) -> str:
        return _digest(self._net, self._head)

    def features(self, batch: Batch) -> np.ndarray[Any, Any]:
        """The input of the head, float32 (B, ...), for a batch on the device."""
        if self._is_made:
            return self.by_torch(batch) if self._run is None else self._run(batch.images.numpy())
        self._is_made = True
        expected = self.by_torch(batch)
        self._run = feature_engine.extractor(
            self.engine, self._net, self._head, self._prep, batch.images.numpy(), expected, self._say
        )
        return expected if self._run is None else self._run(batch.images.numpy())

    @torch.no_grad()
    def by_torch(self, batch: Batch) -> np.ndarray[Any, Any]:
        """The same by PyTorch."""
        seen: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self._net.eval()
        try:
            self._net(self._normalize(batch.images))
        finally:
            hook.remove()
        return seen.pop().float().cpu().numpy()


def _digest(net: nn.Module, head: nn.Module) -> str:
    """A hash of everything but the head: the features of an image depend on nothing else.

    So heads of any width and dropout share the features.
    """
    in_head = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    of_head = {id(module) for module in head.modules()}
    digest = hashlib.sha256()
    for name, module in net.named_modules():
        if id(module) not in of_head:
            text = type(module).__name__ if any(module.children()) else repr(module)
            digest.update(f"{name} {text}\0".encode())
    for name, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in in_head:
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
