"""Metrics of the training split, from the outputs of the training steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlic.metrics import metrics
from mlic.train.rank import RankContext

NAMES = ("f1_micro", "precision_micro", "recall_micro", "f1_macro", "subset_accuracy", "hamming_accuracy")


class TrainingCounts:
    """Counts of an epoch's decisions on training samples, on the device; nothing waits for them until they are read.

    The samples are augmented, and the weights change from batch to batch. So these metrics are of the training phase,
    like the loss of the epoch.
    """

    def __init__(self, num_labels: int, device: torch.device) -> None:
        self._num_labels = num_labels
        self.sums = torch.zeros(4 * num_labels + metrics.PER_SAMPLE, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, scores: torch.Tensor, targets: torch.Tensor, thresholds: torch.Tensor) -> None:
        """Count scores (B, L), whole-number targets (B, L) with -1 for unknown, and thresholds (L,)."""
        positive, known = targets == 1, targets >= 0
        predicted = scores >= thresholds
        right = ((predicted == positive) | ~known).all(dim=1)
        counts = [
            predicted & positive,
            predicted & ~positive & known,
            ~predicted & positive,
            ~predicted & ~positive & known,
        ]
        parts = [count.sum(dim=0) for count in counts]
        # Without an assignment to an item, which would wait for a GPU.
        between = torch.zeros(metrics.PER_SAMPLE - 2, dtype=torch.float64, device=self.sums.device)
        of_samples = [right.sum()[None], between, torch.ones_like(right).sum()[None]]
        self.sums += torch.cat([part.double() for part in (*parts, *of_samples)])

    def values(self, context: RankContext) -> dict[str, float]:
        """The metrics NAMES over all ranks, each under `train/`; none where nothing was counted."""
        total = np.array(context.sums(*self.sums.tolist()))
        if not total[-1]:
            return {}
        values: dict[str, Any] = metrics.from_sums(total[None], self._num_labels)
        return {f"train/{name}": float(values[name][0]) for name in NAMES}
