"""New images beside packed ones: what stays, where new images go, what is refused, and attempts that were killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlic.config.data import PackConfig
from mlic.data.shards import read_split, read_table
from mlic.errors import ConfigError, DataError, PartialError
from mlic.pack import append as append_module
from mlic.pack import summary
from mlic.pack.pack import pack
from mlic.pack.summary import PackReport
from mlic.pack.understanding import Understanding
from mlic.runs.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

BEFORE, ALL = 160, 240


def packed(out: Path, images: Path, labels: Path, **settings: Any) -> PackReport:
    report = pack(PackConfig(images=images, labels=labels, out=out, **settings))
    assert isinstance(report, PackReport)
    return report


def with_images(folder: Path, corpus: Path, first: int, last: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(first, last + 1):
        shutil.copy2(corpus / "images" / f"im{i}.jpg", folder)
    return folder


def keys(folder: Path, split: str) -> list[str]:
    return list(read_split(folder, split).keys.to_pylist())


def contents(folder: Path) -> dict[str, bytes]:
    """All that readers of the shards see, and the report without the name of its folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".parquet", ".tsv")}
    files["index.json"] = (folder / "index.json").read_bytes()
    report = json.loads((folder / "report.json").read_text())
    return files | {"report.json": json.dumps({**report, "out": ""}).encode()}


@pytest.fixture(scope="module")
def before(corpus: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 160 images, and shards of them."""
    folder = tmp_path_factory.mktemp("before")
    images = with_images(folder / "images", corpus, 1, BEFORE)
    packed(folder / "shards", images, corpus / "annotations", folds=3)
    return folder


@pytest.fixture
def grown(before: Path, corpus: Path, tmp_path: Path) -> Path:
    """The same, and 80 more images that are not packed."""
    shutil.copytree(before, tmp_path / "grown")
    with_images(tmp_path / "grown" / "images", corpus, BEFORE + 1, ALL)
    return tmp_path / "grown"


@pytest.fixture(scope="module")
def undisturbed(before: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the shards are after the 80 images were appended at once."""
    folder = tmp_path_factory.mktemp("undisturbed") / "grown"
    shutil.copytree(before, folder)
    with_images(folder / "images", corpus, BEFORE + 1, ALL)
    packed(folder / "shards", folder / "images", corpus / "annotations", folds=3, append=True)
    return contents(folder / "shards")


def append(folder: Path, labels: Path, **settings: Any) -> PackReport:
    return packed(folder / "shards", folder / "images", labels, folds=3, append=True, **settings)


def test_what_is_packed_stays_and_the_test_split_is_frozen(grown: Path, corpus: Path, before: Path) -> None:
    labels, out = corpus / "annotations", grown / "shards"
    report = append(grown, labels)
    assert report.appended == ALL - BEFORE
    assert report.images == sum(report.splits.values()) == ALL
    for shard in (before / "shards").glob("*.tar"):
        assert shard.read_bytes() == (out / shard.name).read_bytes()
    for split in ("train", "val", "test"):
        old, new = keys(before / "shards", split), keys(out, split)
        assert new[: len(old)] == old
        assert (len(new) > len(old)) == (split != "test")
    rows = read_table(out)
    assert rows.slice(0, BEFORE).equals(read_table(before / "shards"))
    assert sorted(rows.column("key").to_pylist()) == sorted(f"im{i}" for i in range(1, ALL + 1))
    # Each label is that of a pack of all images at once.
    packed(grown / "again", grown / "images", labels)
    for split in ("train", "val"):
        have = read_split(out, split)
        whole = read_split(grown / "again", None)
        target = dict(zip(whole.keys.to_pylist(), whole.targets.tolist(), strict=True))
        assert have.targets.tolist() == [target[key] for key in have.keys.to_pylist()]
    index = json.loads((out / "index.json").read_text())
    assert index["account"]["found"] == ALL + report.account.missing
    assert index["label_counts"] == json.loads((grown / "again" / "index.json").read_text())["label_counts"]
    fold = np.array(rows.column("fold").to_pylist())
    assert ((fold >= 0) == (np.array(rows.column("split").to_pylist()) != "test")).all()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("[a-z]*")}
    assert append(grown, labels) == packed(out, grown / "images", labels, folds=3) == report
    assert times == {path.name: path.stat().st_mtime_ns for path in out.glob("[a-z]*")}


def test_a_folder_of_new_images_alone(
    before: Path, corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    shutil.copytree(before / "shards", tmp_path / "shards")
    with_images(tmp_path / "images", corpus, BEFORE + 1, ALL)
    report = append(tmp_path, corpus / "annotations")
    assert (report.appended, report.images) == (ALL - BEFORE, ALL)
    table = contents(tmp_path / "shards")
    assert {name: data for name, data in table.items() if name.endswith(".tar")} == {
        name: data for name, data in undisturbed.items() if name.endswith(".tar")
    }


def test_copies_of_packed_images(grown: Path, corpus: Path) -> None:
    """A copy of a test image is left out, and other copies go where the packed image is."""
    in_test, in_val = (keys(grown / "shards", split)[0] for split in ("test", "val"))
    for name, key in (("like_test", in_test), ("like_val", in_val)):
        shutil.copy(grown / "images" / f"{key}.jpg", grown / "images" / f"{name}.jpg")
    report = append(grown, corpus / "annotations")
    assert "like_val" in keys(grown / "shards", "val")
    assert "like_test" not in read_table(grown / "shards").column("key").to_pylist()
    assert report.account.duplicate == 1
    assert in_test in report.trouble["duplicate"][0]
    assert report.leakage == 0
    rows = {row["key"]: row for row in read_table(grown / "shards", ["key", "group", "fold"]).to_pylist()}
    assert {**rows["like_val"], "key": ""} == {**rows[in_val], "key": ""}


class Killed(Exception):
    pass


def _dies(*_: Any, **__: Any) -> None:
    raise Killed


def _after_one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = append_module.write_all

    def one(config: Any, plan: Any, *more: Any) -> Any:
        write_all(config, plan[:1], *more)
        raise PartialError("stopped")

    monkeypatch.setattr(append_module, "write_all", one)


POINTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "scanned": lambda patch: patch.setattr(append_module.shard_plan, "plan", _dies),
    "one shard": _after_one_shard,
    "all shards": lambda patch: patch.setattr(append_module.accounts, "write_files", _dies),
    "the table": lambda patch: patch.setattr(summary, "write_json", _dies),
    "the index": lambda patch: patch.setattr(Run, "finish", _dies),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_attempt_ends_as_an_undisturbed_one(
    point: str, grown: Path, corpus: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = keys(grown / "shards", "train")
    with monkeypatch.context() as patch:
        POINTS[point](patch)
        with pytest.raises((Killed, PartialError)):
            append(grown, corpus / "annotations")
    if point == "the table":  # it has more samples than the index: no reader may take them for samples of other shards
        with pytest.raises(DataError, match="not in the index"):
            read_split(grown / "shards", "train")
    elif point != "the index":
        assert keys(grown / "shards", "train") == train
    append(grown, corpus / "annotations")
    assert contents(grown / "shards") == undisturbed


def test_more_images_came_while_an_attempt_was_stopped(
    grown: Path, corpus: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards of the stopped attempt have the names of those that come now, and other images."""
    last = [grown / "images" / f"im{i}.jpg" for i in range(ALL - 20, ALL + 1)]
    for path in last:
        path.unlink()
    with monkeypatch.context() as patch:
        _after_one_shard(patch)
        with pytest.raises(PartialError):
            append(grown, corpus / "annotations")
    with_images(grown / "images", corpus, ALL - 20, ALL)
    append(grown, corpus / "annotations")
    assert contents(grown / "shards") == undisturbed


def test_a_dry_run_counts_what_is_new(grown: Path, corpus: Path) -> None:
    config = PackConfig(images=grown / "images", labels=corpus / "annotations", out=grown / "shards", append=True)
    about = pack(config.model_copy(update={"dry_run": True}))
    assert isinstance(about, Understanding)
    assert any("80 images are new, and 160 are packed" in note for note in about.notes)


def test_a_name_with_another_image_is_refused(grown: Path, corpus: Path) -> None:
    """Of another size, and of the same size and other bytes."""
    image, labels = grown / "images" / "im7.jpg", corpus / "annotations"
    good = image.read_bytes()
    shutil.copy(grown / "images" / "im200.jpg", image)
    with pytest.raises(DataError, match=r"another content, such as im7\.jpg"):
        append(grown, labels)
    for path in (grown / "images").glob("im?.jpg"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    image.write_bytes(good[:-1] + b"\0")
    with pytest.raises(DataError, match="another content"):
        append(grown, labels)


def wide_table(path: Path, labels: list[str], files: list[str]) -> Path:
    """A table in which each image has every second label."""
    cells = ",".join("01"[i % 2] for i in range(len(labels)))
    path.write_text("\n".join(["image," + ",".join(labels), *(f"{file},{cells}" for file in files)]))
    return path


def test_a_new_image_with_the_stem_of_a_packed_one(corpus: Path, tmp_path: Path) -> None:
    images = with_images(tmp_path / "images", corpus, 1, 20)
    files = [f"im{i}.jpg" for i in range(1, 21)]
    packed(tmp_path / "shards", images, wide_table(tmp_path / "labels.csv", ["a", "b"], files))
    shutil.copy(corpus / "images" / "im200.jpg", images / "im7.jpeg")
    wide_table(tmp_path / "labels.csv", ["a", "b"], [*files, "im7.jpeg"])
    packed(tmp_path / "shards", images, tmp_path / "labels.csv", append=True)
    columns = (read_table(tmp_path / "shards").column(name).to_pylist() for name in ("file", "key"))
    names = dict(zip(*columns, strict=True))
    assert (names["im7.jpg"], names["im7.jpeg"], len(names)) == ("im7", "im7.jpeg", 21)


def test_labels_that_the_shards_lack_or_that_are_not_said(grown: Path, corpus: Path, tmp_path: Path) -> None:
    wide, out = tmp_path / "labels.csv", grown / "shards"
    names = json.loads((out / "index.json").read_text())["labels"]
    files = [f"im{i}.jpg" for i in range(BEFORE + 1, ALL + 1)]
    with pytest.raises(DataError, match="labels that .* does not have: 'zebra'"):
        append(grown, wide_table(wide, [*names, "zebra"], files))
    with pytest.raises(DataError, match=f"say nothing about {names[0]!r}"):
        append(grown, wide_table(wide, names[1:], files))
    lists = tmp_path / "lists"
    shutil.copytree(corpus / "annotations", lists)
    (lists / f"{names[0]}.txt").unlink()  # a list of positives: no new image has this label
    append(grown, lists)
    assert tuple(names) == read_split(out, "train").labels


def test_changed_labels_of_packed_images_are_said(
    grown: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = tmp_path / "lists"
    shutil.copytree(corpus / "annotations", lists)
    with next(lists.iterdir()).open("a") as file:
        file.write("\n1\n2\n3\n")
    before = read_split(grown / "shards", "train").targets.tolist()
    append(grown, lists)
    assert "packed images have other labels in the label files now" in caplog.text
    assert read_split(grown / "shards", "train").targets.tolist()[: len(before)] == before


def test_new_images_that_are_given_to_the_test_split(before: Path, corpus: Path, tmp_path: Path) -> None:
    lists = tmp_path / "labels.csv"
    lists.write_text(
        "image,label,split\n" + "".join(f"im{i}.jpg,disc,{'test' if i % 5 == 0 else 'train'}\n" for i in range(1, 41))
    )
    images = with_images(tmp_path / "images", corpus, 1, 20)
    settings = {"split_column": "split", "label_column": "label"}
    packed(tmp_path / "shards", images, lists, **settings)
    with_images(images, corpus, 21, 40)
    with pytest.raises(DataError, match=r"4 new images are given to the split test, such as im25\.jpg"):
        packed(tmp_path / "shards", images, lists, append=True, **settings)


def test_shards_that_are_lost_afterwards_are_not_dealt_anew(grown: Path, corpus: Path) -> None:
    append(grown, corpus / "annotations")
    (grown / "shards" / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar is missing"):
        append(grown, corpus / "annotations")
    assert (grown / "shards" / "index.json").exists()
    (grown / "shards" / "index.json").unlink()
    with pytest.raises(DataError, match=r"holds no index\.json.* Images were appended"):
        append(grown, corpus / "annotations")


def test_a_refusal_leaves_the_folder_as_it_is(grown: Path, corpus: Path, tmp_path: Path) -> None:
    """The command that packed the folder is still a command that has ended well."""
    before = contents(grown / "shards")
    with pytest.raises(DataError, match="labels that .* does not have"):
        append(grown, wide_table(tmp_path / "labels.csv", ["zebra"], [f"im{i}.jpg" for i in range(1, ALL + 1)]))
    for i in range(BEFORE + 1, ALL + 1):
        (grown / "images" / f"im{i}.jpg").unlink()
    packed(grown / "shards", grown / "images", corpus / "annotations", folds=3)
    assert contents(grown / "shards") == before


def test_settings_that_append_cannot_have(tmp_path: Path) -> None:
    for setting in ({"fresh": True}, {"limit": 10}, {"corrections": tmp_path / "suspects.tsv"}):
        with pytest.raises(ValueError, match="append leaves what is packed as it is"):
            PackConfig(images=tmp_path, labels=tmp_path, append=True, **setting)


def test_without_the_flag_it_is_named(grown: Path, corpus: Path) -> None:
    with pytest.raises(ConfigError) as error:
        packed(grown / "shards", grown / "images", corpus / "annotations", folds=3)
    assert "--append" in error.value.hint
