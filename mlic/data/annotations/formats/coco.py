"""COCO's instances and panoptic JSON, and LVIS's, which says for each image what was looked for."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlic.data.annotations.files.large_json import Elements
from mlic.data.annotations.other_columns import check_beside
from mlic.data.image_labels import Annotations, Builder
from mlic.errors import DataError

Array = np.ndarray[Any, Any]

_KEYS = frozenset({"id", "image_id", "category_id", "segments_info", "bbox", "area", "segmentation", "iscrowd"})


def read_coco(file: Path, content: Mapping[str, Any], ignored: Sequence[str] = ()) -> Annotations:
    """The categories of each image's annotations; `ignored` are keys that say nothing about whether one counts.

    In LVIS (Gupta et al., arXiv:1908.03195, section 3) a category is looked for in some images only: it is present
    where it is annotated, absent where the image has it in `neg_category_ids`, and unknown otherwise.
    """
    _check_keys(file, content)
    images = content["images"]
    number = {image["id"]: i for i, image in enumerate(images)}
    if len(number) < len(images):
        _refuse_shared_numbers(file, images, number)
    categories = _names_of_categories(content["categories"])
    image, category, lost = _present(file, content["annotations"], images, number, categories, ignored)
    is_lvis = any("neg_category_ids" in image for image in images)
    names, builder, skipped = list(categories.values()), Builder(), 0
    ends = np.searchsorted(image, np.arange(len(images)), side="right")
    for i, entry in enumerate(images):
        labels = {names[c] for c in category[0 if i == 0 else ends[i - 1] : ends[i]]}
        if (entry.get("annotated") is False or entry.get("skipped") is True) and not labels:  # of COCO Annotator
            skipped += 1
            continue
        builder.image(_name(file, entry), str(file), 0)
        for label in sorted(labels):
            builder.mark(builder.label(label), 1)
        for absent in entry.get("neg_category_ids", ()) if is_lvis else ():
            if categories[absent] not in labels:
                builder.mark(builder.label(categories[absent]), 0)
    labels_in_order = tuple(dict.fromkeys(categories.values()))
    if not labels_in_order:
        raise DataError(f"{file} has no categories.", "give images, annotations, categories.")
    annotations = builder.build(
        labels_in_order,
        f"{len(labels_in_order)} labels from the categories of {file}",
        repeats="union",
        fill=-1 if is_lvis else 0,
        format="COCO",
        tool="LVIS" if is_lvis else "COCO",
    )
    warnings = (f"{lost:,} annotations are of images that the file does not list, and are left out",) if lost else ()
    notes = ["categories that were not looked for in an image are unknown"] if is_lvis else []
    if skipped:
        notes.append(f"{skipped:,} images have `annotated` false or `skipped` true: not annotated")
    return replace(annotations, warnings=warnings, notes=tuple(notes))


def _names_of_categories(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """The names by id; one that stands in several supercategories has that in front: `animal/other`."""
    above = dict[str, set[Any]]()
    for category in categories:
        above.setdefault(str(category["name"]), set()).add(category.get("supercategory"))
    return {
        category["id"]: f"{category.get('supercategory') or 'none'}/{category['name']}"
        if len(above[str(category["name"])]) > 1
        else str(category["name"])
        for category in categories
    }


def _check_keys(file: Path, content: Mapping[str, Any]) -> None:
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list | Elements):
            raise DataError(
                f"{file} has no {key}, and so is no COCO instances JSON.", "give images, annotations, categories."
            )


def _present(
    file: Path,
    annotations: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    number: Mapping[Any, int],
    categories: Mapping[Any, str],
    ignored: Sequence[str],
) -> tuple[Array, Array, int]:
    """The places (K,) of image and category of each annotation, sorted by image, and how many annotations are lost.

    Those are of images that the file does not list.
    """
    place = {category: i for i, category in enumerate(categories)}
    of_image, of_category, lost = array("i"), array("i"), 0
    for annotation in annotations:
        _refuse_doubts(file, annotation, ignored)
        image = number.get(annotation["image_id"])
        if image is None:
            lost += 1
            continue
        for category in _categories(annotation):
            if category not in place:
                raise DataError(
                    f"{file}: an annotation of {_name(file, images[image])!r} has the category {category!r}, which is "
                    f"not one of the {len(categories)} categories.",
                    "add it to categories.",
                )
            of_image.append(image)
            of_category.append(place[category])
    if lost and lost == len(annotations):
        raise DataError(
            f"all {lost:,} annotations of {file} are of images that it does not list.", "give both with the same ids."
        )
    order = np.argsort(np.frombuffer(of_image, np.int32), kind="stable")
    return np.frombuffer(of_image, np.int32)[order], np.frombuffer(of_category, np.int32)[order], lost


def _refuse_doubts(file: Path, annotation: Mapping[str, Any], ignored: Sequence[str]) -> None:
    """Raise DataError for an annotation that is a prediction, or that says that it does not count."""
    if "score" in annotation:
        raise DataError(
            f"{file}: an annotation has a score ({annotation['score']}): these are predictions.",
            "give the annotations of people, or a table with the columns image, label and score.",
        )
    others = {key: value for key, value in annotation.items() if key not in _KEYS}
    if "value" in others and others["value"] != 1 and "value" not in ignored:
        raise DataError(
            f"{file}: an annotation has the value {others['value']!r}, and would count in any case.",
            "take out the annotations that do not count; --ignore-columns value says that all count.",
        )
    check_beside({"category": annotation.get("category_id"), **others}, str(file), {"category", *ignored})


def _refuse_shared_numbers(file: Path, images: Sequence[Mapping[str, Any]], number: Mapping[Any, int]) -> None:
    """Raise DataError if two images with different names have one id, so that annotations may be of either."""
    for image in images:
        other = _name(file, images[number[image["id"]]])
        if (name := _name(file, image)) != other:
            raise DataError(
                f"{file}: the images {name!r} and {other!r} have the same id {image['id']!r}.",
                "give each image an id of its own.",
            )


def _name(file: Path, image: Mapping[str, Any]) -> str:
    name = image.get("file_name") or image.get("coco_url") or image.get("path")
    if not isinstance(name, str):
        raise DataError(f"{file}: the image {image.get('id')!r} has no file_name.", "give the name of each image.")
    return name.rpartition("/")[2] if "://" in name else name


def _categories(annotation: Mapping[str, Any]) -> list[Any]:
    if isinstance(annotation.get("segments_info"), list):  # panoptic
        return [segment["category_id"] for segment in annotation["segments_info"]]
    return [annotation["category_id"]]
