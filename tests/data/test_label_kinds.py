"""Kinds of label files that were read wrongly once: columns, cells, lists, formats and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations, decided
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError

NAMES = [f"p{i:02d}.jpg" for i in range(12)]
MEANT = [["cat"], ["cat", "dog"], ["dog"]] * 4


def read(path: Path, **options: Any) -> Annotations:
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def positives(annotations: Annotations) -> list[list[str]]:
    targets = join(annotations, as_paths(NAMES)).targets
    return [[annotations.labels[i] for i in np.flatnonzero(row == 1)] for row in targets]


def table(path: Path, header: str, cells: Any) -> Path:
    rows = [",".join(map(str, cells(i, name, meant))) for i, (name, meant) in enumerate(zip(NAMES, MEANT, strict=True))]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def bits(meant: list[str], yes: str = "1", no: str = "0") -> list[str]:
    return [yes if label in meant else no for label in ("cat", "dog")]


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("1", "0"),
        ("1.0", "0.0"),
        ("yes", "no"),
        ("TRUE", "FALSE"),
        ("x", ""),
        ("Y", "n"),
        ("1.00", ""),
        ("Present", "absent"),
    ],
)
def test_words_for_yes_and_no(tmp_path: Path, yes: str, no: str) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog", lambda _, name, meant: [name, *bits(meant, yes, no)])
    assert positives(read(path)) == MEANT


@pytest.mark.parametrize("missing", ["nan", "NA", "null", "-1", "?", "Uncertain"])
def test_words_for_unknown(tmp_path: Path, missing: str) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog", lambda i, name, _: [name, missing, i % 2])
    targets = join(read(path), as_paths(NAMES)).targets
    assert (targets[:, 0] == -1).all()
    assert targets[:, 1].tolist() == [0, 1] * 6


def test_one_and_minus_one_have_to_be_explained(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog", lambda _, name, meant: [name, *bits(meant, "1", "-1")])
    with pytest.raises(DataError, match="the cells of the labels are 1 and -1 alone") as error:
        read(path)
    assert "--minus-one negative" in error.value.hint
    assert positives(read(path, minus_one="negative")) == MEANT
    assert (join(read(path, minus_one="unknown"), as_paths(NAMES)).targets != 0).all()


def test_a_table_that_never_says_no_is_warned_of(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog", lambda _, name, meant: [name, *bits(meant, "1", "nan")])
    assert any("says that a label is absent" in warning for warning in read(path).warnings)


def test_confidences_need_a_limit(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog", lambda _, name, meant: [name, *bits(meant, "0.9", "0.2")])
    with pytest.raises(DataError, match="the columns hold confidences") as error:
        read(path)
    assert "--positive-from" in error.value.hint
    assert positives(read(path, positive_from=0.5)) == MEANT


def test_odd_cells_are_counted_in_one_message(tmp_path: Path) -> None:
    path = table(
        tmp_path / "l.csv",
        "image,cat,dog",
        lambda i, name, meant: [name, *bits(meant)] if i < 9 else [name, "maybe", "5"],
    )
    with pytest.raises(DataError, match=r"l\.csv:11: 'maybe' for the label 'cat' .* \(6 such cells in 2 columns\)"):
        read(path)


def test_columns_that_are_no_labels(tmp_path: Path) -> None:
    path = table(
        tmp_path / "l.csv",
        "age,cat,file,dog,city",
        lambda i, name, meant: [20 + i, bits(meant)[0], name, bits(meant)[1], "Rome"],
    )
    annotations = read(path)
    assert positives(annotations) == MEANT
    assert annotations.left_out == (("age", "20"), ("city", "Rome"))
    assert "--label-columns" in annotations.warnings[0]
    assert read(path, label_columns=("dog",)).labels == ("dog",)
    with pytest.raises(DataError, match="no column 'bird'"):
        read(path, label_columns=("bird",))


def test_a_flag_is_no_label_unless_it_is_said(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,cat,dog,reviewed", lambda i, name, meant: [name, *bits(meant), i % 2])
    with pytest.raises(DataError, match="the column 'reviewed' holds 0 and 1 and may be no label"):
        read(path)
    assert read(path, ignore_columns=("reviewed",)).labels == ("cat", "dog")
    assert read(path, label_columns=("cat", "dog", "reviewed")).labels == ("cat", "dog", "reviewed")


def test_a_column_of_0_and_1_that_is_called_label(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,label", lambda i, name, _: [name, i % 2])
    with pytest.raises(DataError, match="the column 'label' holds 0 and 1") as error:
        read(path)
    assert "--label-names" in error.value.hint
    assert positives(read(path, label_names="cat,dog")) == [["cat"], ["dog"]] * 6
    assert read(path, label_columns=("label",)).labels == ("label",)


@pytest.mark.parametrize("cell", ["['cat' 'dog']", '"[""cat"", ""dog""]"', '"{cat,dog}"', "\"['cat', 'dog']\""])
def test_lists_as_text(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path / "l.csv", "image,labels", lambda i, name, _: [name, cell if i else "[]"])
    assert positives(read(path)) == [[], *[["cat", "dog"]] * 11]


@pytest.mark.parametrize("cell", ["{}", '"[{}]"', '"{}"'])
def test_vectors_as_text_need_names(tmp_path: Path, cell: str) -> None:
    separator = "," if '"' in cell else " "
    path = table(
        tmp_path / "l.csv", "image,labels", lambda _, name, meant: [name, cell.format(separator.join(bits(meant)))]
    )
    with pytest.raises(DataError, match="are vectors of 0 and 1") as error:
        read(path)
    assert "--label-names" in error.value.hint
    assert positives(read(path, label_names="cat,dog")) == MEANT
    with pytest.raises(DataError, match="2 values in 'labels' where 3 labels have names"):
        read(path, label_names="cat,dog,bird")


def test_numbers_of_labels_get_names(tmp_path: Path) -> None:
    path = table(
        tmp_path / "l.csv",
        "id,attribute_ids",
        lambda _, name, meant: [name[:-4], " ".join({"cat": "7", "dog": "12"}[m] for m in meant)],
    )
    assert any("labels are numbers" in warning for warning in read(path).warnings)
    (tmp_path / "names.csv").write_text("7,cat\n12,dog\n")
    assert positives(read(path, label_names=str(tmp_path / "names.csv"))) == MEANT
    (tmp_path / "names.csv").write_text("7,cat\n")
    with pytest.raises(DataError, match="the label '12' has no name in"):
        read(path, label_names=str(tmp_path / "names.csv"))


def test_several_readers(tmp_path: Path) -> None:
    rows = [f"{name},{reader},{int(reader != 2)}" for name in NAMES for reader in range(3)]
    (tmp_path / "l.csv").write_text("\n".join(["image_id,rad_id,cat", *rows]))
    with pytest.raises(DataError, match="has several rows, which differ in 'cat'") as error:
        read(tmp_path / "l.csv")
    assert "--readers" in error.value.hint
    values = {
        rule: join(read(tmp_path / "l.csv", readers=rule), as_paths(NAMES)).targets[0, 0]
        for rule in ("majority", "all", "any", "unknown")
    }
    assert values == {"majority": 1, "all": 0, "any": 1, "unknown": -1}


@pytest.mark.parametrize(
    ("rule", "values"),
    [("majority", [1, 0, -1, -1]), ("all", [0, 0, 0, -1]), ("any", [1, 1, 1, -1]), ("unknown", [-1, -1, -1, -1])],
)
def test_what_readers_decide(rule: Any, values: list[int]) -> None:
    yes, no, unknown = np.array([2, 1, 1, 0]), np.array([1, 2, 1, 0]), np.array([0, 0, 1, 2])
    assert decided(rule, yes, no, unknown).tolist() == values


def test_names_of_labels_that_look_wrong_are_warned_of(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "image,labels", lambda i, name, _: [name, ["cat|dog", "CAT|dog", "none"][i % 3]])
    warnings = " ".join(read(path).warnings)
    assert "differ in upper and lower case alone: CAT, cat" in warnings
    assert "--no-label 'none'" in warnings
    assert read(path, no_label=("None",)).labels == ("CAT", "cat", "dog")
    path = table(tmp_path / "l.csv", "image,labels", lambda i, name, _: [name, f"tag {i}|other {i}"])
    assert any("24 of 24 labels have one image each" in warning for warning in read(path).warnings)
    path = table(tmp_path / "l.csv", "image,labels", lambda i, name, _: [name, ["cat;dog", "cat|dog;cat"][i % 2]])
    assert any("labels consist of other labels: 'cat|dog'" in warning for warning in read(path).warnings)


def test_commas_in_names_of_labels(tmp_path: Path) -> None:
    path = table(
        tmp_path / "l.csv",
        "image,label",
        lambda i, name, _: [name, ['"Bow tie, formal"', "Hat", '"Suit, two-piece"'][i % 3]],
    )
    assert read(path).labels == ("Bow tie, formal", "Hat", "Suit, two-piece")
    assert read(path, delimiter=",").labels == ("Bow tie", "Hat", "Suit", "formal", "two-piece")


def test_text_that_is_no_list_of_images(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("These are the labels\nof my photographs\n")
    (tmp_path / "cat.txt").write_text("\n".join(NAMES[:4]))
    (tmp_path / "data center.TXT").write_text("\n".join(NAMES[2:6]))
    assert read(tmp_path).labels == ("cat", "data center")
    (tmp_path / "about.txt").write_text("Some words about it\nand some more of them\n")
    with pytest.raises(DataError, match="about.txt is no list of images"):
        read(tmp_path)


def test_files_of_0_and_1_need_the_order_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "labels" / f"{label}.txt").write_text("\n".join(str(int(label in meant)) for meant in MEANT))
    with pytest.raises(DataError, match="have lines of 0 and 1 alone") as error:
        read(tmp_path / "labels")
    assert "--image-list" in error.value.hint
    (tmp_path / "order.lst").write_text("\n".join(NAMES))
    assert positives(read(tmp_path / "labels", image_list=str(tmp_path / "order.lst"))) == MEANT
    (tmp_path / "order.lst").write_text("\n".join(NAMES[1:]))
    with pytest.raises(DataError, match="cat.txt has 12 lines, and .* has 11 images"):
        read(tmp_path / "labels", image_list=str(tmp_path / "order.lst"))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("l.mat", "MATLAB 5.0", "is a MATLAB file, which is not read"),
        ("l.xlsx", "PK", "is no Excel workbook"),
        ("l.json", '{"a": 1}', "has keys a, which no known tool writes together"),
        ("l.json", "[1, 2]", "is a list of other things than objects"),
        ("l.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": []}', "has no categories"),
        ("l.json", '{"images": [{"id": 1}], "categories": [], "annotations": []}', "the image 1 has no file_name"),
        (
            "l.json",
            '{"annotations": [], "categories": [], '
            '"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            "the images 'a' and 'b' have the same id 1",
        ),
        ("l.json", "{", "not JSON"),
        ("l.json", '{"classes": ["cat"], "labels": {"p00": [4]}}', "the label 4 of 'p00' is not one of the 1 classes"),
        ("l.xml", "<other/>", "has the root <other>"),
        ("l.csv", "image,size,weight\np00.jpg,12,33\n", "no column holds labels"),
        ("l.csv", "image,city,country\np00.jpg,Rome,Italy\n", "several columns may hold the labels: 'city' .'Rome'."),
        ("l.csv", "image,labels,cat,dog\np00.jpg,cat,1,0\np01.jpg,cat,0,1\n", "may both be the labels"),
        ("l.jsonl", '{"image": "p00.jpg", "labels": {"cat": 0.7}}', "0.7 for the label 'cat' is not 1, 0 or -1"),
    ],
)
def test_what_is_not_read_is_said_in_words(tmp_path: Path, name: str, content: str, error: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=error) as raised:
        read(tmp_path / name)
    assert raised.value.hint


def test_images_as_bytes_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"image": [{"bytes": b"x", "path": None}], "labels": [["cat"]]}).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(DataError, match="the image is stored as bytes"):
        read(tmp_path / "l.parquet")


def test_class_names_of_hugging_face(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"labels": {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    schema = pa.schema([("image", pa.string()), ("labels", pa.list_(pa.int64()))])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    ids = [[["cat", "dog"].index(label) for label in meant] for meant in MEANT]
    pq.write_table(pa.table({"image": NAMES, "labels": ids}, schema=schema), tmp_path / "l.parquet")
    assert positives(read(tmp_path / "l.parquet")) == MEANT


def test_lvis_knows_what_was_looked_for(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name, "neg_category_ids": [2] if i else []} for i, name in enumerate(NAMES)]
    annotations = [{"id": i, "image_id": i, "category_id": 1} for i in range(3)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "l.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    targets = join(read(tmp_path / "l.json"), as_paths(NAMES)).targets.tolist()
    assert targets[:4] == [[1, -1], [1, 0], [1, 0], [-1, 0]]


def test_windows_1252_is_read_and_said(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("image,Bär\np00.jpg,1\np01.jpg,0\n".encode("cp1252"))
    annotations = read(tmp_path / "l.csv")
    assert annotations.labels == ("Bär",)
    assert "encoding Windows-1252" in annotations.notes


@pytest.mark.parametrize(
    "text",
    ["# made by me\nimage,cat,dog\n{}", "image,cat,dog,\n{}", "sep=,\nimage,cat,dog\n{}", "\n\nimage,cat,dog\n\n{}"],
)
def test_oddities_of_tables(tmp_path: Path, text: str) -> None:
    end = "," if "dog,\n" in text else ""
    body = "\n".join(",".join([name, *bits(meant)]) + end for name, meant in zip(NAMES, MEANT, strict=True))
    for newline in ("\n", "\r", "\r\n"):
        (tmp_path / "l.csv").write_bytes(text.format(body).replace("\n", newline).encode())
        assert positives(read(tmp_path / "l.csv")) == MEANT
