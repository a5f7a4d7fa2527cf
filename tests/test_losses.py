from __future__ import annotations

import math

import torch
from torch.nn import functional

from mlic.model import losses

LOGITS = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -1.0]])
WEIGHT = torch.tensor([1.0, 3.0, 0.5])


def test_bce_is_pytorchs() -> None:
    targets = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
    expected = functional.binary_cross_entropy_with_logits(LOGITS, targets.float(), pos_weight=WEIGHT, reduction="sum")
    torch.testing.assert_close(losses.bce_sum(LOGITS, targets, WEIGHT), expected)


def test_unknown_labels_have_no_loss_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    targets = torch.tensor([[1, -1, 1], [0, 1, -1]], dtype=torch.int8)
    losses.bce_sum(logits, targets, WEIGHT).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[False, True, False], [False, False, True]]


def test_pos_weight_of_the_reference_counts() -> None:
    positives, negatives = torch.tensor([95.0, 6403.0, 0.0]), torch.tensor([19905.0, 13597.0, 20000.0])
    torch.testing.assert_close(losses.pos_weight(positives, negatives, 1.0)[:2], torch.tensor([209.5263, 2.12354]))
    assert losses.pos_weight(positives, negatives, 0.0).tolist() == [1, 1, 1]
    assert math.isclose(losses.pos_weight(positives, negatives, 0.5)[0].item(), math.sqrt(209.5263), rel_tol=1e-6)
    assert losses.pos_weight(positives, negatives, 1.0)[2] == 1


def test_head_bias_minimises_the_weighted_loss() -> None:
    positives, negatives = torch.tensor([30.0]), torch.tensor([70.0])
    weight = torch.tensor([4.0])
    bias = losses.head_bias(positives, negatives, weight)
    targets = torch.tensor([[1]] * 30 + [[0]] * 70, dtype=torch.int8)

    def loss(shift: float) -> float:
        return float(losses.bce_sum((bias + shift).expand(100, 1), targets, weight))

    assert loss(0) < min(loss(-0.1), loss(0.1))
    assert math.isfinite(float(losses.head_bias(torch.tensor([0.0]), torch.tensor([100.0]), torch.tensor([1.0]))))
