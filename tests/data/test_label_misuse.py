"""Files of the field that a hurried reader gets wrong: each is read as meant, warned of, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import ImageNames, as_paths
from mlic.errors import DataError

NAMES = [f"im{i}.jpg" for i in range(8)]
LABELS = ("cat", "dog", "bird")


def read(path: Path, text: str, names: list[str] = NAMES, **options: Any) -> Annotations:
    path.write_text(text)
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(names)), **options))


def table(names: str, *columns: Any) -> str:
    """A table with the images in the first column; each further column cycles through its cells."""
    rows = (",".join([name, *(str(cells[i % len(cells)]) for cells in columns)]) for i, name in enumerate(NAMES))
    return "\n".join([names, *rows, ""])


def test_numbers_in_a_column_of_values(tmp_path: Path) -> None:
    text = table("image,label,value", LABELS, [3, 0])
    with pytest.raises(DataError, match="'value' holds numbers such as 3") as error:
        read(tmp_path / "a.csv", text)
    assert "--positive-from" in error.value.hint
    assert 0 in read(tmp_path / "a.csv", text, positive_from=1).value


@pytest.mark.parametrize(
    ("column", "cells"),
    [("negated", [1]), ("status", ["rejected"]), ("deleted", ["yes"]), ("agree", ["disagree"]), ("review", ["wrong"])],
)
def test_a_column_that_denies_all_rows(tmp_path: Path, column: str, cells: list[Any]) -> None:
    text = table(f"image,label,{column}", LABELS, cells)
    for options in ({}, {"label_column": "label"}):
        with pytest.raises(DataError, match=f"{column!r} says .* of all rows"):
            read(tmp_path / "a.csv", text, **options)
    assert len(read(tmp_path / "a.csv", text, ignore_columns=(column,)).labels) == 3


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("status", ["", "deleted"]),
        ("certainty", ["high", "low"]),
        ("severity", ["none", "mild", "severe"]),
        ("flag", ["true", ""]),
        ("note", ["absent", "present"]),
    ],
)
def test_a_state_beside_one_label_of_an_image(tmp_path: Path, column: str, cells: list[str]) -> None:
    text = table(f"image,label,{column}", LABELS, cells)
    assert any(f"the column {column!r}" in line for line in read(tmp_path / "a.csv", text).warnings)
    assert not read(tmp_path / "a.csv", text, ignore_columns=(column,)).warnings


@pytest.mark.parametrize(("column", "cells"), [("male", [0, 1]), ("class_id", [0, 1, 2]), ("comment", ["nice", ""])])
def test_what_has_nothing_to_do_with_labels(tmp_path: Path, column: str, cells: list[Any]) -> None:
    assert not read(tmp_path / "a.csv", table(f"image,{column},label", cells, LABELS)).warnings


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {name: {"labels": ["cat"], "status": "rejected"} for name in NAMES}, "'status' beside its label"),
        ("a.json", {name: {"label": "cat", "confidence": 0.1} for name in NAMES}, "'confidence' beside its label"),
        ("a.json", {name: {"labels": ["cat"], "more_labels": ["dog"]} for name in NAMES}, "may both hold labels"),
        ("a.json", {"train": NAMES[:5], "val": NAMES[5:]}, "are names of splits"),
    ],
)
def test_json_by_image(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, json.dumps(content))


@pytest.mark.parametrize(
    "beside",
    [
        {"isNegative": True},
        {"choice": "no"},
        {"count": 0},
        {"likelihood": "VERY_UNLIKELY"},
        {"deleted_at": "2021-03-01"},
        {"review": {"status": "rejected"}},
        {"flags": ["negated"]},
        {"attributes": {"certainty": "guess"}},
    ],
    ids=lambda beside: "-".join(beside),
)
def test_doubts_within_objects(tmp_path: Path, beside: dict[str, Any]) -> None:
    rows = [{"image": name, "annotations": [{"label": "cat"}, {"label": "dog", **beside}]} for name in NAMES]
    with pytest.raises(DataError, match="beside its label"):
        read(tmp_path / "a.json", json.dumps(rows))


def test_lists_of_yes_and_no_beside_labels(tmp_path: Path) -> None:
    rows = [{"image": name, "labels": ["cat", "dog"], "values": [1, 0]} for name in NAMES]
    with pytest.raises(DataError, match="'values' holds lists of yes and no"):
        read(tmp_path / "a.json", json.dumps(rows))


@pytest.mark.parametrize("column", ["photographer", "camera_model", "license", "date", "modality"])
def test_the_only_column_of_words(tmp_path: Path, column: str) -> None:
    text = table(f"image,{column}", ["one", "two"])
    with pytest.raises(DataError, match="hardly holds labels"):
        read(tmp_path / "a.csv", text)
    assert read(tmp_path / "a.csv", text, label_column=column).labels == ("one", "two")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("cat,cat_pred,dog,dog_pred", "'cat_pred', 'dog_pred' may say something about the labels"),
        ("cat,cat.1,dog,dog.1", "'cat.1', 'dog.1' may say something about the labels"),
        ("cat (Anna),cat (Ben),dog (Anna),dog (Ben)", "endings Anna, Ben, as of several readers"),
        ("cat1,cat2,dog1,dog2", "endings 1, 2, as of several readers"),
    ],
)
def test_columns_about_labels_and_of_readers(tmp_path: Path, columns: str, message: str) -> None:
    text = table(f"image,{columns}", [0, 1], [1, 0], [0, 0, 1], [1, 1, 0])
    assert any(message in line for line in read(tmp_path / "a.csv", text).warnings)


def test_endings_that_are_of_no_reader(tmp_path: Path) -> None:
    text = table("image,left_lung,left_kidney,right_lung,right_kidney", [0, 1], [1, 0], [0, 0, 1], [1, 1, 0])
    assert not read(tmp_path / "a.csv", text).warnings


def test_numbers_of_folders(tmp_path: Path) -> None:
    """A patient is a folder, and the number of another one is that of a file."""
    images = [f"p{i}/{11 - i}.jpg" for i in range(1, 11)]
    rows = "".join(f"{i},{LABELS[i % 2]}\n" for i in range(1, 11))
    with pytest.raises(DataError, match="'patient' may be those of images or of their folders"):
        read(tmp_path / "a.csv", "patient,label\n" + rows, images)


def test_cells_that_are_images(tmp_path: Path) -> None:
    text = "cat,dog\nim0.jpg,im4.jpg\nim1.jpg,im5.jpg\n"
    with pytest.raises(DataError, match="'dog' are names of images"):
        read(tmp_path / "a.csv", text, image_column="cat", label_column="dog")


def test_codes_for_what_nobody_has_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'9' for the label") as error:
        read(tmp_path / "a.csv", table("image,cat,dog", [0, 1, 9], [1, 0, 9]))
    assert error.value.hint == "if 9 means that nobody has looked, write nan there; else 1 or 0."


def test_layouts_that_are_read_as_they_are_meant(tmp_path: Path) -> None:
    forms = read(tmp_path / "a.csv", table("Image,Animals [cat],Animals [dog]", ["Yes", "No"], ["No", "Yes"]))
    assert forms.labels == ("Animals [cat]", "Animals [dog]")
    breaks = read(tmp_path / "b.csv", table("image,label", ['"cat\ndog"', "dog", "cat"]))
    assert breaks.labels == ("cat", "dog")
    empty = read(tmp_path / "c.csv", table("File,RelativePath,cat,dog", [""], [0, 1], [1, 0]))
    assert empty.labels == ("cat", "dog")
