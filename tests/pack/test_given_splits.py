"""What splits are called in label files, and what an image that they do not name becomes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlic.config.data import PackConfig
from mlic.errors import DataError
from mlic.pack.given_splits import split_names, split_of_name
from mlic.pack.pack import Found, find, pack
from mlic.pack.understanding import Understanding
from tests.data import layouts


@pytest.mark.parametrize(
    ("values", "column", "meaning"),
    [
        (["Train", "VAL", "test"], "split", ["train", "val", "test"]),
        (["training", "validation", "testing"], "x", ["train", "val", "test"]),
        (["TRAINING", "UNASSIGNED"], "ml_use", ["train", ""]),
        (["0", "1", "2"], "partition", ["train", "val", "test"]),
        (["0", "1"], "is_valid", ["train", "val"]),
        (["False", "True"], "is_test", ["train", "test"]),
        (["holdout", "dev"], "x", ["holdout", "val"]),
    ],
)
def test_names_of_splits(values: list[str], column: str, meaning: list[str]) -> None:
    assert list(split_names(values, column, {}).values()) == meaning


def test_numbers_of_splits_whose_meaning_is_open() -> None:
    with pytest.raises(DataError, match="holds 0, 1, which do not say what they mean") as error:
        split_names(["0", "1"], "group", {})
    assert "--split-names" in error.value.hint
    assert split_names(["0", "1"], "group", {"0": "val", "1": "train"}) == {"0": "val", "1": "train"}


def understood(folder: Path, **settings: Any) -> Found:
    return find(PackConfig(images=folder / "photos", out=folder / "out", **settings))


def test_a_table_of_splits(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{int(i > 11)}" for i, key in enumerate(layouts.TRUTH)]
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n" + "\n".join(rows))
    listing = understood(tmp_path, labels=tmp_path / "wide.csv", split_files=tmp_path / "list_eval_partition.csv")
    assert listing.splits == ("train", "val", "test")
    assert listing.fixed.tolist() == [0] * 12 + [1] * 4


def test_splits_of_folders_and_image_sets(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "Main")
    listing = understood(tmp_path, labels=tmp_path / "Main")
    assert listing.fixed.tolist() == [0] * 11 + [1] * 5


@pytest.mark.parametrize(
    ("policy", "images", "values"),
    [("auto", 8, set()), ("leave-out", 8, set()), ("negative", 16, {0}), ("unknown", 16, {-1})],
)
def test_images_that_a_table_does_not_name(tmp_path: Path, policy: str, images: int, values: set[int]) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    text = (tmp_path / "wide.csv").read_text().splitlines()
    (tmp_path / "wide.csv").write_text("\n".join(text[:9]) + "\n")
    listing = understood(tmp_path, labels=tmp_path / "wide.csv", not_annotated=policy)
    assert len(listing.listing) == images
    assert set(listing.targets[8:].ravel().tolist()) == values
    assert len(listing.not_annotated) == 16 - images
    assert (listing.about.annotated_positive, listing.about.annotated_negative, listing.about.not_annotated) == (
        6,
        2,
        8,
    )


def test_images_that_lists_do_not_name_are_warned_of(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "long.csv")
    listing = understood(tmp_path, labels=tmp_path / "long.csv")
    assert len(listing.listing) == 16
    assert "4 of 16 images are named nowhere in the label files" in listing.about.warnings[0]
    with pytest.raises(DataError, match="4 of 16 images are not annotated"):
        understood(tmp_path, labels=tmp_path / "long.csv", not_annotated="fail")


def test_a_dry_run_says_what_was_understood_and_writes_nothing(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "chexpert.csv")
    config = PackConfig(
        images=tmp_path / "photos", labels=tmp_path / "chexpert.csv", out=tmp_path / "out", dry_run=True
    )
    about = pack(config)
    assert isinstance(about, Understanding)
    assert not (tmp_path / "out").exists()
    text = about.text()
    for part in (
        "wide table (CheXpert)",
        "left out: Sex ('Female'), Age ('60')",
        "16: 12 annotated with a label, 4 annotated without one, 0 not annotated",
        "16 by folders in front left out, 0 of no image",
        "p00.jpg: cat, not dog",
    ):
        assert part in text
    assert {count.label: (count.positive, count.negative) for count in about.labels} == {"cat": (8, 8), "dog": (8, 8)}


def test_splits_that_shards_are_named_after(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for split, keys in (("train", ["a", "b", "c"]), ("valid", ["d"]), ("test", ["e"])):
        with tarfile.open(tmp_path / "photos" / f"{split}-000000.tar", "w") as tar:
            for key in keys:
                for name, data in ((f"{key}.jpg", b"\xff\xd8"), (f"{key}.json", b'["cat"]')):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    listing = understood(tmp_path, labels=tmp_path / "photos")
    assert [listing.splits[i] for i in listing.fixed] == ["train", "train", "train", "val", "test"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-000000", "train"),
        ("imagenet-val-0", "val"),
        ("Validation_00001-of-2", "val"),
        ("dev-0", "val"),
        ("set/Test/0000", "test"),
        ("train/000-test", "test"),
        ("trainer-0", None),
        ("train-and-test", None),
        ("s-000", None),
    ],
)
def test_the_split_that_the_name_of_a_file_says(path: str, split: str | None) -> None:
    assert split_of_name(path) == split
