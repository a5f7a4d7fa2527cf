"""The trials of a search: their folders, values and ranking."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlic.config.space import Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.runs.files import write_json
from mlic.train import checkpoints, epoch_choice, setup
from mlic.tune.early_stopping import Search
from mlic.tune.trial_worker import TOGETHER, folder_of, parts

_PRUNED = "pruned.json"
Draw = Callable[[int], "dict[str, Value] | None"]


@dataclass(frozen=True)
class Trials:
    """The trials of a search: the search itself, the base folder, and the settings of each trial.

    `draw` gives the settings of a trial by its number, None while they wait for other trials. `plan` makes a
    configuration of them. With `folds`, a trial has one model for each fold. Its metrics by epoch are the means over
    the folds; its value is that of all folds `together`.
    """

    search: Search
    base: Path
    draw: Draw
    plan: Callable[[dict[str, Value]], TrainConfig]
    config: TuneConfig
    folds: int = 0
    together: dict[int, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.search.count

    def folder(self, number: int) -> Path:
        """The folder of a trial."""
        return folder_of(self.base, number)

    def fitted(self, number: int) -> Path:
        """The folder with the checkpoints of a trial, of its first fold where it has several."""
        return parts(self.folder(number), self.folds)[0]

    def failure(self, number: int) -> str | None:
        """Why a trial failed; None of one that did not."""
        path = self.folder(number) / "failed.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else None

    def kept_epoch(self, number: int) -> int | None:
        """The epoch of a trial that is kept, from 1 on; None before its first."""
        return self._kept_epoch(number, self.search.values(number))

    def value(self, number: int) -> float | None:
        """The value that ranks a trial and is reported: the objective of the model that it would deliver."""
        values = self.search.values(number)  # once: another thread may replace it
        epoch = self._kept_epoch(number, values)
        if epoch is None:
            return None
        if self.folds:
            known = self.together.get(number, _read_together(self.folder(number) / TOGETHER))
            return values[epoch - 1] if known is None else known
        return values[epoch - 1]

    def _kept_epoch(self, number: int, values: Sequence[float]) -> int | None:
        """The kept one among the epochs that are reported; the trial's folder may have more of them already."""
        if not values:
            return None
        if self.config.keep_epoch == "best" or self.folds:
            return values.index(max(values)) + 1
        history = checkpoints.read_history(self.folder(number))[: len(values)]
        return epoch_choice.kept_epoch(self.config, history) + 1

    def ranking(self, among: Sequence[int] | None = None) -> list[int]:
        """The trials, all or some, that have a value and did not fail, best first; equal ones by number."""
        search = self.search
        some = range(self.count) if among is None else among
        scored = {
            number: value
            for number in some
            if search.status(number) != "failed" and (value := self.value(number)) is not None
        }
        return sorted(scored, key=lambda number: (-scored[number], number))

    def distinct(self, numbers: Sequence[int]) -> list[int]:
        """The given trials, without those with the same kept model: members of a population share their past."""
        seen, distinct = set[str](), []
        for number in numbers:
            settings, best = self.draw(number) or {}, self.kept_epoch(number) or 0
            past = {
                name: value
                for name, value in settings.items()
                if not name.startswith("changes.") or int(name.split(".")[1]) < best
            }
            if repr(past) not in seen:
                seen.add(repr(past))
                distinct.append(number)
        return distinct

    def recall(self, metric: str) -> None:
        """Tell the search the values in the trials' folders."""
        for number in range(self.count):
            if not self.folder(number).is_dir():
                break  # trials are begun in the order of their numbers
            values = [row[metric] for row in checkpoints.read_history(self.folder(number))]
            pruned = (self.folder(number) / _PRUNED).is_file()
            ended = "failed" if self.failure(number) is not None else "pruned" if pruned else None
            self.search.tell(number, values, ended)

    def note_pruned(self, number: int) -> None:
        """Note that a scheduler of Ray Tune has stopped a trial: what it decided cannot be computed again."""
        write_json(self.folder(number) / _PRUNED, {"epochs": len(self.search.values(number))})

    def drop_checkpoints(self, ended: Sequence[int], keep: int) -> list[int]:
        """Remove the checkpoints of ended trials, except the best epochs of the best trials.

        Returns the trials that keep theirs, best first. The next call then needs only these and the newly ended trials.
        """
        best = [number for number in self.ranking(ended) if self.search.status(number)]
        staying = self._staying(best, keep)
        for number in ended:
            kept_on = number in staying
            for kept in (part / "checkpoints" for part in parts(self.folder(number), self.folds)):
                if kept_on:
                    (kept / "last.pt").unlink(missing_ok=True)
                else:
                    shutil.rmtree(kept, ignore_errors=True)
        return staying

    def _staying(self, best: Sequence[int], keep: int) -> list[int]:
        """The best trials. For an ensemble, the best of each kind of images: only such trials can be averaged."""
        if not self.config.ensemble:
            return list(best[:keep])
        kinds: dict[str, int] = {}
        staying = []
        for number in best:
            plan = self.plan(self.draw(number) or {})
            kind = setup.preprocessing(plan).pixels
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= keep:
                staying.append(number)
        return staying


def _read_together(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["value"])
    except FileNotFoundError:
        return None
