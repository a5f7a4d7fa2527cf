"""Formats of label files beyond lists and wide tables, which tests/data/test_label_join.py covers with the join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import as_paths, join
from mlic.errors import DataError

PATHS = ["a.jpg", "b.jpg", "c.jpg"]


def targets(path: Path, format: Any = "auto") -> tuple[tuple[str, ...], list[list[int]]]:
    annotations = read_annotations(path, LabelOptions(format=format))
    return annotations.labels, join(annotations, as_paths(PATHS)).targets.tolist()


def test_long_table(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("image,label\na.jpg,dog\na.jpg,cat\nb.jpg,dog\nc.jpg,\n")
    assert targets(path) == (("cat", "dog"), [[1, 1], [0, 1], [0, 0]])
    path.write_text("image,label\na.jpg,big dog\nb.jpg,cat\n")
    assert read_annotations(path).labels == ("big dog", "cat")
    assert targets(path, "long") == (("big dog", "cat"), [[1, 0], [0, 1], [0, 0]])


def test_parquet(tmp_path: Path) -> None:
    wide = pd.DataFrame({"file": PATHS, "dog": [1, 0, -1], "cat": [0.0, 1.0, None]})
    wide.to_parquet(tmp_path / "wide.parquet")
    assert targets(tmp_path / "wide.parquet") == (("dog", "cat"), [[1, 0], [0, 1], [-1, -1]])
    lists = pd.DataFrame({"file": PATHS, "labels": [["dog", "big cat"], [], ["dog"]]})
    lists.to_parquet(tmp_path / "lists.parquet")
    assert targets(tmp_path / "lists.parquet") == (("big cat", "dog"), [[1, 1], [0, 0], [0, 1]])
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(DataError, match="is not valid Parquet"):
        read_annotations(tmp_path / "no.parquet")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    records = [
        {"image": "a.jpg", "labels": ["dog"], "unknown": ["cat"]},
        {"file": "b.jpg", "labels": {"dog": 0, "cat": 1}},
        {"key": "c", "labels": []},
    ]
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    assert targets(path) == (("cat", "dog"), [[-1, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "l.jsonl:2: not JSON"),
        ("[1]", r"l.jsonl:2: \[1\] is no JSON object"),
        ('{"labels": ["dog"]}', "l.jsonl:2: the image is not named"),
        ('{"image": "b.jpg", "labels": [{"x": 1}]}', "l.jsonl:2: .* in the list 'labels' is no label"),
        ('{"image": "b.jpg", "labels": {"dog": 2}}', "l.jsonl:2: 2 for the label 'dog' is not 1, 0 or -1"),
        ('{"image": "a.jpg", "labels": []}', "the image 'a.jpg' has several rows, which differ in 'dog'"),
    ],
)
def test_malformed_json_lines(tmp_path: Path, line: str, error: str) -> None:
    (tmp_path / "l.jsonl").write_text('{"image": "a.jpg", "labels": ["dog"]}\n' + line + "\n")
    with pytest.raises(DataError, match=error):
        read_annotations(tmp_path / "l.jsonl")


def test_coco_instances(tmp_path: Path) -> None:
    plain = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 17, "bbox": [0, 0, 1, 1]},
            {"id": 2, "image_id": 9, "category_id": 17, "bbox": [1, 1, 1, 1]},
            {"id": 3, "image_id": 7, "category_id": 18, "iscrowd": 1},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(plain))
    assert targets(path) == (("dog", "cat", "person"), [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    plain["annotations"].append({"image_id": 99, "category_id": 17})
    path.write_text(json.dumps(plain))
    assert "1 annotations are of images that the file does not list" in read_annotations(path).warnings[0]
    plain["annotations"][-1] = {"image_id": 9, "category_id": 5}
    path.write_text(json.dumps(plain))
    with pytest.raises(DataError, match="an annotation of 'b.jpg' has the category 5, which is not one of the 3"):
        read_annotations(path)


VOC = "<annotation><filename>{}</filename>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult></object>"


def test_voc_keeps_difficult_objects_as_unknown(tmp_path: Path) -> None:
    objects = {
        "a.jpg": [("dog", 0), ("dog", 1), ("cat", 1)],
        "b.jpg": [("dog", 1), ("dog", 0)],
        "c.jpg": [],
    }
    for name, found in objects.items():
        text = VOC.format(name, "".join(OBJECT.format(*item) for item in found))
        (tmp_path / name).with_suffix(".xml").write_text(text)
    assert targets(tmp_path) == (("cat", "dog"), [[-1, 1], [0, 1], [0, 0]])
    (tmp_path / "d.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="d.xml is not valid XML"):
        read_annotations(tmp_path)


def test_a_folder_a_label(tmp_path: Path) -> None:
    for path in ("dog/a.jpg", "cat/x/b.PNG", "cat/notes.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    annotations = read_annotations(tmp_path)
    assert annotations.labels == ("cat", "dog")
    assert join(annotations, as_paths(["cat/x/b.PNG", "dog/a.jpg"])).targets.tolist() == [[1, 0], [0, 1]]


def test_a_format_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,dog,cat\na.jpg,1,0\n")
    for format, error in {
        "long": "no column holds labels",
        "voc": "voc labels are a folder, and .* is not",
        "coco": "not JSON",
    }.items():
        with pytest.raises(DataError, match=error):
            read_annotations(tmp_path / "l.csv", LabelOptions(format=format))  # type: ignore[arg-type]
    (tmp_path / "m.csv").touch()
    with pytest.raises(DataError, match="holds 2 tables"):
        read_annotations(tmp_path)
    (tmp_path / "x.bin").touch()
    with pytest.raises(DataError, match="cannot tell the format"):
        read_annotations(tmp_path / "x.bin")
