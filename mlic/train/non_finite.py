"""Detect losses that are not finite, name the samples, and count the skipped steps."""

from __future__ import annotations

import math

import numpy as np
import torch

from mlic.config.train import TrainConfig
from mlic.data.shards import Split
from mlic.errors import RunError
from mlic.train.rank import RankContext

Index = np.ndarray[tuple[int], np.dtype[np.int64]]

_MOST_SKIPS = 20  # the run stops after more skipped steps in a row than this
_NAMED_KEYS = 5


class FiniteLosses:
    """Remembers the losses of the steps since the last check; `skipped` counts the steps left out in a row."""

    def __init__(self, config: TrainConfig, context: RankContext, train: Split) -> None:
        self._config, self._context, self._train = config, context, train
        self._recent: list[tuple[int, torch.Tensor, Index]] = []
        self.skipped = 0

    def note(self, step: int, loss: torch.Tensor, index: Index) -> None:
        """Remember the loss () of a step on the samples `index`, not its value: reading it would wait for the GPU."""
        self._recent.append((step, loss, index))

    def skip(self, step: int, loss: torch.Tensor, index: Index, lr: float) -> None:
        """Say that a step is left out. Raises RunError after too many in a row."""
        self.skipped += 1
        if self.skipped > _MOST_SKIPS:
            raise self._error(step, self._context.rank, self._keys(index), lr)
        if not math.isfinite(float(loss)):
            where = f"step {step} on rank {self._context.rank}"
            self._context.say(
                f"Warning: {where} is left out: its loss is not finite; {self._keys(index)}", everyone=True
            )
        elif self._context.rank == 0:
            self._context.say(f"Warning: step {step} is left out: its gradient is not finite")

    def check(self, total: float, step: int, lr: float) -> None:
        """Forget the recorded steps if the `total` of their losses over all ranks is finite.

        Raises RunError otherwise, on all ranks, with the step, the rank and the samples where that began.
        """
        if not math.isfinite(total):
            mine = [
                (number, self._context.rank, self._keys(index))
                for number, loss, index in self._recent
                if not math.isfinite(float(loss))
            ][:1]
            firsts = [first for of_rank in self._context.gather(mine) for first in of_rank]
            raise self._error(*min(firsts, default=(step, self._context.rank, "its sum over steps")), lr)
        self._recent.clear()

    def _error(self, step: int, rank: int, keys: str, lr: float) -> RunError:
        return RunError(
            f"the loss is not finite at step {step} on rank {rank} (learning rate {lr:.2g}; {keys}).",
            f"lower --lr (now {self._config.lr:g}), or leave such steps out by --set non_finite=skip.",
        )

    def _keys(self, index: Index) -> str:
        names = [self._train.key(i) for i in index[:_NAMED_KEYS].tolist()]
        return f"samples {', '.join(names)}" + (f" and {more} more" if (more := len(index) - len(names)) else "")
