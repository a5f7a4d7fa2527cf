"""Convert a PyTorch network for another engine: torch.compile, ONNX Runtime, OpenVINO, TorchScript.

Each takes uint8 images and gives scores; normalisation and the last activation are inside, so that an engine can join
them with the network.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.config.data import Preprocessing
from mlic.config.types import Activation, Backend, Precise
from mlic.model import losses, runtimes
from mlic.model.runtimes import Array, Scorer


class Normalized(nn.Module):
    """Images uint8 or uint16 (B, H, W, C) to what a network gives for them, normalised."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: nn.Module, prep: Preprocessing) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.tensor([1 / (prep.top * s) for s in prep.std]).view(1, -1, 1, 1))
        shift = torch.tensor([-m / s for m, s in zip(prep.mean, prep.std, strict=True)])
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.net(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return output


class Whole(Normalized):
    """Images uint8 or uint16 (B, H, W, C) to scores float32 (B, L)."""

    def __init__(self, net: nn.Module, prep: Preprocessing, activation: Activation) -> None:
        super().__init__(net, prep)
        self.activation = activation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return losses.scores(self.activation, super().forward(images))


def engine(name: Backend, full_model: Normalized, batch_size: int, image: Array, precision: Precise = "fp32") -> Scorer:
    """What computes the output, such as scores (B, L), of images (B, H, W, C), `batch_size` at a time.

    Each of them is like `image` (H, W, C).
    """
    example = torch.from_numpy(np.zeros((batch_size, *image.shape), image.dtype))
    if name == "openvino":
        model = to_openvino(full_model, example)
        return runtimes.in_batches(runtimes.open_openvino(model, runtimes.threads(), precision), batch_size)
    if name == "onnx":
        program = to_onnx(full_model, example)
        return runtimes.in_batches(runtimes.open_onnx(program, runtimes.threads()), batch_size)
    compiled = torch.compile(full_model)

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: torch.Tensor = compiled(torch.from_numpy(images))
        return scores.numpy()

    return runtimes.in_batches(run, batch_size)


def to_openvino(full_model: Normalized, example: torch.Tensor, any_batch: bool = False) -> Any:
    """An `openvino.Model` for batches of the size of the example, or of any."""
    import openvino

    shape = openvino.PartialShape([-1 if any_batch else len(example), *example.shape[1:]])
    dtype = openvino.Type.u16 if example.dtype == torch.uint16 else openvino.Type.u8
    with _silence():  # the tracer warns of fixed shapes, which are intended, and does not know uint16
        return openvino.convert_model(full_model, example_input=example.to(torch.uint8), input=(shape, dtype))


def to_int8(model: Any, images: Array) -> Any:
    """An OpenVINO network with int8 layers, whose value ranges come from `images` uint8 (N, H, W, C)."""
    with _silence(), contextlib.redirect_stdout(io.StringIO()):
        import nncf

        return nncf.quantize(model, nncf.Dataset([images[i : i + 1] for i in range(len(images))]))


def to_onnx(full_model: Normalized, example: torch.Tensor, any_batch: bool = False) -> bytes:
    """An ONNX file for batches of the size of the example, or of any. Raises RuntimeError."""
    if not {"dynamo", "optimize", "dynamic_shapes"} <= inspect.signature(torch.onnx.export).parameters.keys():
        raise RuntimeError(f"ONNX needs PyTorch 2.6 or newer, and this is {torch.__version__}")
    shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
    with _silence():
        program = torch.onnx.export(
            full_model,
            (example,),
            dynamo=True,
            verbose=False,
            optimize=True,
            dynamic_shapes=shapes,
            input_names=["images"],
            output_names=["scores"],
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def to_torchscript(full_model: Whole, example: torch.Tensor) -> Any:
    """A `torch.jit.ScriptModule` for batches of any size."""
    with _silence(), torch.inference_mode():
        return torch.jit.freeze(torch.jit.trace(full_model, example))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.utils.cpp_extension", "nncf")]
    before = [logger_name.level for logger_name in loggers]
    for logger_name in loggers:
        logger_name.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger_name, level in zip(loggers, before, strict=True):
            logger_name.setLevel(level)
