from __future__ import annotations

import pytest
import torch
from torch import nn

from mlic.errors import ConfigError
from mlic.model import zoo


def linears(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def test_the_dense_layer_of_b_begins_at_a_truncated_normal() -> None:
    model = zoo.build("b-final", 14, 1, 128, {})
    dense = next(m for m in model.modules() if isinstance(m, nn.Linear))
    weight = dense.weight.detach()
    assert 0.04 < float(weight.std()) < 0.05
    assert float(weight.abs().max()) < 0.1001


def test_options_reach_the_network() -> None:
    model = zoo.build("b-final", 14, 3, 64, {"hidden": 32, "dropout": 0.25})
    assert linears(model)[1] == (32, 14)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32", "googlenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_by_name(arch: str, channels: int) -> None:
    model = zoo.build(arch, 5, channels, 96, {})
    assert model(torch.rand(2, channels, 96, 96)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arch", "size", "options", "message", "hint"),
    [
        ("resnet81", 64, {}, "unknown architecture 'resnet81'", "did you mean resnet18"),
        ("fcn_resnet50", 64, {}, "unknown architecture 'fcn_resnet50'", "did you mean"),
        ("a-cnn1", 8, {}, "a-cnn1 cannot be built for 8 px", "image_size"),
        ("b-final", 64, {"hiden": 3}, "unexpected keyword argument 'hiden'", "arch_options"),
    ],
)
def test_what_cannot_be_built(arch: str, size: int, options: dict[str, float], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        zoo.build(arch, 5, 3, size, options)
    assert hint in caught.value.hint


def test_head_bias_is_the_answer_to_a_blank_image() -> None:
    bias = torch.tensor([-2.0, 0.5, 1.0])
    for arch in ("a-cnn1", "resnet18", "squeezenet1_1"):
        model = zoo.build(arch, 3, 3, 64, {})
        zoo.set_head_bias(model, bias)
        assert any(torch.equal(p, bias) for p in model.parameters()), arch
    with pytest.raises(ConfigError, match="no output bias"):
        zoo.set_head_bias(nn.Conv2d(3, 3, 1, bias=False), bias)


@pytest.mark.parametrize("arch", ["squeezenet1_0", "squeezenet1_1"])
@pytest.mark.parametrize("prior", [-3.0, 0.0])
def test_squeezenet_can_say_no(arch: str, prior: float) -> None:
    """torchvision's ends in a ReLU behind its last layer: no logit under 0, no score under a half."""
    torch.manual_seed(0)
    model = zoo.build(arch, 6, 3, 64, {})
    zoo.set_head_bias(model, torch.full((6,), prior))
    logits = model(torch.rand(8, 3, 64, 64))
    assert (logits < 0).any()
    logits.sum().backward()
    head = zoo.head(model, 6)
    assert head.weight.grad is not None
    assert (head.weight.grad != 0).any(dim=(1, 2, 3)).all(), "no part of the head is dead"
    assert zoo.from_head(model.eval(), head)(torch.rand(2, 512, 3, 3)).shape == (2, 6)


def test_models_of_earlier_versions_are_the_networks_that_they_were() -> None:
    arch, options = zoo.as_made("squeezenet1_1", {}, 1)
    assert (zoo.build(arch, 4, 3, 64, options)(torch.randn(3, 3, 64, 64)) >= 0).all()
    arch, options = zoo.as_made("b-drawn", {"convs": 2, "width_1": 16}, 1)
    first = zoo.build(arch, 4, 1, 32, options)
    assert isinstance(first[0], nn.Conv2d)
    assert (first[0].out_channels, first[0].padding) == (16, "same")
    assert zoo.as_made("b-drawn", {}, 2) == ("b-drawn", {})
    assert zoo.as_made("resnet18", {"x": 1.0}, 1) == ("resnet18", {"x": 1.0})
