"""Engines that compute scores on a CPU: PyTorch itself, its compiler, ONNX Runtime and OpenVINO.

Each takes uint8 images and gives scores; normalisation and the last activation are inside, so that an engine can join
them with the network. All but `torch` work on batches of one size, which a smaller one is filled up to.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.config import Preprocessing
from mlic.errors import ConfigError
from mlic.model import losses
from mlic.values import Activation, Backend

Array = np.ndarray[Any, Any]
Scorer = Callable[[torch.Tensor], Array]

_PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}


class Whole(nn.Module):
    """Images uint8 (B, H, W, C) to scores float32 (B, L)."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: nn.Module, prep: Preprocessing, activation: Activation) -> None:
        super().__init__()
        self.net, self.activation = net, activation
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in prep.std]).view(1, -1, 1, 1))
        shift = torch.tensor([-m / s for m, s in zip(prep.mean, prep.std, strict=True)])
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return losses.scores(self.activation, self.net(images.permute(0, 3, 1, 2).float() * self.scale + self.shift))


def best() -> Backend:
    """The fastest engine that is installed, as measured over networks: OpenVINO, ONNX Runtime, PyTorch."""
    return next((name for name in ("openvino", "onnx") if is_installed(name)), "torch")


def is_installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES.get(name, ()))


def check(name: str) -> None:
    """Raise ConfigError when an engine is not installed."""
    if not is_installed(name):
        packages = " and ".join(_PACKAGES[name])
        raise ConfigError(f"the backend {name} needs {packages}.", f"pip install 'mlic[{name}]', or --backend auto.")


def engine(name: Backend, whole: Whole, batch_size: int, shape: tuple[int, int, int], threads: int) -> Scorer:
    """What computes the scores (B, L) of images uint8 (B, H, W, C) of `shape`, for B up to `batch_size`."""
    example = torch.zeros(batch_size, *shape, dtype=torch.uint8)
    if name == "openvino":
        return _filled(_openvino(whole, example, threads), batch_size)
    if name == "onnx":
        return _filled(_onnx(whole, example, threads), batch_size)
    compiled = torch.compile(whole)

    def run(images: torch.Tensor) -> Array:
        with torch.inference_mode():
            found: torch.Tensor = compiled(images)
        return found.numpy()

    return _filled(run, batch_size)


def _filled(run: Scorer, batch_size: int) -> Scorer:
    def scores(images: torch.Tensor) -> Array:
        count = len(images)
        if count < batch_size:
            images = torch.cat([images, images.new_zeros(batch_size - count, *images.shape[1:])])
        return run(images)[:count].copy()

    return scores


def _openvino(whole: Whole, example: torch.Tensor, threads: int) -> Scorer:
    import openvino

    with warnings.catch_warnings():  # of the tracer, about shapes that are fixed, as they are to be
        warnings.simplefilter("ignore")
        model = openvino.convert_model(whole, example_input=example, input=list(example.shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: torch.Tensor) -> Array:
        found: Array = request.infer({0: images.numpy()}, share_inputs=True)[0]
        return found

    return run


def _onnx(whole: Whole, example: torch.Tensor, threads: int) -> Scorer:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(whole, (example,), dynamo=True, verbose=False, optimize=True)
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> Array:
        found: Array = session.run(None, {name: images.numpy()})[0]
        return found

    return run
