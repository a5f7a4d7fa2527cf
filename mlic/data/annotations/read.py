"""Label files of every common format, recognised by what they hold.

| format     | what it is |
|---|---|
| lists      | a folder of LABEL.txt, an image a line: bare number, name with or without extension, or relative path |
| wide       | a table with one column per label: 1, 0 (or blank), or -1 for unknown |
| delimited  | a table with the labels of an image in one cell |
| long       | a table with one label per row, an image in as many rows as it has labels |
| jsonl      | JSON Lines: the image's name, and `labels` (a list, or a mapping to 1, 0, -1), or a key per label |
| json       | JSON of Label Studio, FiftyOne, MMPretrain or WIDER, a list of objects, or a folder of a file per image |
| coco       | COCO instances or LVIS: an image has the categories of its annotations |
| voc        | a folder of Pascal VOC XML files; a label whose objects are all `difficult` is unknown |
| cvat       | one XML file of CVAT for images |
| imagesets  | a folder of VOC's image sets: LABEL_train.txt with `NAME 1`, -1, 0 |
| folders    | one folder per label, with the images in it; or train/, valid/ and test/ with a table in each |
| sidecars   | a text file of tags beside each image, or YOLO's labels |
| webdataset | tar shards with KEY.json, KEY.cls or KEY.npy beside each image |

Tables are CSV, TSV, text in columns, Parquet, JSON Lines or Excel workbooks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.annotations.checks import checked
from mlic.data.annotations.files.table_files import is_table, open_table, parquet_parts
from mlic.data.annotations.formats import folders, json_files, json_folders, lists, xml_files
from mlic.data.annotations.formats.webdataset import read_webdataset
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.tables import read_table
from mlic.data.image_labels import Annotations
from mlic.data.sources import image_sources, parquet_images
from mlic.errors import DataError

_LINES = (".jsonl", ".ndjson", ".manifest")
_REMOTE = (".txt", ".xml", ".json", *_LINES, ".tar", ".csv", ".tsv", ".gz", ".parquet", ".xlsx")
_FOLDERS = ("lists", "voc", "folders", "imagesets", "sidecars")
_TABLES = ("table", "wide", "delimited", "long", "jsonl")
_SAVE_AS = {
    ".mat": "a MATLAB file",
    ".xls": "an old Excel workbook",
    ".ods": "an OpenDocument spreadsheet",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".npy": "a NumPy array",
    ".npz": "NumPy arrays",
    ".arrow": "an Arrow file",
    ".feather": "a Feather file",
    ".db": "a database",
    ".sqlite": "a database",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".tfrecord": "a TFRecord",
}
DEFAULTS = LabelOptions()


def read_annotations(path: Location, options: LabelOptions = DEFAULTS) -> Annotations:
    """Read label files. Raises DataError for a missing, empty or malformed one, with file and line."""
    if isinstance(path, RemotePath):
        return _read_remote(path, options)
    if not path.exists():
        raise DataError(f"the labels {path} do not exist.", "check the path given to --labels.")
    kind = _recognise(path, options) if options.format == "auto" else options.format
    if kind is None:
        raise DataError(
            f"cannot tell the format of the labels {path}.",
            "give a folder of LABEL.txt lists, a table, a .jsonl or a COCO .json file, or name it by --format.",
        )
    if options.needs_columns and kind not in (*_TABLES, "json") and not (kind == "folders" and path.is_dir()):
        raise DataError(f"{kind} labels have no columns.", "name the splits by --split-files.")
    if kind in _FOLDERS or (kind in ("coco", "cvat") and path.is_dir()):
        _check_kind(path, kind, folder=kind in _FOLDERS)
    return checked(_read(path, kind, options), options.no_label, options.label_names is not None or options.of_splits)


def _read(path: Path, kind: str, options: LabelOptions) -> Annotations:
    if kind == "lists":
        return lists.read_columns(path, options) if lists.are_columns(path) else lists.read_lists(path, options)
    if kind == "imagesets":
        return lists.read_image_sets(path)
    if kind == "sidecars":
        return lists.read_sidecars(path, options)
    if kind == "folders":
        return folders.read_split_tables(path, options) if folders.split_tables(path) else folders.read_folders(path)
    if kind == "voc":
        return xml_files.read_voc(path)
    if kind == "cvat":
        return xml_files.read_cvat(path)
    if kind == "webdataset":
        return read_webdataset(path, options)
    if kind in ("coco", "json"):
        return json_folders.read_json_folder(path, options) if path.is_dir() else json_files.read_json(path, options)
    layout = kind if kind in ("wide", "delimited", "long") else None
    parts = _parts(path) if path.is_dir() else [path]
    table = open_table(parts[0], options.is_image) if len(parts) == 1 else parquet_parts(path, parts)
    return read_table(table, options, layout)


def _read_remote(location: RemotePath, options: LabelOptions) -> Annotations:
    """Label files in an object store are small compared with the images, so they are downloaded and read here."""
    with tempfile.TemporaryDirectory(prefix="mlic-labels-") as folder:
        into = Path(folder) / (location.name or "labels")
        try:
            with_images = image_sources.parquet_with_images(location)
            if with_images:
                parquet_images.copy_without_images(location, with_images, into)
            elif storage.is_folder(location):
                for name, _, _ in storage.walk(location):
                    if name.lower().endswith(_REMOTE):
                        (into / name).parent.mkdir(parents=True, exist_ok=True)
                        (into / name).write_bytes(storage.read(location / name))
            elif storage.size(location) is not None:
                into.write_bytes(storage.read(location))
        except OSError as error:
            raise DataError(f"cannot read the labels {location}: {error}.", "check the URL.") from None
        if not into.exists():
            raise DataError(f"the labels {location} do not exist.", "check the path given to --labels.")
        return read_annotations(into, options).renamed(str(into), str(location))


def _recognise(path: Path, options: LabelOptions) -> str | None:
    if not path.is_dir():
        return _recognise_file(path)
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    suffixes = {Path(name).suffix.lower() for name in names}
    if ".tar" in suffixes:
        return "webdataset"
    has_folders = any((path / name).is_dir() for name in names)
    if (".parquet" in suffixes or has_folders) and image_sources.parquet_with_images(path):
        return "table"
    if folders.split_tables(path):
        return "folders"
    if ".txt" in suffixes and lists.text_files(path):
        if lists.are_image_sets(path):
            return "imagesets"
        if lists.are_sidecars(path, options):
            return "sidecars"
        only_notes = has_folders and not any(
            lists.head(file) for file in lists.text_files(path) if file.stem.isidentifier()
        )
        if not only_notes:
            return "lists"
    if ".xml" in suffixes:
        return "voc"
    if any(is_table(path / name) for name in names):
        return "table"
    if any(name.lower().endswith(_LINES) for name in names):
        return "jsonl"
    if ".json" in suffixes or (has_folders and next(path.rglob("*.json"), None) is not None):
        return "json"
    if has_folders and next(path.rglob("*.xml"), None) is not None:
        return "voc"
    if has_folders and next(path.rglob("*.txt"), None) is not None and lists.are_sidecars(path, options):
        return "sidecars"
    return "folders" if has_folders else None


def _recognise_file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if is_table(path) or suffix in (".txt", ".lst", ".data", ".dat"):
        return "table"
    if suffix in _SAVE_AS:
        raise DataError(f"{path} is {_SAVE_AS[suffix]}, which is not read.", "save its table as CSV.")
    if suffix == ".xml":
        return "cvat"
    by_suffix = {".json": "json", ".tar": "webdataset", **dict.fromkeys(_LINES, "jsonl")}
    return by_suffix.get(suffix)


def _check_kind(path: Path, format: str, folder: bool) -> None:
    if path.is_dir() != folder:
        raise DataError(
            f"{format} labels are {'a folder' if folder else 'a file'}, and {path} is not.", "check --format."
        )


def _parts(folder: Path) -> list[Path]:
    """The table of a folder, or the parts of a data set in Parquet. Raises DataError when there is none or several."""
    parts = [part for part in image_sources.parquet_with_images(folder) if isinstance(part, Path)]
    if parts:
        return parts
    tables = sorted(file for file in folder.iterdir() if is_table(file) or file.name.lower().endswith(_LINES))
    if len(tables) > 1 and all(file.suffix.lower() == ".parquet" for file in tables):
        return tables
    if len(tables) != 1:
        raise DataError(
            f"the label folder {folder} holds {len(tables)} tables.",
            "name one of them, or join their rows in one file.",
        )
    return tables
