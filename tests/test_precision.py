"""The arithmetic of a step: what is set holds, and what is found by a trial is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mlic.model import precision

CPU = torch.device("cpu")


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def test_what_is_set_is_taken_without_a_trial(tmp_path: Path) -> None:
    assert precision.choose("bf16", net(), (3, 8, 8), CPU, tmp_path) == ("bf16", "as set")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16")
def test_a_trial_is_made_once_and_changes_nothing(tmp_path: Path) -> None:
    tried = net()
    tried(torch.rand(1, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in tried.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = precision.choose("auto", tried, (3, 8, 8), CPU, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in tried.state_dict().items())
    assert all(parameter.grad is None for parameter in tried.parameters())
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["bf16_speedup"] > 0
    assert precision.choose("auto", tried, (3, 8, 8), CPU, tmp_path) == first
    for speedup, wanted in ((3.0, "bf16"), (1.1, "fp32")):
        kept.write_text(json.dumps({"bf16_speedup": speedup}))
        assert precision.choose("auto", tried, (3, 8, 8), CPU, tmp_path)[0] == wanted


def test_autocast_is_of_the_arithmetic() -> None:
    layer = nn.Linear(4, 2)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in kinds.items():
        with precision.autocast(name, CPU):  # type: ignore[arg-type]
            assert layer(torch.rand(1, 4)).dtype == dtype
