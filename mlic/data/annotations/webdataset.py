"""WebDataset shards with KEY.json or KEY.cls beside each image."""

from __future__ import annotations

from pathlib import Path

from mlic.data import image_sources, storage
from mlic.data.annotations.builders import build_named
from mlic.data.annotations.jsonl import json_object, mark_json
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError


def read_webdataset(path: Path) -> Annotations:
    """Labels of WebDataset samples. A sample's image is named as `image_sources` lists it, without its extension."""
    archives = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not archives:
        raise DataError(f"the folder {path} holds no .tar shards.", "check --labels.")
    by_archive = image_sources.list_images(path).by_archive
    builder = Builder()
    for archive in archives:
        with storage.File(archive) as file:
            for name, size, offset, _, how in image_sources.members(archive):
                base, _, extension = name.rpartition(".")
                if how or extension not in ("json", "cls"):
                    continue
                data, where = file.read_at(offset, size), f"{archive}:{name}"
                builder.image(f"{archive.stem}/{base}" if by_archive else base, where, 0)
                if extension == "json":
                    mark_json(builder, json_object(data, where), where)
                else:
                    builder.mark(builder.label(_class_name(data, where)), 1)
    if not len(builder):
        raise DataError(f"the shards in {path} hold no KEY.json and no KEY.cls.", "give the labels by other files.")
    return build_named(builder, None, f"the .json and .cls members of {len(archives)} shards in {path}")


def _class_name(data: bytes, where: str) -> str:
    text = data.decode("utf-8", "replace").strip()
    if not text or "\ufffd" in text:
        raise DataError(f"{where}: {data[:20]!r} names no class.", "write the class's name or number as text.")
    return text
