"""COCO instances JSON."""

from __future__ import annotations

import json
from pathlib import Path

from mlic.data.annotations.builders import build_named
from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError


def read_coco(file: Path) -> Annotations:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in document["images"]}
        categories = {category["id"]: category["name"] for category in document["categories"]}
        labels_of: dict[str, set[str]] = {name: set() for name in names.values()}
        for annotation in document["annotations"]:
            labels_of[names[annotation["image_id"]]].add(categories[annotation["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{file} is not valid COCO instances JSON ({what}).", "give images, annotations, categories."
        ) from None
    builder = Builder()
    for name, labels in labels_of.items():
        builder.image(name, str(file), 0)
        for label in sorted(labels):
            builder.mark(builder.label(label), 1)
    return build_named(builder, list(categories.values()), f"the categories of {file}")
