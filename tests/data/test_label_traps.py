"""Label files that a guess would read wrongly: each is read right, or refused with the way on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError

NAMES = [f"p{i}.jpg" for i in range(4)]


def read(path: Path, names: list[str] = NAMES, **options: Any) -> dict[str, dict[str, int]]:
    """The values of the labels of each image that is annotated."""
    annotations = read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(names)), **options))
    joined = join(annotations, as_paths(names))
    return {
        name: dict(zip(annotations.labels, row.tolist(), strict=True))
        for name, row, is_annotated in zip(names, joined.targets, joined.annotated, strict=True)
        if is_annotated
    }


def positives(path: Path, names: list[str] = NAMES, **options: Any) -> dict[str, list[str]]:
    return {name: [label for label, v in row.items() if v == 1] for name, row in read(path, names, **options).items()}


def file(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_an_index_does_not_name_images(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(1, 9)]
    rows = [f"{i},{9 - i},{(9 - i) % 2},1" for i in range(1, 9)]
    path = file(tmp_path, "l.csv", "\n".join([",image_id,odd,dog", *rows]))
    assert all(row["odd"] == int(name[:-4]) % 2 for name, row in read(path, names).items())
    path = file(tmp_path, "l.csv", "\n".join(["image_id,age,label", *(f"{i},{9 - i},cat" for i in range(1, 9))]))
    assert len(positives(path, names[:3])) == 3


def test_two_columns_that_may_name_images(tmp_path: Path) -> None:
    rows = [f"{i},{5 - i},{i % 2},0" for i in range(1, 5)]
    path = file(tmp_path, "l.csv", "\n".join(["patient,scan,odd,dog", *rows]))
    with pytest.raises(DataError, match="'patient' and 'scan' may both name the images"):
        read(path, [f"{i}.jpg" for i in range(1, 5)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.json", {"p0.jpg": [1, 0, 1], "p1.jpg": [0, 0, 1]}),
        ("l.jsonl", '{"image": "p0.jpg", "labels": [1, 0, 1]}\n{"image": "p1.jpg", "labels": [0, 0, 1]}\n'),
        ("l.csv", "image,labels\np0.jpg,[1 0 1]\np1.jpg,[0 0 1]\n"),
        ("l.csv", "image,labels\np0.jpg,[1. 0. 1.]\np1.jpg,[0. 0. 1.]\n"),
        ("l.csv", "image,labels\np0.jpg,[ True False  True]\np1.jpg,[False False  True]\n"),
    ],
)
def test_vectors_are_no_numbers_of_labels(tmp_path: Path, name: str, content: Any) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(DataError, match="vectors"):
        read(path)
    assert positives(path, label_names="cat,dog,bird") == {"p0.jpg": ["cat", "bird"], "p1.jpg": ["bird"]}


def test_a_list_with_minus_one_is_no_list_of_labels(tmp_path: Path) -> None:
    path = file(tmp_path, "l.jsonl", '{"image": "p0.jpg", "labels": [1, -1, 1]}\n')
    with pytest.raises(DataError, match="a number in it is negative or stands twice"):
        read(path)


@pytest.mark.parametrize(
    "content", ["2,bird\n0,cat\n1,dog\n", {"2": "bird", "0": "cat", "1": "dog"}, {"cat": 0, "bird": 2, "dog": 1}]
)
def test_names_by_ids_in_any_order(tmp_path: Path, content: Any) -> None:
    names = str(file(tmp_path, "names.csv" if isinstance(content, str) else "names.json", content))
    wide = file(tmp_path, "l.csv", "image,0,1,2\np0.jpg,1,0,0\np1.jpg,0,0,1\n")
    vectors = file(
        tmp_path, "l.jsonl", '{"image": "p0.jpg", "labels": [1, 0, 0]}\n{"image": "p1.jpg", "labels": [0, 0, 1]}\n'
    )
    for path in (wide, vectors):
        assert positives(path, label_names=names) == {"p0.jpg": ["cat"], "p1.jpg": ["bird"]}
    shifted = str(file(tmp_path, "shifted.csv", "1,cat\n2,dog\n3,bird\n"))
    with pytest.raises(DataError, match="are not 0 to 2"):
        read(vectors, label_names=shifted)


def test_scores_beside_labels(tmp_path: Path) -> None:
    items = [{"label": "cat", "score": 0.98}, {"label": "dog", "score": 0.02}]
    path = file(tmp_path, "l.jsonl", json.dumps({"image": "p0.jpg", "labels": items}) + "\n")
    with pytest.raises(DataError, match="is neither 0 nor 1 for a label") as error:
        read(path)
    assert "--positive-from" in error.value.hint
    assert positives(path, positive_from=0.5) == {"p0.jpg": ["cat"]}


def test_all_lines_of_yolo(tmp_path: Path) -> None:
    for name in NAMES:
        file(tmp_path, f"y/{name[:-4]}.txt", "0  0.5 0.5 1.2E-1 0.1\n" * 250 + "1 0.5 0.5 0.1 0.1\n")
    assert positives(tmp_path / "y", label_names="cat,dog")["p0.jpg"] == ["cat", "dog"]


def test_folders_of_splits_are_no_labels(tmp_path: Path) -> None:
    for name in ("train/cat/p0.jpg", "val/cat/p1.jpg"):
        file(tmp_path / "a", name, "")
    with pytest.raises(DataError, match="are train, val, which are no labels"):
        read(tmp_path / "a")
    for split, name in (("train", "p0.jpg"), ("test", "p1.jpg")):
        file(tmp_path / "b", f"{split}/metadata.jsonl", json.dumps({"file_name": name, "labels": ["cat"]}) + "\n")
    assert positives(tmp_path / "b", ["train/p0.jpg", "test/p1.jpg"]) == {
        "train/p0.jpg": ["cat"],
        "test/p1.jpg": ["cat"],
    }
    file(tmp_path / "c", "metadata.jsonl", '{"file_name": "images/p0.jpg", "labels": ["cat"]}\n')
    file(tmp_path / "c", "images/p0.jpg", "")
    assert positives(tmp_path / "c", ["images/p0.jpg"]) == {"images/p0.jpg": ["cat"]}
    for name in ("cat", "train", "val"):
        file(tmp_path / "d", f"{name}.txt", "p0.jpg\n")
    assert positives(tmp_path / "d") == {"p0.jpg": ["cat"]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,cat\n2,dog\n3,cat\n", ["im1.jpg", "im2.jpg", "im3.jpg"]),
        ("data/1,cat\ndata/2,dog\ndata/3,cat\n", ["im1.jpg", "im2.jpg", "im3.jpg"]),
        ("cat,p0\ndog,p1\ncat,p2\n", ["p0.jpg", "p1.jpg", "p2.jpg"]),
    ],
)
def test_a_first_row_without_names_of_columns_is_data(tmp_path: Path, text: str, names: list[str]) -> None:
    path = file(tmp_path, "l.csv", text)
    assert list(positives(path, names).values()) == [["cat"], ["dog"], ["cat"]]


def test_columns_of_splits_and_remarks_are_no_labels(tmp_path: Path) -> None:
    path = file(tmp_path, "l.csv", "image,split,cat,dog,comment\np0.jpg,0,1,0,\np1.jpg,1,0,1,\n")
    assert read(path) == {"p0.jpg": {"cat": 1, "dog": 0}, "p1.jpg": {"cat": 0, "dog": 1}}
    path = file(tmp_path, "l.csv", "image,fold,diagnosis\np0.jpg,0,NV\np1.jpg,1,MEL\n")
    assert positives(path) == {"p0.jpg": ["NV"], "p1.jpg": ["MEL"]}
    path = file(tmp_path, "l.csv", "image,smoker,dx\np0.jpg,0,NV\np1.jpg,1,MEL\n")
    with pytest.raises(DataError, match="'smoker' of 0 and 1 and the column 'dx' .* may both be the labels"):
        read(path)


def test_a_row_that_stands_twice_does_not_join_its_labels(tmp_path: Path) -> None:
    path = file(
        tmp_path, "l.csv", 'image,labels\np0.jpg,"cat,dog"\np1.jpg,"cat,bird"\np2.jpg,"dog,bird"\np0.jpg,"cat,dog"\n'
    )
    assert positives(path) == {"p0.jpg": ["cat", "dog"], "p1.jpg": ["bird", "cat"], "p2.jpg": ["bird", "dog"]}


def task(result: list[dict[str, Any]], **data: str) -> list[dict[str, Any]]:
    return [{"annotations": [{"result": result}], "data": data or {"image": "/data/upload/p0.jpg"}}]


def test_tasks_of_label_studio(tmp_path: Path) -> None:
    ellipse = [{"value": {"ellipselabels": ["cat"], "x": 1}, "from_name": "a"}]
    assert positives(file(tmp_path, "l.json", task(ellipse))) == {"p0.jpg": ["cat"]}
    assert positives(file(tmp_path, "l.json", task(ellipse, id="3", image="p0.jpg"))) == {"p0.jpg": ["cat"]}
    both = [{"value": {"choices": ["Yes"]}, "from_name": name} for name in ("cat", "dog")]
    with pytest.raises(DataError, match=r"'Yes' is a choice of several questions \(cat, dog\)"):
        read(file(tmp_path, "l.json", task(both)))
    relation = [*ellipse, {"type": "relation", "from_id": "x"}]
    assert positives(file(tmp_path, "l.json", task(relation))) == {"p0.jpg": ["cat"]}
    rows = [{"image": "p0.jpg", "id": 1, "choice": label, "annotator": i} for i, label in enumerate(("cat", "dog"))]
    path = file(tmp_path, "l.json", rows)
    with pytest.raises(DataError, match="has several rows, which differ"):
        read(path)
    assert positives(path, readers="any") == {"p0.jpg": ["cat", "dog"]}


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    path = file(tmp_path, "l.csv", 'image,caption,label\np0.jpg,"nice,cat\np1.jpg,x,dog\np2.jpg,"y,cat\n')
    with pytest.raises(DataError, match=re.escape("l.csv:")):
        read(path)


def test_image_sets_without_minus_one(tmp_path: Path) -> None:
    file(tmp_path, "cat.txt", "p0 1\np1 0\n")
    assert read(tmp_path) == {"p0.jpg": {"cat": 1}, "p1.jpg": {"cat": 0}}


def test_tables_of_splits_with_other_columns(tmp_path: Path) -> None:
    file(tmp_path, "train/_classes.csv", "filename,pid,cat,bird\np0.jpg,7,1,0\n")
    file(tmp_path, "valid/_classes.csv", "filename,pid,cat\np1.jpg,8,0\n")
    names = ["train/p0.jpg", "valid/p1.jpg"]
    assert read(tmp_path, names, group_column="pid")["valid/p1.jpg"] == {"cat": 0, "bird": -1}
    annotations = read_annotations(tmp_path, LabelOptions(group_column="pid"))
    assert annotations.columns["group"].to_pylist() == ["7", "8"]
    assert "valid/ has no column 'bird', which is unknown there" in annotations.warnings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.jsonl", '{"image": "p0.jpg", "cat": [1]}\n{"image": "p1.jpg", "cat": 1}\n'),
        ("l.jsonl", '{"image": "p\\ud8000.jpg", "labels": ["cat"]}\n'),
        ("l.manifest", '{"source-ref": "p0.jpg", "x": [0], "x-metadata": "none"}\n'),
        ("l.json", {"attribute_id_map": {"x": "Male"}, "images": [{"file_name": "p0.jpg", "targets": []}]}),
        (
            "l.json",
            {
                "images": [{"id": 1, "file_name": "p0.jpg"}],
                "categories": [{"id": 1, "name": "cat"}],
                "annotations": [{"image_id": "1", "category_id": 1}],
            },
        ),
        ("l.xml", "<annotations><track id='0' label='cat'/></annotations>"),
        ("l.xml", '<?xml version="1.0" encoding="nonsense"?><annotations/>'),
        ("l.csv", "image,label,label\np0.jpg,cat,dog\n"),
    ],
)
def test_broken_files_are_refused_in_words(tmp_path: Path, name: str, content: Any) -> None:
    with pytest.raises(DataError) as error:
        read(file(tmp_path, name, content))
    assert error.value.hint


def test_broken_files_of_labelme_are_refused_in_words(tmp_path: Path) -> None:
    for content in ({"shapes": [{"points": []}]}, {"shapes": [], "flags": ["cat"]}):
        file(tmp_path, "a/p0.json", content)
        with pytest.raises(DataError, match="lacks something of LabelMe's"):
            read(tmp_path / "a")


def test_one_image_in_two_splits(tmp_path: Path) -> None:
    path = file(tmp_path, "l.csv", "image,label,split\np0.jpg,cat,train\np1.jpg,cat,train\np0.jpg,dog,test\n")
    with pytest.raises(DataError, match="l.csv:4: the image has the split 'test', and 'train' in line 2"):
        read(path, split_column="split")


def test_json_lines_that_are_called_json(tmp_path: Path) -> None:
    path = file(tmp_path, "l.json", '{"image": "p0.jpg", "labels": ["cat"]}\n{"image": "p1.jpg", "labels": []}\n')
    assert positives(path) == {"p0.jpg": ["cat"], "p1.jpg": []}


def test_the_query_of_a_url_is_no_name(tmp_path: Path) -> None:
    path = file(tmp_path, "l.csv", "image,cat\nhttps://x.org/a/p0.jpg?x=1&y=/2,1\nhttps://x.org/a/p1.jpg?x=2,0\n")
    assert read(path) == {"p0.jpg": {"cat": 1}, "p1.jpg": {"cat": 0}}


def test_voc_files_that_name_other_images(tmp_path: Path) -> None:
    file(tmp_path, "p0.xml", "<annotation><filename>x/p1.jpg</filename><object><name>cat</name></object></annotation>")
    assert "1 of 1 files name an image by another name" in read_annotations(tmp_path).warnings[0]


def test_class_names_of_a_split_without_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"labels": {"feature": {"names": ["cat", "dog"]}}}
    schema = pa.schema([("image", pa.string()), ("labels", pa.list_(pa.int64()))])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.table({"image": NAMES[:2], "labels": [[1], [-1]]}, schema=schema), tmp_path / "l.parquet")
    assert positives(tmp_path / "l.parquet") == {"p0.jpg": ["dog"]}
