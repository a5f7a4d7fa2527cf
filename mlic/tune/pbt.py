"""Population-based training: the worst of a population take over the best, and search on from there.

Jaderberg et al., Population Based Training of Neural Networks, arXiv:1711.09846, in step: all members are compared when
all of them have come to the same epoch, so an exchange depends on their values and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlic.config.space import Dimension, Value, rounded

if TYPE_CHECKING:
    import numpy as np

_ANEW = 0.25  # how often a setting is drawn anew and not changed a little, as in the paper
_FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Exchange:
    """After `epoch` epochs member `trial`, which had `value`, goes on as `source` does but with `settings`."""

    epoch: int
    trial: int
    source: int
    value: float
    settings: dict[str, Value]


def exchanges(
    values: Mapping[int, float], settings: Mapping[int, Mapping[str, Value]], space: Mapping[str, Dimension],
    movable: tuple[str, ...], epoch: int, factor: int, seed: int,
) -> list[Exchange]:  # fmt: skip
    """Who takes over whom: each of the worst 1/factor of the members one of the best 1/factor, by its own random draw.

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
            for name in movable if name in settings[source]
        }  # fmt: skip
        found.append(Exchange(epoch, trial, source, values[trial], {**settings[source], **changed}))
    return found


def current(settings: Mapping[str, Value], name: str) -> Value:
    """What a setting has become by the last of its changes."""
    changes = [key.split(".", 2) for key in settings if key.startswith("changes.")]
    last = max((int(epoch) for _, epoch, changed in changes if changed == name), default=None)
    return settings[name if last is None else f"changes.{last}.{name}"]


def _explored(dimension: Dimension, value: Value, rng: np.random.Generator) -> Value:
    """A value near another, or any: the next one of a list, or a fifth more or less, within an interval's bounds."""
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
