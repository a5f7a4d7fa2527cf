"""RandAugment for a batch: images with the same operation are changed together, and nothing waits for a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mlic.data.pixels.augment import on_device

Array = np.ndarray[Any, Any]

_MAGNITUDES = 31
_MOST = {  # of what each operation changes
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
    "brightness": 0.9,
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
_OPERATIONS = ("identity", *_MOST, "posterize", "solarize", "autocontrast", "equalize")  # in torchvision's order


def rand_augment(
    images: torch.Tensor, index: Array, operations: int, magnitude: int, seed: int, epoch: int
) -> torch.Tensor:
    """Images uint8 (B, H, W, C) of the samples `index` (B,), each changed by `operations` random operations; a copy.

    RandAugment (Cubuk et al., 2020) with the operations, draws and pixels of torchvision's, and `magnitude` out of 30.
    """
    pixels = images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    for drawn in _drawn(index, operations, seed, epoch).T:
        for operation in np.unique(drawn).tolist():
            chosen = on_device(torch.from_numpy(np.flatnonzero(drawn == operation)), images.device)
            pixels[chosen] = _changed(pixels[chosen], _OPERATIONS[operation >> 1], magnitude, operation & 1)
    return pixels.permute(0, 2, 3, 1).contiguous()


def _drawn(index: Array, operations: int, seed: int, epoch: int) -> Array:
    """The operations int64 (B, operations) of samples: twice the number of the operation, plus 1 for a negative one."""
    drawn = np.empty((len(index), operations), np.int64)
    generator = torch.Generator()
    for row, sample in enumerate(index.tolist()):
        generator.manual_seed(int(np.random.SeedSequence([seed, epoch, 30, sample]).generate_state(1)[0]))
        for column in range(operations):
            number = int(torch.randint(len(_OPERATIONS), (1,), generator=generator))
            signed = _OPERATIONS[number] in _MOST
            negative = signed and bool(torch.randint(2, (1,), generator=generator))
            drawn[row, column] = 2 * number + negative
    return drawn


def _changed(pixels: torch.Tensor, name: str, magnitude: int, negative: int) -> torch.Tensor:
    """Images uint8 (B, C, H, W), all changed by one operation."""
    from torchvision.transforms import functional as vision

    height, width = pixels.shape[2:]
    if name in _MOST:
        side = {"translate_x": width, "translate_y": height}.get(name, 1)
        amount = float(torch.linspace(0.0, _MOST[name] * side, _MAGNITUDES)[magnitude]) * (-1 if negative else 1)
        if name.startswith(("shear", "translate", "rotate")):
            return _moved(pixels, _inverse_matrix(name, amount, height, width))
        if name == "sharpness":
            return _sharpened(pixels, 1.0 + amount)
        adjust = {"brightness": vision.adjust_brightness, "color": vision.adjust_saturation}
        changed: torch.Tensor = adjust.get(name, vision.adjust_contrast)(pixels, 1.0 + amount)
    elif name == "posterize":
        changed = vision.posterize(pixels, 8 - round(magnitude / ((_MAGNITUDES - 1) / 4)))
    elif name == "solarize":
        changed = vision.solarize(pixels, float(torch.linspace(255.0, 0.0, _MAGNITUDES)[magnitude]))
    elif name == "equalize":
        changed = _equalized(pixels)
    else:
        changed = vision.autocontrast(pixels) if name == "autocontrast" else pixels
    return changed


def _inverse_matrix(name: str, amount: float, height: int, width: int) -> list[float]:
    """Where a pixel comes from: (2, 3) row by row, in pixels from the centre.

    Shearing is about the upper left corner, as in torchvision's RandAugment; its angle is the arctangent of the amount.
    """
    if name == "rotate":
        angle = math.radians(amount)
        return [math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0]
    if name == "translate_x":
        return [1.0, 0.0, -float(int(amount)), 0.0, 1.0, 0.0]
    if name == "translate_y":
        return [1.0, 0.0, 0.0, 0.0, 1.0, -float(int(amount))]
    tangent = math.tan(math.radians(math.degrees(math.atan(amount))))
    if name == "shear_x":
        return [1.0, tangent, tangent * height * 0.5, 0.0, 1.0, 0.0]
    return [1.0, 0.0, 0.0, tangent, 1.0, tangent * width * 0.5]


def _moved(pixels: torch.Tensor, matrix: list[float]) -> torch.Tensor:
    """Images uint8 (B, C, H, W) whose pixels come from where the inverse matrix says; black where there is none.

    torchvision's `affine` does the same, and waits for the GPU to get the matrix.
    """
    (height, width), device = pixels.shape[2:], pixels.device
    across = torch.linspace(0.5 - width * 0.5, width * 0.5 - 0.5, width, device=device).expand(height, width)
    down = torch.linspace(0.5 - height * 0.5, height * 0.5 - 0.5, height, device=device)[:, None].expand(height, width)
    base = torch.stack([across, down, torch.ones_like(across)], dim=-1).view(1, height * width, 3)
    theta = torch.tensor(matrix).reshape(1, 2, 3).transpose(1, 2) / torch.tensor([0.5 * width, 0.5 * height])
    grid = base.bmm(on_device(theta, device)).view(1, height, width, 2).expand(len(pixels), -1, -1, -1)
    return functional.grid_sample(pixels.float(), grid, mode="nearest", align_corners=False).round_().to(torch.uint8)


def _sharpened(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Images uint8 (B, C, H, W) mixed with a blurred copy, whose edges are not blurred: Pillow's and torchvision's."""
    channels = pixels.shape[1]
    if min(pixels.shape[2:]) <= 2:
        return pixels
    kernel = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]])
    kernel = on_device(kernel / kernel.sum(), pixels.device).expand(channels, 1, 3, 3)
    blurred = pixels.clone()
    blurred[..., 1:-1, 1:-1] = functional.conv2d(pixels.float(), kernel, groups=channels).round_().to(torch.uint8)
    return (factor * pixels + (1.0 - factor) * blurred).clamp(0, 255).to(torch.uint8)


def _equalized(pixels: torch.Tensor) -> torch.Tensor:
    """Images uint8 (B, C, H, W) with equalised histograms: torchvision's `equalize`, which waits for each channel."""
    flat = pixels.flatten(0, 1).flatten(1).long()  # (B * C, H * W)
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=pixels.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    last = torch.where(counts > 0, torch.arange(256, device=pixels.device), -1).amax(dim=1, keepdim=True)
    step = (counts.sum(dim=1, keepdim=True) - counts.gather(1, last)) // 255
    table = (counts.cumsum(dim=1) + step // 2) // step.clamp(min=1)
    table = functional.pad(table, (1, 0))[:, :-1].clamp(0, 255)
    return torch.where(step > 0, table.gather(1, flat), flat).to(torch.uint8).view_as(pixels)
