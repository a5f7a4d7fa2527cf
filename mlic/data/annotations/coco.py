"""COCO instances JSON."""

from __future__ import annotations

import json
from pathlib import Path

from mlic.data.annotations.builders import build_named
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError


def read_coco(file: Path) -> Annotations:
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
            f"{file} is not valid COCO instances JSON ({what}).", "give images, annotations, categories."
        ) from None
    found = Builder()
    for name, labels in given.items():
        found.image(name, str(file), 0)
        for label in sorted(labels):
            found.mark(found.label(label), 1)
    return build_named(found, list(categories.values()), f"the categories of {file}")
