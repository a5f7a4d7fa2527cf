"""Tables as blocks of rows: CSV and its relatives, Parquet, JSON Lines and Excel, whatever their columns mean."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlic.data.annotations.cells import WORDS
from mlic.data.annotations.column_names import NAME_COLUMNS
from mlic.data.annotations.files import header_checks, workbooks
from mlic.data.annotations.files.dialects import KNOWN, LOOKED_AT, Dialect, dialect_of, rows_of
from mlic.data.annotations.files.text_files import parsed_json, text_lines
from mlic.data.annotations.json_records import plain_record
from mlic.data.pixels.images import EXTENSIONS
from mlic.data.sources import parquet_images
from mlic.errors import DataError

DELIMITED = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TABLES = (*DELIMITED, ".parquet", ".xlsx")
_ROWS = 1_000  # in a block: cells as text take twenty times their bytes
_DIGITS = re.compile(r"\d+|[0-9a-f]{8,}")
_SPLIT_WORDS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_WORDS = frozenset({"1", "0", "-1", "1.0", "0.0", "-1.0"})


@dataclass(frozen=True)
class Block:
    """Some rows: where each is in its file, and the cells by column (C, n)."""

    lines: Sequence[int]
    columns: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """A table and a way to read its rows, from the start at each call.

    `columns` are the names in order, "" for a column without a name. `has_header` says that the names are from the
    file. `notes` say in words what was found out about the file. `class_names` are names of numbered labels by
    column that the file itself has. `has_images` says that every image has a row, because it is in a cell.
    """

    file: Path
    columns: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]
    has_header: bool = True
    notes: tuple[str, ...] = ()
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    has_images: bool = False
    by_words: bool = False


def is_table(file: Path) -> bool:
    """Whether a file is a table by its name."""
    return file.name.lower().endswith(TABLES)


def open_table(file: Path, is_image: Callable[[str], bool]) -> Table:
    """Open a table. `is_image` says whether a cell is the name of an image. Raises DataError."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        return _parquet(file)
    if name.endswith(".xlsx"):
        rows, notes = workbooks.rows_of(file, is_image)
        table = records(file, lambda: (row for _, row in rows), notes)
        return replace(table, blocks=lambda: _records_in_blocks(rows, table.columns))
    if name.endswith((".jsonl", ".manifest", ".ndjson")):
        return json_lines(file)
    return _text_table(file, is_image)


# Text


def _text_table(file: Path, is_image: Callable[[str], bool]) -> Table:
    dialect = dialect_of(file)
    _, first = next(rows_of(file, dialect), (0, []))
    _, second = next(itertools.islice(rows_of(file, dialect), 1, None), (0, []))
    if len(first) == 1 and first[0].strip().isdigit() and len(second) > 1 and dialect.separator == "":
        return _celeba(file, dialect, second)
    later = max(
        (len(_without_last_blank(row)) for _, row in itertools.islice(rows_of(file, dialect), 1, LOOKED_AT)), default=0
    )
    first = first[: max(len(_without_last_blank(first)), later)]  # a column without a name may hold something
    if not first:
        raise DataError(f"{file} is empty.", "give a table with a line of column names.")
    header_checks.refuse_images(file, first, is_image)
    if begins_with_data(first, is_image) or _is_like_what_follows(file, dialect, first):
        return _without_header(file, dialect, first, is_image)
    header_checks.refuse_two_lines(file, first, second)
    columns, notes = tuple(cell.strip() for cell in first), dialect.notes
    if _have_one_more(file, dialect, len(columns)):
        columns, notes = ("", *columns), (*notes, "the first column has no name, as R writes the names of rows")
    return Table(file, columns, lambda: _blocks(file, dialect, len(columns), 1), notes=notes)


def _have_one_more(file: Path, dialect: Dialect, width: int) -> bool:
    """Whether all rows have one cell more than the line of names, and the last one is not blank."""
    rows = [row for _, row in itertools.islice(rows_of(file, dialect), 1, LOOKED_AT)]
    return bool(rows) and all(len(row) == width + 1 and row[-1].strip() for row in rows)


def begins_with_data(row: Sequence[str], is_image: Callable[[str], bool]) -> bool:
    """Whether the first row of a table is about an image already. Raises DataError where this cannot be told."""
    cells = [cell.strip() for cell in row]
    if cells[0].lower() in NAME_COLUMNS or not cells[0]:
        return False
    if any("://" in cell or Path(cell).suffix.lower() in EXTENSIONS for cell in cells) or is_image(cells[0]):
        return True
    others = [cell.lower() for cell in cells[1:]]
    counted = [str(number) for number in range(len(others))]
    return bool(others) and all(cell in _WORDS for cell in others) and (others != counted or cells[0].isdigit())


def _is_like_what_follows(file: Path, dialect: Dialect, first: Sequence[str]) -> bool:
    """Whether a first row without any known name of a column looks like the rows after it, and so is data."""
    cells = [cell.strip() for cell in first]
    if any(cell.lower() in KNOWN or not cell for cell in cells):
        return False
    rows = [row for _, row in itertools.islice(rows_of(file, dialect), 1, LOOKED_AT)]
    for i, cell in enumerate(cells):
        column = [row[i].strip() for row in rows if i < len(row)]
        pattern = _DIGITS.sub("#", cell)
        if cell in column or (
            pattern != cell and column and all(_DIGITS.sub("#", other) == pattern for other in column)
        ):
            return True
    return False


def _without_header(file: Path, dialect: Dialect, first: Sequence[str], is_image: Callable[[str], bool]) -> Table:
    """A table without names of its columns; rows of Google Vertex AI have as many cells as they have labels."""
    at = next((i for i, cell in enumerate(first[:2]) if "://" in cell), None)
    if at is not None and not all(cell.strip().lower() in _WORDS for cell in first[at + 1 :]):
        columns = ("ml_use", "image", "labels") if at else ("image", "labels")

        def ragged() -> Iterator[Block]:
            rows = (
                (line, [*row[:at], row[at], [name for name in row[at + 1 :] if name]])
                for line, row in rows_of(file, dialect)
            )
            return _in_blocks(rows, len(columns))

        return Table(file, columns, ragged, notes=(*dialect.notes, "Google Vertex AI's CSV, without a header"))
    begins = first[0].strip()
    if (is_image(begins) or Path(begins).suffix.lower() in EXTENSIONS) and _is_ragged(file, dialect):

        def lists() -> Iterator[Block]:
            rows = (
                (line, [row[0], [cell.strip() for cell in row[1:] if cell.strip()]])
                for line, row in rows_of(file, dialect)
            )
            return _in_blocks(rows, 2)

        notes = (*dialect.notes, "no line of column names: each line has an image and its labels")
        return Table(file, ("image", "labels"), lists, notes=notes, by_words=not dialect.separator)
    names = ["" for _ in first]
    names[next((i for i, cell in enumerate(first) if is_image(cell) or Path(cell).suffix.lower() in EXTENSIONS), 0)] = (
        "image"
    )
    notes = (*dialect.notes, "no line of column names: the first line is about an image")
    return Table(file, tuple(names), lambda: _blocks(file, dialect, len(names), 0), False, notes)


def _is_ragged(file: Path, dialect: Dialect) -> bool:
    """Whether the first lines have different numbers of cells, all of which are names after the first."""
    lengths = set[int]()
    for _, row in itertools.islice(rows_of(file, dialect), LOOKED_AT):
        cells = _without_last_blank(row)
        lengths.add(len(cells))
        words = [cell.strip().lower() for cell in cells[1:]]
        if any(re.fullmatch(r"[-+\d.,%]*", word) or word in WORDS or word in _SPLIT_WORDS for word in words):
            return False
    return len(lengths) > 1


def _celeba(file: Path, dialect: Dialect, names: Sequence[str]) -> Table:
    _, row = next(itertools.islice(rows_of(file, dialect), 2, None), (0, []))
    if len(names) == 2 < len(row) - 1:
        raise DataError(
            f"{file}:2: two names of columns where lines have an image and {len(row) - 1} values, as in DeepFashion.",
            "write `image` and the name of each value there; DeepFashion has them in list_attr_cloth.txt.",
        )
    columns = tuple(names) if len(row) == len(names) else ("image", *names)
    return Table(
        file,
        columns,
        lambda: _blocks(file, dialect, len(columns), 2),
        notes=(*dialect.notes, "CelebA's layout: a count, a line of names, then one image per line"),
    )


def _without_last_blank(row: Sequence[str]) -> list[str]:
    cells = list(row)
    while cells and not cells[-1].strip():
        cells.pop()
    return cells


def _blocks(file: Path, dialect: Dialect, width: int, after: int) -> Iterator[Block]:
    def even() -> Iterator[tuple[int, list[str]]]:
        for line, row in itertools.islice(rows_of(file, dialect), after, None):
            if len(row) != width:
                row = _fitted(file, line, row, width)
            yield line, row

    return _in_blocks(even(), width)


def _fitted(file: Path, line: int, row: list[str], width: int) -> list[str]:
    """A row without blank cells beyond the header. Raises DataError for other lengths."""
    if len(row) > width and not any(cell.strip() for cell in row[width:]):
        return row[:width]
    raise DataError(f"{file}:{line}: {len(row)} columns where the first line has {width}.", "fix that line.")


def _in_blocks(rows: Iterable[tuple[int, Sequence[Any]]], width: int) -> Iterator[Block]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _ROWS)):
        yield Block([line for line, _ in chunk], list(zip(*(row for _, row in chunk), strict=True)) or [()] * width)


# Typed tables


def _parquet(file: Path, names: Sequence[str] | None = None) -> Table:
    """Parquet; lists and structures stay what they are. Hugging Face's names of numbered labels are read too.

    In place of images the column of images has `names`, by default those that `list_images` gives the images of the
    file. Other columns of bytes are not read. A number of -1 among named ones, which marks test data, is None.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_column = parquet_images.column_of_images(file)
    if image_column is not None and names is None:
        (names,) = parquet_images.names(file, [file])
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
    class_names = _hugging_face_names(schema.metadata or {})
    read = [field.name for field in schema if not parquet_images.holds_bytes(field.type)]

    unread = b"" if image_column is None else None  # so that a column of bytes is told from one without values

    def blocks() -> Iterator[Block]:
        number = 0
        try:
            with pq.ParquetFile(file, pre_buffer=False) as table:  # else all columns of a row group are read at once
                for batch in table.iter_batches(_ROWS, columns=read, use_threads=False):
                    rows = range(number, number + batch.num_rows)
                    cells = dict(zip(batch.schema.names, (column.to_pylist() for column in batch.columns), strict=True))
                    for name in class_names.keys() & cells.keys():
                        cells[name] = [None if cell == -1 else cell for cell in cells[name]]
                    if names is not None:
                        cells[image_column] = list(names[rows.start : rows.stop])
                    columns = [cells.get(name, [unread] * len(rows)) for name in schema.names]
                    yield Block(range(rows.start + 1, rows.stop + 1), columns)
                    number += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is not valid Parquet: {str(error).rstrip('.')}.", "write it again.") from None

    notes = () if image_column is None else (f"images in the cells of the column {image_column}",)
    has_images = image_column is not None
    return Table(file, tuple(schema.names), blocks, notes=notes, class_names=class_names, has_images=has_images)


def parquet_parts(folder: Path, files: Sequence[Path]) -> Table:
    """The parts of a data set in Parquet as one table. Raises DataError if their columns or classes differ."""
    if all(parquet_images.column_of_images(file) is not None for file in files):
        named: Sequence[Sequence[str] | None] = parquet_images.names(folder, files)
    else:
        named = [None] * len(files)
    tables = [_parquet(file, names) for file, names in zip(files, named, strict=True)]
    first = tables[0]
    for table in tables:
        if set(table.columns) != set(first.columns) or table.class_names != first.class_names:
            what = "columns" if set(table.columns) != set(first.columns) else "names of classes"
            raise DataError(f"{table.file} has other {what} than {first.file}.", "name one of them by --labels.")

    def blocks() -> Iterator[Block]:
        rows = 0
        for table in tables:
            order = [table.columns.index(name) for name in first.columns]
            for block in table.blocks():
                lines = range(rows + 1, rows + 1 + len(block.lines))
                yield Block(lines, [block.columns[i] for i in order])
                rows += len(block.lines)

    return replace(first, file=folder, blocks=blocks, notes=(*first.notes, f"{len(tables)} Parquet files"))


def _hugging_face_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    names = dict[str, tuple[str, ...]]()
    for column, feature in features.items():
        feature = feature[0] if isinstance(feature, list) and feature else feature
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            names[column] = tuple(str(name) for name in inner["names"])
    return names


def json_lines(file: Path) -> Table:
    """A table of one JSON object per line. Raises DataError."""

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in text_lines(file):
            if text.strip():
                yield line, plain_record(json_object(text, f"{file}:{line}"))

    keys = dict.fromkeys(key for _, record in objects() for key in record)
    if not keys:
        raise DataError(f"{file} holds no line.", "write one JSON object for each image.")
    return Table(file, tuple(keys), lambda: _records_in_blocks(objects(), tuple(keys)))


def records(file: Path, rows: Callable[[], Iterable[dict[str, Any]]], notes: tuple[str, ...]) -> Table:
    """A table of objects, which `rows` gives anew at each call; their numbers are those of the rows."""
    keys = tuple(dict.fromkeys(key for row in rows() for key in row))
    return Table(file, keys, lambda: _records_in_blocks(enumerate(rows(), start=1), keys), notes=notes)


def _records_in_blocks(objects: Iterable[tuple[int, dict[str, Any]]], keys: Sequence[str]) -> Iterator[Block]:
    return _in_blocks(((line, [record.get(key) for key in keys]) for line, record in objects), len(keys))


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """An object of one JSON text. Raises DataError for anything else."""
    record = parsed_json(text, where)
    if not isinstance(record, dict):
        raise DataError(f"{where}: {str(record)[:40]} is no JSON object.", "write one object for each image.")
    return record
