"""Columns beside the labels that say which of them count, or hold labels too, and labels that are hardly any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError

NAMES = [f"p{i:02d}.jpg" for i in range(12)]
MEANT = [(("cat",), ("cat", "dog"), ("dog",), ())[i % 4] for i in range(12)]


def read(path: Path, **options: Any) -> Annotations:
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def positives(path: Path, **options: Any) -> list[tuple[str, ...]]:
    annotations = read(path, **options)
    targets = join(annotations, as_paths(NAMES)).targets
    return [tuple(annotations.labels[i] for i in (row == 1).nonzero()[0]) for row in targets]


def written(folder: Path, header: str, *rows: str, name: str = "l.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def proposals(yes: str, no: str) -> list[str]:
    """A row for each image and label, with a word that says whether the label is there."""
    return [
        f"{name},{label},{yes if label in meant else no}"
        for name, meant in zip(NAMES, MEANT, strict=True)
        for label in ("cat", "dog")
    ]


@pytest.mark.parametrize(
    ("column", "yes", "no", "says"),
    [
        ("verified", "TRUE", "FALSE", "says yes and no"),
        ("status", "accepted", "rejected", "holds states of rows such as accepted and rejected"),
        ("certainty", "0.93", "0.12", r"may say how sure a label is \(0.93\)"),
        ("confidence", "96.4", "12", r"may say how sure a label is \(96.4\)"),
        ("area_percent", "40", "0", r"may say how sure a label is \(40\)"),
        ("count", "2", "0", "counts something, and is 0 in some rows"),
        ("deleted_at", "", "2024-02-01", "says which rows were deleted"),
    ],
)
def test_a_row_that_may_not_count(tmp_path: Path, column: str, yes: str, no: str, says: str) -> None:
    path = written(tmp_path, f"image,label,{column}", *proposals(yes, no))
    with pytest.raises(DataError, match=rf"the column '{column}' {says}, and each row counts") as error:
        read(path)
    assert f"--ignore-columns {column}" in error.value.hint
    assert read(path, ignore_columns=(column,)).labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("column", "yes", "no"),
    [
        ("qc", "pass", "fail"),
        ("presence", "present", "not present"),
        ("assertion", "present", "hypothetical"),
        ("subset_of", "gold", "noisy"),
        ("made_by", "human", "model"),
        ("negation", "", "NEG"),
    ],
)
def test_words_of_a_state(tmp_path: Path, column: str, yes: str, no: str) -> None:
    with pytest.raises(DataError, match="holds states of rows|says yes and no"):
        read(written(tmp_path, f"image,label,{column}", *proposals(yes, no)))


@pytest.mark.parametrize(("column", "yes", "no"), [("vote", "up", "down"), ("pm", "1", "7"), ("project", "a", "b")])
def test_rows_of_few_kinds_are_warned_of(tmp_path: Path, column: str, yes: str, no: str) -> None:
    """Nobody knows what a column says that is left out; in words, it may be that a label is not there."""
    path = written(tmp_path, f"image,label,{column}", *proposals(yes, no))
    assert any(f"the column {column!r} (" in warning for warning in read(path).warnings)
    assert not read(path, ignore_columns=(column,)).warnings


def test_ticks_and_crosses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="X may mean yes or no"):
        read(written(tmp_path, "image,cat,dog", *(f"{name},{'✓X'[i % 2]},✓" for i, name in enumerate(NAMES))))
    crosses = written(tmp_path, "image,cat,dog", *(f"{name},{['x', ''][i % 2]},x" for i, name in enumerate(NAMES)))
    assert positives(crosses)[:2] == [("cat", "dog"), ("dog",)]


def test_percent_as_numbers_with_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path, "image,label,confidence", *proposals("96.4", "12"))
    assert positives(path, positive_from=50) == MEANT


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("image,present,absent", [f"{name},{';'.join(m)},cat;dog" for name, m in zip(NAMES, MEANT, strict=True)]),
        (
            "image,label,corrected_label",
            [f"{name},{'cat,dog' if i % 2 else 'dog,dog'}" for i, name in enumerate(NAMES)],
        ),
        ("image,label,secondary_label", [f"{name},{'cat,dog' if i % 2 else 'dog,'}" for i, name in enumerate(NAMES)]),
        ("image,labels,uncertain", [f"{name},{'cat' if i % 2 else 'dog'},cat" for i, name in enumerate(NAMES)]),
    ],
)
def test_two_columns_with_the_same_labels(tmp_path: Path, header: str, rows: list[str]) -> None:
    one, two = header.split(",")[1:]
    with pytest.raises(DataError, match=f"the columns '{two}|{one}' and '{one}|{two}' may both hold labels"):
        read(written(tmp_path, header, *rows))
    assert read(tmp_path / "l.csv", label_column=one).labels


@pytest.mark.parametrize(
    ("header", "row", "warning"),
    [
        ("image,category,subcategory", "{},animal,cat", "the column 'subcategory' ('cat') may hold labels too"),
        ("image,labels,status", "{},cat;dog,{}", "the column 'status' holds states of rows such as done and todo"),
        ("image,labels,scores", "{},cat;dog,0.9;0.{}", "the column 'scores' may say how sure a label is"),
        ("image,labels,score", "{},cat;dog,1", "the column 'score' counts for all labels of its row"),
    ],
)
def test_columns_that_are_warned_of(tmp_path: Path, header: str, row: str, warning: str) -> None:
    rows = [
        row.format(name, ("7", "8")[i % 2] if "scores" in header else ("todo", "done")[i % 2])
        for i, name in enumerate(NAMES)
    ]
    annotations = read(written(tmp_path, header, *rows[:-1], f"{NAMES[-1]},dog,{rows[-1].rpartition(',')[2]}"))
    assert any(said.startswith(warning) for said in annotations.warnings), annotations.warnings


def test_rows_that_nobody_has_reached(tmp_path: Path) -> None:
    rows = [f"{name},{'1,0' if i % 2 else '0,1'}" if i < 8 else f"{name},," for i, name in enumerate(NAMES)]
    annotations = read(written(tmp_path, "image,cat,dog", *rows))
    assert annotations.warnings == (
        "8 cells of labels are blank and read as negative, and others say no in words; if nobody has looked there, "
        "give --blank unknown",
        "4 rows have blank cells alone, and others say no in words: these images may not be annotated",
    )


@pytest.mark.parametrize(
    "column", ["Reviewed?", "Is Valid", "double_checked", "needs_review", "user_id", "label_count"]
)
def test_columns_about_the_annotation_are_no_labels(tmp_path: Path, column: str) -> None:
    path = written(tmp_path, f"image,cat,dog,{column}", *[f"{name},1,0,{i % 2}" for i, name in enumerate(NAMES)])
    with pytest.raises(DataError, match="holds 0 and 1 and may be no label"):
        read(path)


@pytest.mark.parametrize(
    ("beside", "is_refused"),
    [
        ({"verified": False}, True),
        ({"verified": True}, False),
        ({"is_deleted": True}, True),
        ({"status": "rejected"}, True),
        ({"conf": 0.1}, True),
        ({"occluded": True, "id": 7}, False),
    ],
)
def test_objects_that_say_whether_their_label_counts(tmp_path: Path, beside: Any, is_refused: bool) -> None:
    records = [{"image": name, "labels": [{"name": "cat", **beside}, {"name": "dog"}]} for name in NAMES]
    (tmp_path / "l.json").write_text(json.dumps(records))
    if is_refused:
        with pytest.raises(DataError, match="beside its label, which would count in any case"):
            read(tmp_path / "l.json")
    else:
        assert read(tmp_path / "l.json").labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        (["cat#dog", "cat", "dog"], "'cat#dog' may be several labels; --delimiter '#' separates them"),
        (["cat、dog", "sky"], "'cat、dog' may be several labels"),
        (["cat-dog", "dog-sofa", "cat-sofa"], "'cat-dog', 'cat-sofa', 'dog-sofa' share parts"),
        (["unknown", "cat"], "'unknown' may mean that an image is not annotated"),
        (["none of the above", "cat"], "'none of the above' may mean that an image has no label"),
        (["kein Befund", "cat"], "'kein Befund' may mean that an image has no label"),
        (["cat (uncertain)", "cat"], "'cat (uncertain)' may be another label with a count or a doubt"),
        (["not_dog", "dog"], "'not_dog' may say that a label is absent"),
        (["0 3", "1 2"], "labels are numbers: '0 3', '1 2'"),
        (["KÃ¤tzchen", "cat"], "'KÃ¤tzchen' look like UTF-8 that was read as Windows-1252"),
        (["ｃａｔ", "cat"], "labels differ in case, signs and spaces alone"),
        (["dogs", "dog"], "'dog', 'dogs' may be one label"),
        (["A photo of a cat on a sofa.", "Two dogs play in the park."], "'A photo of a cat on a sofa.'"),
    ],
)
def test_labels_that_are_hardly_labels(tmp_path: Path, labels: list[str], warning: str) -> None:
    rows = [{"image": name, "labels": [labels[i % len(labels)]]} for i, name in enumerate(NAMES)]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    said = read(tmp_path / "l.jsonl").warnings
    assert any(text.startswith(warning) for text in said), said


def test_labels_with_answers_in_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have answers in them: 'cat: no', 'cat: yes', 'dog: no'"):
        read(
            written(
                tmp_path, "image,labels", *[f"{n},cat: {'yes' if i % 2 else 'no'};dog: no" for i, n in enumerate(NAMES)]
            )
        )


def test_no_finding_of_several_readers_is_warned_of(tmp_path: Path) -> None:
    rows = [f"{name},{label}" for i, name in enumerate(NAMES) for label in (["No finding"] * 3 if i % 2 else ["cat"])]
    assert any(
        "'No finding' may mean that an image has no label" in w
        for w in read(written(tmp_path, "image,label", *rows)).warnings
    )


def test_another_encoding_than_windows_is_warned_of(tmp_path: Path) -> None:
    text = "\n".join(["image,labels", *(f"{name},{'кот' if i % 2 else 'собака'}" for i, name in enumerate(NAMES))])
    (tmp_path / "l.csv").write_bytes(text.encode("cp1251"))
    assert any("read as Windows-1252, with labels such as" in said for said in read(tmp_path / "l.csv").warnings)


@pytest.mark.parametrize("name", ["l.json", "by.json", "l.csv"])
def test_minus_one_beside_a_label_needs_a_word(tmp_path: Path, name: str) -> None:
    values = {
        n: {label: 1 if label in m else -1 for label in ("cat", "dog")} for n, m in zip(NAMES, MEANT, strict=True)
    }
    content = json.dumps(values if name == "by.json" else [{"image": n, "labels": v} for n, v in values.items()])
    if name == "l.csv":
        content = "\n".join(["image,label,value", *proposals("1", "-1")])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="1 and -1 alone"):
        read(tmp_path / name)
    assert positives(tmp_path / name, minus_one="negative") == MEANT
    assert (join(read(tmp_path / name, minus_one="unknown"), as_paths(NAMES)).targets == -1).any()


@pytest.mark.parametrize(
    ("yes", "no"), [("WAHR", "FALSCH"), ("да", "нет"), ("是", "否"), ("✅", "❌"), ("Checked", "")]
)
def test_words_for_yes_and_no(tmp_path: Path, yes: str, no: str) -> None:
    rows = [f"{n},{','.join(yes if v in m else no for v in ('cat', 'dog'))}" for n, m in zip(NAMES, MEANT, strict=True)]
    assert positives(written(tmp_path, "image,cat,dog", *rows)) == MEANT


def test_answers_of_readers_in_columns_of_their_own(tmp_path: Path) -> None:
    path = written(
        tmp_path, "image,cat_A,cat_B,dog_A,dog_B", *[f"{name},1,1,0,{i % 2}" for i, name in enumerate(NAMES)]
    )
    assert any("2 labels with the endings A, B, as of several readers" in said for said in read(path).warnings)


def test_predictions_are_no_annotations(tmp_path: Path) -> None:
    coco: dict[str, Any] = {
        "images": [{"id": 0, "file_name": NAMES[0]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 0, "category_id": 1, "score": 0.3}],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    with pytest.raises(DataError, match=r"a score \(0.3\): these are predictions"):
        read(tmp_path / "c.json")
    coco["annotations"] = [{"image_id": 0, "category_id": 1, "ignore": 1}]
    (tmp_path / "c.json").write_text(json.dumps(coco))
    with pytest.raises(DataError, match="'ignore' beside its label"):
        read(tmp_path / "c.json")
    (tmp_path / "yolo").mkdir()
    for name in NAMES:
        (tmp_path / "yolo" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2 0.91\n")
    with pytest.raises(DataError, match="six numbers: the last is a confidence"):
        read(tmp_path / "yolo", label_names="cat,dog")
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "p00.xml").write_text(
        "<annotation><object><name>cat</name><score>1</score></object></annotation>"
    )
    with pytest.raises(DataError, match="has a score, so it is a prediction"):
        read(tmp_path / "voc")


def test_attributes_of_cvats_tags_are_warned_of(tmp_path: Path) -> None:
    tag = '<tag label="cat"><attribute name="present">false</attribute></tag>'
    (tmp_path / "c.xml").write_text(f'<annotations><image name="p00.jpg">{tag}</image></annotations>')
    assert read(tmp_path / "c.xml").warnings == (
        "tags have attributes that are left out: present ('false'); a tag counts whatever they say",
    )
