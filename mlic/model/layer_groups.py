"""The stages of a network, to train only the last ones or to train earlier ones more slowly."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlic.errors import ConfigError

_SHARE = 0.6  # a stage with more than this share of the parameters is split


def stages(net: nn.Module, head: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each stage of a network but its head, in the order in which the network was put together.

    The stages are the network's child modules. A stage that holds most of the parameters is split into its own child
    modules, again and again. A normalisation belongs to the stage before it. The stages of a ResNet are its layers,
    with the last layer split into blocks. Those of an EfficientNet or a vision transformer are its blocks.
    """
    in_head = {id(parameter) for parameter in head.parameters()}

    def mine(module: nn.Module) -> list[nn.Parameter]:
        return [parameter for parameter in module.parameters() if id(parameter) not in in_head]

    groups = [(net, mine(net))]
    while True:
        sizes = [sum(parameter.numel() for parameter in parameters) for _, parameters in groups]
        largest = max(range(len(groups)), key=sizes.__getitem__)
        if len(groups) > 1 and sizes[largest] <= _SHARE * sum(sizes):
            break
        module, parameters = groups[largest]
        parts = [(child, mine(child)) for child in module.children() if mine(child)]
        if not parts:
            break
        below = {id(parameter) for _, inner in parts for parameter in inner}
        parts[0][1][:0] = [parameter for parameter in parameters if id(parameter) not in below]
        groups[largest : largest + 1] = parts
    joined: list[list[nn.Parameter]] = []
    for _, parameters in groups:
        if joined and all(parameter.ndim <= 1 for parameter in parameters):
            joined[-1] += parameters
        elif parameters:
            joined.append(parameters)
    return joined


def train_last(net: nn.Module, head: nn.Module, count: int) -> None:
    """Let the head and the last `count` stages have gradients. Raises ConfigError when there are fewer stages."""
    groups = stages(net, head)
    if count > len(groups):
        raise ConfigError(f"this network has {len(groups)} stages, not {count}.", f"--train {len(groups)}, or all.")
    for parameters in groups[: len(groups) - count]:
        for parameter in parameters:
            parameter.requires_grad_(False)


def settle_frozen(net: nn.Module) -> None:
    """Put fully frozen modules into evaluation mode: no dropout, and batch norms keep their statistics."""
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def parameter_groups(net: nn.Module, head: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The parameter groups for an optimiser; `scale` is the factor of a group's learning rate.

    The head has 1, the last stage `decay`, the one before it its square, and so on (Clark et al., ELECTRA, 2020).
    """
    if decay == 1:
        return [{"params": [parameter for parameter in net.parameters() if parameter.requires_grad], "scale": 1.0}]
    groups = [*stages(net, head), list(head.parameters())]
    return [
        {"params": trained, "scale": decay ** (len(groups) - 1 - i)}
        for i, parameters in enumerate(groups)
        if (trained := [parameter for parameter in parameters if parameter.requires_grad])
    ]
