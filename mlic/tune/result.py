"""The report of a search."""

from __future__ import annotations

from pathlib import Path

from mlic.config.base import Model
from mlic.metrics.measurement import Measurement, aligned
from mlic.tune.confirm import Confirmation
from mlic.tune.ensemble import Ensemble
from mlic.tune.exploit import Exploit
from mlic.tune.trial import Trial, table

_SHOWN = 20  # trials in the printed table


class TuneReport(Model):
    """The report of a search: its trials, best first, and the winner's model and configuration file.

    `rungs` has, for some numbers of epochs, how many trials reached them. `epochs` is the sum of the epochs of all
    trials; `possible` is that sum if no trial had been stopped. `exploits` are those of a population. `no_ensemble`
    says why a requested ensemble does not exist.
    """

    run: Path
    model: Path
    best_config: Path
    page: Path
    objective: str
    trials: tuple[Trial, ...]
    rungs: dict[int, int]
    epochs: int
    possible: int
    folds: int
    seconds: float
    measurement: Measurement
    confirmation: Confirmation | None
    ensemble: Ensemble | None = None
    no_ensemble: str = ""
    exploits: tuple[Exploit, ...] = ()

    @property
    def split(self) -> str:
        """What the winner is measured on."""
        return "all its folds, each by the model of the others" if self.folds else "its validation split"

    def text(self) -> str:
        counts = {status: sum(t.status == status for t in self.trials) for status in ("pruned", "failed", "cut")}
        named = {"pruned": "stopped early", "failed": "failed", "cut": "cut off when the time was up"}
        ended = ", ".join([f"{len(self.trials)} trials", *(f"{n} {named[s]}" for s, n in counts.items() if n)])
        more = [f"... and {len(self.trials) - _SHOWN} more in trials.parquet"] * (len(self.trials) > _SHOWN)
        failed = [f"trial {t.number} failed: {t.error}" for t in self.trials[:_SHOWN] if t.status == "failed"]
        share = self.epochs / self.possible
        return "\n".join(
            [
                *aligned(table(self.trials[:_SHOWN], self.objective)),
                *more,
                *failed,
                f"{ended}; {self.epochs:,} epochs, {share:.0%} of {self.possible:,}; trial {self.trials[0].number} won",
                *([f"{len(self.exploits)} times a trial copied a better one"] if self.exploits else []),
                f"{self.split}, {self.measurement.samples:,} samples, "
                "cross-fitted thresholds (the best of several trials looks better than it is)",
                self.measurement.table(),
                *([] if self.confirmation is None else self.confirmation.lines()),
                *([f"Warning: {self.no_ensemble}"] if self.no_ensemble else []),
                *([] if self.ensemble is None else self.ensemble.lines()),
                f"config  {self.best_config}",
                f"model   {self.model}",
                f"page    {self.page}",
            ]
        )
