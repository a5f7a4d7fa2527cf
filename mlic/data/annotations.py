"""Label files of every common format, recognised by what they hold.

| format    | what it is |
|---|---|
| lists     | a folder of LABEL.txt, an image a line: bare number, name with or without extension, or relative path |
| wide      | a table with one column a label: 1, 0, or -1 for unknown |
| delimited | a table of two columns: image, and its labels separated by semicolon, bar, comma or space |
| long      | a table of two columns: image and one label, an image on as many lines as it has labels |
| jsonl     | JSON Lines: the image's name, `labels` (a list, or a mapping to 1, 0 and -1), and maybe a list `unknown` |
| coco      | COCO instances JSON: an image has the categories of its annotations |
| voc       | a folder of Pascal VOC XML files; a label whose objects are all `difficult` is unknown |
| folders   | a folder a label, with the images in it |

Tables are CSV, TSV or Parquet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mlic.config import LabelFormat
from mlic.data.images import EXTENSIONS
from mlic.data.labels import Annotations, is_number
from mlic.errors import DataError

_CELLS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0, "-1": -1, "-1.0": -1}
_DELIMITERS = ";|, "
_TABLES = (".csv", ".tsv", ".parquet")
_NAME_KEYS = ("file", "image", "filename", "file_name", "image_name", "path", "key", "id")

Row = tuple[int, list[str]]  # a line's number and its cells


def read_annotations(path: Path, format: LabelFormat = "auto") -> Annotations:
    """Read label files. Raises DataError for a missing, empty or malformed one, with file and line."""
    if not path.exists():
        raise DataError(f"the labels {path} do not exist.", "check the path given to --labels.")
    found = _recognise(path) if format == "auto" else format
    if found is None:
        raise DataError(
            f"cannot tell the format of the labels {path}.",
            "give a folder of LABEL.txt lists, a table, a .jsonl or a COCO .json file, or name it by --format.",
        )
    readers: dict[str, Callable[[Path], Annotations]] = {
        "lists": _read_lists, "jsonl": _read_jsonl, "coco": _read_coco, "voc": _read_voc, "folders": _read_folders,
    }  # fmt: skip
    if found in readers:
        _check_kind(path, found, folder=found in ("lists", "voc", "folders"))
        return readers[found](path)
    if path.is_dir():
        path = _only_table(path)
    return _read_table(path, None if found == "table" else found)


def _recognise(path: Path) -> str | None:
    if not path.is_dir():
        return "table" if path.suffix in _TABLES else {".jsonl": "jsonl", ".json": "coco"}.get(path.suffix)
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    suffixes = {Path(name).suffix.lower() for name in names}
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
            numbers += is_number(name)
    if not marks:
        raise DataError(f"the {len(files)} lists in {folder} are all empty.", "write one image a line.")
    total = sum(len(labels) for labels in marks.values())
    source = f"{len(files)} labels from per-label lists in {folder}"
    return Annotations(tuple(file.stem for file in files), marks, where, source, bare_numbers=numbers * 2 > total)


def _read_table(file: Path, format: str | None) -> Annotations:
    rows = _parquet_rows(file) if file.suffix == ".parquet" else _rows(file)
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
    if format is None:
        format = "wide"
        if len(header) == 2 and any(cells[1].strip().lower() not in _CELLS for _, cells in body):
            format = "long" if len({cells[0].strip() for _, cells in body}) < len(body) else "delimited"
    if format != "wide" and len(header) != 2:
        raise DataError(f"{file}:1: {len(header)} columns where a {format} table has two.", "check --format.")
    if format == "wide":
        return _wide(file, header, body)
    return _delimited(file, body) if format == "delimited" else _long(file, body)


def _wide(file: Path, header: Sequence[str], body: Sequence[Row]) -> Annotations:
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
                    f"{file}:{line}: {cell!r} for the label {labels[label]!r} is not 1, 0 or -1.", "mend that cell."
                )
            if value:
                marks[name][label] = value
    return Annotations(labels, marks, where, f"{len(labels)} labels from the columns of {file}")


def _delimited(file: Path, body: Sequence[Row]) -> Annotations:
    joined = "\n".join(cells[1] for _, cells in body)
    delimiter = next((d for d in _DELIMITERS if d in joined), _DELIMITERS[0])
    given: dict[str, dict[str, int]] = {}
    where: dict[str, str] = {}
    for line, cells in body:
        name = _new_name(file, line, cells[0], given)
        where[name] = f"{file}:{line}"
        given[name] = {label.strip(): 1 for label in cells[1].split(delimiter) if label.strip()}
    return _named(given, where, None, f"the lists (by {delimiter!r}) in {file}")


def _long(file: Path, body: Sequence[Row]) -> Annotations:
    given: dict[str, dict[str, int]] = {}
    where: dict[str, str] = {}
    for line, cells in body:
        name, label = _new_name(file, line, cells[0], ()), cells[1].strip()
        where.setdefault(name, f"{file}:{line}")
        found = given.setdefault(name, {})
        if label:
            found[label] = 1
    return _named(given, where, None, f"one label a line in {file}")


def _read_jsonl(file: Path) -> Annotations:
    given: dict[str, dict[str, int]] = {}
    where: dict[str, str] = {}
    for line, text in _lines(file):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file}:{line}: not JSON ({error}).", "mend that line.") from None
        key = next((key for key in _NAME_KEYS if isinstance(record, dict) and isinstance(record.get(key), str)), None)
        if key is None:
            raise DataError(f"{file}:{line}: no name of an image.", f"give it as one of {', '.join(_NAME_KEYS)}.")
        name = _new_name(file, line, record[key], given)
        where[name] = f"{file}:{line}"
        given[name] = _json_labels(record, f"{file}:{line}")
    if not given:
        raise DataError(f"{file} holds no line.", "write one JSON object for each image.")
    return _named(given, where, None, f"the lines of {file}")


def _json_labels(record: Mapping[str, Any], where: str) -> dict[str, int]:
    labels, unknown = record.get("labels"), record.get("unknown", [])
    if isinstance(labels, list):
        labels = dict.fromkeys(labels, 1)
    if not isinstance(labels, dict) or not isinstance(unknown, list):
        raise DataError(f"{where}: `labels` is neither a list nor a mapping.", "mend that line.")
    found = {**labels, **dict.fromkeys(unknown, -1)}
    for label, value in found.items():
        if not isinstance(label, str) or value not in (1, 0, -1):
            raise DataError(f"{where}: {value!r} for the label {label!r} is not 1, 0 or -1.", "mend that line.")
    return {label: int(value) for label, value in found.items()}


def _read_coco(file: Path) -> Annotations:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in plain["images"]}
        categories = {category["id"]: category["name"] for category in plain["categories"]}
        given: dict[str, dict[str, int]] = {name: {} for name in names.values()}
        for annotation in plain["annotations"]:
            given[names[annotation["image_id"]]][categories[annotation["category_id"]]] = 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{file} does not read as COCO instances ({what}).", "give images, annotations, categories."
        ) from None
    where = {name: str(file) for name in given}
    return _named(given, where, list(categories.values()), f"the categories of {file}")


def _read_voc(folder: Path) -> Annotations:
    given: dict[str, dict[str, int]] = {}
    where: dict[str, str] = {}
    files = sorted(file for file in folder.iterdir() if file.suffix == ".xml")
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()  # noqa: S314 - expat itself stops entities that explode
        except (ElementTree.ParseError, OSError) as error:
            raise DataError(f"{file} does not read as XML: {error}.", "mend that file.") from None
        name = (root.findtext("filename") or file.stem).strip()
        if name in given:
            raise DataError(f"{file}: the image {name!r} has a file already ({where[name]}).", "keep one of the two.")
        where[name] = str(file)
        given[name] = {}
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise DataError(f"{file}: an object without a name.", "mend that file.")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            if not difficult or given[name].get(label) != 1:
                given[name][label] = -1 if difficult else 1
    return _named(given, where, None, f"{len(files):,} Pascal VOC files in {folder}")


def _read_folders(folder: Path) -> Annotations:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    given = {
        file.relative_to(folder).as_posix(): {label: 1}
        for label in labels
        for file in sorted((folder / label).rglob("*"))
        if file.suffix.lower() in EXTENSIONS
    }
    if not given:
        raise DataError(f"the folders in {folder} hold no images.", "give a folder of LABEL.txt lists, or a table.")
    return _named(given, dict.fromkeys(given, str(folder)), labels, f"the folders in {folder}")


def _named(
    given: Mapping[str, Mapping[str, int]], where: dict[str, str], labels: Collection[str] | None, source: str
) -> Annotations:
    """Annotations from label names; the labels are those of `labels` in order, else all that occur, sorted."""
    vocabulary = (
        tuple(dict.fromkeys(labels)) if labels is not None else tuple(sorted({x for y in given.values() for x in y}))
    )
    if not vocabulary:
        raise DataError(f"no label at all in {source}.", "give each image its labels.")
    number = {label: i for i, label in enumerate(vocabulary)}
    marks = {name: {number[label]: value for label, value in found.items() if value} for name, found in given.items()}
    return Annotations(vocabulary, marks, where, f"{len(vocabulary)} labels from {source}")


def _new_name(file: Path, line: int, cell: str, seen: Iterable[str]) -> str:
    name = cell.strip()
    if not name:
        raise DataError(f"{file}:{line}: the image is not named.", "mend or delete that line.")
    if name in seen:
        raise DataError(f"{file}:{line}: the image {name!r} has a line already.", "keep one of the two lines.")
    return name


def _rows(file: Path) -> Iterator[Row]:
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


def _parquet_rows(file: Path) -> Iterator[Row]:
    """The header and rows of a Parquet table as text; lists become the delimited form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} does not read as Parquet: {error}.", "write it again.") from None
    yield 1, list(table.column_names)
    for number, record in enumerate(table.to_pylist(), start=1):
        cells = [_DELIMITERS[0].join(value) if isinstance(value, list) else value for value in record.values()]
        yield number, ["" if value is None else str(value) for value in cells]


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
