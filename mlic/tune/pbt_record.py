"""The population of a search by population-based training, as it is on disk.

`population.json` has every exchange, and up to which epoch they have been carried out. An exchange is written before it
is carried out and carried out before anybody trains on, so one that was interrupted is carried out again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlic.config.space import Value
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError
from mlic.runs.files import temporary, write_json
from mlic.train import checkpoints
from mlic.tune.pbt import Exchange, exchanges
from mlic.tune.scheduler import Search

_RECORD = "population.json"


class Population:
    """The settings of the members as exchanges have made them, and the exchanges."""

    def __init__(self, config: TuneConfig, run: Path, folder: Callable[[int], Path], search: Search) -> None:
        """Carry out what was interrupted. Raises ConfigError when the population on disk is of another size."""
        self._config, self._run, self._folder, self._search = config, run, folder, search
        self._drawn = config.draws()
        self.exchanges: list[Exchange] = []
        self._done = 0
        path = run / _RECORD
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["size"] != search.count:
                raise ConfigError(
                    f"the population in {run} has {record['size']} trials, not {search.count}, and cannot change.",
                    f"--num-samples {record['size']}, or --fresh.",
                )
            self.exchanges = [Exchange(**each) for each in record["exchanges"]]
            self._done = record["done"]
            self._carry_out(max((each.epoch for each in self.exchanges), default=0))
        search.compared = self._done

    def __call__(self, number: int) -> dict[str, Value]:
        """The settings of a member, those that changed on its way included."""
        last = next((each for each in reversed(self.exchanges) if each.trial == number), None)
        return self._drawn(number) if last is None else last.settings

    def exchange(self, epoch: int) -> list[int]:
        """Let the worst members take over the best, now that all have so many epochs; returns those that did."""
        config, search = self._config, self._search
        members = search.open
        found = exchanges(
            {number: search.values(number)[epoch - 1] for number in members},
            {number: self(number) for number in members}, config.space, config.movable, epoch,
            config.reduction_factor, config.seed,
        )  # fmt: skip
        self.exchanges += found
        self._write()
        self._carry_out(epoch)
        for each in found:
            search.tell(each.trial, search.values(each.source))
        search.compared = epoch
        return [each.trial for each in found]

    def _carry_out(self, epoch: int) -> None:
        """Copy what the sources of an epoch's exchanges have; nobody has trained on since they were decided."""
        if epoch <= self._done:
            return
        for each in self.exchanges:
            if each.epoch != epoch:
                continue
            own, source = self._folder(each.trial), self._folder(each.source)
            for name in checkpoints.FILES:
                with temporary(own / name) as part:
                    shutil.copyfile(source / name, part)
                    part.replace(own / name)
            write_json(own / "trial.json", each.settings)
        self._done = epoch
        self._write()

    def _write(self) -> None:
        record: dict[str, Any] = {"size": self._search.count, "done": self._done}
        write_json(self._run / _RECORD, record | {"exchanges": [dataclasses.asdict(each) for each in self.exchanges]})
