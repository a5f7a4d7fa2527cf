"""The dtype of a step: what is set holds, and what is not set depends on the kind of device alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlic.model import amp

CPU = torch.device("cpu")


def test_what_is_set_is_taken() -> None:
    assert amp.of_device("bf16", CPU) == "bf16"
    assert amp.of_device("fp16", torch.device("cuda")) == "fp16"


def test_cpus_compute_in_fp32_whatever_else_they_do() -> None:
    """No trial: on a busy machine that would say one thing now and another one later."""
    assert [amp.of_device("auto", CPU) for _ in range(20)] == ["fp32"] * 20


@pytest.mark.parametrize(
    ("has_bf16", "capability", "wanted"), [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")]
)
def test_gpus_compute_in_what_they_have(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, capability: tuple[int, int], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert amp.of_device("auto", torch.device("cuda")) == wanted


def test_autocast_is_of_the_dtype() -> None:
    layer = nn.Linear(4, 2)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in kinds.items():
        with amp.autocast(name, CPU):  # type: ignore[arg-type]
            assert layer(torch.rand(1, 4)).dtype == dtype
