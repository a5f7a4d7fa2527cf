"""JSON files and workbooks that were refused or read wrongly once, with what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError

NAMES = [f"p{i:02d}.jpg" for i in range(12)]
MEANT = [["cat"], ["cat", "dog"], ["dog"]] * 4


def positives(path: Path, **options: Any) -> list[list[str]]:
    annotations = read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))
    targets = join(annotations, as_paths(NAMES)).targets
    return [[annotations.labels[i] for i in (row == 1).nonzero()[0]] for row in targets]


def refused(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as error:
        read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))
    return error.value


def folder_with(folder: Path, content: Any, name: str = "labels.json") -> Path:
    (folder / "ann").mkdir(exist_ok=True)
    (folder / "ann" / name).write_text(json.dumps(content))
    return folder / "ann"


@pytest.mark.parametrize(
    "content",
    [
        dict(zip(NAMES, MEANT, strict=True)),
        {name: ", ".join(meant) for name, meant in zip(NAMES, MEANT, strict=True)},
        {name[:-4]: {"labels": meant} for name, meant in zip(NAMES, MEANT, strict=True)},
        {name: {"tags": {v: v in meant for v in ("cat", "dog")}} for name, meant in zip(NAMES, MEANT, strict=True)},
        {label: [name for name, meant in zip(NAMES, MEANT, strict=True) if label in meant] for label in ("cat", "dog")},
        [{"file_name": name, "objects": [{"label": v} for v in m]} for name, m in zip(NAMES, MEANT, strict=True)],
    ],
    ids=["lists", "text", "without endings", "mappings", "images of each label", "objects"],
)
def test_one_file_of_all_images(tmp_path: Path, content: Any) -> None:
    """Also in a folder of its own, where it is no file about one image."""
    folder = folder_with(tmp_path, content)
    assert positives(folder / "labels.json") == MEANT
    assert positives(folder) == MEANT


def test_two_ids_of_one_file_name(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": NAMES[i % 12]} for i in range(24)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    annotations = [
        {"image_id": i + 12 * (label == "dog"), "category_id": 1 + (label == "dog")}
        for i, meant in enumerate(MEANT)
        for label in meant
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    assert positives(folder_with(tmp_path, content)) == MEANT
    folder_with(tmp_path, content, "second.json")
    assert "holds 2 JSON files, and labels.json looks like COCO" in refused(tmp_path / "ann").message


@pytest.mark.parametrize(
    "content",
    [
        {"tags": "{}"},
        {"image": "{name}", "label": "{}"},
        {"annotations": [{"class": "one"}]},
        [{"label": "one", "box": [0, 0, 1, 1]}],
    ],
    ids=["tags", "label", "annotations", "objects"],
)
def test_a_file_about_each_image(tmp_path: Path, content: Any) -> None:
    """Text with several labels is taken apart as in a table."""

    def filled(value: Any, name: str, meant: list[str]) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner, name, meant) for key, inner in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            key = next(iter(value[0]))
            return [{**value[0], key: label} for label in meant]
        return value.format(", ".join(meant), name=name)

    for name, meant in zip(NAMES, MEANT, strict=True):
        folder_with(tmp_path, filled(content, name, meant), name.replace(".jpg", ".json"))
    assert positives(tmp_path / "ann") == MEANT


def test_a_file_without_labels_names_its_keys(tmp_path: Path) -> None:
    error = refused(folder_with(tmp_path, {"width": 3, "height": 4}))
    assert error.message.endswith("has no labels in its keys width, height.")


def via(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}9": {"filename": name, "size": 9, "regions": [], "file_attributes": answer}
        for name, answer in zip(NAMES, answers, strict=True)
    }


def test_vgg_image_annotator(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [{"tags": dict.fromkeys(meant, True)} for meant in MEANT]
    assert positives(folder_with(tmp_path, via(answers))) == MEANT
    regions = via([{} for _ in NAMES])
    for image, meant in zip(regions.values(), MEANT, strict=True):
        image["regions"] = [{"shape_attributes": {}, "region_attributes": {"what": label}} for label in meant]
    assert positives(folder_with(tmp_path, regions)) == MEANT
    untouched = read_annotations(folder_with(tmp_path, via([*answers[:-1], {}])))
    assert len(untouched.names) == 11
    assert untouched.notes == ("1 images have no attribute: not annotated",)
    several = via([{"sharp": "very", "bright": "very"} for _ in NAMES])
    error = refused(folder_with(tmp_path, several))
    assert "'very' is a choice of several questions (bright, sharp)" in error.message
    assert positives(tmp_path / "ann" / "labels.json", label_column="sharp") == [["very"]] * 12


def test_samples_of_fiftyone(tmp_path: Path) -> None:
    def sample(name: str, meant: list[str]) -> dict[str, Any]:
        boxes = {"_cls": "Detections", "detections": [{"label": label} for label in [*meant, *meant]]}
        return {"filepath": f"/data/{name}", "boxes": boxes, "night": {"_cls": "Classification", "label": "night"}}

    content = {"samples": [sample(name, meant) for name, meant in zip(NAMES, MEANT, strict=True)]}
    folder = folder_with(tmp_path, content)
    assert refused(folder).message.endswith("has 2 fields of labels: boxes, night.")
    assert refused(folder, label_column="none").hint == "say which by --label-column boxes."
    assert positives(folder / "labels.json", label_column="boxes") == MEANT
    assert positives(folder / "labels.json", label_column="night") == [["night"]] * 12


def test_several_attributes_of_sagemaker(tmp_path: Path) -> None:
    metadata = {"class-map": {"0": "cat", "1": "dog"}}
    lines = [
        {
            "source-ref": f"s3://b/{name}",
            "animals": [("cat", "dog").index(label) for label in meant],
            "animals-metadata": metadata,
            "weather": 0,
            "weather-metadata": {"class-name": "sun"},
        }
        for name, meant in zip(NAMES, MEANT, strict=True)
    ]
    path = tmp_path / "output.manifest"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "several columns may hold the labels: 'animals'" in refused(path).message
    assert positives(path, label_column="animals") == MEANT
    assert positives(path, label_column="weather") == [["sun"]] * 12


def test_prodigys_answers(tmp_path: Path) -> None:
    lines = [{"image": name, "accept": meant, "answer": "accept"} for name, meant in zip(NAMES, MEANT, strict=True)]
    lines[0]["answer"] = "ignore"
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert positives(path) == [[], *MEANT[1:]]
    assert read_annotations(path).notes == ("1 rows have no value in 'labels': not annotated",)


def workbook(path: Path, **sheets: list[list[Any]]) -> Any:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return book


def rows() -> list[list[Any]]:
    body = [[name, *(int(v in meant) for v in ("cat", "dog"))] for name, meant in zip(NAMES, MEANT, strict=True)]
    return [["image", "cat", "dog"], *body]


def test_the_sheet_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.xlsx"
    workbook(path, about=[["second version"], ["of 2024"]], labels=rows(), empty=[])
    assert positives(path) == MEANT
    assert read_annotations(path).notes == ("the sheet 'labels' of 2",)
    workbook(path, first=rows(), second=rows())
    assert "2 sheets that may hold the labels: 'first', 'second'" in refused(path).message


def test_titles_and_merged_cells(tmp_path: Path) -> None:
    path = tmp_path / "labels.xlsx"
    book = workbook(path, labels=[["Labels of 2024"], [None], *rows()])
    book["labels"].merge_cells("A1:C1")
    book.save(path)
    assert positives(path) == MEANT
    assert read_annotations(path).notes == ("2 lines of title above the columns' names left out",)
    long = [["image", "label"]]
    for name, meant in zip(NAMES, MEANT, strict=True):
        long += [[name if i == 0 else None, label] for i, label in enumerate(meant)]
    book = workbook(path, labels=long)
    for first in [i + 1 for i, row in enumerate(long) if row[0] is None]:
        book["labels"].merge_cells(f"A{first - 1}:A{first}")
    book.save(path)
    assert positives(path) == MEANT


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ([], "is empty."),
        ([["image", "cat", "cat"], ["p00.jpg", 1, 0]], "the column 'cat' stands twice."),
    ],
)
def test_workbooks_that_are_refused(tmp_path: Path, content: list[list[Any]], error: str) -> None:
    workbook(tmp_path / "labels.xlsx", labels=content)
    assert refused(tmp_path / "labels.xlsx").message.endswith(error)


def test_a_table_with_a_column_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(",".join(["label", *NAMES]) + "\ncat" + ",1" * 12 + "\n")
    error = refused(tmp_path / "l.csv")
    assert "the first line names images (p00.jpg, p01.jpg, ...)" in error.message
    assert "transpose" in error.hint


def test_counts_need_a_limit(tmp_path: Path) -> None:
    lines = [
        f"{name},{(1 + i % 3) * ('cat' in meant)},{(1 + i % 4) * ('dog' in meant)}\n"
        for i, (name, meant) in enumerate(zip(NAMES, MEANT, strict=True))
    ]
    (tmp_path / "l.csv").write_text("image,cat,dog\n" + "".join(lines))
    assert refused(tmp_path / "l.csv").hint.startswith("if they count something, --positive-from 1")
    assert positives(tmp_path / "l.csv", positive_from=1) == MEANT
