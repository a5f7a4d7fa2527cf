"""Population-based training: the worst trials of a population copy the best ones and explore from there.

Jaderberg et al., Population Based Training of Neural Networks, arXiv:1711.09846, in step: all members are compared when
all of them have come to the same epoch, so an exchange depends on their values and on nothing else.

`population.json` has every exchange, and up to which epoch they have been carried out. An exchange is written before it
is carried out and carried out before anybody trains on, so one that was interrupted is carried out again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic.config.space import Dimension, Value, rounded
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError
from mlic.runs.files import temporary, write_json
from mlic.train import checkpoints
from mlic.tune.early_stopping import Search

if TYPE_CHECKING:
    import numpy as np

_ANEW = 0.25  # how often a setting is drawn anew and not changed a little, as in the paper
_FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Exchange:
    """After `epoch` epochs, `trial`, which had `value`, copies `source` and continues with `settings`."""

    epoch: int
    trial: int
    source: int
    value: float
    settings: dict[str, Value]


def exchanges(
    values: Mapping[int, float],
    settings: Mapping[int, Mapping[str, Value]],
    space: Mapping[str, Dimension],
    movable: tuple[str, ...],
    epoch: int,
    factor: int,
    seed: int,
) -> list[Exchange]:
    """Which trials copy which: each of the worst 1/factor copies one of the best 1/factor, drawn at random.

    `values` and `settings` are those of the members after `epoch` epochs; `movable` names what of the `space` can
    change while a network is trained. What has changed is a setting `changes.EPOCH.NAME` more.
    """
    import numpy as np

    ranking = sorted(values, key=lambda trial: (-values[trial], trial))
    count = len(ranking) // factor
    found = []
    for trial in sorted(ranking[len(ranking) - count :]):
        rng = np.random.default_rng([seed, 29, epoch, trial])
        source = ranking[int(rng.integers(count))]
        changed = {
            f"changes.{epoch}.{name}": _explored(space[name], current(settings[source], name), rng)
            for name in movable
            if name in settings[source]
        }
        found.append(Exchange(epoch, trial, source, values[trial], {**settings[source], **changed}))
    return found


def current(settings: Mapping[str, Value], name: str) -> Value:
    """What a setting has become by the last of its changes."""
    changes = [key.split(".", 2) for key in settings if key.startswith("changes.")]
    last = max((int(epoch) for _, epoch, changed in changes if changed == name), default=None)
    return settings[name if last is None else f"changes.{last}.{name}"]


def _explored(dimension: Dimension, value: Value, rng: np.random.Generator) -> Value:
    """Explore a value: draw it again, or take a neighbour in a list, or 0.8 or 1.2 times it within the interval."""
    anew, up = rng.random() < _ANEW, int(rng.integers(2))
    if anew:
        return dimension.draw(rng)
    if dimension.listed is not None:
        place = dimension.listed.index(value) + (1 if up else -1)
        return dimension.listed[min(max(place, 0), len(dimension.listed) - 1)]
    low, high = dimension.bounds
    moved = float(value) * _FACTORS[up]  # type: ignore[arg-type]
    if dimension.whole:
        return int(min(max(round(moved), low), high))
    return min(max(rounded(moved), low), high)


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
        """Let the worst trials copy the best ones after `epoch` epochs; returns the trials that changed."""
        config, search = self._config, self._search
        members = search.open
        found = exchanges(
            {number: search.values(number)[epoch - 1] for number in members},
            {number: self(number) for number in members},
            config.space,
            config.movable,
            epoch,
            config.reduction_factor,
            config.seed,
        )
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
