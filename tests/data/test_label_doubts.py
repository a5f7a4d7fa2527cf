"""Labels in JSON that say beside them that they may not count, or that contradict the rest of their file."""

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

NAMES = ["im1.jpg", "im2.jpg", "im3.jpg"]
BESIDE = [
    {"negated": True},
    {"negative": True},
    {"absent": True},
    {"polarity": "negative"},
    {"certainty": "low"},
    {"source": "model"},
    {"confirmed": False},
    {"attributes": {"found": False}},
]


def read(path: Path, content: Any, **options: Any) -> Annotations:
    path.write_text(json.dumps(content))
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def positives(annotations: Annotations) -> dict[str, list[str]]:
    """The labels of each named image."""
    rows: dict[str, list[str]] = {name: [] for name in annotations.names.to_pylist()}
    for image, label, value in zip(annotations.image, annotations.label, annotations.value, strict=True):
        if value == 1:
            rows[annotations.names[int(image)].as_py()].append(annotations.labels[label])
    return rows


def records(**beside: Any) -> list[dict[str, Any]]:
    return [
        {"image": "im1.jpg", "labels": [{"name": "cat", **beside}]},
        {"image": "im2.jpg", "labels": [{"name": "dog"}]},
    ]


def by_image(**beside: Any) -> dict[str, Any]:
    return {"im1.jpg": [{"label": "cat", **beside}], "im2.jpg": [{"label": "dog"}]}


def coco(**beside: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0, **beside},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "iscrowd": 0},
        ],
    }


def fiftyone(**beside: Any) -> dict[str, Any]:
    labels = {"im1.jpg": {"label": "cat", **beside}, "im2.jpg": {"label": "dog"}}
    return {"samples": [{"filepath": name, "gt": {"_cls": "Classification", **labels[name]}} for name in labels]}


def datumaro(**beside: Any) -> dict[str, Any]:
    labels = {"im1.jpg": {"label_id": 0, **beside}, "im2.jpg": {"label_id": 1}}
    return {
        "categories": {"label": {"labels": [{"name": "cat"}, {"name": "dog"}]}},
        "items": [{"id": name, "annotations": [{"id": 0, "type": "label", **labels[name]}]} for name in labels],
    }


LAYOUTS = [records, by_image, coco, fiftyone, datumaro]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beside", BESIDE, ids=lambda beside: "-".join(beside))
def test_a_label_with_a_doubt_beside_it_is_refused(tmp_path: Path, layout: Any, beside: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="beside its label, which would count in any case"):
        read(tmp_path / "labels.json", layout(**beside))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beside", [{"source": "human"}, {"negated": False}, {"attributes": {"occluded": False}}])
def test_what_confirms_a_label_is_no_doubt(tmp_path: Path, layout: Any, beside: dict[str, Any]) -> None:
    found = positives(read(tmp_path / "labels.json", layout(**beside)))
    assert (found["im1.jpg"], found["im2.jpg"]) == (["cat"], ["dog"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_key_that_is_ignored_raises_no_doubt(tmp_path: Path, layout: Any) -> None:
    annotations = read(tmp_path / "labels.json", layout(source="model"), ignore_columns=("source",))
    assert positives(annotations)["im1.jpg"] == ["cat"]


def test_a_flag_among_the_values_of_labels(tmp_path: Path) -> None:
    content = {"im1.jpg": {"cat": True, "verified": False}, "im2.jpg": {"cat": False, "verified": True}}
    with pytest.raises(DataError, match="'verified' among the values of its labels") as error:
        read(tmp_path / "labels.json", content)
    assert error.value.hint == "leave it out by --ignore-columns verified."
    assert read(tmp_path / "labels.json", content, ignore_columns=("verified",)).labels == ("cat",)


def test_images_that_coco_annotator_calls_not_annotated(tmp_path: Path) -> None:
    content = coco()
    content["images"] = [{"id": i, "file_name": name, "annotated": i < 1} for i, name in enumerate(NAMES)]
    annotations = read(tmp_path / "labels.json", content)
    assert positives(annotations) == {"im1.jpg": ["cat"], "im2.jpg": ["dog"]}  # the second one has an annotation
    assert "1 images have `annotated` false or `skipped` true: not annotated" in annotations.notes


def test_categories_of_one_name_in_two_supercategories(tmp_path: Path) -> None:
    content = coco()
    content["categories"] = [
        {"id": i, "name": "other", "supercategory": above} for i, above in ((1, "car"), (2, "cat"))
    ]
    assert read(tmp_path / "labels.json", content).labels == ("car/other", "cat/other")


# Files of LabelMe


def labelme(image: str, *shapes: str, **flags: bool) -> dict[str, Any]:
    return {"imagePath": image, "shapes": [{"label": label, "flags": {}} for label in shapes], "flags": flags}


def read_folder(folder: Path, files: dict[str, Any], **options: Any) -> Annotations:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return read_annotations(folder, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def test_shapes_and_flags_of_the_image(tmp_path: Path) -> None:
    files = {"im1.json": labelme("im1.jpg", "cat", blurry=True), "im2.json": labelme("im2.jpg", "dog", blurry=False)}
    with pytest.raises(DataError, match=r"shapes \('cat'\) and flags of the image \('blurry'\)"):
        read_folder(tmp_path, files)
    assert positives(read_folder(tmp_path, files, label_column="shapes")) == {"im1.jpg": ["cat"], "im2.jpg": ["dog"]}
    assert positives(read_folder(tmp_path, files, label_column="flags")) == {"im1.jpg": ["blurry"], "im2.jpg": []}


def test_shapes_in_one_file_and_flags_in_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"im1\.json has shapes, and im2\.json flags"):
        read_folder(tmp_path, {"im1.json": labelme("im1.jpg", "cat"), "im2.json": labelme("im2.jpg", dog=True)})


def test_a_flag_of_a_shape_that_doubts_it(tmp_path: Path) -> None:
    content = labelme("im1.jpg", "cat")
    content["shapes"][0]["flags"] = {"uncertain": True}
    with pytest.raises(DataError, match="'uncertain' beside its label"):
        read_folder(tmp_path, {"im1.json": content})


def test_a_file_that_names_another_image_than_it_is_called_after(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"called after the image 'im1', and names 'im3\.jpg'"):
        read_folder(tmp_path, {"im1.json": labelme("im3.jpg", "cat"), "im2.json": labelme("im2.jpg", "dog")})
