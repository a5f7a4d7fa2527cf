"""Layers and saliency of the small nets and of torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlic.model import saliency, summary, zoo


@pytest.mark.parametrize("arch", ["a-cnn1", "b-final", "resnet18", "mobilenet_v3_small", "densenet121", "swin_t"])
def test_any_net_has_layers_and_maps(arch: str) -> None:
    channels = 1 if arch == "b-final" else 3
    net = zoo.build(arch, 5, channels, 64, {}).train()
    found = summary.layers(net, channels, 64)
    assert sum(layer.parameters for layer in found) == summary.parameters(net)
    assert found[-1].shape == (5,)
    assert len({layer.name for layer in found}) == len(found)
    maps, method = saliency.maps(net, torch.rand(3, channels, 64, 64), np.array([0, 4, 2]))
    assert maps.shape == (3, 64, 64)
    assert (method, net.training) == ("Grad-CAM", True)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert all(not module._forward_hooks for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_layers_of_a_reference_net() -> None:
    found = summary.layers(zoo.build("a-cnn1", 14, 3, 128, {}), 3, 128)
    assert [layer.shape for layer in found if layer.kind == "Conv2d"] == [(6, 125, 125), (16, 59, 59), (32, 26, 26)]
    flat = next(layer for layer in found if layer.kind == "Flatten")
    assert flat.shape == (21632,)
    assert found[0].parameters == 6 * (3 * 16 + 1)


class Corner(nn.Module):
    """Label 0 is how bright the upper left is, label 1 the lower right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.keep = nn.Identity()
        self.head = nn.Linear(2, 2)
        mask = torch.zeros(2, 16, 16)
        mask[0, :8, :8], mask[1, 8:, 8:] = 1, 1
        self.register_buffer("mask", mask)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.conv.bias.zero_()
            self.head.weight.copy_(torch.eye(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.keep(self.conv(images) * self.mask).mean(dim=(2, 3)))


def test_a_map_shows_where_the_label_comes_from() -> None:
    net = Corner()
    maps, method = saliency.maps(net, torch.ones(2, 1, 16, 16), np.array([0, 1]))
    assert method == "Grad-CAM"
    assert maps[0, :6, :6].min() > 0.9
    assert maps[0, 10:, 10:].max() < 0.1
    assert maps[1, 10:, 10:].min() > 0.9
    assert maps[1, :6, :6].max() < 0.1


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), zoo.build("vit_b_32", 3, 3, 32, {})])
def test_gradients_where_there_is_no_map(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear) and module.out_features == 3:
            nn.init.normal_(module.weight)  # that of an untrained vision transformer is 0
    shape = (2, 1, 8, 8) if isinstance(net, nn.Sequential) else (2, 3, 32, 32)
    maps, method = saliency.maps(net, torch.rand(*shape), np.array([0, 2]))
    assert (maps.shape, method) == ((2, *shape[2:]), "input gradients")
    assert maps.max() == pytest.approx(1)
