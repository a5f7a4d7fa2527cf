"""Which pixels support a label: Grad-CAM at the last feature map, or gradients where there is none.

Grad-CAM: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_BLUR = 9  # maps from input gradients have at most this many cells per side


def maps(net: nn.Module, images: torch.Tensor, labels: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Maps float32 (B, H, W) from 0 to 1 for normalised images (B, C, H, W) and one label number each (B,).

    Also says by which method: "Grad-CAM", or "input gradients" for a network without a feature map near its end.
    """
    training = net.training
    net.eval()
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            outputs.clear()  # feature maps before attention over the whole image do not show where the network looks
        elif isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            outputs[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in net.modules()]
    try:
        with torch.enable_grad():
            pixels = images.detach().clone().requires_grad_()
            chosen = net(pixels)[torch.arange(len(pixels)), torch.as_tensor(labels)].sum()
            source = outputs[0] if outputs and outputs[0].requires_grad else pixels
            gradient = torch.autograd.grad(chosen, source)[0]
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    if source is pixels:
        relevance = (gradient * pixels).abs().sum(dim=1, keepdim=True).detach()
        relevance = functional.adaptive_avg_pool2d(relevance, min(_BLUR, *relevance.shape[2:]))
    else:
        relevance = functional.relu(
            (gradient.mean(dim=(2, 3), keepdim=True) * source).sum(dim=1, keepdim=True)
        ).detach()
    relevance = functional.interpolate(relevance, images.shape[2:], mode="bilinear", align_corners=False)
    peak = relevance.amax(dim=(1, 2, 3), keepdim=True)
    return (relevance / peak.clamp_min(1e-12))[:, 0].numpy(), "input gradients" if source is pixels else "Grad-CAM"
