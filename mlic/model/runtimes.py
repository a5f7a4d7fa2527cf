"""Run networks from ONNX and OpenVINO files on CPUs.

Normalisation and the last activation are inside of such a network. Nothing here needs PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.types import Backend, Precise
from mlic.errors import ConfigError
from mlic.machine import usable_cpus

Array = np.ndarray[Any, Any]
Scorer = Callable[[Array], Array]  # images uint8 (B, H, W, C) to scores float32 (B, L)

# The packages that make a network for an engine, and the package that runs an existing one.
_MAKES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",), "int8": ("openvino", "nncf")}
_RUNS = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}


def best() -> Backend:
    """The fastest engine that is installed, as measured over networks: OpenVINO, ONNX Runtime, PyTorch."""
    return next((name for name in ("openvino", "onnx") if is_installed(name)), "torch")


def is_installed(name: str) -> bool:
    """Whether networks can be made for an engine here."""
    return all(importlib.util.find_spec(package) is not None for package in _MAKES.get(name, ()))


def check(name: str) -> None:
    """Raise ConfigError when networks cannot be made for an engine here."""
    if not is_installed(name):
        packages = " and ".join(_MAKES[name])
        raise ConfigError(f"{name} needs {packages}.", f"pip install 'mlic[{name}]'.")


def check_runs(name: str) -> None:
    """Raise ConfigError when an engine that an export was made for is not installed."""
    if importlib.util.find_spec(_RUNS[name]) is None:
        raise ConfigError(f"an export to {name} needs {_RUNS[name]}.", f"pip install {_RUNS[name]}.")


def threads() -> int:
    """The number of threads for computations of this process: as set by Ray or a user, else one for each CPU."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) else usable_cpus()


def open_onnx(model: Path | bytes, count: int) -> Scorer:
    """A network of ONNX Runtime, in `count` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = count, 3
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(images: Array) -> Array:
        scores: Array = session.run(None, {name: images})[0]
        return scores

    return run


def open_openvino(model: Any, count: int, precision: Precise = "fp32") -> Scorer:
    """A network of OpenVINO, a file or an `openvino.Model`, in `count` threads; bf16 where the machine has it.

    The network's int8 layers stay in int8. The precision `int8` means that all other layers are in fp32.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16"}.get(precision, "f32"),
        "INFERENCE_NUM_THREADS": count,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two processes would pin themselves to the same CPU
    }
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Array) -> Array:
        scores: Array = request.infer({0: images}, share_inputs=True)[0]
        return scores

    return run


def in_batches(run: Scorer, batch_size: int) -> Scorer:
    """A scorer of any number of images by one that gets batches of one size; the last batch is filled with zeros.

    An engine would have to prepare itself again for each new batch size.
    """

    def batch(images: Array) -> Array:
        count = len(images)
        if count < batch_size:
            images = np.concatenate([images, np.zeros((batch_size - count, *images.shape[1:]), images.dtype)])
        return run(images)[:count].copy()

    def scores(images: Array) -> Array:
        return np.concatenate([batch(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])

    return scores
