"""How a text table is written: its encoding, its separator, and which of its lines are rows."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlic.data.annotations.column_names import LABEL_COLUMNS, NAME_COLUMNS, SPLITS, VALUE_COLUMNS
from mlic.data.annotations.files.text_files import encoding_of, text_lines
from mlic.errors import DataError

KNOWN = frozenset({*NAME_COLUMNS, *LABEL_COLUMNS, *VALUE_COLUMNS, *SPLITS})  # names of columns
LOOKED_AT = 100  # lines that tell a file's dialect
# Between the names and the rows: |---|---|, ----+---- or +----+----+
_RULE = re.compile(r"[\s|+:=-]*[=-]{2}[\s|+:=-]*")
_WORD = re.compile(r'"([^"]*)"(?!\S)|(\S+)')
_FOOT = re.compile(r"\s*\(\d+ rows?\)\s*")
_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Dialect:
    """How a text table is written: separator ("" for any blanks), lines before the first row, encoding, drawn lines.

    With `is_marked`, the line of names begins with a #.
    """

    separator: str
    skipped: int
    encoding: str
    notes: tuple[str, ...] = ()
    is_drawn: bool = False
    is_marked: bool = False


def dialect_of(file: Path) -> Dialect:
    """How the first lines of a file are written."""
    encoding = encoding_of(file)
    notes = (
        () if encoding.startswith("utf-8") else (f"encoding {'UTF-16' if encoding == 'utf-16' else 'Windows-1252'}",)
    )
    lines = [line for _, line in itertools.islice(text_lines(file, encoding), LOOKED_AT)]
    skipped, separator = 0, None
    while skipped < len(lines):
        line = lines[skipped].strip()
        if match := re.fullmatch(r"sep=(.)\s*", lines[skipped].strip("\r\n")):
            separator = match[1]
        elif line and not (line.startswith("#") and skipped + 1 < len(lines)):
            break
        skipped += 1
    body = [re.sub(r'"[^"]*"', "", line) for line in lines[skipped:] if line.strip()]
    if separator is None and _is_drawn(body):
        return Dialect("|", skipped, encoding, (*notes, "a table that is drawn with characters"), True)
    separator = separator or _separator(file, body)
    is_marked = skipped > 0 and bool(body) and _names_columns(lines[skipped - 1], body[0], separator)
    return Dialect(separator, skipped - is_marked, encoding, notes, is_marked=is_marked)


def _names_columns(line: str, first_row: str, separator: str) -> bool:
    """Whether a line with a # in front names columns: as many as a row has cells, one of them by a known name."""
    text = line.strip()
    if not text.startswith("#"):
        return False
    names = text.lstrip("# ").split(separator or None)
    known = {name.strip().strip('"').lower() for name in names} & KNOWN
    return len(names) == len(first_row.split(separator or None)) > 1 and bool(known)


def _separator(file: Path, body: Sequence[str]) -> str:
    first = body[0] if body else ""
    if "\t" in first or ".tsv" in file.name.lower():
        return "\t"
    if first.count(";") > first.count(","):
        return ";"
    is_csv = ".csv" in file.name.lower()
    if "," in first and (is_csv or len(first.split()) < 2 or ", " in first):
        return ","
    if "|" in first and "," not in first:
        return "|"
    if is_csv and not all(len(line.split()) == len(body[-1].split()) > 1 for line in body[-3:]):
        return ","
    return "" if len(first.split()) > 1 or (len(body) > 1 and len(body[1].split()) > 1) else ","


def rows_of(file: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each ends on; blank lines are skipped."""
    lines: Iterator[tuple[int, str]] = itertools.islice(text_lines(file, dialect.encoding), dialect.skipped, None)
    if dialect.is_marked:
        number, names = next(lines)
        lines = itertools.chain([(number, names.lstrip("# "))], lines)
    if dialect.is_drawn:
        drawn = ((number, _cells(line)) for number, line in lines)
        yield from ((number, row) for number, row in drawn if row)
        return
    if not dialect.separator:
        yield from ((number, _words(line)) for number, line in lines if line.strip())
        return
    reader = csv.reader((line for _, line in lines), delimiter=dialect.separator, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num + dialect.skipped, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num + dialect.skipped}: {error}.", "fix that line.") from None


def _words(line: str) -> list[str]:
    """The words of a line; one in quotes may hold blanks."""
    if '"' not in line:
        return line.split()
    return [quoted or plain for quoted, plain in _WORD.findall(line)]


# Tables that are drawn with characters: Markdown's, and those that databases print


def _is_drawn(lines: Sequence[str]) -> bool:
    """Whether the first lines of a text are a table with a line drawn below the names of its columns."""
    return any(_RULE.fullmatch(line) for line in lines[1:3]) and "," not in lines[0]


def _cells(line: str) -> list[str]:
    """The cells of a line; none where it is a drawn line, or a count of rows at the end."""
    if _RULE.fullmatch(line) or _FOOT.fullmatch(line):
        return []
    if not _BAR.search(line):
        return line.split()
    parts = _BAR.split(line.strip().removeprefix("|"))
    if len(parts) > 1 and not parts[-1].strip() and line.rstrip().endswith("|"):
        parts.pop()
    return [part.strip().replace("\\|", "|") for part in parts]
