from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from mlic.config.types import Loss
from mlic.errors import ConfigError
from mlic.model import losses

LOGITS = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -1.0]])
WEIGHT = torch.tensor([1.0, 3.0, 0.5])
TARGETS = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
NAMES: tuple[Any, ...] = get_args(Loss)


def test_bce_is_pytorchs() -> None:
    expected = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS.float(), pos_weight=WEIGHT, reduction="sum")
    torch.testing.assert_close(losses.loss_sum("bce", LOGITS, TARGETS, WEIGHT), expected)
    smooth = losses.loss_sum("bce", LOGITS, TARGETS, WEIGHT, smoothing=0.2)
    soft = TARGETS.float() * 0.8 + 0.1
    expected = functional.binary_cross_entropy_with_logits(LOGITS, soft, pos_weight=WEIGHT, reduction="sum")
    torch.testing.assert_close(smooth, expected)


def test_the_others_are_what_pytorch_and_their_papers_say() -> None:
    ones = torch.ones(3)
    score = torch.sigmoid(LOGITS)
    truth = TARGETS.float()
    rows, labels = TARGETS.shape
    soft = functional.multilabel_soft_margin_loss(LOGITS, truth, reduction="mean") * rows * labels
    torch.testing.assert_close(losses.loss_sum("soft-margin", LOGITS, TARGETS, ones), soft)
    mse, l1 = functional.mse_loss(score, truth, reduction="sum"), functional.l1_loss(score, truth, reduction="sum")
    torch.testing.assert_close(losses.loss_sum("mse", LOGITS, TARGETS, ones), mse)
    torch.testing.assert_close(losses.loss_sum("l1", LOGITS, TARGETS, ones), l1)
    right = torch.where(TARGETS == 1, score, 1 - score)
    focal = -((1 - right) ** 2 * right.log()).sum()
    torch.testing.assert_close(losses.loss_sum("focal", LOGITS, TARGETS, ones), focal)
    plain = {"gamma_positive": 0.0, "gamma_negative": 0.0, "margin": 0.0}
    bce = losses.loss_sum("bce", LOGITS, TARGETS, ones)
    torch.testing.assert_close(losses.loss_sum("asymmetric", LOGITS, TARGETS, ones, plain), bce)
    shifted = (score - 0.05).clamp(min=0)
    asymmetric = -(truth * score.log() + (1 - truth) * shifted**4 * (1 - shifted).log()).sum()
    torch.testing.assert_close(losses.loss_sum("asymmetric", LOGITS, TARGETS, ones), asymmetric)
    softmax = functional.cross_entropy(LOGITS, truth / truth.sum(dim=1, keepdim=True), reduction="sum") * labels
    torch.testing.assert_close(losses.loss_sum("softmax", LOGITS, TARGETS, ones), softmax)


def test_losses_for_labels_that_may_be_missing_are_those_of_their_papers() -> None:
    """Written here as the papers and their code have them."""
    ones, score, truth = torch.ones(3), torch.sigmoid(LOGITS), TARGETS.float()
    weak = -(truth * score.log() + (1 - truth) * (1 - score).log() / 2).sum()
    torch.testing.assert_close(losses.loss_sum("weak-negative", LOGITS, TARGETS, ones), weak)
    given = losses.loss_sum("weak-negative", LOGITS, TARGETS, ones, {"negative_weight": 1.0})
    torch.testing.assert_close(given, losses.loss_sum("bce", LOGITS, TARGETS, ones))
    entropy = -(score * score.log() + (1 - score) * (1 - score).log())
    unsure = -(truth * score.log() + 0.1 * (1 - truth) * entropy).sum()
    torch.testing.assert_close(losses.loss_sum("entropy", LOGITS, TARGETS, ones), unsure)
    with_margin = torch.sigmoid(LOGITS - 1)
    focal = (1 - with_margin) ** 2 * with_margin.log()
    hill = -(truth * focal + (1 - truth) * -(1.5 - score) * score**2).sum()
    torch.testing.assert_close(losses.loss_sum("hill", LOGITS, TARGETS, ones), hill)
    corrected = torch.where(score > 0.6, 1.0, truth)
    assert (corrected != truth).nonzero().tolist() == [[1, 0]]
    splc = -(corrected * focal + (1 - corrected) * (1 - score).log()).sum()
    torch.testing.assert_close(losses.loss_sum("splc", LOGITS, TARGETS, ones), splc)
    lower = -torch.where(score > 0.3, focal, (1 - score).log()).sum()
    torch.testing.assert_close(losses.loss_sum("splc", LOGITS, (0 * TARGETS), ones, {"tau": 0.3}), lower)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_labels_have_no_loss_and_no_gradient(name: Any) -> None:
    logits = LOGITS.clone().requires_grad_()
    targets = torch.tensor([[1, -1, 0], [0, 1, -1]], dtype=torch.int8)
    loss = losses.loss_sum(name, logits, targets, WEIGHT)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[False, True, False], [False, False, True]]
    other = LOGITS.clone()
    other[0, 1], other[1, 2] = 9, -9
    torch.testing.assert_close(losses.loss_sum(name, other, targets, WEIGHT), loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_no_logit_gives_an_infinite_loss_or_gradient(name: Any, kind: torch.dtype) -> None:
    """Half precision reaches such logits, and the asymmetric loss is known for it."""
    values = torch.tensor([[-200.0, -30.0, 0.0, 30.0, 200.0]], dtype=kind)
    for target in (0, 1):
        logits = values.clone().requires_grad_()
        loss = losses.loss_sum(name, logits, torch.full((1, 5), target, dtype=torch.int8), torch.full((5,), 100.0))
        loss.backward()
        assert loss.dtype == torch.float32
        assert math.isfinite(loss.item())
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_falls_towards_the_truth(name: Any) -> None:
    """A batch with a right label in every row, from no idea to all but sure."""
    targets = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.int8)
    sure = (targets.float() * 2 - 1) * 4
    values = [float(losses.loss_sum(name, sure * share, targets, torch.ones(3))) for share in (-1, 0, 0.5, 1)]
    assert values == sorted(values, reverse=True)
    assert losses.scores(losses.activation(name), sure).argmax(dim=1).tolist() == [0, 1]


def test_a_softmax_is_a_distribution() -> None:
    torch.testing.assert_close(losses.scores("softmax", LOGITS).sum(dim=1), torch.ones(2))
    nothing = torch.zeros((1, 3), dtype=torch.int8)
    assert float(losses.loss_sum("softmax", LOGITS[:1], nothing, WEIGHT)) == 0


def test_options_that_a_loss_does_not_have() -> None:
    losses.check("focal", {"gamma": 1.0})
    with pytest.raises(ConfigError, match="the loss focal has no option 'gama'") as caught:
        losses.check("focal", {"gama": 1.0})
    assert caught.value.hint == "it has gamma."
    with pytest.raises(ConfigError, match="the loss bce has no option"):
        losses.check("bce", {"gamma": 1.0})


def test_pos_weight_of_the_reference_counts() -> None:
    positives, negatives = torch.tensor([95.0, 6403.0, 0.0]), torch.tensor([19905.0, 13597.0, 20000.0])
    torch.testing.assert_close(losses.pos_weight(positives, negatives, 1.0)[:2], torch.tensor([209.5263, 2.12354]))
    assert losses.pos_weight(positives, negatives, 0.0).tolist() == [1, 1, 1]
    assert math.isclose(losses.pos_weight(positives, negatives, 0.5)[0].item(), math.sqrt(209.5263), rel_tol=1e-6)
    assert losses.pos_weight(positives, negatives, 1.0)[2] == 1


def test_weights_are_limited() -> None:
    weight = torch.tensor([4.0, 2.0, 10.0])
    assert losses.limited(weight, 0, by_min=False).tolist() == [4, 2, 10]
    assert losses.limited(weight, 0, by_min=True).tolist() == [2, 1, 5]
    assert losses.limited(weight, 3, by_min=True).tolist() == [2, 1, 3]


def test_effective_numbers() -> None:
    positives, negatives = torch.tensor([10.0, 5000.0, 0.0]), torch.tensor([9990.0, 5000.0, 10.0])
    found = losses.balanced_weight(positives, negatives, 0.99)
    assert found[0] == pytest.approx((1 - 0.99**9990) / (1 - 0.99**10), rel=1e-5)
    assert found[1:].tolist() == [1, 1]


def test_head_bias_minimises_the_weighted_loss() -> None:
    positives, negatives = torch.tensor([30.0]), torch.tensor([70.0])
    weight = torch.tensor([4.0])
    bias = losses.head_bias(positives, negatives, weight)
    targets = torch.tensor([[1]] * 30 + [[0]] * 70, dtype=torch.int8)

    def loss(shift: float) -> float:
        return float(losses.loss_sum("bce", (bias + shift).expand(100, 1), targets, weight))

    assert loss(0) < min(loss(-0.1), loss(0.1))
    assert math.isfinite(float(losses.head_bias(torch.tensor([0.0]), torch.tensor([100.0]), torch.tensor([1.0]))))


@pytest.mark.parametrize("labels", [1, 6, 7, 45])
def test_a_score_does_not_depend_on_its_row(labels: int) -> None:
    logits = torch.randn(16, labels, generator=torch.Generator().manual_seed(labels))
    scores = losses.scores("sigmoid", logits)
    assert torch.allclose(scores, torch.sigmoid(logits), atol=1e-6)
    assert scores.shape == logits.shape
    for shift in range(1, 16):
        assert torch.equal(losses.scores("sigmoid", logits.roll(shift, 0)), scores.roll(shift, 0))
