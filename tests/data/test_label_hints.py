"""Label files that are refused or doubted, and the files or options that the hints lead to."""

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

NUMBERS = range(1, 9)
NAMES = [f"im{i}.jpg" for i in NUMBERS]
LABELS = ("cat", "dog")


def read(path: Path, text: str, **options: Any) -> Annotations:
    path.write_text(text)
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def table(names: str, *columns: Any, sep: str = ",") -> str:
    """A table with the images in the first column; each further column cycles through its cells."""
    rows = (
        sep.join([name, *(str(cells[i % len(cells)]) for cells in columns)]) for i, name in enumerate(NAMES, start=1)
    )
    return "\n".join([names, *rows, ""])


def refused(path: Path, text: str, message: str, **options: Any) -> str:
    with pytest.raises(DataError, match=message) as error:
        read(path, text, **options)
    return error.value.hint


def test_words_in_a_column_of_values(tmp_path: Path) -> None:
    text = table("image,attribute,value", ["color", "size"], ["red", "big", "blue", "small"])
    hint = refused(tmp_path / "a.csv", text, "'value' holds '(red|big|blue|small)', which is neither yes, no nor")
    assert "--label-column value" in hint
    assert read(tmp_path / "a.csv", text, label_column="value").labels == ("big", "blue", "red", "small")
    maybe = table("image,label,value", LABELS, ["yes", "no", "maybe"])
    assert "nan" in refused(tmp_path / "b.csv", maybe, "'value' holds 'maybe'")
    known = read(tmp_path / "b.csv", maybe.replace("maybe", "nan"))
    assert known.fill == -1


def test_the_best_labels_of_a_model_with_their_scores(tmp_path: Path) -> None:
    text = table("image,label1,conf1,label2,conf2", ["cat"], [0.9], ["dog"], [0.1])
    hint = refused(tmp_path / "a.csv", text, "'conf1', 'conf2', ... may say how sure the labels in 'label1', 'label2'")
    assert "--ignore-columns conf1,conf2 says so" in hint
    assert read(tmp_path / "a.csv", text, ignore_columns=("conf1", "conf2")).labels == LABELS


def test_predictions_without_labels(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"image": name, "predictions": [LABELS[i % 2]]}) + "\n" for i, name in enumerate(NAMES))
    assert "--label-column predictions" in refused(tmp_path / "a.jsonl", rows, "seems to be a model's output")
    assert read(tmp_path / "a.jsonl", rows, label_column="predictions").labels == LABELS


def test_columns_of_0_and_1_apart_from_the_labels(tmp_path: Path) -> None:
    text = table("image,flash,width,cat,dog,bird", [0, 1], [640, 480], [0, 1], [1, 0], [1, 0, 0])
    assert any("'flash' stand apart from the other labels" in line for line in read(tmp_path / "a.csv", text).warnings)
    assert read(tmp_path / "a.csv", text, ignore_columns=("flash",)).labels == ("cat", "dog", "bird")


@pytest.mark.parametrize("word", ["dog=0", "dog (absent)", "dog: no", "Dog (negative)"])
def test_a_label_that_says_that_another_is_absent(tmp_path: Path, word: str) -> None:
    text = table("image,labels", ["cat|dog", f"cat|{word}", "bird|cat"])
    refused(tmp_path / "a.csv", text, "say that another label is absent")
    names = f"cat,dog,bird,{word}"
    assert word in read(tmp_path / "a.csv", text, label_names=names).labels


@pytest.mark.parametrize("word", ["no-dog", "!dog", "dog absent", "dog_neg", "without dog"])
def test_a_label_that_may_negate_another(tmp_path: Path, word: str) -> None:
    text = table("image,labels", ["cat|dog", f"cat|{word}", "bird|cat"])
    warnings = read(tmp_path / "a.csv", text).warnings
    assert any(f"{word!r} may say that a label is absent or in doubt" in line for line in warnings)


@pytest.mark.parametrize("form", ["#image,label", "# image, label"])
def test_a_line_of_names_behind_a_hash(tmp_path: Path, form: str) -> None:
    assert read(tmp_path / "a.csv", table(form, LABELS)).labels == LABELS
    assert read(tmp_path / "b.csv", "# of 2020\n" + table(form, LABELS)).labels == LABELS
    assert read(tmp_path / "c.csv", "# of 2020\n" + table("image,label", LABELS)).labels == LABELS


def test_version_1_of_via(tmp_path: Path) -> None:
    header = "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    kinds = ['"{""kind"":""cat""}"', '"{""kind"":""dog""}"']
    annotations = read(tmp_path / "a.csv", table(header, [9], ["{}"], [1], [0], ["{}"], kinds))
    assert annotations.labels == LABELS


def test_names_of_rows_as_r_writes_them(tmp_path: Path) -> None:
    rows = "".join(f'"{i}" "im{i}.jpg" {i % 2} {1 - i % 2}\n' for i in NUMBERS)
    annotations = read(tmp_path / "a.txt", '"image" "cat" "dog"\n' + rows)
    assert (annotations.labels, annotations.names.to_pylist()) == (LABELS, NAMES)
    images = "".join(f"im{i}.jpg,{i % 2},{1 - i % 2}\n" for i in NUMBERS)
    assert read(tmp_path / "b.csv", "cat,dog\n" + images).labels == LABELS


def test_codes_in_place_of_yes_and_no(tmp_path: Path) -> None:
    """With --positive-from 1 all labels would be positive."""
    text = table("image,cat,dog", [1, 2], [2, 1])
    assert refused(tmp_path / "a.csv", text, "'2' for the label") == (
        "no cell is 0, so these may be codes, such as 1 for yes and 2 for no; write 1 and 0."
    )
    counts = table("image,cat,dog", [0, 2], [2, 0])
    assert "--positive-from 1" in refused(tmp_path / "a.csv", counts, "'2' for the label")


def test_images_and_labels_in_one_cell(tmp_path: Path) -> None:
    pairs = [(i, label) for i in NUMBERS for label in LABELS]
    text = "ID,Label\n" + "".join(f"im{i}_{label},{i % 2}\n" for i, label in pairs)
    assert "`image` and `label`" in refused(tmp_path / "a.csv", text, "'ID' joins images and words such as 'cat'")
    apart = "image,label,value\n" + "".join(f"im{i},{label},{i % 2}\n" for i, label in pairs)
    assert read(tmp_path / "a.csv", apart).labels == LABELS


def test_values_without_names(tmp_path: Path) -> None:
    """DeepFashion's list of attributes, and what it is to be."""
    rows = "".join(f"im{i}.jpg   {1 if i % 2 else -1}  1 -1\n" for i in NUMBERS)
    refused(tmp_path / "a.txt", "8\nimage_name  attribute_labels\n" + rows, "an image and 3 values, as in DeepFashion")
    named = read(tmp_path / "a.txt", "8\nimage_name cat dog bird\n" + rows, minus_one="negative")
    assert named.labels == ("cat", "dog", "bird")


@pytest.mark.parametrize("names", ["names: [cat, dog]", "nc: 2\nnames:\n  0: cat\n  1: dog\n", "[cat, dog]"])
def test_names_of_numbers_in_yaml(tmp_path: Path, names: str) -> None:
    (tmp_path / "data.yaml").write_text(names)
    numbers = table("image,labels", ["0", "1", "0 1"])
    found = read(tmp_path / "a.csv", numbers, label_names=str(tmp_path / "data.yaml"), delimiter="space")
    assert found.labels == LABELS
    (tmp_path / "data.yaml").write_text("train: images/train\n")
    refused(tmp_path / "a.csv", numbers, "has no list `names`", label_names=str(tmp_path / "data.yaml"))


def test_one_name_for_images_of_two_patients(tmp_path: Path) -> None:
    """Rows of the images that the folders tell apart, without those folders in the names."""
    rows = "".join(f"p{i},{NAMES[i % 8]},{LABELS[i % 3 % 2]}\n" for i in range(32))
    text = "patient,file,label\n" + rows
    hint = refused(tmp_path / "a.csv", text, "'im1.jpg' is in rows of two values of 'patient', p0 and p8")
    assert "write names with their folders, p8/im1.jpg" in hint
    assert "patient" in hint.partition("--ignore-columns")[2]
    assert read(tmp_path / "a.csv", text, ignore_columns=("patient",)).labels == LABELS
    owned = "patient,file,label\n" + "".join(f"p{i // 2},{name},{LABELS[i % 2]}\n" for i, name in enumerate(NAMES))
    assert read(tmp_path / "b.csv", owned).labels == LABELS


def test_words_that_never_stand_apart(tmp_path: Path) -> None:
    """A list of labels on each line, separated by spaces, which a label may have in it too."""
    lists = ["polar bear snow", "cat", "polar bear", "snow dog"]
    lines = "".join(f"{name} {lists[i % 4]}\n" for i, name in enumerate(NAMES))
    (warning,) = read(tmp_path / "a.txt", lines).warnings
    assert "'polar' and 'bear' are two labels" in warning
    assert "write polar_bear" in warning
    lists[2] = "bear"
    assert read(tmp_path / "b.txt", "".join(f"{n} {lists[i % 4]}\n" for i, n in enumerate(NAMES))).warnings == ()
