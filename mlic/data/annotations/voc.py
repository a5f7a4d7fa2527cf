"""Folders of Pascal VOC XML files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from mlic.data.annotations.builders import build_named
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError


def read_voc(folder: Path) -> Annotations:
    builder = Builder()
    files = sorted(file for file in folder.iterdir() if file.suffix == ".xml")
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()  # noqa: S314 - expat itself stops entities that explode
        except (ElementTree.ParseError, OSError) as error:
            raise DataError(f"{file} is not valid XML: {error}.", "fix that file.") from None
        builder.image((root.findtext("filename") or file.stem).strip(), str(file), 0)
        marks: dict[str, int] = {}
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise DataError(f"{file}: an object without a name.", "fix that file.")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            if not difficult or marks.get(label) != 1:
                marks[label] = -1 if difficult else 1
        for label, value in marks.items():
            builder.mark(builder.label(label), value)
    return build_named(builder, None, f"{len(files):,} Pascal VOC files in {folder}")
