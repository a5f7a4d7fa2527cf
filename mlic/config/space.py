"""The search space: the values of each setting, and the condition under which it is drawn."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from mlic.config.base import Model

if TYPE_CHECKING:
    import numpy as np

Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | dict[str, float] | None
_Whole = tuple[int, int]
_KINDS = ("choice", "grid", "uniform", "loguniform", "int", "logint")


def _when(value: Any) -> Any:
    """`optimizer: sgd` is `optimizer: [sgd]`."""
    if not isinstance(value, dict):
        return value
    return {key: item if isinstance(item, list | tuple) else [item] for key, item in value.items()}


class Dimension(Model):
    """What one setting is drawn from: exactly one of the first six, and other settings' values that it needs.

    `grid` differs from `choice` in that its values take turns over the trials, so that all of their combinations come
    up; the ends of `int` and `logint` belong to them.
    """

    choice: tuple[Value, ...] | None = Field(None, min_length=1)
    grid: tuple[Value, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: _Whole | None = None
    logint: _Whole | None = None
    when: Annotated[dict[str, tuple[Value, ...]], BeforeValidator(_when)] = Field({})

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in _KINDS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}, not {' and '.join(kinds) or 'none'}")
        if self.listed is None:
            low, high = self.bounds
            if not low <= high or (kinds[0].startswith("log") and low <= 0):
                above = " above 0" if kinds[0].startswith("log") else ""
                raise ValueError(f"{kinds[0]} should be [low, high]{above}, not [{low:g}, {high:g}]")
        return self

    def __repr__(self) -> str:
        """As it stands in a configuration file."""
        kind = next(name for name in _KINDS if getattr(self, name) is not None)
        when = ", ".join(f"{name}: {list(allowed)}" for name, allowed in self.when.items())
        return f"{{{kind}: {list(getattr(self, kind))}" + (f", when: {{{when}}}" if when else "") + "}"

    @property
    def listed(self) -> tuple[Value, ...] | None:
        """The values that it has, where they are given one by one."""
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value of an interval."""
        return next(
            interval for interval in (self.uniform, self.loguniform, self.int, self.logint) if interval is not None
        )

    @property
    def whole(self) -> bool:
        return self.int is not None or self.logint is not None

    @property
    def log(self) -> bool:
        return self.loguniform is not None or self.logint is not None

    @property
    def ends(self) -> tuple[Value, ...]:
        """All values of a list, or the ends of an interval: what is tried before a search begins."""
        return self.listed if self.listed is not None else self.bounds

    def draw(self, rng: np.random.Generator) -> Value:
        """One value; numbers have four significant digits."""
        if self.listed is not None:
            return self.listed[int(rng.integers(len(self.listed)))]
        low, high = self.bounds
        if self.log:
            value = math.exp(rng.uniform(math.log(low), math.log(high + self.whole)))
            return min(math.floor(value), math.floor(high)) if self.whole else rounded(value)
        return int(rng.integers(int(low), int(high) + 1)) if self.whole else rounded(float(rng.uniform(low, high)))


def rounded(value: float) -> float:
    """A number with four significant digits, as it is shown, so that what is written is what was run."""
    return float(f"{value:.4g}")


def draw(space: Mapping[str, Dimension], seed: int, number: int) -> dict[str, Value]:
    """The settings of trial `number`: a pure function, with a stream of random numbers for each dimension.

    So a dimension more leaves the others' draws as they were, and so does a trial more.
    """
    import numpy as np  # not for those who ask for --help alone

    grid = _cells({name: dimension for name, dimension in space.items() if dimension.grid is not None})
    values: dict[str, Value] = dict(grid[number % len(grid)])
    for name, dimension in space.items():
        if dimension.grid is None:
            values[name] = dimension.draw(np.random.default_rng([seed, 5, number, zlib.crc32(name.encode())]))
    return active(space, values)


def grid(space: Mapping[str, Dimension]) -> list[dict[str, Value]]:
    """All combinations of a space of lists, those that differ only in what their conditions leave out once.

    Raises ValueError where a dimension is an interval.
    """
    for name, dimension in space.items():
        if dimension.listed is None:
            raise ValueError(f"space.{name} is an interval, which has no grid; give it as choice or grid")
    combinations = {repr(settings): settings for cell in _cells(space) for settings in [active(space, cell)]}
    return list(combinations.values())


def active(space: Mapping[str, Dimension], values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of the values whose conditions hold; one that depends on another that does not is left out, too."""
    drawn: dict[str, Value] = {}
    for name in order(space):
        wanted = space[name].when
        if all(other in drawn and drawn[other] in allowed for other, allowed in wanted.items()):
            drawn[name] = values[name]
    return {name: drawn[name] for name in space if name in drawn}


def order(space: Mapping[str, Dimension]) -> list[str]:
    """The names such that each comes after those that its condition asks for. Raises ValueError where there is none."""
    placed: list[str] = []
    left = list(space)
    while left:
        ready = [name for name in left if all(other in placed for other in space[name].when)]
        if not ready:
            name = left[0]
            other = next(other for other in space[name].when if other not in placed)
            why = "which waits for it in turn" if other in space else "which is not in the space"
            raise ValueError(f"space.{name} is drawn when {other} has some value, {why}")
        placed += ready
        left = [name for name in left if name not in ready]
    return placed


def nested(values: Mapping[str, Value]) -> dict[str, Any]:
    """`{"arch_options.hidden": 5}` as `{"arch_options": {"hidden": 5}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        into = tree
        for parent in parents:
            into = into.setdefault(parent, {})
        into[leaf] = value
    return tree


def _cells(space: Mapping[str, Dimension]) -> list[dict[str, Value]]:
    lists: Sequence[tuple[Value, ...]] = [dimension.listed or () for dimension in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*lists)]
