"""Which image a row means: numbers in names, columns of folders, and names that only their folders tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError


def positives(folder: Path, images: list[str], text: str, **options: str) -> dict[str, list[str]]:
    """The labels that the images have by a table; images without a row are left out."""
    (folder / "labels.csv").write_text(text)
    paths = as_paths(images)
    annotations = read_annotations(folder / "labels.csv", LabelOptions(image_names=ImageNames(paths), **options))
    joined = join(annotations, paths)
    return {
        image: [label for label, value in zip(annotations.labels, row, strict=True) if value == 1]
        for image, row, is_named in zip(images, joined.targets.tolist(), joined.annotated, strict=True)
        if is_named
    }


def test_a_number_that_two_parts_of_the_names_explain_is_refused(tmp_path: Path) -> None:
    images = [f"sub-{i:02}_run-{11 - i:02}.jpg" for i in range(1, 11)]
    rows = "".join(f"{i},{('cat', 'dog')[i % 2]}\n" for i in range(1, 11))
    with pytest.raises(DataError, match=r"'1' could mean sub-10_run-01\.jpg by the last .* or sub-01_run-10\.jpg"):
        positives(tmp_path, images, "subject_id,label\n" + rows)


@pytest.mark.parametrize("form", ["2008_{:06}.jpg", "{0}_{0}.jpg", "batch2_{}.jpg"])
def test_a_number_that_one_part_explains_is_the_last(tmp_path: Path, form: str) -> None:
    images = [form.format(i) for i in range(1, 11)]
    rows = "".join(f"{i},{('cat', 'dog')[i % 2]}\n" for i in range(1, 11))
    assert positives(tmp_path, images, "id,label\n" + rows)[form.format(3)] == ["dog"]


def test_two_columns_of_numbers_that_are_images(tmp_path: Path) -> None:
    images = [f"slide_{i:03}.jpg" for i in range(1, 11)]
    rows = "".join(f"{(i + 2) // 3},{i},{('cat', 'dog')[i % 2]}\n" for i in range(1, 11))
    with pytest.raises(DataError, match="'case' and 'slide' both hold numbers of images") as error:
        positives(tmp_path, images, "case,slide,label\n" + rows)
    assert "--image-column" in error.value.hint
    assert positives(tmp_path, images, "case,slide,label\n" + rows, image_column="slide")[images[0]] == ["dog"]


def test_a_column_of_numbers_that_fewer_rows_share_is_no_rival(tmp_path: Path) -> None:
    images = [f"case_{i:03}.jpg" for i in range(1, 11)]
    rows = "".join(f"{i},{i % 5 + 1},{('cat', 'dog')[i % 2]}\n" for i in range(1, 11))
    assert positives(tmp_path, images, "case,age,label\n" + rows)[images[2]] == ["dog"]


CAMERAS = "camera,file,label\na,1.jpg,cat\nb,1.jpg,dog\n"


def test_a_column_of_folders(tmp_path: Path) -> None:
    assert positives(tmp_path, ["a/1.jpg", "b/1.jpg"], CAMERAS) == {"a/1.jpg": ["cat"], "b/1.jpg": ["dog"]}
    assert positives(tmp_path, ["r/a/1.jpg", "r/b/1.jpg"], CAMERAS) == {"r/a/1.jpg": ["cat"], "r/b/1.jpg": ["dog"]}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The rows of camera b are about other images with the same names."""
    assert positives(tmp_path, ["a/1.jpg"], CAMERAS) == {"a/1.jpg": ["cat"]}
    numbers = "camera,frame,label\na,1,cat\na,2,dog\nb,1,dog\nb,2,cat\n"
    images = ["a/frame_1.jpg", "a/frame_2.jpg", "b/frame_1.jpg"]
    assert positives(tmp_path, images, numbers, image_column="frame") == {
        "a/frame_1.jpg": ["cat"],
        "a/frame_2.jpg": ["dog"],
        "b/frame_1.jpg": ["dog"],
    }


def test_columns_of_folders_in_folders(tmp_path: Path) -> None:
    images = ["a/d1/f1.jpg", "a/d2/f1.jpg", "b/d1/f1.jpg"]
    rows = "camera,day,file,cat,dog\na,d1,f1,0,1\na,d2,f1,1,0\nb,d1,f1,1,1\nb,d2,f1,1,1\n"
    assert positives(tmp_path, images, rows) == {images[0]: ["dog"], images[1]: ["cat"], images[2]: ["cat", "dog"]}


def test_a_column_that_is_called_like_a_folder_by_chance(tmp_path: Path) -> None:
    """All images lie in train, and the column says which of them are for validation."""
    images = ["train/1.jpg", "train/2.jpg"]
    rows = "split,file,label\ntrain,1.jpg,cat\nval,2.jpg,dog\n"
    assert positives(tmp_path, images, rows) == {"train/1.jpg": ["cat"], "train/2.jpg": ["dog"]}


def test_names_with_fewer_folders_than_the_images(tmp_path: Path) -> None:
    images = ["r/a/1.jpg", "r/b/1.jpg"]
    assert positives(tmp_path, images, "file,label\na/1,cat\nb/1.jpg,dog\n") == {images[0]: ["cat"], images[1]: ["dog"]}


def test_dates_in_front_of_names_are_no_prefixes_of_uploads(tmp_path: Path) -> None:
    rows = "file,label\n{}-im1.jpg,cat\n{}-im2.jpg,dog\nim3.jpg,dog\n"
    images = ["im1.jpg", "im2.jpg", "im3.jpg"]
    assert positives(tmp_path, images, rows.format("20240131", "20240201")) == {"im3.jpg": ["dog"]}
    uploads = positives(tmp_path, images, rows.format("20240131", "9f3e0a11"))
    assert uploads == {"im1.jpg": ["cat"], "im2.jpg": ["dog"], "im3.jpg": ["dog"]}
