"""Folders of images: one folder per label, or one table per split."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from mlic.data.annotations.files.table_files import is_table, open_table
from mlic.data.annotations.formats.lists import image_files
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.tables import read_table
from mlic.data.image_labels import Annotations, Builder
from mlic.errors import DataError

_NO_LABELS = frozenset(
    {"train", "training", "valid", "val", "validation", "test", "testing", "images", "imgs", "img", "photos"}
)
_SPLIT_FOLDER = re.compile(
    r"([a-z]+[_-])?(train|val|valid|validation|test|training|testing)([_-]?(set|data|images|\d+))?"
)
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "valid": "val",
    "val": "val",
    "validation": "val",
    "test": "test",
}


def read_folders(folder: Path) -> Annotations:
    """One folder per label, with its images; an image in several of them has several labels."""
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if labels and {label.lower() for label in labels} <= _NO_LABELS:
        raise DataError(
            f"the folders in {folder} are {', '.join(labels)}, which are no labels.",
            "give the label files themselves by --labels, or one folder of labels such as train/.",
        )
    splits = [label for label in labels if _SPLIT_FOLDER.fullmatch(label.lower())]
    if len(splits) > 1:
        raise DataError(
            f"the folders {', '.join(splits)} in {folder} are called like splits, not like labels.",
            f"give one of them as images and labels, such as {folder / splits[0]}, or the label files by --labels.",
        )
    builder = Builder()
    for number, label in enumerate(labels):
        for file in image_files(folder / label):
            builder.image(file.relative_to(folder).as_posix(), str(folder), 0)
            builder.mark(number, 1)
    if not len(builder):
        raise DataError(f"the folders in {folder} hold no images.", "give a folder of LABEL.txt lists, or a table.")
    if len(labels) > 20 and len(labels) * 2 > len(builder):
        raise DataError(
            f"{folder} has {len(labels):,} folders for {len(builder):,} images, so they are hardly labels "
            f"({labels[0]}, {labels[1]}).",
            "give the label files themselves by --labels.",
        )
    annotations = builder.build(
        tuple(labels), f"{len(labels)} labels from the folders in {folder}", format="one folder per label"
    )
    return replace(annotations, by_label=True, positives_only=True)


def split_tables(folder: Path) -> dict[str, Path]:
    """Tables in folders that are called like splits, by folder: the layout in which Roboflow exports."""
    tables = dict[str, Path]()
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name.lower() in _SPLIT_FOLDERS:
            found = [
                file
                for file in sorted(entry.iterdir())
                if (is_table(file) or file.suffix == ".jsonl") and not file.name.startswith(".")
            ]
            if len(found) == 1:
                tables[entry.name] = found[0]
    return tables


def read_split_tables(folder: Path, options: LabelOptions) -> Annotations:
    """One table per split, whose names are below the folder of the split."""
    read = {
        name: read_table(open_table(file, options.is_image), replace(options, split_column=None))
        for name, file in split_tables(folder).items()
    }
    labels = tuple(dict.fromkeys(label for part in read.values() for label in part.labels))
    extra = tuple(kind for kind in ("group",) if options.group_column is not None)
    builder = Builder(("split", *extra))
    warnings = tuple(dict.fromkeys(warning for part in read.values() for warning in part.warnings))
    for name, part in read.items():
        order = [labels.index(label) for label in part.labels]
        unknown = [number for number, label in enumerate(labels) if label not in part.labels]
        if unknown:
            warnings += (f"{name}/ has no column {labels[unknown[0]]!r}, which is unknown there",)
        ends = part.image.argsort(kind="stable")
        at = 0
        for i, image in enumerate(part.names.to_pylist()):
            values = [part.columns[kind][i].as_py() for kind in extra]
            split = _SPLIT_FOLDERS[name.lower()]
            builder.image(f"{name}/{image}", part.files[part.file[i]], int(part.line[i]), split, *values)
            for label in unknown:
                builder.mark(label, -1)
            while at < len(ends) and part.image[ends[at]] == i:
                builder.mark(order[int(part.label[ends[at]])], int(part.value[ends[at]]))
                at += 1
    first = next(iter(read.values()))
    annotations = builder.build(
        labels,
        f"{len(labels)} labels from {len(read)} tables in {folder}",
        repeats="agree",
        format=first.format,
        tool="Roboflow" if any(file.name == "_classes.csv" for file in split_tables(folder).values()) else "",
        used=first.used,
        left_out=first.left_out,
        warnings=warnings,
    )
    notes = (*first.notes, f"splits from the folders {', '.join(read)}")
    return replace(
        annotations, notes=notes, positives_only=first.positives_only, names=annotations.names.cast(pa.large_string())
    )
