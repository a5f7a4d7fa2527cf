"""Labels of images: what label files say, and the join to images by key, never by position."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlic.errors import DataError

_COLUMNS = ("key", "file", "Filename")
_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.DOTALL)


@dataclass(frozen=True)
class Annotations:
    """What label files say, before it is joined to images.

    `marks` holds, for each image as the files call it, label number -> 1, 0 or -1 (unknown); a label that is not in it
    is 0. `where` says where each image was first named, for messages.
    """

    labels: tuple[str, ...]
    marks: dict[str, dict[int, int]]
    where: dict[str, str]
    source: str
    bare_numbers: bool = False


@dataclass(frozen=True)
class Joined:
    """Targets of images: `targets` is int8 (N, L) with 1, 0 and -1 for unknown; `labelled` is bool (N,)."""

    targets: np.ndarray[Any, Any]
    labelled: np.ndarray[Any, Any]
    missing: list[str] = field(default_factory=list)


def check_names(names: Sequence[str]) -> None:
    """Raise DataError for a label whose name prediction files could not hold: it has to be text, on one line, not a
    column's name of theirs and not the name of a score column."""
    for name in names:
        plain = name.isprintable() and name == name.strip() and name
        if not plain or name in _COLUMNS or name.endswith("_score"):
            raise DataError(
                f"{name!r} cannot be the name of a label: prediction files have columns key, file, Filename and "
                "LABEL_score, and names of one printed line.",
                "rename it in the label files.",
            )


def join(annotations: Annotations, paths: Sequence[str]) -> Joined:
    """Give each image its target.

    `paths` are the images' relative paths, each with another key (the path without its extension). A line of a label
    file names an image by, in this order: relative path, path without extension, file name, file name without
    extension, or bare number ("12" is im12.jpg). Lines that name no image are counted in `missing`.

    Raises DataError when a name could mean two images, when a line is not of the kind that its file holds, or when no
    line names an image.
    """
    resolve = _Resolver(paths)
    targets = np.zeros((len(paths), len(annotations.labels)), dtype=np.int8)
    labelled = np.zeros(len(paths), dtype=bool)
    missing: list[str] = []
    for name, marks in annotations.marks.items():
        number = resolve(name, annotations.where[name])
        if number is None:
            if annotations.bare_numbers and not name.isdigit():
                raise DataError(
                    f"{annotations.where[name]}: {name!r} is neither a number nor the name of an image.",
                    "mend or delete that line.",
                )
            missing.append(name)
            continue
        labelled[number] = True
        for label, value in marks.items():
            if value and targets[number, label] == -value:
                raise DataError(
                    f"{annotations.where[name]}: {name!r} says {value} for {annotations.labels[label]!r}, and another "
                    f"line for the same image ({paths[number]}) says {-value}.",
                    "keep one of the two lines.",
                )
            targets[number, label] = value or targets[number, label]
    if annotations.marks and not labelled.any():
        first = next(iter(annotations.marks))
        raise DataError(
            f"none of the {len(annotations.marks):,} annotated images is among the {len(paths):,} images "
            f"({first!r} is the first; the images look like {paths[0]!r}).",
            "check that the labels belong to this folder.",
        )
    return Joined(targets, labelled, sorted(missing))


class _Resolver:
    """Find the image that a name in a label file means; built once for all names."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        # What a name is compared with, the most definite first: path, path without extension, file name, file stem.
        self.levels: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(4)]
        self.numbers: dict[int, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            file = path.rpartition("/")[2]
            extension = len(Path(file).suffix)
            names = (path, path[: len(path) - extension], file, file[: len(file) - extension])
            for level, name in zip(self.levels, names, strict=True):
                level[name].append(i)
            if match := _NUMBERED.match(names[3]):
                self.numbers[int(match[2])].append(i)

    def __call__(self, name: str, where: str) -> int | None:
        plain = name.removeprefix("./")
        candidates = next((level[plain] for level in self.levels if plain in level), None)
        if candidates is None and is_number(name):
            candidates = self.numbers.get(int(name))
        if not candidates:
            return None
        if len(candidates) > 1:
            a, b = (self.paths[i] for i in candidates[:2])
            raise DataError(
                f"{where}: {name!r} could mean {a} or {b}.", "name the image by its path within the folder."
            )
        return candidates[0]


def is_number(name: str) -> bool:
    """Whether a name is a bare image number."""
    return name.isascii() and name.isdigit()
