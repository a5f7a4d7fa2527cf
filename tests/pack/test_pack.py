"""What pack makes of labels, splits, groups and versions; the end-to-end tests have it beside the other stages."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlic.config.data import DoctorConfig, PackConfig
from mlic.data.shards import read_split, read_table
from mlic.doctor.doctor import doctor
from mlic.errors import ConfigError, DataError
from mlic.pack.pack import pack
from mlic.pack.summary import PackReport

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def packed(out: Path, images: Path, labels: Path, **settings: Any) -> PackReport:
    return pack(PackConfig(images=images, labels=labels, out=out, **settings))


def keys(folder: Path, split: str) -> list[str]:
    return list(read_split(folder, split).keys.to_pylist())


def table(path: Path, corpus: Path, **columns: Any) -> Path:
    """The toy corpus' labels `disc` and `night` as a wide table with further columns, functions of the number."""
    lists = {name: set((corpus / "annotations" / f"{name}.txt").read_text().split()) for name in ("disc", "night")}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", *lists, *columns])
        for i in range(1, 241):
            values = [function(i) for function in columns.values()]
            rows.writerow([f"im{i}.jpg", *(int(str(i) in found) for found in lists.values()), *values])
    return path


def test_a_split_column_is_honoured(corpus: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", corpus, part=lambda i: "holdout" if i <= 30 else "train" if i <= 200 else "")
    report = packed(tmp_path / "s", corpus / "images", labels, split_column="part")
    assert report.label_counts.keys() == {"disc", "night"}
    assert sorted(keys(tmp_path / "s", "holdout")) == sorted(f"im{i}" for i in range(1, 31))
    assert {f"im{i}" for i in range(31, 201)} <= set(keys(tmp_path / "s", "train"))
    assert sum(report.splits.values()) == 240
    assert report.leakage == 0
    wrong = table(tmp_path / "w.csv", corpus, part=lambda _: "Not Good")
    with pytest.raises(DataError, match="a split is named 'Not Good'"):
        packed(tmp_path / "t", corpus / "images", wrong, split_column="part")


def test_split_files_are_honoured(corpus: Path, tmp_path: Path) -> None:
    files = tmp_path / "splits"
    files.mkdir()
    (files / "test.txt").write_text("".join(f"{i}\n" for i in range(1, 41)))
    (files / "train.txt").write_text("".join(f"im{i}.jpg\n" for i in range(41, 241)))
    settings = {"split_files": files, "split": {"train": 0.8, "test": 0.2}}
    report = packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings)
    assert report.splits == {"train": 200, "test": 40}
    assert sorted(keys(tmp_path / "s", "test")) == sorted(f"im{i}" for i in range(1, 41))
    (files / "train.txt").write_text("im1.jpg\n")
    with pytest.raises(DataError, match=r"im1\.jpg is in test and train"):
        packed(tmp_path / "t", corpus / "images", corpus / "annotations", **settings)
    (files / "train.txt").write_text("im100.jpg\n")
    with pytest.raises(ConfigError, match="made from different splits"):
        packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings)


def test_the_test_set_stays_when_images_are_added(corpus: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i in range(1, 161):
        shutil.copy(corpus / "images" / f"im{i}.jpg", images)
    for file in (corpus / "annotations").iterdir():
        (labels / file.name).write_text("".join(f"{i}\n" for i in file.read_text().split() if int(i) <= 160))
    packed(tmp_path / "old", images, labels)
    before = keys(tmp_path / "old", "test")
    shutil.copytree(corpus / "images", images, dirs_exist_ok=True)
    report = packed(tmp_path / "new", images, corpus / "annotations", keep_test=tmp_path / "old")
    assert keys(tmp_path / "new", "test") == before
    assert report.splits["train"] + report.splits["val"] == 240 - len(before)
    assert report.splits["val"] == pytest.approx((240 - len(before)) / 9, abs=2)
    # A copy of a test image cannot go anywhere else, since training would then have seen it.
    shutil.copy(images / f"{before[0]}.jpg", images / "copy.jpg")
    packed(tmp_path / "more", images, corpus / "annotations", keep_test=tmp_path / "old")
    assert set(keys(tmp_path / "more", "test")) == {*before, "copy"}


def test_folds(corpus: Path, tmp_path: Path) -> None:
    report = packed(tmp_path / "s", corpus / "images", corpus / "annotations", folds=4)
    assert report.folds == 4
    outside = report.splits["train"] + report.splits["val"]
    seen: list[str] = []
    for fold in range(4):
        train, val = (read_split(tmp_path / "s", name, fold) for name in ("train", "val"))
        assert len(train) + len(val) == outside
        assert abs(len(val) - outside / 4) <= 2
        assert not set(train.keys.to_pylist()) & set(val.keys.to_pylist())
        seen += val.keys.to_pylist()
    assert len(set(seen)) == len(seen) == outside
    assert not set(seen) & set(keys(tmp_path / "s", "test"))
    with pytest.raises(DataError, match="has folds 0 to 3, and fold 4 is asked for"):
        read_split(tmp_path / "s", "val", 4)


def test_a_group_column_is_never_cut(corpus: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", corpus, patient=lambda i: f"p{i % 24}" if i % 5 else "")
    report = packed(tmp_path / "s", corpus / "images", labels, group_column="patient", group_by="none")
    where = {key: name for name in report.splits for key in keys(tmp_path / "s", name)}
    for patient in range(24):
        of = {where[f"im{i}"] for i in range(1, 241) if i % 24 == patient and i % 5}
        assert len(of) == 1
    assert report.leakage == 0
    assert report.near_duplicates == sum(1 for i in range(1, 241) if i % 5)


@pytest.mark.parametrize("unlabelled", ["drop", "as-label"])
def test_images_without_labels(corpus: Path, tmp_path: Path, unlabelled: Any, shards: Path) -> None:
    kept = json.loads((shards / "index.json").read_text())["account"]
    report = packed(tmp_path / "s", corpus / "images", corpus / "annotations", unlabelled=unlabelled)
    assert report.account.balances()
    if unlabelled == "drop":
        assert report.account.dropped == kept["packed_unlabelled"] > 0
        assert report.samples == kept["packed_labelled"]
        assert "dropped" in report.text()
        return
    assert report.label_counts["none"] == kept["packed_unlabelled"]
    assert report.account.packed_unlabelled == 0
    with pytest.raises(DataError, match="'disc' is a label already"):
        packed(
            tmp_path / "t", corpus / "images", corpus / "annotations", unlabelled=unlabelled, unlabelled_label="disc"
        )


def test_the_first_bad_image_stops_pack_where_that_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    Image.new("1", (60_000, 60_000)).save(images / "im7.png")
    (images / "im7.jpg").unlink()
    for group_by in ("none", "near-duplicates"):
        with pytest.raises(DataError, match=r"im7\.png cannot be read: 60,000 x 60,000 pixels, above the limit"):
            packed(tmp_path / group_by, images, corpus / "annotations", on_bad="fail", group_by=group_by)
    report = packed(tmp_path / "s", images, corpus / "annotations", max_bad=0)
    assert report.account.unreadable == 1
    rows = list(csv.reader((tmp_path / "s" / "left_out.tsv").open(), delimiter="\t"))
    assert rows[1][:2] == ["unreadable", "im7.png"]


def test_an_archive_with_names_that_leave_it(corpus: Path, tmp_path: Path) -> None:
    """They are images that cannot be read, and nothing is written anywhere but to the shards."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for i in range(1, 241):
            tar.add(corpus / "images" / f"im{i}.jpg", f"im{i}.jpg")
        for name in ("../../evil.jpg", "/tmp/evil.jpg"):  # noqa: S108
            info = tarfile.TarInfo(name)
            data = (corpus / "images" / "im1.jpg").read_bytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = packed(tmp_path / "s", tmp_path / "photos.tar", corpus / "annotations")
    assert (report.account.unreadable, report.samples) == (2, 240)
    assert not (tmp_path.parent / "evil.jpg").exists()
    plain = packed(tmp_path / "t", corpus / "images", corpus / "annotations")
    assert plain.label_counts == report.label_counts


def test_versions_are_in_training_alone_and_grouped_with_their_source(corpus: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"expand": 2, "thin": 0.8, "thin_labels": ("disc",), "folds": 3}
    report = packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings)
    rows = read_table(tmp_path / "s").to_pandas()
    assert (rows.loc[rows["version"] > 0, "split"] == "train").all()
    assert report.images == 240 == rows["file"].nunique()
    assert report.samples == len(rows)
    assert report.splits["val"] == 24
    assert (rows.groupby("file")["split"].nunique() == 1).all()
    assert (rows.groupby("file")["fold"].nunique() == 1).all()
    targets = np.stack(rows["target"])
    rare = (np.delete(targets, report_labels(tmp_path / "s").index("disc"), axis=1) == 1).any(axis=1)
    train = rows["split"] == "train"
    assert (rows[train & rare].groupby("file").size() == 3).all()
    assert rows[train & ~rare].groupby("file").size().mean() < 2
    # A fold's validation shows images themselves: versions of them are neither trained on nor measured.
    val = read_split(tmp_path / "s", "val", 0)
    assert not [key for key in val.keys.to_pylist() if "~" in key]
    assert doctor(DoctorConfig(shards=tmp_path / "s")).checks
    with pytest.raises(DataError, match="thin_labels names 'unicorn'"):
        packed(tmp_path / "t", corpus / "images", corpus / "annotations", thin=0.5, thin_labels=("unicorn",))


def report_labels(folder: Path) -> list[str]:
    return list(json.loads((folder / "index.json").read_text())["labels"])


def test_a_copy_forced_over_the_split_is_counted_and_named(corpus: Path, tmp_path: Path) -> None:
    """Files that put a photograph into train and a smaller version of it into test are obeyed, and it is said."""
    images, files = tmp_path / "images", tmp_path / "splits"
    shutil.copytree(corpus / "images", images)
    files.mkdir()
    smooth = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    photo = Image.fromarray(smooth).resize((200, 160), Image.Resampling.BICUBIC)
    photo.save(images / "im1.jpg")
    photo.resize((100, 80)).save(images / "copy.jpg", quality=60)
    (files / "train.txt").write_text("".join(f"{i}\n" for i in range(1, 201)))
    (files / "test.txt").write_text("copy\n" + "".join(f"{i}\n" for i in range(201, 241)))
    report = packed(
        tmp_path / "s", images, corpus / "annotations", split_files=files, split={"train": 0.8, "test": 0.2}
    )
    assert report.leakage == 1
    (check,) = [c for c in doctor(DoctorConfig(shards=tmp_path / "s")).checks if c.name == "leakage"]
    assert check.status == "warning"
    assert "im1" in check.text
    assert "copy" in check.text


def test_verification(corpus: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"verify": True}
    report = packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings)
    assert packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings) == report
    shard = tmp_path / "s" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    assert packed(tmp_path / "s", corpus / "images", corpus / "annotations") == report  # sizes alone are looked at
    with pytest.raises(DataError, match=r"1 of 12 shards .* train-000001\.tar has another sha256"):
        packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings)
    shard.unlink()
    assert packed(tmp_path / "s", corpus / "images", corpus / "annotations", **settings) == report
    assert packed(tmp_path / "s", corpus / "images", corpus / "annotations", fresh=True) == report


def test_two_files_of_one_name(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are two samples, each with its line in the labels."""
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    Image.open(images / "im5.jpg").save(images / "im5.png")
    labels = table(tmp_path / "l.csv", corpus)
    with labels.open("a") as file:
        file.write("im5.png,1,1\nim999.jpg,1,1\n")
    report = packed(tmp_path / "s", images, labels)
    assert (report.account.duplicate, report.account.missing, report.samples) == (0, 1, 241)
    assert report.account.balances()


def test_labels_that_no_image_has_are_named(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = table(tmp_path / "l.csv", corpus, unicorn=lambda _: 0)
    with caplog.at_level("WARNING", "mlic"):
        report = packed(tmp_path / "s", corpus / "images", labels)
    assert report.label_counts["unicorn"] == 0
    assert "no image has the label unicorn" in caplog.text


def test_deep_images_are_counted_and_what_they_are_scaled_from_is_said(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    for number in (1, 2):
        (images / f"im{number}.jpg").unlink()
        noise = np.random.default_rng(number).integers(0, 4000, (64, 64)).astype(np.uint16)
        Image.fromarray(noise).save(images / f"im{number}.tif")
    packed(tmp_path / "s", images, corpus / "annotations")
    assert "2 images have more than 8 bits a pixel and are scaled to 8 from 12 bits (2)" in caplog.text
