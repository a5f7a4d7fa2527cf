"""The arithmetic of a training step: what pays is found by a short trial, since it differs by network and machine."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mlic.values import Precision

Arithmetic = Literal["fp32", "bf16", "fp16"]

_BATCH, _ROUNDS = 8, 3
_PAYS = 1.25  # times as fast; below that the rounding is not worth it, and a busy machine could say either
_TENSOR_CORES = (7, 0)  # the first GPUs on which half precision is faster


def choose(
    precision: Precision, net: nn.Module, shape: Sequence[int], device: torch.device, folder: Path
) -> tuple[Arithmetic, str]:
    """The arithmetic of a setting for a network on images of `shape` (C, H, W), and why.

    What a trial on a CPU said is kept in `folder`, so that later runs on the same machine are told the same.
    """
    if precision != "auto":
        return precision, "as set"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has it"
        if torch.cuda.get_device_capability(device) >= _TENSOR_CORES:
            return "fp16", "this GPU has no bf16"
        return "fp32", "this GPU has neither bf16 nor fast fp16"
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32", "no bf16 here"
    known_by = f"{net!r} {tuple(shape)} {torch.__version__} {torch.get_num_threads()} {_processor()}"
    path = folder / f"precision-{hashlib.sha256(known_by.encode()).hexdigest()[:24]}.json"
    try:
        speedup = float(json.loads(path.read_text())["bf16_speedup"])
    except (OSError, ValueError, KeyError):
        speedup = _speedup(net, shape)
        _keep(path, speedup)
    return ("bf16" if speedup >= _PAYS else "fp32"), f"bf16 takes 1/{speedup:.2f} of the time of fp32 here"


def autocast(arithmetic: Arithmetic, device: torch.device) -> Any:
    """The context in which the forward pass runs."""
    if arithmetic == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float16)


def _speedup(net: nn.Module, shape: Sequence[int]) -> float:
    """How much faster forward and backward are in bf16: the best of a few alternating rounds of each."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(net).train()
        images = torch.rand(_BATCH, *shape).to(memory_format=torch.channels_last)
        best: dict[Arithmetic, float] = {"fp32": float("inf"), "bf16": float("inf")}
        for turn in range(_ROUNDS + 1):
            for arithmetic in best:
                started = time.perf_counter()
                with autocast(arithmetic, device):
                    logits = trial(images)
                logits.float().sum().backward()
                if turn:  # the first one sets things up
                    best[arithmetic] = min(best[arithmetic], time.perf_counter() - started)
    return best["fp32"] / best["bf16"]


def _keep(path: Path, speedup: float) -> None:
    """Write what the trial said, whole or not at all; a folder that cannot be written to costs the next run a trial."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps({"bf16_speedup": speedup}))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
