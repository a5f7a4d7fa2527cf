"""Losses, positive weights, and initial output biases.

Every loss is a sum over the known labels of a batch, in float32 for logits of any type. The caller divides it by the
count over all ranks, so the step is that of the whole batch. An unknown label has no loss and no gradient.

bce             binary cross-entropy; positives weighted
class-balanced  the same, weighted by effective numbers (Cui et al., Class-Balanced Loss, CVPR 2019): beta
focal           cross-entropy times (1 - p)^gamma (Lin et al., Focal Loss, ICCV 2017): gamma; positives weighted
asymmetric      focal with a gamma for each side, and the easiest negatives left out (Ridnik et al., Asymmetric Loss,
                ICCV 2021): gamma_positive, gamma_negative, margin; positives weighted
soft-margin     what PyTorch calls multilabel soft margin: cross-entropy averaged by sample
mse, l1         of the scores, squared and absolute (reference system C)
softmax         cross-entropy of one distribution over the labels, its truth shared by the right ones (system A)

For label files that list some of the positives, so that a 0 may be a label that nobody wrote down:

weak-negative   cross-entropy with a small weight of negatives, 1 / (L - 1) by default (Cole et al., Multi-Label
                Learning from Single Positive Labels, CVPR 2021): negative_weight
entropy         what is not listed shall be uncertain: its entropy is maximised (Zhou et al., Acknowledging the Unknown
                for Multi-label Learning with Single Positive Labels, ECCV 2022): alpha
hill            negatives with high scores count less again, positives as in focal with a margin (Zhang et al., Simple
                and Robust Loss Design for Multi-Label Learning with Missing Labels, 2021): lambda, margin, gamma
splc            negatives with a score above tau count as positives, as in focal with a margin (the same paper): tau,
                margin, gamma
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from mlic.config.types import WEIGHTED, Activation, Loss
from mlic.errors import ConfigError

BETA = 0.999
_OPTIONS: dict[str, dict[str, float]] = {
    "class-balanced": {"beta": BETA},
    "focal": {"gamma": 2.0},
    "asymmetric": {"gamma_positive": 0.0, "gamma_negative": 4.0, "margin": 0.05},
    "weak-negative": {"negative_weight": 0.0},  # 0: 1 / (L - 1)
    "entropy": {"alpha": 0.1},
    "hill": {"lambda": 1.5, "margin": 1.0, "gamma": 2.0},
    "splc": {"tau": 0.6, "margin": 1.0, "gamma": 2.0},
}
_EDGE = 1e-6
_VECTORS = 32  # elements that PyTorch computes at once, at most: two vectors of 16


def check(name: str, options: Mapping[str, float]) -> None:
    """Raise ConfigError for an option that a loss does not have."""
    known = _OPTIONS.get(name, {})
    odd = sorted(set(options) - set(known))
    if odd:
        hint = f"it has {', '.join(known)}." if known else f"{', '.join(_OPTIONS)} have options."
        raise ConfigError(f"the loss {name} has no option {odd[0]!r}.", hint)


def loss_sum(
    name: Loss,
    logits: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    options: Mapping[str, float] | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """A loss summed over the known labels of a batch.

    `logits` is (B, L), `targets` (B, L) with 1, 0 and -1 for unknown or float targets between 0 and 1 of mixed images,
    `weight` (L,) is that of positives. `smoothing` moves targets that much of the way to a half.
    """
    chosen = _OPTIONS.get(name, {}) | dict(options or {})
    logits = logits.float()
    known = targets >= 0
    truth = targets.clamp(min=0).float() * (1 - smoothing) + smoothing / 2
    if name == "softmax":
        return _softmax(logits, targets, known)
    if name in ("mse", "l1"):
        gap = torch.sigmoid(logits) - truth
        distance = gap.square() if name == "mse" else gap.abs()
    elif name in ("focal", "asymmetric"):
        distance = _asymmetric(logits, truth, weight, *_gammas(name, chosen))
    elif name in ("weak-negative", "entropy", "hill", "splc"):
        distance = _of_listed(name, logits, truth, chosen)
    else:
        label_weight = weight if name in WEIGHTED else torch.ones_like(weight)
        distance = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=label_weight, reduction="none")
    if name == "soft-margin":  # the mean over a sample's known labels, times the number of all labels
        distance = distance * (targets.shape[1] / known.sum(dim=1, keepdim=True).clamp(min=1))
    return torch.where(known, distance, 0.0).sum()


def _gammas(name: str, chosen: Mapping[str, float]) -> tuple[float, float, float]:
    if name == "focal":
        return chosen["gamma"], chosen["gamma"], 0.0
    return chosen["gamma_positive"], chosen["gamma_negative"], chosen["margin"]


def _asymmetric(
    logits: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor, positive: float, negative: float, margin: float
) -> torch.Tensor:
    """Computed in float32, from log-sigmoids where possible: no logit gives an infinite loss or gradient."""
    score = torch.sigmoid(logits)
    missed = (1 - score).clamp(min=_EDGE)
    wrong = (score - margin).clamp(min=0) if margin else score.clamp(min=_EDGE)
    log_right = functional.logsigmoid(-logits) if not margin else torch.log1p(-wrong.clamp(max=1 - _EDGE))
    # A power of 0 is 1 whatever its base, and its gradient is 0; the base itself may be 0 where gamma is above 1.
    up = missed**positive if positive else torch.ones_like(score)
    down = wrong.clamp(min=_EDGE) ** negative if negative else torch.ones_like(score)
    return -(truth * weight * up * functional.logsigmoid(logits) + (1 - truth) * down * log_right)


def _of_listed(name: Loss, logits: torch.Tensor, truth: torch.Tensor, chosen: Mapping[str, float]) -> torch.Tensor:
    """The losses (B, L) for labels that are listed or may be missing, computed from log-sigmoids."""
    score, log_right = torch.sigmoid(logits), functional.logsigmoid(-logits)
    if name == "weak-negative":
        share = chosen["negative_weight"] or 1 / max(1, logits.shape[1] - 1)
        return -(truth * functional.logsigmoid(logits) + share * (1 - truth) * log_right)
    if name == "entropy":
        certainty = score * functional.logsigmoid(logits) + (1 - score) * log_right
        return -truth * functional.logsigmoid(logits) + chosen["alpha"] * (1 - truth) * certainty
    if name == "splc":
        truth = torch.where(score.detach() > chosen["tau"], 1.0, truth)
    shifted = logits - chosen["margin"]
    listed = -((1 - torch.sigmoid(shifted)).clamp(min=_EDGE) ** chosen["gamma"]) * functional.logsigmoid(shifted)
    other = (chosen["lambda"] - score) * score.square() if name == "hill" else -log_right
    return truth * listed + (1 - truth) * other


def _softmax(logits: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """A sample's cross-entropy is weighted by its number of known labels; it is 0 without a right label."""
    right = targets.clamp(min=0).float()
    share = right / right.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = -(share * functional.log_softmax(logits.masked_fill(~known, -1e4), dim=1)).sum(dim=1)
    return (entropy * known.sum(dim=1)).sum()


def activation(name: Loss) -> Activation:
    """The activation that turns logits into scores, for a network that was trained with this loss."""
    return "softmax" if name == "softmax" else "sigmoid"


def scores(activation: Activation, logits: torch.Tensor) -> torch.Tensor:
    """Scores float32 (B, L) in [0, 1] of logits (B, L), which for the activation `none` are scores already."""
    if activation == "none":
        return logits.float()
    return torch.softmax(logits.float(), dim=1) if activation == "softmax" else _sigmoid(logits.float())


def _sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Sigmoid of (B, L), in which equal logits give equal scores to the last bit.

    PyTorch computes the last elements of a tensor, up to 31, by other instructions, so rows are filled up to 32.
    Source: ATen/native/cpu/Loops.h, vectorized_loop.
    """
    labels = logits.shape[1]
    return torch.sigmoid(functional.pad(logits, (0, -labels % _VECTORS)))[:, :labels]


def pos_weight(positives: torch.Tensor, negatives: torch.Tensor, power: float) -> torch.Tensor:
    """Weights (L,) of the positives of each label: (negatives / positives) ** power, 1 where a label lacks either.

    Power 1 is the weighting of reference systems D and E; 0 is none.
    """
    ratio = negatives.clamp(min=1) / positives.clamp(min=1)
    return torch.where((positives > 0) & (negatives > 0), ratio**power, torch.ones_like(ratio)).float()


def limited(weight: torch.Tensor, cap: float, by_min: bool) -> torch.Tensor:
    """Weights (L,) divided by the smallest of them, as in the second round of system E, and at most `cap` (0: any)."""
    weight = weight / weight.min() if by_min else weight
    return weight.clamp(max=cap) if cap else weight


def balanced_weight(positives: torch.Tensor, negatives: torch.Tensor, beta: float) -> torch.Tensor:
    """Weights (L,) of positives by effective numbers, (1 - beta^negatives) / (1 - beta^positives) for each label."""
    effective = [1 - torch.pow(torch.tensor(beta, dtype=torch.float64), n.double()) for n in (positives, negatives)]
    weight = torch.where((positives > 0) & (negatives > 0), effective[1] / effective[0].clamp(min=1e-12), 1.0)
    return weight.float()


def head_bias(positives: torch.Tensor, negatives: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Output biases (L,) that make an untrained network answer each label's share.

    The bias is the log-odds of the share plus log(pos_weight), where a weighted loss is smallest. Half a sample is
    added on both sides, so that it is finite. Without this bias, the first epochs are spent on learning that labels are
    rare. The idea is that of Lin et al., Focal Loss for Dense Object Detection (2017), section 4.1.
    """
    return (torch.log((positives + 0.5) / (negatives + 0.5)) + torch.log(weight)).float()
