"""Features of a frozen backbone by the fastest engine of this machine whose values agree with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import nn

from mlic.config.data import Preprocessing
from mlic.config.types import FeatureEngine
from mlic.model import converters, runtimes, zoo

Array = np.ndarray[Any, Any]
Extractor = Callable[[Array], Array]  # images (B, H, W, C) to features float32 (B, ...)
Engine = Literal["torch", "onnx", "openvino"]

BATCH = 16  # what a CPU computes stays in its caches: 1.5 times as fast as batches of 64
_MANY = 2_000  # images from which on it pays to convert a network, which takes seconds
_TOLERANCE = 1e-3  # largest difference of features, as a share of the largest one


def chosen(asked: FeatureEngine, count: int, device: str) -> Engine:
    """The engine for the features of `count` images. It depends on nothing that may differ after a restart.

    Raises ConfigError for an engine that was asked for and cannot be had here.
    """
    if asked == "auto":
        best = runtimes.best()
        return best if device == "cpu" and count >= _MANY and best in ("onnx", "openvino") else "torch"
    if asked != "torch":
        runtimes.check(asked)
    return asked if device == "cpu" else "torch"


def extractor(
    name: Engine,
    net: nn.Module,
    head: nn.Module,
    prep: Preprocessing,
    images: Array,
    expected: Array,
    say: Callable[[str], None],
) -> Extractor | None:
    """What computes features by an engine; None if its features of `images` are not `expected`. It is said which."""
    try:
        model = converters.Normalized(zoo.before_head(net, head), prep).eval()
        run = converters.engine(name, model, BATCH, images[0])
        features = run(images)
    except Exception as error:  # an engine may raise any type for an unsupported network
        say(f"features by torch: {name} does not take this network: {' '.join(str(error).split())[:200]}")
        return None
    if features.shape != expected.shape:
        say(f"features by torch: the network of {name} does not end before the head")
        return None
    apart = float(np.abs(features - expected).max() / max(np.abs(expected).max(), 1e-12))
    if not apart <= _TOLERANCE:
        say(f"features by torch: those of {name} are up to {apart:.1g} of the largest one apart")
        return None
    say(f"features by {name}, at most {apart:.1g} of the largest one from those of torch")
    return run
