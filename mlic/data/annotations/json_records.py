"""JSON objects about one image, as annotation tools write them, as rows of a table."""

from __future__ import annotations

from typing import Any

from mlic.errors import DataError

_ANSWERS = ("checklist_answers", "radio_answer", "answers", "answer")
_NAMES = ("name", "title", "value")
_BY_MACHINE = ("PREDICTION", "INFERENCE")  # types of Kili's labels


class Answers(dict[str, list[str]]):
    """The labels of an image by the question that they answer; `objects` are those of shapes in it."""

    def labels(self) -> list[str]:
        """All labels, each once."""
        return list(dict.fromkeys(label for labels in self.values() for label in labels))


def plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """An object of Vertex AI, SageMaker, Prodigy, Labelbox, Kili or Encord as a row; every other one as it is.

    A row has `image` and `labels`, or `answers` by question. These are None where nobody has annotated the image. A row
    of a SageMaker manifest that several jobs have annotated has a column for each. Raises DataError if the annotations
    of several people differ.
    """
    if "imageGcsUri" in record:
        return _of_vertex(record)
    if "source-ref" in record:
        return _of_sagemaker(record)
    if "answer" in record and isinstance(record.get("image"), str) and ("accept" in record or "label" in record):
        return _of_prodigy(record)
    if "data_row" in record and isinstance(record.get("projects"), dict):  # Labelbox
        row = record["data_row"]
        labels = [label for project in record["projects"].values() for label in project.get("labels", ())]
        answers = [label.get("annotations") or {} for label in labels if not _is_skipped(label)]
        return {"image": row.get("external_id") or row.get("row_data"), "answers": _agreed(row, answers)}
    if "Labeled Data" in record and isinstance(record.get("Label"), dict):  # Labelbox until 2022
        answered = None if record.get("Skipped") else _in_answers(record["Label"])
        return {"image": record.get("External ID") or record["Labeled Data"], "answers": answered}
    if "externalId" in record and isinstance(record.get("labels"), list):  # Kili
        labels = [] if record.get("skipped") else [v for v in record["labels"] if v.get("labelType") not in _BY_MACHINE]
        answers = [_of_kili(label.get("jsonResponse") or {}) for label in labels]
        return {"image": record["externalId"], "answers": _agreed(record, answers)}
    if "data_title" in record and "classification_answers" in record:
        return _of_encord(record)
    return record


def _of_vertex(record: dict[str, Any]) -> dict[str, Any]:
    several = record.get("classificationAnnotations")
    single = record.get("classificationAnnotation")
    chosen = several if isinstance(several, list) else [single] if single else []
    names = [item.get("displayName") if isinstance(item, dict) else item for item in chosen]
    use = (record.get("dataItemResourceLabels") or {}).get("aiplatform.googleapis.com/ml_use")
    return {"image": record["imageGcsUri"], "labels": names} | ({"ml_use": use} if use else {})


def _of_sagemaker(record: dict[str, Any]) -> dict[str, Any]:
    labels = _sagemaker_labels(record)
    if len(labels) > 1 and all("class-name" in record[f"{key}-metadata"] for key in labels):
        # Rekognition: an attribute for each label
        return {"image": record["source-ref"], "labels": [name for names in labels.values() for name in names]}
    if len(labels) > 1:
        return {"image": record["source-ref"], **labels}
    return {"image": record["source-ref"], "labels": next(iter(labels.values()), None)}


def _of_prodigy(record: dict[str, Any]) -> dict[str, Any]:
    """Choices, or one label that is accepted, rejected or ignored; others are not known then."""
    image = record["image"]
    if image.startswith("data:"):  # the bytes themselves
        image = record.get("path") or (record.get("meta") or {}).get("file") or image
    if "accept" in record:
        return {"image": image, "labels": record["accept"] if record["answer"] == "accept" else None}
    return {"image": image, "label": record["label"], "value": {"accept": 1, "reject": 0}.get(record["answer"])}


def _of_encord(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("label_status") == "NOT_LABELLED":
        return {"image": record["data_title"], "answers": None}
    units = [unit.get("labels") or {} for unit in (record.get("data_units") or {}).values()]
    objects = [item for unit in units for item in unit.get("objects", ())]
    questions = [q for answer in record["classification_answers"].values() for q in answer.get("classifications", ())]
    return {"image": record["data_title"], "answers": _in_answers({"objects": objects, "classifications": questions})}


def _is_skipped(label: dict[str, Any]) -> bool:
    return bool((label.get("performance_details") or {}).get("skipped"))


def _agreed(record: dict[str, Any], annotations: list[dict[str, Any]]) -> Answers | None:
    """The labels in all annotations of an image; None if there is no annotation. Raises DataError if they differ."""
    answers = [_in_answers(annotation) for annotation in annotations]
    if any(set(other.labels()) != set(answers[0].labels()) for other in answers):
        name = record.get("external_id") or record.get("externalId")
        raise DataError(
            f"the image {str(name)!r} has {len(answers)} annotations that differ.",
            "export one annotation of each image.",
        )
    return answers[0] if answers else None


def _of_kili(answers: dict[str, Any]) -> dict[str, Any]:
    """Answers of Kili's jobs as those of Labelbox: classifications, and objects with a class."""
    chosen = [{"name": name, "answers": job["categories"]} for name, job in answers.items() if "categories" in job]
    jobs = answers.values()
    objects = [
        {"name": category["name"]}
        for job in jobs
        for box in job.get("annotations", ())
        for category in box.get("categories", ())
    ]
    return {"classifications": chosen, "objects": objects}


def _in_answers(annotation: dict[str, Any]) -> Answers:
    """The names of objects, and the answers to the questions of one annotation; free text is no label."""
    answers = Answers()
    objects = [_name(item) for item in annotation.get("objects") or ()]
    if objects:
        answers["objects"] = objects
    for question in annotation.get("classifications") or ():
        answers.setdefault(_name(question), []).extend(_chosen(question))
    return answers


def _chosen(question: dict[str, Any]) -> list[str]:
    """The names of the options that are chosen, and of those that are chosen in questions below them."""
    given = next((question[key] for key in _ANSWERS if question.get(key) is not None), ())
    options = [given] if isinstance(given, dict) else [option for option in given if isinstance(option, dict)]
    names = [_name(option) for option in options]
    for option in options:
        children = option.get("classifications") or list((option.get("children") or {}).values())
        for child in children:
            names += _chosen(child | ({"answers": child["categories"]} if "categories" in child else {}))
    return names


def _name(item: dict[str, Any]) -> str:
    return next((str(item[key]) for key in _NAMES if key in item), "")


def _sagemaker_labels(record: dict[str, Any]) -> dict[str, list[str]]:
    """Labels of a SageMaker manifest by attribute: numbers, or one number, that the attribute's metadata name."""
    labels = dict[str, list[str]]()
    for key, value in record.items():
        metadata = record.get(f"{key}-metadata")
        if not isinstance(metadata, dict):
            continue
        classes, name = metadata.get("class-map"), metadata.get("class-name")
        if isinstance(classes, dict):
            numbers = value if isinstance(value, list) else [value]
            labels[key] = [str(classes.get(str(number), number)) for number in numbers]
        elif isinstance(name, str):
            labels[key] = [name]
    return labels
