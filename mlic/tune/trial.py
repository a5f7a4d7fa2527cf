"""A trial as a row of the table, during the search and in its report."""

from __future__ import annotations

from collections.abc import Sequence

from mlic.config.base import Model
from mlic.config.space import Value


class Trial(Model):
    """A trial: how it ended, its best value of the objective (None when it has none) and what it was given."""

    number: int
    status: str
    epochs: int
    value: float | None
    best_epoch: int | None
    settings: dict[str, Value]
    error: str | None

    @property
    def drawn(self) -> dict[str, Value]:
        """The settings that it began with, and in `changes` how many of them changed on the way, where some did."""
        began = {name: value for name, value in self.settings.items() if not name.startswith("changes.")}
        changed = len(self.settings) - len(began)
        return began | ({"changes": changed} if changed else {})


def table(trials: Sequence[Trial], objective: str) -> list[list[str]]:
    """A row for each trial below a head, with a column for each setting that one of them was given."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.drawn))
    rows = [["trial", "status", "epochs", objective, *names]]
    for trial in trials:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        cells = [short(trial.drawn.get(name)) for name in names]
        rows.append([f"{trial.number}", trial.status, f"{trial.epochs}", value, *cells])
    return rows


def short(value: Value) -> str:
    """A setting as it is shown; "-" for one that a trial was not given."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
