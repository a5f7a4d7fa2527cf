"""JSON Lines: an object for each image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic.data.annotations.builders import Columns, build_named, image_name, text_lines
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError

_NAME_KEYS = ("file", "image", "filename", "file_name", "image_name", "path", "key", "id")


def read_jsonl(file: Path, columns: Columns) -> Annotations:
    extra = [name for name in (columns.split, columns.group) if name]
    builder = Builder(tuple(kind for kind in ("split", "group") if getattr(columns, kind)))
    for line, text in text_lines(file):
        if not text.strip():
            continue
        record = json_object(text, f"{file}:{line}")
        key = next((key for key in _NAME_KEYS if isinstance(record.get(key), str)), None)
        if key is None:
            raise DataError(f"{file}:{line}: no name of an image.", f"give it as one of {', '.join(_NAME_KEYS)}.")
        lacking = [name for name in extra if name not in record]
        if lacking:
            raise DataError(f"{file}:{line}: no {lacking[0]!r}.", "give it on every line.")
        builder.image(image_name(file, line, record[key]), str(file), line, *(str(record[name]) for name in extra))
        mark_json(builder, record, f"{file}:{line}")
    if not len(builder):
        raise DataError(f"{file} holds no line.", "write one JSON object for each image.")
    return build_named(builder, None, f"the lines of {file}")


def json_object(text: str | bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).", "fix that line.") from None
    return record if isinstance(record, dict) else {}


def mark_json(builder: Builder, record: Mapping[str, Any], where: str) -> None:
    labels, unknown = record.get("labels"), record.get("unknown", [])
    if isinstance(labels, list):
        labels = {str(label) if isinstance(label, int) else label: 1 for label in labels}
    if not isinstance(labels, dict) or not isinstance(unknown, list):
        raise DataError(f"{where}: `labels` is neither a list nor a mapping.", "fix that line.")
    for label, value in {**labels, **dict.fromkeys(unknown, -1)}.items():
        if not isinstance(label, str) or value not in (1, 0, -1):
            raise DataError(f"{where}: {value!r} for the label {label!r} is not 1, 0 or -1.", "fix that line.")
        number = builder.label(label)
        if value:
            builder.mark(number, int(value))
