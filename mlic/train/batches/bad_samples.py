"""Samples that cannot be decoded, agreed on by all ranks; too many in a split stop the run on all ranks."""

from __future__ import annotations

from mlic.config.train import TrainConfig
from mlic.data.loader import Batch
from mlic.errors import DataError
from mlic.train.rank import RankContext


class BadSamples:
    """The keys of the samples that did not decode, and why, by split. Each split is held against its own size."""

    def __init__(self, config: TrainConfig, context: RankContext) -> None:
        self._config, self._context = config, context
        self._mine: dict[str, dict[str, str]] = {}  # of this rank, not yet sent to the others
        self._told: dict[str, dict[str, str]] = {}  # those that all ranks know

    def note(self, split: str, batch: Batch) -> None:
        """Record the samples of a batch that cannot be decoded, and log each of them once."""
        for key, reason in batch.bad:
            if key not in self._told.get(split, ()) and key not in self._mine.get(split, ()):
                self._mine.setdefault(split, {})[key] = reason
                line = f"bad  sample {key!r} cannot be decoded and counts nowhere: {reason}"
                self._context.say(line, everyone=True)

    @property
    def is_news(self) -> bool:
        """Whether this rank knows bad samples that it has not yet sent to the others."""
        return bool(self._mine)

    def agree(self, sizes: dict[str, int]) -> None:
        """Merge the bad samples of all ranks; this is a collective operation.

        Raises DataError on every rank where more samples of a split than `max_bad` of its size cannot be decoded.
        """
        for of_rank in self._context.gather(self._mine):
            for name, reasons in of_rank.items():
                self._told.setdefault(name, {}).update(reasons)
        self._mine.clear()
        for name, bad in sorted(self._told.items()):
            if len(bad) > self._config.max_bad * sizes[name]:
                raise DataError(
                    f"{len(bad)} of {sizes[name]:,} samples of the split {name} cannot be decoded, more than max_bad "
                    f"allows ({self._config.max_bad:.1%}); one is {min(bad)!r} ({bad[min(bad)]}).",
                    f"if they cannot be mended by the settings, pack {self._config.shards} again with --fresh.",
                )
