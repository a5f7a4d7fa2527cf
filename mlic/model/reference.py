"""The networks of the five reference systems, as their reports describe them.

A detail that a report does not give is an argument with a default, and so it is an option of the architecture. All of
them take (B, channels, image_size, image_size) and give logits. Where a report's network ends in sigmoids, they belong
to the loss here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from mlic.config.fit import Color

Builder = Callable[..., nn.Module]


def a_ffnn(num_labels: int, channels: int, image_size: int, hidden: float = 128) -> nn.Module:
    """System A, plain feed-forward: all pixels, one hidden layer of 128. Its activation is not in the report."""
    size = channels * image_size * image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(size, int(hidden)), nn.ReLU(), nn.Linear(int(hidden), num_labels))


def a_cnn1(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.0) -> nn.Module:
    """System A, CNN1: conv 6, 16 and 32 with 4x4 kernels and no padding, two poolings, one hidden layer.

    The size of the hidden layer is not in A's report; 128 is that of A's plain feed-forward net. A puts dropout once
    before the output and once after the poolings; it is before the output here.
    """
    return _a_cnn(num_labels, channels, image_size, ((6, 3, 2), (16, 2, 2), (32, 0, 0)), hidden, dropout)


def a_cnn2(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.0) -> nn.Module:
    """System A, CNN2: as CNN1 with 6, 6 and 12 channels."""
    return _a_cnn(num_labels, channels, image_size, ((6, 3, 2), (6, 2, 2), (12, 0, 0)), hidden, dropout)


def a_cnn3(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.0) -> nn.Module:
    """System A, CNN3: five convolutions of 6, 6, 12, 24 and 48 channels, each pooled, the last two by one pixel.

    A gives it "the same amount of hidden layers" as CNN1 and CNN2: one.
    """
    plan = ((6, 3, 2), (6, 2, 2), (12, 2, 2), (24, 3, 1), (48, 2, 1))
    return _a_cnn(num_labels, channels, image_size, plan, hidden, dropout)


def b_baseline(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.5) -> nn.Module:
    """System B, best of its random search: conv 32, 64, 32, all pooled, dense 128."""
    return _b(num_labels, channels, image_size, (32, 64, 32), 3, hidden, dropout)


def b_iter1(num_labels: int, channels: int, image_size: int, hidden: float = 128, dropout: float = 0.5) -> nn.Module:
    """System B, first change by hand: conv 32, 64, 128, 256, the last without pooling."""
    return _b(num_labels, channels, image_size, (32, 64, 128, 256), 3, hidden, dropout)


def b_iter2(num_labels: int, channels: int, image_size: int, hidden: float = 1024, dropout: float = 0.5) -> nn.Module:
    """System B, second change: dense 1024, with which B's training collapsed to giving no label."""
    return _b(num_labels, channels, image_size, (32, 64, 128, 256), 3, hidden, dropout)


def b_final(num_labels: int, channels: int, image_size: int, hidden: float = 256, dropout: float = 0.5) -> nn.Module:
    """System B, final net: conv 32, 64, 128, 256 (3x3, ReLU, batch norm), 2x2 pooling after the first three."""
    return _b(num_labels, channels, image_size, (32, 64, 128, 256), 3, hidden, dropout)


def b_drawn(
    num_labels: int, channels: int, image_size: int, convs: float = 3, denses: float = 1, **layers: float
) -> nn.Module:
    """System B, the space of its random search, layer by layer.

    Layer i of the `convs` convolutions has `width_i`, `kernel_i`, `tanh_i` (1, else ReLU), `norm_i` (batch norm) and
    `pool_i` (0: none, 1: max, 2: average); layer i of the `denses` dense ones has `hidden_i`, `dropout_i` and
    `dense_tanh_i`. B does not report its ranges. Without options, this is the best net of that search, `b-baseline`.
    """
    known = {f"{what}_{i}" for what in _DRAWN for i in range(1, _MOST_DRAWN + 1)}
    odd = next((name for name in layers if name not in known), None)
    if odd is not None:
        raise ValueError(f"there is no option {odd}")
    drawn = {"width_2": 64.0, **layers}
    per_layer = [
        {what: drawn.get(f"{what}_{i}", usual) for what, usual in _DRAWN.items()} for i in range(1, _MOST_DRAWN + 1)
    ]
    net: list[nn.Module] = []
    before = channels
    for layer in per_layer[: int(convs)]:
        net += _drawn_conv(before, layer)
        before = int(layer["width"])
    net.append(nn.Flatten())
    before = _flat_size(nn.Sequential(*net), channels, image_size)
    for layer in per_layer[: int(denses)]:
        dense = _truncated(nn.Linear(before, int(layer["hidden"])))
        net += [dense, nn.Tanh() if layer["dense_tanh"] else nn.ReLU(), nn.Dropout(layer["dropout"])]
        before = dense.out_features
    return nn.Sequential(*net, nn.Linear(before, num_labels))


# Defaults of a layer for which nothing is drawn. One exception: the second convolution has 64 channels.
_DRAWN = {
    "width": 32,
    "kernel": 3,
    "tanh": 0,
    "norm": 1,
    "pool": 1,
    "hidden": 128,
    "dropout": 0.5,
    "dense_tanh": 0,
}
_MOST_DRAWN = 5  # layers of a kind


def _drawn_conv(channels: int, layer: Mapping[str, float]) -> list[nn.Module]:
    width = int(layer["width"])
    parts: list[nn.Module] = [nn.Conv2d(channels, width, int(layer["kernel"]))]
    parts.append(nn.Tanh() if layer["tanh"] else nn.ReLU())
    if layer["norm"]:
        parts.append(nn.BatchNorm2d(width))
    if layer["pool"]:
        parts.append(nn.MaxPool2d(2) if layer["pool"] == 1 else nn.AvgPool2d(2))
    return parts


def c_1(
    num_labels: int, channels: int, image_size: int, width: float = 32, hidden: float = 256, dropout: float = 0.5
) -> nn.Module:
    """System C, first own net: 4 convolutions with ReLU and max-pooling, 2 dense ones with dropout; no widths given."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *_doubling(width, 4))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _with_head(layers, num_labels, channels, image_size, (int(hidden), int(hidden)), dropout)


def c_2(num_labels: int, channels: int, image_size: int, width: float = 32, hidden: float = 256) -> nn.Module:
    """System C, second own net: 3 convolutions with batch norm, ReLU and max-pooling, one dense; no widths given."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *_doubling(width, 3))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return _with_head(layers, num_labels, channels, image_size, (int(hidden),), 0.0)


def c_3(
    num_labels: int, channels: int, image_size: int, width: float = 16, hidden: float = 256, dropout: float = 0.2
) -> nn.Module:
    """System C, third own net: 5 convolutions with ReLU, batch norm and average pooling, dropout in every other one."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise((channels, *_doubling(width, 5)))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(after), nn.AvgPool2d(2)]
        if i % 2 == 0:
            layers.append(nn.Dropout(dropout))
    flat = _flat_size(nn.Sequential(*layers, nn.Flatten()), channels, image_size)
    dense = [nn.Linear(flat, int(hidden)), nn.ReLU(), nn.BatchNorm1d(int(hidden)), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Linear(int(hidden), num_labels))


def c_dummy(num_labels: int, channels: int, image_size: int) -> nn.Module:
    """System C's dummy model, which its report does not describe: one linear layer on all pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size * image_size, num_labels))


def d_cnn(num_labels: int, channels: int, image_size: int, hidden: float = 1000, dropout: float = 0.2) -> nn.Module:
    """System D, own CNN: conv 16 and 32 (3x3), each with ReLU, 2x2 pooling and dropout, dense 1000.

    D pads the first convolution by one pixel and does not mention the second. Its report names 3 layers but describes
    two convolutions.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout(dropout),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout(dropout),
    ]
    return _with_head(layers, num_labels, channels, image_size, (int(hidden),), 0.0)


def e_cnn(num_labels: int, channels: int, image_size: int, width: float = 16, hidden: float = 256) -> nn.Module:
    """System E: 4 convolutions with ReLU and max-pooling, one dense layer. No widths given."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *_doubling(width, 4))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _with_head(layers, num_labels, channels, image_size, (int(hidden),), 0.0)


def b_drawn_1(
    num_labels: int,
    channels: int,
    image_size: int,
    convs: float = 3,
    denses: float = 1,
    dropout: float = 0.5,
    **layers: float,
) -> nn.Module:
    """`b_drawn` as the first version of mlic had it, for the models that were trained with it."""
    known = {f"{what}_{i}" for what in _FIRST_DRAWN for i in range(1, 6)}
    odd = next((name for name in layers if name not in known), None)
    if odd is not None:
        raise ValueError(f"there is no option {odd}")
    net: list[nn.Module] = []
    before = channels
    for i in range(1, int(convs) + 1):
        sizes = {what: int(layers.get(f"{what}_{i}", default)) for what, default in _FIRST_DRAWN.items()}
        net.append(nn.Conv2d(before, sizes["width"], sizes["kernel"], padding="same"))
        net.append(nn.Tanh() if sizes["tanh"] else nn.ReLU())
        if sizes["norm"]:
            net.append(nn.BatchNorm2d(sizes["width"]))
        if sizes["pool"]:
            net.append(nn.MaxPool2d(2) if sizes["pool"] == 1 else nn.AvgPool2d(2))
        before = sizes["width"]
    hidden = [int(layers.get(f"hidden_{i}", _FIRST_DRAWN["hidden"])) for i in range(1, int(denses) + 1)]
    return _with_head(net, num_labels, channels, image_size, hidden, dropout)


_FIRST_DRAWN = {"width": 32, "kernel": 3, "tanh": 0, "norm": 1, "pool": 1, "hidden": 128}

# Name -> builder and the colour mode that the system used.
NETS: dict[str, tuple[Builder, Color]] = {
    "a-ffnn": (a_ffnn, "rgb"),
    "a-cnn1": (a_cnn1, "rgb"),
    "a-cnn2": (a_cnn2, "rgb"),
    "a-cnn3": (a_cnn3, "rgb"),
    "b-baseline": (b_baseline, "gray"),
    "b-iter1": (b_iter1, "gray"),
    "b-iter2": (b_iter2, "gray"),
    "b-final": (b_final, "gray"),
    "b-drawn": (b_drawn, "gray"),
    "c-1": (c_1, "rgb"),
    "c-2": (c_2, "rgb"),
    "c-3": (c_3, "rgb"),
    "c-dummy": (c_dummy, "rgb"),
    "d-cnn": (d_cnn, "rgb"),
    "e-cnn": (e_cnn, "rgb"),
}
# Nets that only models of earlier versions have, by the names that they are read under.
EARLIER: dict[str, tuple[Builder, Color]] = {"b-drawn-1": (b_drawn_1, "gray")}


def _a_cnn(
    num_labels: int, channels: int, image_size: int, plan: Sequence[tuple[int, int, int]], hidden: float, dropout: float
) -> nn.Module:
    """Convolutions of 4x4 without padding: width, and kernel and stride of the pooling behind it, 0 for none."""
    layers: list[nn.Module] = []
    before = channels
    for width, kernel, stride in plan:
        layers += [nn.Conv2d(before, width, 4), nn.ReLU()]
        if kernel:
            layers.append(nn.MaxPool2d(kernel, stride))
        before = width
    return _with_head(layers, num_labels, channels, image_size, (int(hidden),), dropout)


def _b(
    num_labels: int, channels: int, image_size: int, widths: Sequence[int], pooled: int, hidden: float, dropout: float
) -> nn.Module:
    """Convolutions of 3x3 with ReLU and batch norm, the first `pooled` with 2x2 pooling, and one dense layer.

    B was written in Keras, where convolutions pad nothing by default.
    """
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise((channels, *widths))):
        layers += [nn.Conv2d(before, after, 3), nn.ReLU(), nn.BatchNorm2d(after)]
        if i < pooled:
            layers.append(nn.MaxPool2d(2))
    net = _with_head(layers, num_labels, channels, image_size, (int(hidden),), dropout)
    _truncated(next(module for module in net.modules() if isinstance(module, nn.Linear)))
    return net


def _truncated(dense: nn.Linear) -> nn.Linear:
    """The layer, initialised with Keras' truncated normal, with a standard deviation of 0.05."""
    nn.init.trunc_normal_(dense.weight, std=0.05, a=-0.1, b=0.1)
    nn.init.zeros_(dense.bias)
    return dense


def _with_head(
    layers: Sequence[nn.Module], num_labels: int, channels: int, image_size: int, hidden: Sequence[int], dropout: float
) -> nn.Module:
    """Layers, then dense ones with ReLU and dropout, then one output a label."""
    features = nn.Sequential(*layers, nn.Flatten())
    parts: list[nn.Module] = []
    for before, after in pairwise((_flat_size(features, channels, image_size), *hidden)):
        parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*features, *parts, nn.Linear(hidden[-1], num_labels))


def _doubling(width: float, count: int) -> tuple[int, ...]:
    return tuple(int(width) * 2**i for i in range(count))


def _flat_size(features: nn.Module, channels: int, image_size: int) -> int:
    training = features.training
    with torch.no_grad():
        size = features.eval()(torch.zeros(1, channels, image_size, image_size)).shape[1]
    features.train(training)
    return int(size)
