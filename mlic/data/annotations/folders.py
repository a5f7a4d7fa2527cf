"""A folder for each label: with a list of its images (LABEL.txt), or with the images in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlic.data.annotations.builders import TABLES, text_lines
from mlic.data.images import EXTENSIONS
from mlic.data.label_join import Annotations, Builder, is_number
from mlic.errors import DataError


def read_lists(folder: Path) -> Annotations:
    files = sorted(file for file in folder.iterdir() if file.suffix == ".txt" and not file.name.startswith("."))
    builder = Builder()
    numbers = 0
    for label, file in enumerate(files):
        for line, text in text_lines(file):
            name = text.strip()
            if not name:
                continue
            if any(ord(char) < 32 for char in name):
                raise DataError(f"{file}:{line}: {name!r} is not one image's name.", "write one image per line.")
            builder.image(name, str(file), line)
            builder.mark(label, 1)
            numbers += is_number(name)
    if not len(builder):
        raise DataError(f"the {len(files)} lists in {folder} are all empty.", "write one image per line.")
    source = f"{len(files)} labels from per-label lists in {folder}"
    passed = sorted(file.name for file in folder.iterdir() if file.suffix in (".jsonl", ".json", *TABLES))
    if passed:
        source += f" (passed over {', '.join(passed[:3])}{' ...' if len(passed) > 3 else ''})"
    names = tuple(file.stem for file in files)
    return replace(builder.build(names, source, bare_numbers=numbers * 2 > len(builder), once=False), by_label=True)


def read_folders(folder: Path) -> Annotations:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    builder = Builder()
    for number, label in enumerate(labels):
        for file in sorted((folder / label).rglob("*")):
            if file.suffix.lower() in EXTENSIONS:
                builder.image(file.relative_to(folder).as_posix(), str(folder), 0)
                builder.mark(number, 1)
    if not len(builder):
        raise DataError(f"the folders in {folder} hold no images.", "give a folder of LABEL.txt lists, or a table.")
    return replace(builder.build(tuple(labels), f"{len(labels)} labels from the folders in {folder}"), by_label=True)
