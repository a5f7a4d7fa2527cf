"""The precision of training steps: the setting, or what suits the kind of device.

It is decided once for a run or a search. A measurement of which precision is faster could differ between an idle and a
busy machine, and then the same command would give different tables.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch

from mlic.config.types import Precision

Dtype = Literal["fp32", "bf16", "fp16"]

_TENSOR_CORES = (7, 0)  # the first GPUs on which half precision is faster


def of_device(precision: Precision, device: torch.device) -> Dtype:
    """The dtype of a setting on a device: with `auto` bf16 on GPUs that have it, fp16 on others with tensor cores,
    and fp32 on everything else."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        if torch.cuda.get_device_capability(device) >= _TENSOR_CORES:
            return "fp16"
    return "fp32"


def configure_gpu(device: torch.device, deterministic: bool = True) -> None:
    """Compute fp32 on a GPU in fp32, not in TF32, whose scores differ by about 1e-3 from those of a CPU.

    `deterministic` convolutions give the same bits each time. Others are tried out, and the fastest are used.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic


def autocast(dtype: Dtype, device: torch.device) -> Any:
    """The context in which the forward pass runs."""
    if dtype == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)
