"""Tables of labels: CSV, TSV and Parquet, wide, delimited or long."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlic.data.annotations.builders import Columns, build_named, image_name, text_lines
from mlic.data.images import EXTENSIONS
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError

_CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0, "-1": -1, "-1.0": -1}
_DELIMITERS = ";|, "
Row = tuple[int, list[str]]  # a line's number and its cells


def read_table(file: Path, format: str | None, columns: Columns) -> Annotations:
    header, body = _table(file)
    if len(header) < 2:
        raise DataError(f"{file}:1: a header with an image column and labels is needed.", "add the header line.")
    _check_header(file, header)
    extra = _extra_columns(file, header, columns)
    places = [i for i in range(1, len(header)) if i not in extra.values()]
    builder = Builder(tuple(extra))
    if format is None:
        format = "wide" if len(places) != 1 else _two_columns(file, places[0])
    if format != "wide" and len(places) != 1:
        raise DataError(f"{file}:1: {len(places) + 1} columns where a {format} table has two.", "check --format.")
    labels = _label_columns(file, [header[i] for i in places]) if format == "wide" else ()
    delimiter = _delimiter(file, places[0]) if format == "delimited" else ""
    for line, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{file}:{line}: {len(cells)} columns where the header has {len(header)}.", "fix that line."
            )
        builder.image(image_name(file, line, cells[0]), str(file), line, *(cells[i].strip() for i in extra.values()))
        if format == "wide":
            _mark_wide(builder, file, line, labels, [cells[i] for i in places])
        else:
            values = cells[places[0]].split(delimiter) if delimiter else [cells[places[0]]]
            for label in values:
                if label.strip():
                    builder.mark(builder.label(label.strip()), 1)
    if not len(builder):
        raise DataError(f"{file} holds a header and nothing else.", "add one line for each image.")
    if format == "wide":
        return builder.build(labels, f"{len(labels)} labels from the columns of {file}")
    source = f"one label per line in {file}" if format == "long" else f"the lists (by {delimiter!r}) in {file}"
    return build_named(builder, None, source, once=format != "long")


def _check_header(file: Path, header: Sequence[str]) -> None:
    """A table without its line of names would silently lose its first image."""
    values = all(cell.strip().lower() in _CELLS for cell in header[1:])
    if values or Path(header[0].strip()).suffix.lower() in EXTENSIONS:
        raise DataError(f"{file}:1: {header[0]!r} begins a line of data, not of column names.", "add the header line.")


def _extra_columns(file: Path, header: Sequence[str], columns: Columns) -> dict[str, int]:
    extra: dict[str, int] = {}
    for kind, name in (("split", columns.split), ("group", columns.group)):
        if name is not None:
            if name not in header[1:]:
                raise DataError(f"{file}:1: no column {name!r}.", f"its columns are {', '.join(header)}.")
            extra[kind] = header.index(name)
    return extra


def _label_columns(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(name.strip() for name in header)
    twice = {name for name in labels if labels.count(name) > 1 or not name}
    if twice:
        raise DataError(f"{file}:1: the label {min(twice)!r} stands twice or is empty.", "give each column a name.")
    return labels


def _mark_wide(builder: Builder, file: Path, line: int, labels: Sequence[str], cells: Sequence[str]) -> None:
    for label, cell in enumerate(cells):
        value = _CELLS.get(cell) if cell in _CELLS else _CELLS.get(cell.strip().lower())
        if value is None:
            raise DataError(
                f"{file}:{line}: {cell!r} for the label {labels[label]!r} is not 1, 0 or -1.", "fix that cell."
            )
        if value:
            builder.mark(label, value)


def _two_columns(file: Path, place: int) -> str:
    """Which kind of table of two columns this is, by its cells."""
    seen: set[str] = set()
    values, repeated = True, False
    for _, cells in _table(file)[1]:
        if len(cells) > place:
            values = values and cells[place].strip().lower() in _CELLS
            repeated = repeated or cells[0].strip() in seen
            seen.add(cells[0].strip())
        if repeated and not values:
            return "long"
    if values:
        return "wide"
    return "delimited" if _delimiter(file, place) else "long"


def _delimiter(file: Path, place: int) -> str:
    """The separator of the labels in a column.

    A space is a separator only if it gives no more different words than there are different cells: "hot dog" is one
    label.
    """
    cells = {cells[place].strip() for _, cells in _table(file)[1] if len(cells) > place} - {""}
    for delimiter in _DELIMITERS[:-1]:
        if any(delimiter in cell for cell in cells):
            return delimiter
    words = {word for cell in cells for word in cell.split()}
    return " " if any(" " in cell for cell in cells) and len(words) <= len(cells) else ""


def _table(file: Path) -> tuple[list[str], Iterator[Row]]:
    """The header of a table and its rows, which are read on demand."""
    rows = _parquet_rows(file) if file.suffix == ".parquet" else _rows(file)
    _, header = next(rows, (0, []))
    return header, rows


def _rows(file: Path) -> Iterator[Row]:
    """Rows of a CSV or TSV with the line that each ends on; blank lines are skipped."""
    text = (line for _, line in text_lines(file))
    first = next(text, "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    delimiter = (
        "\t" if file.suffix == ".tsv" or "\t" in unquoted else ";" if unquoted.count(";") > unquoted.count(",") else ","
    )
    reader = csv.reader((line for part in ([first], text) for line in part), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}.", "fix that line.") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    """The header and rows of a Parquet table as text; lists become the delimited form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield 1, list(table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(50_000):
                columns = [_texts(column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, list(cells)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not valid Parquet: {error}.", "write it again.") from None


def _texts(column: Any) -> list[str]:
    return [
        "" if value is None else _DELIMITERS[0].join(value) if isinstance(value, list) else str(value)
        for value in column.to_pylist()
    ]
