"""Label files to multi-hot targets, joined to images by key and never by position.

Read here: a folder of per-label text files (one image a line: a bare number, a file name with or without its extension,
or a relative path), a wide CSV or TSV (one column a label: 1, 0, or -1 for unknown), and a CSV or TSV of two columns
(image, and its labels with a delimiter between them).
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlic.errors import DataError

_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.DOTALL)
_CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0, "-1": -1, "-1.0": -1}
_DELIMITERS = ";|, "


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


def read_annotations(path: Path) -> Annotations:
    """Read label files. Raises DataError for a missing, empty or malformed one, with file and line."""
    if path.is_dir():
        lists = sorted(file for file in path.iterdir() if file.suffix == ".txt" and not file.name.startswith("."))
        tables = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".tsv"))
        if lists:
            return _read_lists(path, lists)
        if len(tables) == 1:
            return _read_table(tables[0])
        what = f"{len(tables)} tables and no .txt list" if tables else "no .txt list and no .csv or .tsv table"
        raise DataError(f"the label folder {path} holds {what}.", "give a folder of LABEL.txt lists, or one table.")
    if not path.exists():
        raise DataError(f"the labels {path} do not exist.", "check the path given to --labels.")
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(
            f"cannot tell the format of the labels {path}.",
            "give a folder of LABEL.txt lists, or a .csv or .tsv table.",
        )
    return _read_table(path)


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
        self.exact = {path: i for i, path in enumerate(paths)}
        self.loose: dict[str, list[int]] = defaultdict(list)
        self.numbers: dict[int, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            file = path.rpartition("/")[2]
            key, stem = path[: -len(Path(path).suffix)], file[: -len(Path(file).suffix)]
            for name in {key, file, stem} - {path}:
                self.loose[name].append(i)
            if match := _NUMBERED.match(stem):
                self.numbers[int(match[2])].append(i)

    def __call__(self, name: str, where: str) -> int | None:
        found = self.exact.get(name.removeprefix("./"))
        if found is not None:
            return found
        candidates = self.loose.get(name.removeprefix("./")) or (
            self.numbers.get(int(name)) if _is_number(name) else None
        )
        if not candidates:
            return None
        if len(candidates) > 1:
            a, b = (self.paths[i] for i in candidates[:2])
            raise DataError(
                f"{where}: {name!r} could mean {a} or {b}.", "name the image by its path within the folder."
            )
        return candidates[0]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _read_lists(folder: Path, files: Sequence[Path]) -> Annotations:
    marks: dict[str, dict[int, int]] = {}
    where: dict[str, str] = {}
    numbers = 0
    for label, file in enumerate(files):
        for line, name in _lines(file):
            name = name.strip()
            if not name:
                continue
            if any(ord(char) < 32 for char in name):
                raise DataError(f"{file}:{line}: {name!r} is not one image's name.", "write one image a line.")
            marks.setdefault(name, {})[label] = 1
            where.setdefault(name, f"{file}:{line}")
            numbers += _is_number(name)
    if not marks:
        raise DataError(f"the {len(files)} lists in {folder} are all empty.", "write one image a line.")
    total = sum(len(labels) for labels in marks.values())
    return Annotations(
        tuple(file.stem for file in files), marks, where, f"{len(files)} labels from per-label lists in {folder}",
        bare_numbers=numbers * 2 > total,
    )  # fmt: skip


def _read_table(file: Path) -> Annotations:
    rows = _rows(file)
    _, header = next(rows, (0, []))
    if len(header) < 2:
        raise DataError(f"{file}:1: a header with an image column and labels is needed.", "add the header line.")
    body = list(rows)
    if not body:
        raise DataError(f"{file} holds a header and nothing else.", "add one line for each image.")
    for line, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{file}:{line}: {len(cells)} columns where the header has {len(header)}.", "mend that line."
            )
    if len(header) == 2 and any(cells[1].strip().lower() not in _CELLS for _, cells in body):
        return _delimited(file, body)
    return _wide(file, header, body)


def _wide(file: Path, header: Sequence[str], body: Sequence[tuple[int, list[str]]]) -> Annotations:
    labels = tuple(name.strip() for name in header[1:])
    twice = {name for name in labels if labels.count(name) > 1 or not name}
    if twice:
        raise DataError(f"{file}:1: the label {min(twice)!r} stands twice or is empty.", "give each column a name.")
    marks: dict[str, dict[int, int]] = {}
    where: dict[str, str] = {}
    for line, cells in body:
        name = _new_name(file, line, cells[0], marks)
        where[name] = f"{file}:{line}"
        marks[name] = {}
        for label, cell in enumerate(cells[1:]):
            value = _CELLS.get(cell.strip().lower())
            if value is None:
                raise DataError(
                    f"{file}:{line}: {cell!r} for the label {labels[label]!r} is not 1, 0 or -1.",
                    "mend that cell.",
                )
            if value:
                marks[name][label] = value
    return Annotations(labels, marks, where, f"{len(labels)} labels from the columns of {file}")


def _delimited(file: Path, body: Sequence[tuple[int, list[str]]]) -> Annotations:
    joined = "\n".join(cells[1] for _, cells in body)
    delimiter = next((d for d in _DELIMITERS if d in joined), _DELIMITERS[0])
    sets: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for line, cells in body:
        name = _new_name(file, line, cells[0], sets)
        where[name] = f"{file}:{line}"
        sets[name] = [label.strip() for label in cells[1].split(delimiter) if label.strip()]
    labels = tuple(sorted({label for names in sets.values() for label in names}))
    number = {label: i for i, label in enumerate(labels)}
    marks = {name: {number[label]: 1 for label in names} for name, names in sets.items()}
    return Annotations(labels, marks, where, f"{len(labels)} labels from the lists (by {delimiter!r}) in {file}")


def _new_name(file: Path, line: int, cell: str, seen: Iterable[str]) -> str:
    name = cell.strip()
    if not name:
        raise DataError(f"{file}:{line}: the image is not named.", "mend or delete that line.")
    if name in seen:
        raise DataError(f"{file}:{line}: the image {name!r} has a line already.", "keep one of the two lines.")
    return name


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV or TSV with the line that each ends on; blank lines are skipped."""
    text = (line for _, line in _lines(file))
    first = next(text, "")
    delimiter = "\t" if file.suffix == ".tsv" or "\t" in first else ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader((line for part in ([first], text) for line in part), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}.", "mend that line.") from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 text file with their numbers. Raises DataError at a line that is not text."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the labels {file}: {error.strerror}.", "check the file.") from None
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{file}:{number}: not UTF-8 text.", "save the file as UTF-8.") from None
        if "\0" in line:
            raise DataError(f"{file}:{number}: a NUL byte; this is not a text file.", "mend that line.")
        yield number, line
