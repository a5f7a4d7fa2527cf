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

from collections.abc import Callable
from pathlib import Path

from mlic.config.data import LabelFormat
from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.annotations.builders import NO_COLUMNS, TABLES, Columns
from mlic.data.annotations.coco import read_coco
from mlic.data.annotations.folders import read_folders, read_lists
from mlic.data.annotations.jsonl import read_jsonl
from mlic.data.annotations.tables import read_table
from mlic.data.annotations.voc import read_voc
from mlic.data.annotations.webdataset import read_webdataset
from mlic.data.label_join import Annotations
from mlic.errors import DataError

_PLAIN_FORMATS = ("lists", "coco", "voc", "folders", "webdataset")


def read_annotations(path: Location, format: LabelFormat = "auto", columns: Columns = NO_COLUMNS) -> Annotations:
    """Read label files. Raises DataError for a missing, empty or malformed one, with file and line."""
    if isinstance(path, RemotePath):
        return _read_remote(path, format, columns)
    if not path.exists():
        raise DataError(f"the labels {path} do not exist.", "check the path given to --labels.")
    kind = _recognise(path) if format == "auto" else format
    if kind is None:
        raise DataError(
            f"cannot tell the format of the labels {path}.",
            "give a folder of LABEL.txt lists, a table, a .jsonl or a COCO .json file, or name it by --format.",
        )
    if columns and kind in _PLAIN_FORMATS:
        raise DataError(f"{kind} labels have no columns.", "name the splits by --split-files.")
    readers: dict[str, Callable[[Path], Annotations]] = {
        "lists": read_lists,
        "coco": read_coco,
        "voc": read_voc,
        "folders": read_folders,
        "webdataset": read_webdataset,
    }
    if kind in readers:
        if kind != "webdataset":
            _check_kind(path, kind, folder=kind in ("lists", "voc", "folders"))
        return readers[kind](path)
    if kind == "jsonl":
        _check_kind(path, kind, folder=False)
        return read_jsonl(path, columns)
    if path.is_dir():
        path = _only_table(path)
    return read_table(path, None if kind == "table" else kind, columns)


def _read_remote(location: RemotePath, format: LabelFormat, columns: Columns) -> Annotations:
    """Label files in an object store are small compared with the images, so they are downloaded and read here."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlic-labels-") as folder:
        into = Path(folder) / (location.name or "labels")
        try:
            if storage.is_folder(location):
                for name, _, _ in storage.walk(location):
                    if name.endswith((".txt", ".xml", ".json", ".jsonl", ".tar", *TABLES)):
                        (into / name).parent.mkdir(parents=True, exist_ok=True)
                        (into / name).write_bytes(storage.read(location / name))
            elif storage.size(location) is not None:
                into.write_bytes(storage.read(location))
        except OSError as error:
            raise DataError(f"cannot read the labels {location}: {error}.", "check the URL.") from None
        if not into.exists():
            raise DataError(f"the labels {location} do not exist.", "check the path given to --labels.")
        return read_annotations(into, format, columns).renamed(str(into), str(location))


def _recognise(path: Path) -> str | None:
    if not path.is_dir():
        by_suffix = {".jsonl": "jsonl", ".json": "coco", ".tar": "webdataset"}
        return "table" if path.suffix in TABLES else by_suffix.get(path.suffix)
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    suffixes = {Path(name).suffix.lower() for name in names}
    if ".tar" in suffixes:
        return "webdataset"
    if ".txt" in suffixes:
        return "lists"
    if ".xml" in suffixes:
        return "voc"
    if suffixes & set(TABLES):
        return "table"
    return "folders" if any((path / name).is_dir() for name in names) else None


def _check_kind(path: Path, format: str, folder: bool) -> None:
    if path.is_dir() != folder:
        raise DataError(
            f"{format} labels are {'a folder' if folder else 'a file'}, and {path} is not.", "check --format."
        )


def _only_table(folder: Path) -> Path:
    tables = sorted(file for file in folder.iterdir() if file.suffix in TABLES)
    if len(tables) != 1:
        raise DataError(f"the label folder {folder} holds {len(tables)} tables.", "name one of them.")
    return tables[0]
