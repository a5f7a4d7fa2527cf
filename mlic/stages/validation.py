"""The evaluation of an epoch: every sample once over all ranks, as one process would do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.data.loader import Batch
from mlic.model import losses
from mlic.score import metrics, thresholds
from mlic.stages.place import Place
from mlic.values import Loss

Array = np.ndarray[Any, Any]

_SAME = 0.01  # a deviation of scores below this tells no image from another


@dataclass(frozen=True)
class Evaluated:
    """Scores float32 and targets int8 (N, L) of a split, and the mean loss of a known label."""

    scores: Array
    targets: Array
    loss: float


@torch.no_grad()
def evaluate(
    place: Place, net: nn.Module, batches: Iterator[Batch], prepare: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss, loss_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], shape: tuple[int, int],
) -> Evaluated:  # fmt: skip
    """Run a network over this rank's batches and put together what all ranks found; the same on every rank.

    In float32 whatever training runs in: thresholds are fitted to these scores, and a prediction is to give the same.
    """
    net.eval()
    mine: list[tuple[Array, Array, Array]] = []
    total = 0.0
    activation = losses.activation(loss)
    for batch in batches:
        logits = net(prepare(batch.images)).float()
        total += float(loss_sum(logits, batch.targets))
        mine.append((batch.index, losses.scores(activation, logits).cpu().numpy(), batch.targets.numpy()))
    scores, targets = np.zeros(shape, dtype=np.float32), np.full(shape, -1, dtype=np.int8)
    gathered = place.gather((mine, total))
    for parts, _ in gathered:
        for index, score, target in parts:
            scores[index], targets[index] = score, target
    return Evaluated(scores, targets, sum(part for _, part in gathered) / max(1, int((targets >= 0).sum())))


def row(found: Evaluated, fitted: thresholds.Fit, labels: Sequence[str]) -> dict[str, float]:
    """The metrics of an evaluation, each under `val/`; those of a label under `val/NAME/LABEL`."""
    measured = metrics.decision_metrics(fitted.decisions, found.targets)
    measured |= metrics.score_metrics(found.scores, found.targets)
    of_labels = metrics.label_metrics(fitted.decisions, found.targets)
    return (
        {"val/loss": found.loss}
        | {f"val/{name}": value for name, value in measured.items()}
        | {
            f"val/{name}/{label}": float(value)
            for name in ("accuracy", "precision", "recall", "f1")
            for label, value in zip(labels, of_labels[name], strict=True)
        }
    )


def collapse(found: Evaluated, decisions: Array, remedies: Mapping[str, bool]) -> str | None:
    """What is wrong with an output that says nothing, and what helps: the first of the remedies that is still open."""
    if len(found.scores) < 2:
        return None
    if float(found.scores.std(axis=0).max()) < _SAME:
        what = f"every image gets nearly the same scores (deviation below {_SAME:g})"
    elif not decisions.any():
        what = "no image gets any label"
    else:
        return None
    open_ones = [text for text, is_open in remedies.items() if is_open]
    return f"{what}: the network has learnt nothing but how frequent labels are. Try {open_ones[0]}."
