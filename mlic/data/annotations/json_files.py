"""JSON files of annotation tools, told by their keys: COCO, Label Studio, FiftyOne, MMPretrain, WIDER and more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlic.data.annotations.cells import are_vectors, check_numbers
from mlic.data.annotations.coco import read_coco
from mlic.data.annotations.column_names import NAME_COLUMNS
from mlic.data.annotations.options import LabelOptions, label_names
from mlic.data.annotations.table_files import json_lines, records
from mlic.data.annotations.tables import read_table
from mlic.data.annotations.text_files import document, parsed_json
from mlic.data.images import EXTENSIONS
from mlic.data.marks import Annotations, Builder
from mlic.errors import DataError


def read_json(file: Path, options: LabelOptions) -> Annotations:
    """Labels of one JSON file. Raises DataError for one that is not known, which names its keys."""
    text = document(file)
    if "\n{" in text and text.lstrip()[:1] == "{" and _is_object(text.lstrip().partition("\n")[0]):
        return read_table(json_lines(file), options)
    content = parsed_json(text, str(file))
    try:
        return _read(file, content, options)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{file} looks like {_kind(content)}, and lacks something of it ({what}).",
            "export it again, or write JSON Lines with `image` and `labels`.",
        ) from None


def _is_object(line: str) -> bool:
    """Whether a line is a JSON object of its own, as in JSON Lines."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _kind(content: Any) -> str:
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        return "tasks of Label Studio" if "annotations" in first or "completions" in first else "a list of records"
    if not isinstance(content, dict):
        return "nothing that is known"
    if "attribute_id_map" in content:
        return "WIDER attributes"
    if "images" in content or "categories" in content:
        return "COCO"
    if "metainfo" in content and "data_list" in content:
        return "MMPretrain"
    if "classes" in content and isinstance(content.get("labels"), dict):
        return "FiftyOne's labels"
    return "an object by image" if content and all(isinstance(v, list | dict) for v in content.values()) else "unknown"


def _read(file: Path, content: Any, options: LabelOptions) -> Annotations:
    kind = _kind(content)
    if kind == "COCO":
        return read_coco(file, content)
    if kind == "tasks of Label Studio":
        return _label_studio(file, content, options)
    if kind == "a list of records":
        rows = [row for row in content if isinstance(row, dict)]
        if not rows or len(rows) < len(content):
            raise DataError(f"{file} is a list of other things than objects.", "write one object for each image.")
        return read_table(records(file, rows, ()), options)
    if kind == "FiftyOne's labels":
        return _by_image(file, content["labels"], [str(name) for name in content["classes"]], "FiftyOne")
    if kind == "MMPretrain":
        classes = [str(name) for name in content["metainfo"].get("classes", ())]
        images = {entry["img_path"]: entry["gt_label"] for entry in content["data_list"]}
        return _by_image(file, images, classes, "MMPretrain")
    if kind == "WIDER attributes":
        return _wider(file, content)
    if kind == "an object by image" and not set(content) & set(NAME_COLUMNS):
        names = label_names(options.label_names)
        return _by_image(file, content, list(names.in_order()) if names is not None else [], "")
    keys = ", ".join(list(content)[:6]) if isinstance(content, dict) else type(content).__name__
    raise DataError(
        f"{file} has keys {keys}, which no known tool writes together.",
        "give COCO's images, annotations and categories, or JSON Lines with `image` and `labels`.",
    )


def _by_image(file: Path, images: Mapping[str, Any], classes: list[str], tool: str) -> Annotations:
    """Labels by the image's name: names or numbers in a list, or values by label."""
    builder = Builder()
    lists = [labels for labels in images.values() if isinstance(labels, list)]
    is_vector = len(lists) == len(images) and are_vectors(lists)
    if is_vector and (len(lists[0]) != len(classes) or all(len(set(labels)) == len(labels) for labels in lists)):
        raise DataError(
            f"{file}: the lists of 0 and 1 may be vectors, and {len(classes)} classes have names.",
            "write the names of the labels, or name all of them by --label-names.",
        )
    for image, labels in images.items():
        builder.image(image, str(file), 0)
        if is_vector:
            for name, bit in zip(classes, labels, strict=True):
                builder.mark(builder.label(name), int(bit))
            continue
        for label, value in _pairs(file, image, labels):
            name = classes[label] if isinstance(label, int) and 0 <= label < len(classes) else str(label)
            if isinstance(label, int) and (classes or label < 0) and not 0 <= label < len(classes):
                raise DataError(
                    f"{file}: the label {label} of {image!r} is not one of the {len(classes)} classes.", "fix the file."
                )
            builder.mark(builder.label(name), value)
    vocabulary = tuple(dict.fromkeys([*classes, *sorted(builder.numbers)]))
    return _named(builder, vocabulary, file, tool or "JSON by image", tool)


def _pairs(file: Path, image: str, labels: Any) -> list[tuple[Any, int]]:
    if isinstance(labels, dict) and isinstance(labels.get("labels"), list):
        labels = labels["labels"]
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


def _label_studio(file: Path, tasks: list[Any], options: LabelOptions) -> Annotations:
    """Label Studio's tasks: choices, and labels of regions; a task without an annotation is not annotated."""
    builder, skipped, controls = Builder(), 0, dict[str, set[str]]()
    for number, task in enumerate(tasks, start=1):
        annotations = [a for a in task.get("annotations", task.get("completions", ())) if not a.get("was_cancelled")]
        image = _task_image(task["data"])
        if not annotations or image is None:
            skipped += 1
            continue
        for annotation in annotations:
            builder.image(_uploaded(image), str(file), number)
            for result in annotation["result"]:
                for label in _chosen(result.get("value", {})):
                    controls.setdefault(label, set()).add(str(result.get("from_name", "")))
                    builder.mark(builder.label(label), 1)
    shared = next((label for label, names in controls.items() if len(names) > 1), None)
    if shared is not None:
        raise DataError(
            f"{file}: {shared!r} is a choice of several questions ({', '.join(sorted(controls[shared]))}).",
            "export one question at a time, or give each its own words.",
        )
    notes = (f"{skipped:,} tasks have no annotation: not annotated",) if skipped else ()
    return replace(
        _named(builder, tuple(sorted(builder.numbers)), file, "tasks", "Label Studio", repeats=options.readers),
        notes=notes,
    )


def _chosen(value: Mapping[str, Any]) -> list[str]:
    for key, found in value.items():
        if (key in ("choices", "taxonomy") or key.endswith("labels")) and isinstance(found, list):
            return [str(label[-1]) if isinstance(label, list) else str(label) for label in found]
    return []


def _task_image(data: Mapping[str, Any]) -> str | None:
    """The image of a task: what is called so, else what looks like a file, else the first text."""
    texts = {key.lower(): value for key, value in data.items() if isinstance(value, str)}
    named = next((texts[key] for key in NAME_COLUMNS if key in texts and key not in ("id", "key", "name")), None)
    like = next((value for value in texts.values() if "/" in value or Path(value).suffix.lower() in EXTENSIONS), None)
    return named or like or next(iter(texts.values()), None)


def _uploaded(image: str) -> str:
    """The name of an image without what Label Studio puts in front of it, `/data/local-files/?d=` for instance."""
    return image.partition("?d=")[2] or image


def _wider(file: Path, content: Mapping[str, Any]) -> Annotations:
    """WIDER attributes of people: an image has what one of them has."""
    labels = [name for _, name in sorted(content["attribute_id_map"].items(), key=lambda item: int(item[0]))]
    builder = Builder()
    for entry in content["images"]:
        builder.image(entry["file_name"], str(file), 0)
        rows = [target["attribute"] for target in entry["targets"]]
        for label in range(len(labels)):
            values = {row[label] for row in rows if label < len(row)}
            builder.mark(label, 1 if 1 in values else -1 if 0 in values or not values else 0)
    annotations = builder.build(
        tuple(labels), f"{len(labels)} labels of {file}", repeats="agree", fill=-1, format="WIDER", tool="WIDER"
    )
    return replace(annotations, notes=("an image has what one of its people has; 0 is unknown",))


def _named(
    builder: Builder, labels: tuple[str, ...], file: Path, format: str, tool: str, repeats: Any = "refuse"
) -> Annotations:
    if not labels:
        raise DataError(f"no label at all in {file}.", "give each image its labels.")
    source = f"{len(labels)} labels from the {format if tool != format else 'images'} of {file}"
    return builder.build(labels, source, repeats=repeats, format=format, tool=tool)


def read_json_folder(folder: Path) -> Annotations:
    """One JSON file per image, as LabelMe and BigEarthNet have them; its image is what it names, else its own name."""
    files = sorted(file for file in folder.rglob("*.json") if not file.name.startswith("."))
    builder = Builder()
    for file in files:
        content = parsed_json(document(file), str(file))
        try:
            labels = (
                _labels_of(content) if isinstance(content, dict) else content if isinstance(content, list) else None
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} lacks something of LabelMe's ({error}).", "export it again.") from None
        if labels is None:
            raise DataError(f"{file} has no labels.", "give `labels`, `shapes`, `tags` or `flags` in each file.")
        builder.image(_image_of(folder, file, content), str(file), 0)
        for label, value in _pairs(file, file.name, labels):
            builder.mark(builder.label(str(label)), value)
    return _named(builder, tuple(sorted(builder.numbers)), folder, "one JSON file per image", "")


def _labels_of(content: Mapping[str, Any]) -> Any:
    if isinstance(content.get("shapes"), list):  # LabelMe
        flags = [name for name, value in (content.get("flags") or {}).items() if value is True]
        return list(dict.fromkeys([*(str(shape["label"]) for shape in content["shapes"]), *flags]))
    for key in ("labels", "label", "tags", "categories", "classes"):
        if isinstance(content.get(key), list | dict | str):
            return content[key]
    return None


def _image_of(folder: Path, file: Path, content: Any) -> str:
    named = content.get("imagePath") if isinstance(content, dict) else None
    if not isinstance(named, str):
        found = (
            [content.get(key) for key in NAME_COLUMNS if key not in ("id", "key", "name")]
            if isinstance(content, dict)
            else []
        )
        named = next((name for name in found if isinstance(name, str)), None)
    relative = file.relative_to(folder)
    if named is not None:
        return named.replace("\\", "/").rpartition("/")[2]
    return relative.with_name(relative.stem.removesuffix("_labels_metadata").removesuffix("_metadata")).as_posix()
