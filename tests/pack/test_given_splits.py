"""What splits are called in label files, and what an image that they do not name becomes."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlic.config.data import PackConfig
from mlic.errors import ConfigError, DataError
from mlic.pack.given_splits import split_names, split_of_name
from mlic.pack.inputs import PackInputs, find
from mlic.pack.pack import pack
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
        (["train", "nan", "none"], "split", ["train", "", ""]),
        (["0", "1"], "partition", ["train", "val"]),
    ],
)
def test_names_of_splits(values: list[str], column: str, meaning: list[str]) -> None:
    assert list(split_names(values, column, {}).values()) == meaning


def test_numbers_of_splits_whose_meaning_is_open() -> None:
    with pytest.raises(DataError, match="holds 0, 1, which do not say what they mean") as error:
        split_names(["0", "1"], "group", {})
    assert "--split-names" in error.value.hint
    assert split_names(["0", "1"], "group", {"0": "val", "1": "train"}) == {"0": "val", "1": "train"}


@pytest.mark.parametrize(
    "column", ["split", "is_train", "train_valid", "kfold_split", "asset", "latest", "in_trainset"]
)
def test_numbers_in_columns_whose_names_say_too_little(column: str) -> None:
    with pytest.raises(DataError, match="which do not say what they mean"):
        split_names(["0", "1"], column, {})


def test_names_of_splits_that_there_are_not() -> None:
    with pytest.raises(DataError, match="--split-names names 'prueva', and the splits are entrenamiento, prueba"):
        split_names(["entrenamiento", "prueba"], "x", {"entrenamiento": "train", "prueva": "test"})


def understood(folder: Path, **settings: Any) -> PackInputs:
    return find(PackConfig(images=folder / "photos", out=folder / "out", **settings))


def test_a_table_of_splits(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{int(i > 11)}" for i, key in enumerate(layouts.TRUTH)]
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n" + "\n".join(rows))
    listing = understood(tmp_path, labels=tmp_path / "wide.csv", split_files=tmp_path / "list_eval_partition.csv")
    assert listing.splits == ("train", "val", "test")
    assert listing.fixed.tolist() == [0] * 12 + [1] * 4


def in_folders(folder: Path) -> None:
    """The photographs in train/ and val/, with one table of labels for both."""
    layouts.photos(folder)
    layouts.write(folder, "wide.csv")
    for i, key in enumerate(layouts.TRUTH):
        target = folder / "photos" / ("train" if i < 12 else "val2017") / f"{key}.jpg"
        target.parent.mkdir(exist_ok=True)
        (folder / "photos" / f"{key}.jpg").rename(target)


def test_folders_that_are_called_like_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_folders(tmp_path)
    listing = understood(tmp_path, labels=tmp_path / "wide.csv")
    assert listing.fixed.tolist() == [-1] * 16
    assert "folders of images are named after the splits train, val, but the images are assigned" in caplog.text
    kept = understood(tmp_path, labels=tmp_path / "wide.csv", split_files=tmp_path / "photos")
    assert [kept.splits[i] for i in kept.fixed] == ["train"] * 12 + ["val"] * 4
    with pytest.raises(DataError, match="train, val2017 .* are called like splits, not like labels"):
        understood(tmp_path, labels=tmp_path / "photos")


def test_an_image_of_another_split_is_another_image(tmp_path: Path) -> None:
    in_folders(tmp_path)
    names = [f"{'val' if i < 4 else 'train'}/{key}.jpg" for i, key in enumerate(layouts.TRUTH)]
    (tmp_path / "l.csv").write_text("\n".join(["image,cat,dog", *(f"{name},1,0" for name in names)]))
    listing = understood(tmp_path, labels=tmp_path / "l.csv")
    assert len(listing.listing) == 8  # not the first four, which lie in train/, nor the last, which lie in val2017/


@pytest.mark.parametrize(("column", "error"), [("is_train", "0, 1, which do not say"), ("test", None)])
def test_a_split_file_of_yes_and_no(tmp_path: Path, column: str, error: str | None) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{int(i > 11)}" for i, key in enumerate(layouts.TRUTH)]
    (tmp_path / "splits.csv").write_text(f"image,{column}\n" + "\n".join(rows))
    settings = {"labels": tmp_path / "wide.csv", "split_files": tmp_path / "splits.csv"}
    if error is not None:
        with pytest.raises(DataError, match=error):
            understood(tmp_path, **settings)
        settings |= {"split_names": {"1": "train", "0": "test"}}
    fixed = understood(tmp_path, **settings)
    expected = ["test"] * 12 + ["train"] * 4 if error else ["train"] * 12 + ["test"] * 4
    assert [fixed.splits[i] for i in fixed.fixed] == expected


def test_split_files_of_other_images_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    rows = [*(f"{key}.jpg,train" for key in list(layouts.TRUTH)[:8]), *(f"other{i}.jpg,val" for i in range(9))]
    (tmp_path / "splits.csv").write_text("image,split\n" + "\n".join(rows))
    understood(tmp_path, labels=tmp_path / "wide.csv", split_files=tmp_path / "splits.csv")
    assert re.search("9 of 17 names in .*splits.csv are of no image, such as 'other0.jpg'", caplog.text)


def test_names_of_splits_need_splits(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "wide.csv")
    with pytest.raises(ConfigError, match="--split-names renames splits of a column or of files"):
        understood(tmp_path, labels=tmp_path / "wide.csv", split_names={"a": "train"})


def test_splits_of_folders_and_image_sets(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "Main")
    listing = understood(tmp_path, labels=tmp_path / "Main")
    assert listing.fixed.tolist() == [0] * 11 + [1] * 5
    renamed = understood(tmp_path, labels=tmp_path / "Main", split_names={"val": "test"})
    assert [renamed.splits[i] for i in renamed.fixed] == ["train"] * 11 + ["test"] * 5


def test_an_image_in_two_image_sets_is_refused(tmp_path: Path) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, "Main")
    (tmp_path / "Main" / "val.txt").write_text((tmp_path / "Main" / "train.txt").read_text())
    with pytest.raises(DataError, match=r"val.txt:1: p00 is in train.txt, too"):
        understood(tmp_path, labels=tmp_path / "Main")


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
