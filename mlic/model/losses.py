"""The loss, its weights, and the output bias that the labels' shares suggest."""

from __future__ import annotations

import torch
from torch.nn import functional


def pos_weight(positives: torch.Tensor, negatives: torch.Tensor, power: float) -> torch.Tensor:
    """Weights (L,) of the positives of each label: (negatives / positives) ** power, 1 where a label has neither.

    Power 1 is the weighting of reference systems D and E; 0 is none.
    """
    ratio = negatives.clamp(min=1) / positives.clamp(min=1)
    return torch.where((positives > 0) & (negatives > 0), ratio**power, torch.ones_like(ratio)).float()


def head_bias(positives: torch.Tensor, negatives: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Output biases (L,) that make an untrained network answer each label's share.

    The log-odds of the share, with half a sample added on both sides so that it is finite, plus log(pos_weight), which
    is where a weighted loss is smallest. Without it the first epochs are spent on learning that labels are rare. The
    idea is that of Lin et al., Focal Loss for Dense Object Detection (2017), section 4.1.
    """
    return (torch.log((positives + 0.5) / (negatives + 0.5)) + torch.log(weight)).float()


def bce_sum(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy summed over the known labels of a batch.

    `logits` is (B, L), `targets` is (B, L) with 1, 0 and -1 for unknown, `weight` is (L,). Computed in float32 whatever
    the logits' type is.
    """
    known = (targets >= 0).float()
    return functional.binary_cross_entropy_with_logits(
        logits.float(), targets.clamp(min=0).float(), weight=known, pos_weight=weight, reduction="sum"
    )
