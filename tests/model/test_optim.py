from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from mlic.config.train import TrainConfig
from mlic.config.types import Optimizer
from mlic.model import optim


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"shards": "shards", "epochs": 10} | changes))


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_goes_downhill(name: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    momentum = {"momentum": 0.5} if name in ("sgd", "rmsprop") else {}
    found = optim.optimizer(config(optimizer=name, lr=0.05, **momentum), [weight])
    assert type(found).__name__.lower() == name
    before = float(weight.square().sum())
    for _ in range(20):
        found.zero_grad()
        weight.square().sum().backward()
        found.step()
    assert float(weight.square().sum()) < before


def test_one_cycle_is_pytorchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    steps = 10 * 7
    theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps + 1)
    ours = config(schedule="one-cycle")
    for step in range(steps):
        # PyTorch's rise ends a step earlier, since it counts from 0 to 0.3 * total - 1.
        assert optim.lr_factor(ours, step, 7) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.05)
        optimizer.step()
        theirs.step()
    assert optim.lr_factor(ours, 21, 7) == 1


def test_schedules() -> None:
    step = config(schedule="step", step_epochs=4, step_factor=0.5)
    assert [optim.lr_factor(step, epoch * 5, 5) for epoch in (0, 3, 4, 8)] == [1, 1, 0.5, 0.25]
    cosine = config(schedule="cosine", warmup_epochs=2)
    found = [optim.lr_factor(cosine, i, 5) for i in range(50)]
    assert found[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[30] == pytest.approx(0.5)
    assert found[-1] < 0.01
    assert optim.lr_factor(config(schedule="constant"), 49, 5) == 1


def test_an_average_follows_and_forgets_the_start() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema_weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(5)
    for update in range(200):
        optim.average(ema_weights, net, 0.9, update)
    for tensor in ema_weights.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 5))
