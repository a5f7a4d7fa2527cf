"""The table of suspected label errors: write it, read it back with the verdicts of a person, and apply them.

Filename    the image, by its path among the images
label       the label in doubt
given       what the label files say of it: 1, 0 or -1 for unknown
verdict     ? until a person writes what is right: 1, 0 or -1
suggestion  what the models and the rules say
score       the out-of-fold score of the label
evidence    the log-odds that `given` is wrong, by which the rows are ranked
reason      the same in words

Only the first four columns are read back, in any order; other columns are ignored.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mlic.config.types import Location
from mlic.data import label_join, storage
from mlic.data.image_labels import Builder
from mlic.errors import DataError

Array = np.ndarray[Any, Any]

COLUMNS = ("Filename", "label", "given", "verdict", "suggestion", "score", "evidence", "reason")
_READ = COLUMNS[:4]
_OPEN = "?"
_VALUES = ("1", "0", "-1")


@dataclass(frozen=True)
class Suspect:
    """A row of the table before a person saw it."""

    file: str
    label: str
    given: int
    suggestion: int
    score: float
    evidence: float
    reason: str


@dataclass(frozen=True)
class Corrections:
    """Rows (K,) as they were read: `names` and `labels` are text, `given` and `verdict` int8.

    `decided` (K,) bool is False where the verdict is open; there, `verdict` equals `given`. `line` is the line of a
    row.
    """

    source: Location
    names: tuple[str, ...]
    labels: tuple[str, ...]
    given: Array
    verdict: Array
    decided: Array
    line: Array

    def decisions(self) -> list[tuple[str, str, int, int]]:
        """The decided rows, sorted, so that their order in the file does not matter; open rows are left out."""
        rows = zip(self.names, self.labels, self.given.tolist(), self.verdict.tolist(), self.decided, strict=True)
        return sorted(row[:4] for row in rows if row[4])

    def where(self, row: int) -> str:
        """Where the row stands, as file:line."""
        return f"{self.source}:{self.line[row]}"


def table(rows: Iterable[Suspect]) -> bytes:
    """The table with open verdicts, in UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            (
                row.file,
                row.label,
                row.given,
                _OPEN,
                row.suggestion,
                f"{row.score:.4f}",
                f"{row.evidence:.2f}",
                row.reason,
            )
        )
    return text.getvalue().encode("utf-8", "backslashreplace")


def read(path: Location) -> Corrections:
    """Read a table that a person may have edited. Raises DataError when it is none, or for a verdict that is none."""
    try:
        text = storage.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"the corrections {path} do not exist.", "mlic noise writes a table of suspects.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the corrections {path}: {error}.", "save the table as UTF-8 text.") from None
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        header = next(lines, [])
        absent = [name for name in _READ if name not in header]
        if absent:
            raise DataError(
                f"{path} has no column {absent[0]!r}.", "keep the header of suspects.tsv, and tabs between columns."
            )
        columns = [header.index(name) for name in _READ]
        rows = [(lines.line_num, *_cells(path, lines.line_num, line, columns)) for line in lines if any(line)]
    except csv.Error as error:
        raise DataError(f"{path}:{lines.line_num}: {error}.", "save the table as text with tabs.") from None
    labels_given = [int(row[3]) for row in rows]
    decided = np.array([row[4] != _OPEN for row in rows], bool)
    verdict = [int(row[4]) if yes else was for row, yes, was in zip(rows, decided, labels_given, strict=True)]
    return Corrections(
        path,
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        np.array(labels_given, np.int8),
        np.array(verdict, np.int8),
        decided,
        np.array([row[0] for row in rows], np.int64),
    )


def _cells(path: Location, number: int, line: Sequence[str], columns: Sequence[int]) -> tuple[str, str, str, str]:
    if len(line) <= max(columns):
        raise DataError(f"{path}:{number} has {len(line)} cells, fewer than the header.", "fix or delete that line.")
    name, label, label_given, verdict = (line[i] for i in columns)
    label_given, verdict = label_given.strip(), verdict.strip()
    if verdict not in (*_VALUES, _OPEN):
        raise DataError(f"{path}:{number}: the verdict is {verdict!r}.", "write 1, 0, -1 for unknown, or leave it ?.")
    if label_given not in _VALUES:
        raise DataError(
            f"{path}:{number}: given is {label_given!r}, not 1, 0 or -1.", "leave that column as it was written."
        )
    return name, label, label_given, verdict


def apply(corrections: Corrections, names: Sequence[str], paths: pa.Array, targets: Array) -> tuple[Array, int]:
    """Targets (N, L) with the verdicts instead of the values in the label files, and the number of changed targets.

    `names` (L,) are the labels and `paths` (N,) the images, as `label_join.join` takes them. Raises DataError for
    labels and images that are not there, for rows that were written for other labels, and for two verdicts about one.
    """
    number = {name: i for i, name in enumerate(names)}
    unknown = next((row for row, name in enumerate(corrections.labels) if name not in number), None)
    if unknown is not None:
        near = difflib.get_close_matches(corrections.labels[unknown], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"the labels are {', '.join(names)}."
        raise DataError(f"{corrections.where(unknown)}: there is no label {corrections.labels[unknown]!r}.", hint)
    image = _images(corrections, paths)
    lost = np.flatnonzero(image < 0)
    if len(lost):
        first = int(lost[0])
        raise DataError(
            f"{len(lost):,} of {len(image):,} rows of {corrections.source} name no image; the first is "
            f"{corrections.names[first]!r} in line {corrections.line[first]}.",
            "give the images that mlic noise was run for, or delete those rows.",
        )
    label = np.array([number[name] for name in corrections.labels], np.int64)
    decided = np.flatnonzero(corrections.decided)
    now = targets[image[decided], label[decided]]
    stale = decided[now != corrections.given[decided]]
    if len(stale):
        row = int(stale[0])
        raise DataError(
            f"{corrections.where(row)}: {corrections.labels[row]!r} of {corrections.names[row]!r} is given as "
            f"{corrections.given[row]}, and the label files say {targets[image[row], label[row]]}.",
            "the table is older than the label files: delete such rows, or run mlic noise again.",
        )
    verdicts: dict[tuple[int, int], int] = {}
    for row in decided.tolist():
        before = verdicts.setdefault((int(image[row]), int(label[row])), row)
        if corrections.verdict[before] != corrections.verdict[row]:
            raise DataError(
                f"{corrections.where(row)}: {corrections.labels[row]!r} of {corrections.names[row]!r} has another "
                f"verdict in line {corrections.line[before]}.",
                "keep one of the two lines.",
            )
    corrected = targets.copy()
    corrected[image[decided], label[decided]] = corrections.verdict[decided]
    return corrected, int((corrected != targets).sum())


def _images(corrections: Corrections, paths: pa.Array) -> Array:
    """The image (K,) of each row, -1 for none; in tables, bytes that are not UTF-8 are written as escapes."""
    builder = Builder()
    for name, line in zip(corrections.names, corrections.line.tolist(), strict=True):
        builder.image(name, str(corrections.source), line)
    try:
        paths.cast(pa.large_string())
    except pa.ArrowInvalid:
        paths = pa.array([path.decode("utf-8", "backslashreplace").encode() for path in paths.to_pylist()])
        paths = paths.cast(pa.large_binary())
    named = builder.build((), str(corrections.source), repeats="union")
    of_name = dict(zip(named.names.to_pylist(), label_join.resolve(named, paths).image.tolist(), strict=True))
    return np.array([of_name[name] for name in corrections.names], np.int64)
