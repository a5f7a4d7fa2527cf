"""JSON files, told by their keys: COCO, files of annotation tools, records, and labels by image or images by label."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlic.data.annotations.cells import is_vector
from mlic.data.annotations.column_names import LABEL_COLUMNS, NAME_COLUMNS, is_about_annotation
from mlic.data.annotations.files.large_json import Elements, Members
from mlic.data.annotations.files.table_files import json_lines, records
from mlic.data.annotations.files.text_files import text_lines, viewed_json
from mlic.data.annotations.formats import json_tools
from mlic.data.annotations.formats.coco import read_coco
from mlic.data.annotations.formats.json_labels import IMAGE_KEYS, labels_of, marks_of, names_of
from mlic.data.annotations.formats.json_tools import named
from mlic.data.annotations.json_records import plain_record
from mlic.data.annotations.options import LabelOptions, label_names
from mlic.data.annotations.tables import read_table
from mlic.data.image_labels import Annotations, Builder
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError

_LABEL_KEYS = frozenset({*LABEL_COLUMNS, "annotations", "instances", "shapes", "flags"})
_WITH_COLUMNS = frozenset({"a list of records", "an object with a list of records", "an object by image"})
_WITH_KEYS = frozenset({"COCO", "Datumaro", "FiftyOne's samples"})  # beside labels, which may be ignored
_WITH_QUESTIONS = frozenset(
    {"tasks of Label Studio", "FiftyOne's samples", "VGG Image Annotator", "a project of VGG Image Annotator"}
)


def read_json(file: Path, options: LabelOptions) -> Annotations:
    """Labels of one JSON file. Raises DataError for one that is not known, which names its keys."""
    if _are_lines(file):
        return read_table(json_lines(file), options)
    return _read_content(file, viewed_json(file), options)


def _read_content(file: Path, content: Any, options: LabelOptions) -> Annotations:
    kind = kind_of_content(content, options)
    try:
        return _read(file, content, kind, options)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{file} looks like {kind}, and lacks something of it ({what}).",
            "export it again, or write JSON Lines with `image` and `labels`.",
        ) from None


def _are_lines(file: Path) -> bool:
    """Whether a file has an object in its first line and begins another one in a later line, as JSON Lines do."""
    begins = (line for _, line in text_lines(file) if line.lstrip()[:1] == "{")
    first, second = next(begins, None), next(begins, None)
    if first is None or second is None:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def kind_of_content(content: Any, options: LabelOptions) -> str:
    """What a file of many images is, in words; "one image" for a file about one, "unknown" for any other."""
    if isinstance(content, list | Elements):
        first = content[0] if content and isinstance(content[0], dict) else {}
        is_task = "data" in first and ("annotations" in first or "completions" in first)
        if is_task:
            return "tasks of Label Studio"
        names_image = any(isinstance(value, str) and _are_images([value], options) for value in first.values())
        is_record = (
            names_image
            or {"externalId", "data_title"} & first.keys()
            or options.image_column in first
            or IMAGE_KEYS & {key.lower() for key in first}
        )
        return "a list of records" if is_record else "one image"
    if not isinstance(content, Mapping):
        return "unknown"
    if _is_list(content.get("shapes")):
        return "one image"  # LabelMe
    for keys, kind in _TOOLS.items():
        if keys <= content.keys():
            return kind
    if "images" in content or "categories" in content:
        return "COCO" if _is_list(content.get("images")) else "one image"
    if _LABEL_KEYS & content.keys() or not content:
        return "one image"
    if _records_in(content) is not None:
        return "an object with a list of records"
    return _kind_by_name(content, options)


_TOOLS = {
    frozenset({"attribute_id_map"}): "WIDER attributes",
    frozenset({"metainfo", "data_list"}): "MMPretrain",
    frozenset({"_via_img_metadata"}): "a project of VGG Image Annotator",
    frozenset({"samples"}): "FiftyOne's samples",
    frozenset({"categories", "items"}): "Datumaro",
    frozenset({"classes", "labels"}): "FiftyOne's labels",
}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | Elements)


def _values(content: Mapping[str, Any]) -> Sequence[Any]:
    """The values of an object, decoded one by one where it is a view of a document."""
    return content.elements if isinstance(content, Members) else list(content.values())


def _pairs_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object; see `_values`."""
    return content.pairs() if isinstance(content, Members) else iter(content.items())


def _records_in(content: Mapping[str, Any]) -> Sequence[dict[str, Any]] | None:
    """The list of objects with an image in an object whose other values are no lists."""
    is_list = (
        content.is_list if isinstance(content, Members) else [isinstance(v, list) for v in content.values()].__getitem__
    )
    keys = list(itertools.islice((key for i, key in enumerate(content) if is_list(i)), 2))
    if len(keys) != 1:
        return None
    items: Sequence[Any] = content[keys[0]]
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    return items if IMAGE_KEYS & {key.lower() for key in items[0]} else None


def _kind_by_name(content: Mapping[str, Any], options: LabelOptions) -> str:
    """The kind of an object whose keys are names: of images, or of labels with the images that have each."""
    values = _values(content)
    if all(isinstance(value, dict) and {"filename", "regions"} <= value.keys() for value in values):
        return "VGG Image Annotator"
    if _are_images(content, options):
        return "an object by image"
    listed = (name for value in values if isinstance(value, list) for name in value if isinstance(name, str))
    if all(isinstance(value, list) for value in values) and _are_images(listed, options):
        return "an object by label"
    plain = all(isinstance(value, list | dict) for value in values)
    return "an object by image" if plain and not any(name in content for name in NAME_COLUMNS) else "unknown"


def _are_images(names: Iterable[str], options: LabelOptions) -> bool:
    """Whether most names are images' by their endings, or are among the images."""
    some = list(itertools.islice(names, 200))
    known = sum(Path(name).suffix.lower() in EXTENSIONS or options.is_image(name) for name in some)
    return known * 2 > len(some)


def _read(file: Path, content: Any, kind: str, options: LabelOptions) -> Annotations:
    readers: dict[str, Callable[[], Annotations]] = {
        "COCO": lambda: read_coco(file, content, options.ignore_columns),
        "tasks of Label Studio": lambda: json_tools.read_label_studio(file, content, options),
        "a list of records": lambda: _read_records(file, content, options),
        "an object with a list of records": lambda: _read_records(file, _records_in(content) or (), options),
        "FiftyOne's labels": lambda: _by_image(
            file, lambda: _pairs_of(content["labels"]), [str(name) for name in content["classes"]], "FiftyOne"
        ),
        "FiftyOne's samples": lambda: json_tools.read_fiftyone(file, content["samples"], options),
        "MMPretrain": lambda: _read_mmpretrain(file, content),
        "Datumaro": lambda: json_tools.read_datumaro(file, content, options),
        "WIDER attributes": lambda: json_tools.read_wider(file, content),
        "VGG Image Annotator": lambda: json_tools.read_via(file, _values(content), options),
        "a project of VGG Image Annotator": lambda: json_tools.read_via(
            file, _values(content["_via_img_metadata"]), options
        ),
        "an object by image": lambda: _read_by_image(file, content, options),
        "an object by label": lambda: _read_by_label(file, content),
    }
    if kind in readers:
        _refuse_columns(file, kind, options)
        return readers[kind]()
    keys = ", ".join(list(content)[:6]) if isinstance(content, Mapping) else type(content).__name__
    raise DataError(
        f"{file} has keys {keys}, which no known tool writes together."
        if isinstance(content, Mapping)
        else f"{file} is a list of other things than objects with an image.",
        "give COCO's images, annotations and categories, or JSON Lines with `image` and `labels`.",
    )


def _refuse_columns(file: Path, kind: str, options: LabelOptions) -> None:
    """Raise DataError if columns are named and the file has none; the questions of some tools are named like them."""
    named = options.needs_columns
    if named == "ignore_columns" and kind in _WITH_KEYS:
        return
    if named is None or kind in _WITH_COLUMNS or (named == "label_column" and kind in _WITH_QUESTIONS):
        return
    raise DataError(f"{file} looks like {kind}, which has no columns.", f"leave --{named.replace('_', '-')} out.")


def _read_records(file: Path, content: Sequence[Any], options: LabelOptions) -> Annotations:
    if not all(isinstance(row, dict) for row in content):
        raise DataError(f"{file} is a list of other things than objects.", "write one object for each image.")
    return read_table(records(file, lambda: map(plain_record, content), ()), options)


def _read_mmpretrain(file: Path, content: Mapping[str, Any]) -> Annotations:
    classes = [str(name) for name in content["metainfo"].get("classes", ())]
    entries = content["data_list"]
    return _by_image(file, lambda: ((e["img_path"], e["gt_label"]) for e in entries), classes, "MMPretrain")


def _read_by_image(file: Path, content: Mapping[str, Any], options: LabelOptions) -> Annotations:
    """Labels by image. Text is read as in a cell of a table, so that several labels in it are told apart."""

    def labels() -> Iterator[tuple[str, Any]]:
        for image, value in _pairs_of(content):
            is_object = isinstance(value, dict)
            read = labels_of(value, file, options) if is_object else names_of(value, str(file), options.ignore_columns)
            yield image, _without_ignored(file, image, read, options) if isinstance(read, dict) else read

    if any(isinstance(value, str) or _are_confidences(value) or _has_minus_one(value) for _, value in labels()):
        return read_table(
            records(file, lambda: ({"image": image, "labels": value} for image, value in labels()), ()), options
        )
    names = label_names(options.label_names)
    return _by_image(file, labels, list(names.in_order()) if names is not None else [], "")


def _without_ignored(file: Path, image: str, values: dict[str, Any], options: LabelOptions) -> dict[str, Any]:
    """Values by label without the keys that are to be ignored. Raises DataError for a key that is no label."""
    kept = {key: value for key, value in values.items() if key not in options.ignore_columns}
    flag = next((key for key in kept if is_about_annotation(key)), None)
    if flag is not None and len(kept) > 1:
        raise DataError(
            f"{file}: {image!r} has {flag!r} among the values of its labels, which may be no label.",
            f"leave it out by --ignore-columns {flag}.",
        )
    return kept


def _are_confidences(value: Any) -> bool:
    """Whether an object gives words such as yes, or confidences, for labels."""
    return isinstance(value, dict) and any(
        isinstance(number, str) or (isinstance(number, float) and 0 < number < 1) for number in value.values()
    )


def _has_minus_one(value: Any) -> bool:
    """Whether an object has -1 for a label, which may mean that the label is absent."""
    return isinstance(value, dict) and any(number == -1 for number in value.values())


def _read_by_label(file: Path, content: Mapping[str, Sequence[str]]) -> Annotations:
    """The images that have each label; as in lists, an image without labels need not be named."""
    builder = Builder()
    for label, images in _pairs_of(content):
        number = builder.label(label)
        for image in images:
            builder.image(image, str(file), 0)
            builder.mark(number, 1)
    annotations = builder.build(
        tuple(content),
        f"{len(content)} labels from the lists of images in {file}",
        repeats="union",
        format="images by label",
    )
    return replace(annotations, by_label=True, positives_only=True)


def _by_image(file: Path, pairs: Callable[[], Iterable[tuple[str, Any]]], classes: list[str], tool: str) -> Annotations:
    """Labels by the image's name: names or numbers in a list, or values by label. `pairs` begins anew at each call."""
    builder = Builder()
    is_vector = _are_named_vectors(file, (labels for _, labels in pairs()), len(classes))
    for image, labels in pairs():
        builder.image(image, str(file), 0)
        if is_vector:
            for name, bit in zip(classes, labels, strict=True):
                builder.mark(builder.label(name), int(bit))
            continue
        for label, value in marks_of(file, image, labels):
            name = classes[label] if isinstance(label, int) and 0 <= label < len(classes) else str(label)
            if isinstance(label, int) and (classes or label < 0) and not 0 <= label < len(classes):
                raise DataError(
                    f"{file}: the label {label} of {image!r} is not one of the {len(classes)} classes.", "fix the file."
                )
            builder.mark(builder.label(name), value)
    vocabulary = tuple(dict.fromkeys([*classes, *sorted(builder.numbers)]))
    return named(builder, vocabulary, file, tool or "JSON by image", tool)


def _are_named_vectors(file: Path, values: Iterable[Any], names: int) -> bool:
    """Whether the labels of all images are vectors of 0 and 1. Raises DataError if there are not as many `names`."""
    lengths, are_lists_of_numbers = set[int](), True
    for value in values:
        if not isinstance(value, list) or not is_vector(value):
            return False
        lengths.add(len(value))
        are_lists_of_numbers = are_lists_of_numbers and len(set(value)) == len(value)
    if len(lengths) != 1 or lengths == {1}:
        return False
    if are_lists_of_numbers or lengths != {names}:
        raise DataError(
            f"{file}: the lists of 0 and 1 may be vectors, and {names} classes have names.",
            "write the names of the labels, or name all of them by --label-names.",
        )
    return True
