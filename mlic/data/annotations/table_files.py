"""Tables as blocks of rows: CSV and its relatives, Parquet, JSON Lines and Excel, whatever their columns mean."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlic.data.annotations.column_names import LABEL_COLUMNS, NAME_COLUMNS, SPLITS, VALUE_COLUMNS
from mlic.data.annotations.text_files import encoding_of, parsed_json, text_lines
from mlic.data.images import EXTENSIONS
from mlic.errors import DataError

DELIMITED = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TABLES = (*DELIMITED, ".parquet", ".xlsx")
_ROWS = 1_000  # in a block: cells as text take twenty times their bytes
_KNOWN = frozenset({*NAME_COLUMNS, *LABEL_COLUMNS, *VALUE_COLUMNS, *SPLITS})
_DIGITS = re.compile(r"\d+|[0-9a-f]{8,}")
_SIZE = 100  # lines that are looked at to tell a file's dialect
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
    column that the file itself has.
    """

    file: Path
    columns: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]
    has_header: bool = True
    notes: tuple[str, ...] = ()
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def is_table(file: Path) -> bool:
    """Whether a file is a table by its name."""
    return file.name.lower().endswith(TABLES)


def open_table(file: Path, is_image: Callable[[str], bool]) -> Table:
    """Open a table. `is_image` says whether a cell is the name of an image. Raises DataError."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        return _parquet(file)
    if name.endswith(".xlsx"):
        return _excel(file)
    if name.endswith((".jsonl", ".manifest", ".ndjson")):
        return json_lines(file)
    return _text_table(file, is_image)


# Text


@dataclass(frozen=True)
class Dialect:
    """How a text table is written: separator ("" for any blanks), lines before the first row, encoding."""

    separator: str
    skipped: int
    encoding: str
    notes: tuple[str, ...] = ()


def _text_table(file: Path, is_image: Callable[[str], bool]) -> Table:
    dialect = _dialect(file)
    _, first = next(_rows(file, dialect), (0, []))
    _, second = next(itertools.islice(_rows(file, dialect), 1, None), (0, []))
    if len(first) == 1 and first[0].strip().isdigit() and len(second) > 1 and dialect.separator == "":
        return _celeba(file, dialect, second)
    first = _without_last_blank(first)
    if not first:
        raise DataError(f"{file} is empty.", "give a table with a line of column names.")
    if begins_with_data(first, is_image) or _is_like_what_follows(file, dialect, first):
        return _without_header(file, dialect, first, is_image)
    columns = tuple(cell.strip() for cell in first)
    return Table(file, columns, lambda: _blocks(file, dialect, len(columns), 1), notes=dialect.notes)


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
    if any(cell.lower() in _KNOWN or not cell for cell in cells):
        return False
    rows = [row for _, row in itertools.islice(_rows(file, dialect), 1, _SIZE)]
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
                for line, row in _rows(file, dialect)
            )
            return _in_blocks(rows, len(columns))

        return Table(file, columns, ragged, notes=(*dialect.notes, "Google Vertex AI's CSV, without a header"))
    names = ["" for _ in first]
    names[next((i for i, cell in enumerate(first) if is_image(cell) or Path(cell).suffix.lower() in EXTENSIONS), 0)] = (
        "image"
    )
    notes = (*dialect.notes, "no line of column names: the first line is about an image")
    return Table(file, tuple(names), lambda: _blocks(file, dialect, len(names), 0), False, notes)


def _celeba(file: Path, dialect: Dialect, names: Sequence[str]) -> Table:
    columns = ("image", *names)
    return Table(
        file,
        columns,
        lambda: _blocks(file, dialect, len(columns), 2),
        notes=(*dialect.notes, "CelebA's layout: a count, a line of names, then one image per line"),
    )


def _dialect(file: Path) -> Dialect:
    encoding = encoding_of(file)
    notes = (
        () if encoding.startswith("utf-8") else (f"encoding {'UTF-16' if encoding == 'utf-16' else 'Windows-1252'}",)
    )
    lines = [line for _, line in itertools.islice(text_lines(file, encoding), _SIZE)]
    skipped, separator = 0, None
    while skipped < len(lines):
        line = lines[skipped].strip()
        if match := re.fullmatch(r"sep=(.)\s*", lines[skipped].strip("\r\n")):
            separator = match[1]
        elif line and not (line.startswith("#") and skipped + 1 < len(lines)):
            break
        skipped += 1
    body = [re.sub(r'"[^"]*"', "", line) for line in lines[skipped:] if line.strip()]
    return Dialect(separator or _separator(file, body), skipped, encoding, notes)


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


def _rows(file: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each ends on; blank lines are skipped."""
    lines = itertools.islice(text_lines(file, dialect.encoding), dialect.skipped, None)
    if not dialect.separator:
        yield from ((number, line.split()) for number, line in lines if line.strip())
        return
    reader = csv.reader((line for _, line in lines), delimiter=dialect.separator, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num + dialect.skipped, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num + dialect.skipped}: {error}.", "fix that line.") from None


def _without_last_blank(row: Sequence[str]) -> list[str]:
    cells = list(row)
    while cells and not cells[-1].strip():
        cells.pop()
    return cells


def _blocks(file: Path, dialect: Dialect, width: int, after: int) -> Iterator[Block]:
    def even() -> Iterator[tuple[int, list[str]]]:
        for line, row in itertools.islice(_rows(file, dialect), after, None):
            if len(row) != width:
                row = _fitted(file, line, row, width)
            yield line, row

    return _in_blocks(even(), width)


def _fitted(file: Path, line: int, row: list[str], width: int) -> list[str]:
    """A row without blank cells beyond the header. Raises DataError for other lengths."""
    if len(row) > width and not any(cell.strip() for cell in row[width:]):
        return row[:width]
    raise DataError(f"{file}:{line}: {len(row)} columns where the header has {width}.", "fix that line.")


def _in_blocks(rows: Iterable[tuple[int, Sequence[Any]]], width: int) -> Iterator[Block]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _ROWS)):
        yield Block([line for line, _ in chunk], list(zip(*(row for _, row in chunk), strict=True)) or [()] * width)


# Typed tables


def _parquet(file: Path) -> Table:
    """Parquet; lists and structures stay what they are. Hugging Face's names of numbered labels are read too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def blocks() -> Iterator[Block]:
        number = 0
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(_ROWS):
                    columns = [column.to_pylist() for column in batch.columns]
                    yield Block(range(number + 1, number + 1 + batch.num_rows), columns)
                    number += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is not valid Parquet: {error}.", "write it again.") from None

    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not valid Parquet: {error}.", "write it again.") from None
    return Table(file, tuple(schema.names), blocks, class_names=_hugging_face_names(schema.metadata or {}))


def _hugging_face_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    names = dict[str, tuple[str, ...]]()
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            names[column] = tuple(str(name) for name in inner["names"])
    return names


def _excel(file: Path) -> Table:
    import pandas as pd

    try:
        frame = pd.read_excel(file, keep_default_na=False)
    except ImportError:
        raise DataError(
            f"{file} is an Excel workbook, which needs the package openpyxl.", "save it as CSV, or install openpyxl."
        ) from None
    except Exception as error:  # openpyxl raises many types for files that are no workbooks
        raise DataError(f"{file} is no Excel workbook ({error}).", "save it as CSV.") from None
    return records(file, [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")], ())


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


def records(file: Path, rows: Sequence[dict[str, Any]], notes: tuple[str, ...]) -> Table:
    """A table of objects that are in memory; their numbers are those of the rows."""
    keys = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(file, keys, lambda: _records_in_blocks(enumerate(rows, start=1), keys), notes=notes)


def _records_in_blocks(objects: Iterable[tuple[int, dict[str, Any]]], keys: Sequence[str]) -> Iterator[Block]:
    return _in_blocks(((line, [record.get(key) for key in keys]) for line, record in objects), len(keys))


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """An object of one JSON text. Raises DataError for anything else."""
    record = parsed_json(text, where)
    if not isinstance(record, dict):
        raise DataError(f"{where}: {str(record)[:40]} is no JSON object.", "write one object for each image.")
    return record


def plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """A line of Google Vertex AI or Amazon SageMaker as `image` and `labels`; every other one as it is."""
    if "imageGcsUri" in record:
        several = record.get("classificationAnnotations")
        single = record.get("classificationAnnotation")
        chosen = several if isinstance(several, list) else [single] if single else []
        names = [item.get("displayName") if isinstance(item, dict) else item for item in chosen]
        use = (record.get("dataItemResourceLabels") or {}).get("aiplatform.googleapis.com/ml_use")
        return {"image": record["imageGcsUri"], "labels": names} | ({"ml_use": use} if use else {})
    if "source-ref" in record:
        return {"image": record["source-ref"], "labels": _sagemaker_labels(record)}
    return record


def _sagemaker_labels(record: dict[str, Any]) -> Any:
    """Labels of a SageMaker manifest: numbers, or one number, that the attribute's metadata name."""
    for key, value in record.items():
        metadata = record.get(f"{key}-metadata")
        if not isinstance(metadata, dict):
            continue
        classes = metadata.get("class-map")
        if isinstance(classes, dict):
            numbers = value if isinstance(value, list) else [value]
            return [str(classes.get(str(number), number)) for number in numbers]
        name = metadata.get("class-name")
        if isinstance(name, str):
            return [name]
    return None
