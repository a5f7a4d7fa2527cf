"""The labels in a JSON object about one image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlic.data.annotations.cells import check_numbers
from mlic.data.annotations.column_names import LABEL_COLUMNS, NAME_COLUMNS, VALUE_COLUMNS
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.other_columns import check_beside
from mlic.errors import DataError

IMAGE_KEYS = frozenset(NAME_COLUMNS) - {"id", "key", "name"}  # of a record that is about one image
_OF_SHAPES = ("annotations", "objects", "instances")
_PER_IMAGE = ("labels", "label", "tags", "categories", "classes")


def marks_of(file: Path, image: str, labels: Any) -> list[tuple[Any, int]]:
    """The labels of an image, names or numbers, with the value of each. Raises DataError where there is no list."""
    if isinstance(labels, str | int):
        labels = [labels]
    if isinstance(labels, dict):
        bad = next((value for value in labels.values() if value not in (0, 1, -1)), None)
        if bad is not None:
            raise DataError(f"{file}: {bad!r} in the labels of {image!r} is not 1, 0 or -1.", "fix that image.")
        return [(label, int(value)) for label, value in labels.items()]
    if not isinstance(labels, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in labels):
        raise DataError(
            f"{file}: the labels of {image!r} are {str(labels)[:40]}, which is no list of labels.",
            "write them as a list of names.",
        )
    check_numbers(labels, f"{file}: {image!r}")
    return [(label, 1) for label in labels]


def labels_of(content: Mapping[str, Any], file: Path, options: LabelOptions) -> Any:
    """The labels in an object about one image; the object itself if no key of it is known. Raises DataError."""
    if options.label_column is not None:
        if options.label_column not in content:
            raise DataError(
                f"{file} has no key {options.label_column!r}.", f"its keys are {', '.join(list(content)[:6])}."
            )
        return names_of(content[options.label_column], str(file), options.ignore_columns)
    if isinstance(content.get("shapes"), list):
        return _of_labelme(content, file, options)
    keys = [key for key in (*_PER_IMAGE, *_OF_SHAPES) if isinstance(content.get(key), list | dict | str)]
    filled = [key for key in keys if content[key]]
    if len(filled) > 1 and set(filled) & set(_OF_SHAPES):
        raise DataError(
            f"{file} has labels of two kinds: {', '.join(filled)}.", f"say which by --label-column {filled[0]}."
        )
    if not keys:
        return content
    chosen = (filled or keys)[0]
    more = [key for key in filled if key != chosen] + [key for key in content if re.search(r"_(labels|tags)$", key)]
    if more and isinstance(content[more[0]], list) and more[0] not in options.ignore_columns:
        raise DataError(
            f"{file}: the keys {chosen!r} and {more[0]!r} may both hold labels.",
            f"say which by --label-column {chosen}.",
        )
    beside = {key: value for key, value in content.items() if key not in (*keys, *IMAGE_KEYS)}
    check_beside(beside, str(file), options.ignore_columns)
    return names_of(content[chosen], str(file), options.ignore_columns)


def _of_labelme(content: Mapping[str, Any], file: Path, options: LabelOptions) -> list[str]:
    """The labels of LabelMe's shapes, or the flags of an image without shapes."""
    flags = [name for name, value in (content.get("flags") or {}).items() if value is True]
    for shape in content["shapes"]:
        check_beside(shape, str(file), {"label", "shape_type", *options.ignore_columns})
    labels = [str(shape["label"]) for shape in content["shapes"]]
    if flags and labels:
        raise DataError(
            f"{file} has shapes ({labels[0]!r}) and flags of the image ({flags[0]!r}).",
            "say by --label-column shapes or --label-column flags which ones are the labels.",
        )
    return list(dict.fromkeys(labels or flags))


def names_of(labels: Any, where: str, ignored: Sequence[str] = ()) -> Any:
    """The names in a list of objects such as `{"label": "cat", "box": ...}`, each once; other labels as they are.

    `ignored` are keys of the objects that say nothing about whether a label counts. Raises DataError for one that says
    that it may not.
    """
    if isinstance(labels, list) and labels and all(isinstance(item, dict) for item in labels):
        key = next(
            (
                key
                for key in (*LABEL_COLUMNS, "classTitle", "className", "name")
                if all(isinstance(i.get(key), str) for i in labels)
            ),
            None,
        )
        is_scored = any(isinstance(item.get(name), int | float) for item in labels for name in VALUE_COLUMNS)
        if key is not None and not is_scored:
            for item in labels:
                check_beside(item, where, {key, "value", *ignored})
            # Supervisely's tags that are questions have their answer beside them.
            answers = (item.get("value") for item in labels)
            names = (
                answer if isinstance(answer, str) and answer else item[key]
                for answer, item in zip(answers, labels, strict=True)
            )
            return list(dict.fromkeys(names))
    return labels
