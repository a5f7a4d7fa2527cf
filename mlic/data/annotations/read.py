"""Label files of every common format, recognised by what they hold.

| format     | what it is |
|---|---|
| lists      | a folder of LABEL.txt, an image a line: bare number, name with or without extension, or relative path |
| wide       | a table with one column a label: 1, 0 (or empty), or -1 for unknown |
| delimited  | a table of two columns: image, and its labels separated by semicolon, bar, comma or space |
| long       | a table of two columns: image and one label, an image on as many lines as it has labels |
| jsonl      | JSON Lines: the image's name, `labels` (a list, or a mapping to 1, 0, -1), and maybe a list `unknown` |
| coco       | COCO instances JSON: an image has the categories of its annotations |
| voc        | a folder of Pascal VOC XML files; a label whose objects are all `difficult` is unknown |
| folders    | a folder a label, with the images in it |
| webdataset | tar shards with KEY.json (as a line of jsonl) or KEY.cls (a class's name or number) beside each image |

Tables are CSV, TSV or Parquet, and begin with a line of column names.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mlic.config.data import LabelFormat
from mlic.config.types import Location
from mlic.data import image_listing, storage
from mlic.data.images import EXTENSIONS
from mlic.data.label_join import Annotations, Builder, is_number
from mlic.errors import DataError

_CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0, "-1": -1, "-1.0": -1}
_DELIMITERS = ";|, "
_TABLES = (".csv", ".tsv", ".parquet")
_NAME_KEYS = ("file", "image", "filename", "file_name", "image_name", "path", "key", "id")
_PLAIN_FORMATS = ("lists", "coco", "voc", "folders", "webdataset")

Row = tuple[int, list[str]]  # a line's number and its cells


@dataclass(frozen=True)
class Columns:
    """Names of columns (or JSON keys) that are no labels: the split and the group of an image."""

    split: str | None = None
    group: str | None = None

    def __bool__(self) -> bool:
        return bool(self.split or self.group)


def read_annotations(path: Location, format: LabelFormat = "auto", columns: Columns = Columns()) -> Annotations:
    """Read label files. Raises DataError for a missing, empty or malformed one, with file and line."""
    if isinstance(path, str):
        return _read_remote(path, format, columns)
    if not path.exists():
        raise DataError(f"the labels {path} do not exist.", "check the path given to --labels.")
    found = _recognise(path) if format == "auto" else format
    if found is None:
        raise DataError(
            f"cannot tell the format of the labels {path}.",
            "give a folder of LABEL.txt lists, a table, a .jsonl or a COCO .json file, or name it by --format.",
        )
    if columns and found in _PLAIN_FORMATS:
        raise DataError(f"{found} labels have no columns.", "name the splits by --split-files.")
    readers: dict[str, Callable[[Path], Annotations]] = {
        "lists": _read_lists, "coco": _read_coco, "voc": _read_voc, "folders": _read_folders,
        "webdataset": _read_webdataset,
    }  # fmt: skip
    if found in readers:
        if found != "webdataset":
            _check_kind(path, found, folder=found in ("lists", "voc", "folders"))
        return readers[found](path)
    if found == "jsonl":
        _check_kind(path, found, folder=False)
        return _read_jsonl(path, columns)
    if path.is_dir():
        path = _only_table(path)
    return _read_table(path, None if found == "table" else found, columns)


def _read_remote(location: str, format: LabelFormat, columns: Columns) -> Annotations:
    """Label files of an object store are small beside the images, so they are fetched and read here."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlic-labels-") as folder:
        into = Path(folder) / (os.path.basename(location.partition("?")[0].rstrip("/")) or "labels")  # noqa: PTH119
        try:
            if storage.is_folder(location):
                for name, _, _ in storage.walk(location):
                    if name.endswith((".txt", ".xml", ".json", ".jsonl", ".tar", *_TABLES)):
                        (into / name).parent.mkdir(parents=True, exist_ok=True)
                        (into / name).write_bytes(storage.read(storage.join(location, name)))
            elif storage.size(location) is not None:
                into.write_bytes(storage.read(location))
        except OSError as error:
            raise DataError(f"cannot read the labels {location}: {error}.", "check the URL.") from None
        if not into.exists():
            raise DataError(f"the labels {location} do not exist.", "check the path given to --labels.")
        return read_annotations(into, format, columns).renamed(str(into), location)


def _recognise(path: Path) -> str | None:
    if not path.is_dir():
        by_suffix = {".jsonl": "jsonl", ".json": "coco", ".tar": "webdataset"}
        return "table" if path.suffix in _TABLES else by_suffix.get(path.suffix)
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    suffixes = {Path(name).suffix.lower() for name in names}
    if ".tar" in suffixes:
        return "webdataset"
    if ".txt" in suffixes:
        return "lists"
    if ".xml" in suffixes:
        return "voc"
    if suffixes & set(_TABLES):
        return "table"
    return "folders" if any((path / name).is_dir() for name in names) else None


def _check_kind(path: Path, format: str, folder: bool) -> None:
    if path.is_dir() != folder:
        raise DataError(
            f"{format} labels are {'a folder' if folder else 'a file'}, and {path} is not.", "check --format."
        )


def _only_table(folder: Path) -> Path:
    tables = sorted(file for file in folder.iterdir() if file.suffix in _TABLES)
    if len(tables) != 1:
        raise DataError(f"the label folder {folder} holds {len(tables)} tables.", "name one of them.")
    return tables[0]


def _read_lists(folder: Path) -> Annotations:
    files = sorted(file for file in folder.iterdir() if file.suffix == ".txt" and not file.name.startswith("."))
    found = Builder()
    numbers = 0
    for label, file in enumerate(files):
        for line, text in _lines(file):
            name = text.strip()
            if not name:
                continue
            if any(ord(char) < 32 for char in name):
                raise DataError(f"{file}:{line}: {name!r} is not one image's name.", "write one image a line.")
            found.image(name, str(file), line)
            found.mark(label, 1)
            numbers += is_number(name)
    if not len(found):
        raise DataError(f"the {len(files)} lists in {folder} are all empty.", "write one image a line.")
    source = f"{len(files)} labels from per-label lists in {folder}"
    passed = sorted(file.name for file in folder.iterdir() if file.suffix in (".jsonl", ".json", *_TABLES))
    if passed:
        source += f" (passed over {', '.join(passed[:3])}{' ...' if len(passed) > 3 else ''})"
    names = tuple(file.stem for file in files)
    return replace(found.build(names, source, bare_numbers=numbers * 2 > len(found), once=False), by_label=True)


def _read_table(file: Path, format: str | None, columns: Columns) -> Annotations:
    header, body = _table(file)
    if len(header) < 2:
        raise DataError(f"{file}:1: a header with an image column and labels is needed.", "add the header line.")
    _check_header(file, header)
    extra = _extra_columns(file, header, columns)
    places = [i for i in range(1, len(header)) if i not in extra.values()]
    found = Builder(tuple(extra))
    if format is None:
        format = "wide" if len(places) != 1 else _two_columns(file, places[0])
    if format != "wide" and len(places) != 1:
        raise DataError(f"{file}:1: {len(places) + 1} columns where a {format} table has two.", "check --format.")
    labels = _label_columns(file, [header[i] for i in places]) if format == "wide" else ()
    delimiter = _delimiter(file, places[0]) if format == "delimited" else ""
    for line, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{file}:{line}: {len(cells)} columns where the header has {len(header)}.", "mend that line."
            )
        found.image(_name(file, line, cells[0]), str(file), line, *(cells[i].strip() for i in extra.values()))
        if format == "wide":
            _mark_wide(found, file, line, labels, [cells[i] for i in places])
        else:
            given = cells[places[0]].split(delimiter) if delimiter else [cells[places[0]]]
            for label in given:
                if label.strip():
                    found.mark(found.label(label.strip()), 1)
    if not len(found):
        raise DataError(f"{file} holds a header and nothing else.", "add one line for each image.")
    if format == "wide":
        return found.build(labels, f"{len(labels)} labels from the columns of {file}")
    source = f"one label a line in {file}" if format == "long" else f"the lists (by {delimiter!r}) in {file}"
    return _named(found, None, source, once=format != "long")


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


def _mark_wide(found: Builder, file: Path, line: int, labels: Sequence[str], cells: Sequence[str]) -> None:
    for label, cell in enumerate(cells):
        value = _CELLS.get(cell) if cell in _CELLS else _CELLS.get(cell.strip().lower())
        if value is None:
            raise DataError(
                f"{file}:{line}: {cell!r} for the label {labels[label]!r} is not 1, 0 or -1.", "mend that cell."
            )
        if value:
            found.mark(label, value)


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
    """What separates the labels in a column. A space does only where it makes fewer words than there are cells:
    "hot dog" is one label."""
    cells = {cells[place].strip() for _, cells in _table(file)[1] if len(cells) > place} - {""}
    for delimiter in _DELIMITERS[:-1]:
        if any(delimiter in cell for cell in cells):
            return delimiter
    words = {word for cell in cells for word in cell.split()}
    return " " if any(" " in cell for cell in cells) and len(words) <= len(cells) else ""


def _read_jsonl(file: Path, columns: Columns) -> Annotations:
    extra = [name for name in (columns.split, columns.group) if name]
    found = Builder(tuple(kind for kind in ("split", "group") if getattr(columns, kind)))
    for line, text in _lines(file):
        if not text.strip():
            continue
        record = _json_object(text, f"{file}:{line}")
        key = next((key for key in _NAME_KEYS if isinstance(record.get(key), str)), None)
        if key is None:
            raise DataError(f"{file}:{line}: no name of an image.", f"give it as one of {', '.join(_NAME_KEYS)}.")
        lacking = [name for name in extra if name not in record]
        if lacking:
            raise DataError(f"{file}:{line}: no {lacking[0]!r}.", "give it on every line.")
        found.image(_name(file, line, record[key]), str(file), line, *(str(record[name]) for name in extra))
        _mark_json(found, record, f"{file}:{line}")
    if not len(found):
        raise DataError(f"{file} holds no line.", "write one JSON object for each image.")
    return _named(found, None, f"the lines of {file}")


def _json_object(text: str | bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).", "mend that line.") from None
    return record if isinstance(record, dict) else {}


def _mark_json(found: Builder, record: Mapping[str, Any], where: str) -> None:
    labels, unknown = record.get("labels"), record.get("unknown", [])
    if isinstance(labels, list):
        labels = {str(label) if isinstance(label, int) else label: 1 for label in labels}
    if not isinstance(labels, dict) or not isinstance(unknown, list):
        raise DataError(f"{where}: `labels` is neither a list nor a mapping.", "mend that line.")
    for label, value in {**labels, **dict.fromkeys(unknown, -1)}.items():
        if not isinstance(label, str) or value not in (1, 0, -1):
            raise DataError(f"{where}: {value!r} for the label {label!r} is not 1, 0 or -1.", "mend that line.")
        number = found.label(label)
        if value:
            found.mark(number, int(value))


def _read_coco(file: Path) -> Annotations:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in plain["images"]}
        categories = {category["id"]: category["name"] for category in plain["categories"]}
        given: dict[str, set[str]] = {name: set() for name in names.values()}
        for annotation in plain["annotations"]:
            given[names[annotation["image_id"]]].add(categories[annotation["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{file} does not read as COCO instances ({what}).", "give images, annotations, categories."
        ) from None
    found = Builder()
    for name, labels in given.items():
        found.image(name, str(file), 0)
        for label in sorted(labels):
            found.mark(found.label(label), 1)
    return _named(found, list(categories.values()), f"the categories of {file}")


def _read_voc(folder: Path) -> Annotations:
    found = Builder()
    files = sorted(file for file in folder.iterdir() if file.suffix == ".xml")
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()  # noqa: S314 - expat itself stops entities that explode
        except (ElementTree.ParseError, OSError) as error:
            raise DataError(f"{file} does not read as XML: {error}.", "mend that file.") from None
        found.image((root.findtext("filename") or file.stem).strip(), str(file), 0)
        marks: dict[str, int] = {}
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise DataError(f"{file}: an object without a name.", "mend that file.")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            if not difficult or marks.get(label) != 1:
                marks[label] = -1 if difficult else 1
        for label, value in marks.items():
            found.mark(found.label(label), value)
    return _named(found, None, f"{len(files):,} Pascal VOC files in {folder}")


def _read_folders(folder: Path) -> Annotations:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = Builder()
    for number, label in enumerate(labels):
        for file in sorted((folder / label).rglob("*")):
            if file.suffix.lower() in EXTENSIONS:
                found.image(file.relative_to(folder).as_posix(), str(folder), 0)
                found.mark(number, 1)
    if not len(found):
        raise DataError(f"the folders in {folder} hold no images.", "give a folder of LABEL.txt lists, or a table.")
    return replace(found.build(tuple(labels), f"{len(labels)} labels from the folders in {folder}"), by_label=True)


def _read_webdataset(path: Path) -> Annotations:
    """Labels of WebDataset samples. A sample's image is named as `sources` lists it, without its extension."""
    archives = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not archives:
        raise DataError(f"the folder {path} holds no .tar shards.", "check --labels.")
    by_archive = image_listing.list_images(path).by_archive
    found = Builder()
    for archive in archives:
        with storage.File(archive) as file:
            for name, size, offset, _, how in image_listing.members(archive):
                base, _, extension = name.rpartition(".")
                if how or extension not in ("json", "cls"):
                    continue
                data, where = file.read_at(offset, size), f"{archive}:{name}"
                found.image(f"{archive.stem}/{base}" if by_archive else base, where, 0)
                if extension == "json":
                    _mark_json(found, _json_object(data, where), where)
                else:
                    found.mark(found.label(_class_name(data, where)), 1)
    if not len(found):
        raise DataError(f"the shards in {path} hold no KEY.json and no KEY.cls.", "give the labels by other files.")
    return _named(found, None, f"the .json and .cls members of {len(archives)} shards in {path}")


def _class_name(data: bytes, where: str) -> str:
    text = data.decode("utf-8", "replace").strip()
    if not text or "\ufffd" in text:
        raise DataError(f"{where}: {data[:20]!r} names no class.", "write the class's name or number as text.")
    return text


def _named(found: Builder, labels: Collection[str] | None, source: str, once: bool = True) -> Annotations:
    """Annotations from label names; the labels are those of `labels` in order, else all that occur, sorted."""
    vocabulary = tuple(dict.fromkeys(labels)) if labels is not None else tuple(sorted(found.numbers))
    if not vocabulary:
        raise DataError(f"no label at all in {source}.", "give each image its labels.")
    return found.build(vocabulary, f"{len(vocabulary)} labels from {source}", once=once)


def _name(file: Path, line: int, cell: str) -> str:
    name = cell.strip()
    if not name:
        raise DataError(f"{file}:{line}: the image is not named.", "mend or delete that line.")
    return name


def _table(file: Path) -> tuple[list[str], Iterator[Row]]:
    """The header of a table and its rows, read as they are asked for."""
    rows = _parquet_rows(file) if file.suffix == ".parquet" else _rows(file)
    _, header = next(rows, (0, []))
    return header, rows


def _rows(file: Path) -> Iterator[Row]:
    """Rows of a CSV or TSV with the line that each ends on; blank lines are skipped."""
    text = (line for _, line in _lines(file))
    first = next(text, "")
    plain = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if file.suffix == ".tsv" or "\t" in plain else ";" if plain.count(";") > plain.count(",") else ","
    reader = csv.reader((line for part in ([first], text) for line in part), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}.", "mend that line.") from None


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
        raise DataError(f"{file} does not read as Parquet: {error}.", "write it again.") from None


def _texts(column: Any) -> list[str]:
    return [
        "" if value is None else _DELIMITERS[0].join(value) if isinstance(value, list) else str(value)
        for value in column.to_pylist()
    ]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 text file with their numbers. Raises DataError at a line that is not text."""
    try:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise DataError(f"{file}:{number}: not UTF-8 text.", "save the file as UTF-8.") from None
                if "\0" in line:
                    raise DataError(f"{file}:{number}: a NUL byte; this is not a text file.", "mend that line.")
                yield number, line
    except OSError as error:
        raise DataError(f"cannot read the labels {file}: {error.strerror}.", "check the file.") from None
