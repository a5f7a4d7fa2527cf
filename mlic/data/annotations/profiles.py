"""What the cells of each column of a table are like, before it is known what the columns mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlic.data.annotations.cells import Kind, kind_of
from mlic.data.annotations.files.table_files import Table
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError

_SAMPLE, _DISTINCT = 200, 1000
_NUMBERS = re.compile(r"\d+(\s*[,;| ]\s*\d+)+")


@dataclass
class Profile:
    """What the cells of a column are like: how many of each kind, some of them, all distinct ones if they are few."""

    name: str
    rows: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    sample: list[Any] = field(default_factory=list)
    distinct: set[Any] | None = field(default_factory=set)
    endings: int = 0  # cells that end in an image's extension
    has_numbers: bool = False  # whether a cell lists several numbers, as `0,3`
    counted: bool = True  # whether all cells so far are 0, 1, 2, ...

    def add(self, cells: Sequence[Any]) -> None:
        """Take in more cells."""
        counts: Iterable[tuple[Any, int]]
        try:
            counts = Counter(cells).items()
        except TypeError:  # lists and mappings have no hash
            counts = ((cell, 1) for cell in cells)
        for cell, count in counts:
            kind = kind_of(cell)
            self.kinds[kind] += count
            if kind == "text" and isinstance(cell, str) and Path(cell).suffix.lower() in EXTENSIONS:
                self.endings += count
            self.has_numbers = self.has_numbers or (
                kind == "text" and _NUMBERS.fullmatch(str(cell).strip()) is not None
            )
            if len(self.sample) < _SAMPLE and kind not in ("blank", "missing"):
                self.sample.append(cell)
            if self.distinct is not None and isinstance(cell, str | int | float):
                self.distinct.add(cell)
                if len(self.distinct) > _DISTINCT:
                    self.distinct = None
        if self.counted:
            self.counted = [str(cell).strip() for cell in cells] == [
                str(number) for number in range(self.rows, self.rows + len(cells))
            ]
        self.rows += len(cells)

    @property
    def filled(self) -> int:
        """How many cells hold something."""
        return self.rows - self.kinds["blank"] - self.kinds["missing"]

    def is_binary(self, fractions: bool) -> bool:
        """Whether most cells say yes, no or unknown; `fractions` may be confidences."""
        answers = self.kinds["word"] + (self.kinds["fraction"] if fractions else 0)
        return answers > 0 and answers * 2 >= self.filled and not self.has_numbers

    @property
    def example(self) -> str:
        return str(self.sample[0])[:30] if self.sample else ""


def profiles_of(table: Table) -> tuple[Profile, ...]:
    """Look at all cells of a table. Raises DataError when it has no rows."""
    profiles = tuple(Profile(name) for name in table.columns)
    for block in table.blocks():
        for profile, cells in zip(profiles, block.columns, strict=True):
            profile.add(cells)
    if not profiles or not profiles[0].rows:
        raise DataError(f"{table.file} holds a header and nothing else.", "add one line for each image.")
    return profiles
