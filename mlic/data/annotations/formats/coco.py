"""COCO's instances and panoptic JSON, and LVIS's, which says for each image what was looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlic.data.marks import Annotations, Builder
from mlic.errors import DataError


def read_coco(file: Path, content: Mapping[str, Any]) -> Annotations:
    """The categories of each image's annotations.

    In LVIS (Gupta et al., arXiv:1908.03195, section 3) a category is looked for in some images only: it is present
    where it is annotated, absent where the image has it in `neg_category_ids`, and unknown otherwise.
    """
    missing = [key for key in ("images", "categories", "annotations") if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"{file} has no {missing[0]}, and so is no COCO instances JSON.", "give images, annotations, categories."
        )
    names = {image["id"]: _name(file, image) for image in content["images"]}
    categories = {category["id"]: str(category["name"]) for category in content["categories"]}
    present, lost = _present(file, content["annotations"], names, categories)
    is_lvis = any("neg_category_ids" in image for image in content["images"])
    builder = Builder()
    absent = {_name(file, image): image.get("neg_category_ids", ()) for image in content["images"]}
    for name, labels in present.items():
        builder.image(name, str(file), 0)
        for label in sorted(labels):
            builder.mark(builder.label(label), 1)
        for category in absent[name] if is_lvis else ():
            if categories[category] not in labels:
                builder.mark(builder.label(categories[category]), 0)
    labels_in_order = tuple(dict.fromkeys(categories.values()))
    if not labels_in_order:
        raise DataError(f"{file} has no categories.", "give images, annotations, categories.")
    annotations = builder.build(
        labels_in_order,
        f"{len(labels_in_order)} labels from the categories of {file}",
        fill=-1 if is_lvis else 0,
        format="COCO",
        tool="LVIS" if is_lvis else "COCO",
    )
    warnings = (f"{lost:,} annotations are of images that the file does not list, and are left out",) if lost else ()
    notes = ("categories that were not looked for in an image are unknown",) if is_lvis else ()
    return replace(annotations, warnings=warnings, notes=notes)


def _present(
    file: Path, annotations: Sequence[Mapping[str, Any]], names: Mapping[Any, str], categories: Mapping[Any, str]
) -> tuple[dict[str, set[str]], int]:
    """The categories in each image by its name, and how many annotations are of images that the file does not list."""
    present: dict[str, set[str]] = {name: set() for name in names.values()}
    lost = 0
    for annotation in annotations:
        image = names.get(annotation["image_id"])
        if image is None:
            lost += 1
            continue
        for category in _categories(annotation):
            if category not in categories:
                raise DataError(
                    f"{file}: an annotation of {image!r} has the category {category!r}, which is not one of the "
                    f"{len(categories)} categories.",
                    "add it to categories.",
                )
            present[image].add(categories[category])
    if lost and lost == len(annotations):
        raise DataError(
            f"all {lost:,} annotations of {file} are of images that it does not list.", "give both with the same ids."
        )
    return present, lost


def _name(file: Path, image: Mapping[str, Any]) -> str:
    name = image.get("file_name") or image.get("coco_url") or image.get("path")
    if not isinstance(name, str):
        raise DataError(f"{file}: the image {image.get('id')!r} has no file_name.", "give the name of each image.")
    return name.rpartition("/")[2] if "://" in name else name


def _categories(annotation: Mapping[str, Any]) -> list[Any]:
    if isinstance(annotation.get("segments_info"), list):  # panoptic
        return [segment["category_id"] for segment in annotation["segments_info"]]
    return [annotation["category_id"]]
