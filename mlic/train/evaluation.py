"""Evaluate an epoch: every sample once over all ranks, with the result of a single process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.config.train import TrainConfig
from mlic.config.types import Loss
from mlic.data.loader import Batch
from mlic.data.pixels.augment import on_device
from mlic.data.shards import Split
from mlic.errors import RunError
from mlic.metrics import metrics, ranking
from mlic.model import losses
from mlic.train.rank import RankContext

Array = np.ndarray[Any, Any]

_SAME = 0.01  # if the deviation of scores is below this, they do not distinguish images


@dataclass(frozen=True)
class Evaluated:
    """Scores float32 and targets int8 (N, L) of a split, and the mean loss of a known label."""

    scores: Array
    targets: Array
    loss: float


@torch.no_grad()
def evaluate(
    context: RankContext,
    net: nn.Module,
    batches: Iterator[Batch],
    prepare: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss,
    loss_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    split: Split,
) -> Evaluated | None:
    """Run a network over this rank's batches and merge the results of all ranks; every rank gets the same result.

    It computes in float32, whatever training computes in: thresholds are fitted to these scores, and a prediction must
    give the same scores. Returns None if the batches of a rank ended early. Raises RunError, on all ranks, for a score
    or a loss that is not a number, with the sample.
    """
    net.eval()
    mine: list[tuple[Array, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    activation = losses.activation(loss)
    for batch in batches:
        logits = net(prepare(batch.images)).float()
        truth = on_device(batch.targets, context.device)
        # Nothing waits for the GPU before the last batch.
        mine.append((batch.index, losses.scores(activation, logits), truth, loss_sum(logits, truth)))
    read, total, odd = _read(mine)
    gathered = context.gather((read, total, min(odd, default=-1)))
    first = min((number for _, _, number in gathered if number >= 0), default=None)
    if first is not None:
        raise RunError(
            f"the score of the sample {split.key(first)!r}, or the loss of its batch, is not a number in evaluation.",
            "lower --lr, or start at weights that are finite.",
        )
    scores = np.zeros(split.targets.shape, dtype=np.float32)
    targets, seen = np.full(split.targets.shape, -1, dtype=np.int8), np.zeros(len(split), dtype=bool)
    for parts, _, _ in gathered:
        for index, score, target in parts:
            scores[index], targets[index], seen[index] = score, target, True
    if not seen.all():
        return None
    return Evaluated(scores, targets, sum(part for _, part, _ in gathered) / max(1, int((targets >= 0).sum())))


def _read(
    batches: Sequence[tuple[Array, torch.Tensor, torch.Tensor, torch.Tensor]],
) -> tuple[list[tuple[Array, Array, Array]], float, list[int]]:
    """Sample numbers, scores and targets of each batch, the sum of the losses, and samples that are not finite."""
    parts, total, odd = list[tuple[Array, Array, Array]](), 0.0, list[int]()
    for index, on_gpu, targets, loss in batches:
        scores, added = on_gpu.cpu().numpy(), float(loss)
        wrong = ~np.isfinite(scores).all(axis=1)
        if wrong.any() or not math.isfinite(added):
            odd.append(int(index[int(np.argmax(wrong))]))
        total += added
        parts.append((index, scores, targets.cpu().numpy()))
    return parts, total, odd


def row(evaluated: Evaluated, decisions: Array, ranked: Array, labels: Sequence[str]) -> dict[str, float]:
    """The metrics of an evaluation, each under `val/`; those of a label under `val/NAME/LABEL`.

    `decisions` (N, L) are cross-fitted, `ranked` (N, L) the scores that order samples within a label.
    """
    measured = metrics.decision_metrics(decisions, evaluated.targets)
    measured |= metrics.score_metrics(evaluated.scores, evaluated.targets, ranking.areas(ranked, evaluated.targets))
    of_labels = metrics.label_metrics(decisions, evaluated.targets)
    return (
        {"val/loss": evaluated.loss}
        | {f"val/{name}": value for name, value in measured.items()}
        | {
            f"val/{name}/{label}": float(value)
            for name in ("accuracy", "precision", "recall", "f1")
            for label, value in zip(labels, of_labels[name], strict=True)
        }
    )


def collapse(evaluated: Evaluated, decisions: Array, remedies: Mapping[str, bool]) -> str | None:
    """A warning about an output without information, with the first remedy still available; None if all is well."""
    if len(evaluated.scores) < 2:
        return None
    if float(evaluated.scores.std(axis=0).max()) < _SAME:
        what = f"every image gets nearly the same scores (deviation below {_SAME:g})"
    elif not decisions.any():
        what = "no image gets any label"
    else:
        return None
    open_ones = [text for text, is_open in remedies.items() if is_open]
    return f"{what}: the network has learnt nothing but how frequent labels are. Try {open_ones[0]}."


def warn_of_collapse(context: RankContext, config: TrainConfig, evaluated: Evaluated, decisions: Array) -> None:
    """Write a warning to the log of the run when the outputs are constant."""
    remedies = {"--set head_prior=true": not config.head_prior, f"a lower --lr (now {config.lr:g})": True}
    problem = collapse(evaluated, decisions, remedies)
    if problem is not None:
        context.say(f"Warning: {problem}")
