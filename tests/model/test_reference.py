from __future__ import annotations

import pytest
import torch
from torch import nn

from mlic.model import reference, zoo


def linears(arch: str, channels: int, image_size: int = 128) -> list[tuple[int, int]]:
    model = zoo.build(arch, 14, channels, image_size, {})
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def convolutions(arch: str, channels: int) -> list[tuple[int, int]]:
    model = zoo.build(arch, 14, channels, 128, {})
    return [(m.out_channels, m.kernel_size[0]) for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_sizes_that_the_reports_give() -> None:
    assert linears("a-ffnn", 3) == [(49_152, 128), (128, 14)]
    assert linears("a-cnn1", 3)[0][0] == 26 * 26 * 32
    assert linears("a-cnn2", 3)[0][0] == 8_112
    assert linears("a-cnn3", 3)[0][0] == 4 * 4 * 48
    assert convolutions("a-cnn3", 3) == [(6, 4), (6, 4), (12, 4), (24, 4), (48, 4)]
    assert convolutions("b-baseline", 1) == [(32, 3), (64, 3), (32, 3)]
    for arch, hidden in (("b-iter1", 128), ("b-iter2", 1024), ("b-final", 256)):
        assert convolutions(arch, 1) == [(32, 3), (64, 3), (128, 3), (256, 3)]
        assert linears(arch, 1) == [(12 * 12 * 256, hidden), (hidden, 14)]
    assert [width for width, _ in convolutions("d-cnn", 3)] == [16, 32]
    assert linears("d-cnn", 3)[1] == (1000, 14)
    assert [len(convolutions(arch, 3)) for arch in ("c-1", "c-2", "c-3", "e-cnn")] == [4, 3, 5, 4]


@pytest.mark.parametrize("arch", reference.NETS)
def test_every_net_learns_two_images(arch: str) -> None:
    """In its own colour mode and without its dropout, the loss of two images falls."""
    torch.manual_seed(0)
    channels = 1 if zoo.default_color(arch) == "gray" else 3
    model = zoo.build(arch, 3, channels, 128, {}).train()
    images, targets = torch.rand(4, channels, 128, 128), torch.tensor([[1.0, 0, 1], [0, 1, 0]] * 2)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for _ in range(30):
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    assert min(found[-5:]) < 0.9 * found[0]
