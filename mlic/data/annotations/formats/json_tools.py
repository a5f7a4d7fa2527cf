"""JSON of tools that annotate images: Label Studio, FiftyOne, VGG Image Annotator, and WIDER's attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlic.data.annotations.column_names import NAME_COLUMNS
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.other_columns import check_beside
from mlic.data.image_labels import Annotations, Builder
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError

# Fields of FiftyOne that name classes, and where those with several of them have them.
_LISTS = {
    "Classifications": "classifications",
    "Detections": "detections",
    "Polylines": "polylines",
    "Keypoints": "keypoints",
}
_CLASSIFIED = (*_LISTS, "Classification", "Detection", "Polyline", "Keypoint")


def read_label_studio(file: Path, tasks: Sequence[Any], options: LabelOptions) -> Annotations:
    """Label Studio's tasks: choices, and labels of regions; a task without an annotation is not annotated."""
    builder, skipped, controls = Builder(), 0, dict[str, set[str]]()
    paths, asked = _paths(tasks), dict[str, None]()
    for number, task in enumerate(tasks, start=1):
        annotations = [a for a in task.get("annotations", task.get("completions", ())) if not a.get("was_cancelled")]
        image = _task_image(task["data"])
        if not annotations or image is None:
            skipped += 1
            continue
        for annotation in annotations:
            builder.image(_uploaded(image), str(file), number)
            for result in annotation["result"]:
                question = str(result.get("from_name", ""))
                asked[question] = None
                if options.label_column not in (None, question):
                    continue
                for path in _chosen(result.get("value", {})):
                    label = path[-1] if paths[path[-1]] == {path} else "/".join(path)
                    controls.setdefault(label, set()).add(question)
                    builder.mark(builder.label(label), 1)
    _check_asked(file, options, asked)
    warnings = _check_questions(file, controls)
    notes = (f"{skipped:,} tasks have no annotation: not annotated",) if skipped else ()
    return replace(
        named(builder, tuple(sorted(builder.numbers)), file, "tasks", "Label Studio", repeats=options.readers),
        notes=notes,
        warnings=warnings,
    )


def _chosen(value: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The choices in a result, each as its path in a taxonomy."""
    for key, found in value.items():
        if (key in ("choices", "taxonomy") or key.endswith("labels")) and isinstance(found, list):
            return [tuple(map(str, label)) if isinstance(label, list) else (str(label),) for label in found if label]
    return []


def _paths(tasks: Sequence[Any]) -> dict[str, set[tuple[str, ...]]]:
    """The paths that end in each choice: `other` may be at several places of a taxonomy."""
    paths = dict[str, set[tuple[str, ...]]]()
    for task in tasks:
        for annotation in task.get("annotations", task.get("completions", ())):
            for result in annotation.get("result", ()):
                for path in _chosen(result.get("value", {})):
                    paths.setdefault(path[-1], set()).add(path)
    return paths


def _task_image(data: Mapping[str, Any]) -> str | None:
    """The image of a task: what is called so, else what looks like a file, else the first text."""
    texts = {key.lower(): value for key, value in data.items() if isinstance(value, str)}
    named = next((texts[key] for key in NAME_COLUMNS if key in texts and key not in ("id", "key", "name")), None)
    like = next((value for value in texts.values() if "/" in value or Path(value).suffix.lower() in EXTENSIONS), None)
    return named or like or next(iter(texts.values()), None)


def _uploaded(image: str) -> str:
    """The name of an image without what Label Studio puts in front of it, `/data/local-files/?d=` for instance."""
    return image.partition("?d=")[2] or image


def read_wider(file: Path, content: Mapping[str, Any]) -> Annotations:
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


def read_fiftyone(file: Path, samples: Sequence[Mapping[str, Any]], options: LabelOptions) -> Annotations:
    """FiftyOne's samples.json: the classes of one field, classifications or detections."""
    fields = dict.fromkeys(
        key
        for sample in samples
        for key, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") in _CLASSIFIED
    )
    named_field = options.label_column or ("ground_truth" if "ground_truth" in fields else None)
    if named_field not in fields and (named_field or len(fields) != 1):
        raise DataError(
            f"{file} has {len(fields)} fields of labels: {', '.join(fields) or 'none'}.",
            f"say which by --label-column {next(iter(fields))}." if fields else "export one that has classifications.",
        )
    builder, skipped = Builder(), 0
    field = named_field or next(iter(fields))
    for number, sample in enumerate(samples, start=1):
        content = sample.get(field)
        if content is None:
            skipped += 1
            continue
        builder.image(str(sample["filepath"]), str(file), number)
        items = content[_LISTS[content["_cls"]]] if content["_cls"] in _LISTS else [content]
        for label, value in _fiftyone_values(file, items, options).items():
            builder.mark(builder.label(label), value)
    missing = (f"{skipped:,} samples have no value in it: not annotated",) if skipped else ()
    notes = (f"labels of the field {field!r}", *missing)
    return replace(named(builder, tuple(sorted(builder.numbers)), file, "samples", "FiftyOne"), notes=notes)


def _fiftyone_values(file: Path, items: Sequence[Mapping[str, Any]], options: LabelOptions) -> dict[str, int]:
    """The labels of one sample with 1, or 0 where all their confidences are too low."""
    values = dict[str, int]()
    for item in items:
        check_beside(item, str(file), {"label", "confidence", *options.ignore_columns})
        confidence = item.get("confidence")
        if confidence not in (None, 1) and options.positive_from is None:
            raise DataError(
                f"{file}: {item['label']!r} has a confidence of {confidence}: these are predictions.",
                "say by --positive-from 0.5 from which confidence a label is positive.",
            )
        is_sure = confidence is None or options.positive_from is None or confidence >= options.positive_from
        values[str(item["label"])] = max(values.get(str(item["label"]), 0), int(is_sure))
    return values


def read_datumaro(file: Path, content: Mapping[str, Any], options: LabelOptions) -> Annotations:
    """Datumaro, which CVAT exports too: the labels of each item and of the shapes in it."""
    labels = [str(label["name"]) for label in content["categories"]["label"]["labels"]]
    builder = Builder()
    for label in labels:
        builder.label(label)
    for item in content["items"]:
        path = (item.get("image") or {}).get("path") or item["id"]
        builder.image(str(path), str(file), 0)
        for annotation in item["annotations"]:
            check_beside(annotation, str(file), {"label_id", *options.ignore_columns})
        numbers = [annotation["label_id"] for annotation in item["annotations"] if "label_id" in annotation]
        for number in dict.fromkeys(numbers):
            builder.mark(builder.label(labels[number]), 1)
    return named(builder, tuple(labels), file, "items", "Datumaro")


def read_via(file: Path, images: Sequence[Mapping[str, Any]], options: LabelOptions) -> Annotations:
    """VGG Image Annotator: the attributes of images and of their regions; an untouched image is not annotated."""
    builder, skipped, questions, asked = Builder(), 0, dict[str, set[str]](), dict[str, None]()
    for image in images:
        regions = image.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        answers = [image.get("file_attributes") or {}, *(region.get("region_attributes") or {} for region in regions)]
        chosen = [(key, label) for attributes in answers for key, label in _via_answers(attributes, options)]
        asked.update(dict.fromkeys(key for attributes in answers for key in attributes))
        if not any(answers):
            skipped += 1
            continue
        builder.image(str(image["filename"]), str(file), 0)
        for key, label in dict.fromkeys(chosen):
            questions.setdefault(label, set()).add(key)
            builder.mark(builder.label(label), 1)
    _check_asked(file, options, asked)
    warnings = _check_questions(file, questions)
    notes = (f"{skipped:,} images have no attribute: not annotated",) if skipped else ()
    annotations = named(builder, tuple(sorted(builder.numbers)), file, "attributes", "VGG")
    return replace(annotations, notes=notes, warnings=warnings)


def _via_answers(attributes: Mapping[str, Any], options: LabelOptions) -> list[tuple[str, str]]:
    """The attributes' names with the labels that are chosen: of a checkbox all that are ticked, else the one value."""
    answers = list[tuple[str, str]]()
    for key, value in attributes.items():
        if options.label_column not in (None, key):
            continue
        chosen = [name for name, ticked in value.items() if ticked is True] if isinstance(value, dict) else [value]
        answers += [(key, str(label).strip()) for label in chosen if str(label).strip()]
    return answers


def _check_asked(file: Path, options: LabelOptions, asked: Mapping[str, None]) -> None:
    """Raise DataError if a question is named that the file does not have."""
    if options.label_column is not None and options.label_column not in asked:
        names = ", ".join(list(asked)[:6]) or "none"
        raise DataError(f"{file} has no question {options.label_column!r}.", f"name one of its own: {names}.")


def _check_questions(file: Path, questions: Mapping[str, set[str]]) -> tuple[str, ...]:
    """A warning if the labels, with the questions that each answers, are answers to several questions.

    Raises DataError if one word answers several, so that it is not clear what a label means.
    """
    asked = sorted(set().union(*questions.values())) if questions else []
    shared = next((label for label, names in questions.items() if len(names) > 1), None)
    if shared is not None:
        names = ", ".join(sorted(questions[shared]))
        raise DataError(
            f"{file}: {shared!r} is a choice of several questions ({names}).",
            "name one of them by --label-column, or give each its own words.",
        )
    if len(asked) < 2:
        return ()
    return (f"labels are answers to {len(asked)} questions ({', '.join(asked[:5])}); --label-column takes one of them",)


def named(
    builder: Builder, labels: tuple[str, ...], file: Path, format: str, tool: str, repeats: Any = "refuse"
) -> Annotations:
    """The annotations of all lines, with their source in words. Raises DataError where there is no label."""
    if not labels:
        raise DataError(f"no label at all in {file}.", "give each image its labels.")
    source = f"{len(labels)} labels from the {format if tool != format else 'images'} of {file}"
    return builder.build(labels, source, repeats=repeats, format=format, tool=tool)
