"""Files made by the tools that own the formats, read back."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from mlic.config.data import PackConfig
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import join
from mlic.data.shards import read_split
from mlic.data.sources.image_sources import list_images
from mlic.errors import DataError

NAMES = ("cat", "dog")
TARGETS = {"a": (1, 0), "b": (0, 1), "c": (1, 1), "d": (0, 0)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i, key in enumerate(TARGETS):
        Image.new("RGB", (8, 8), (i * 60, 9, 9)).save(tmp_path / "photos" / f"{key}.jpg")
    return tmp_path / "photos"


def check(photos: Path, labels: Path, format: Any = "auto") -> None:
    """The labels of a, b and c are theirs, and d has none."""
    annotations = read_annotations(labels, LabelOptions(format=format))
    listing = list_images(photos)
    targets = join(annotations, listing.paths).targets
    places = [annotations.labels.index(name) for name in NAMES]
    found = {listing.key(i).rpartition("/")[2]: tuple(targets[i, places].tolist()) for i in range(len(listing))}
    assert found == TARGETS


def test_tables_by_pandas(photos: Path, tmp_path: Path) -> None:
    wide = pd.DataFrame(list(TARGETS.values()), columns=list(NAMES))
    wide.insert(0, "image", [f"{key}.jpg" for key in TARGETS])
    wide.to_csv(tmp_path / "wide.csv", index=False)
    wide.to_csv(tmp_path / "wide.tsv", index=False, sep="\t")
    wide.to_parquet(tmp_path / "wide.parquet")
    named = [[name for name, value in zip(NAMES, row, strict=True) if value] for row in TARGETS.values()]
    delimited = pd.DataFrame({"image": list(TARGETS), "labels": ["|".join(found) for found in named]})
    delimited.to_csv(tmp_path / "delimited.csv", index=False)
    lists = pd.DataFrame({"image": list(TARGETS), "labels": named})
    lists.to_parquet(tmp_path / "lists.parquet")
    lists.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    long = lists.explode("labels")
    long.to_csv(tmp_path / "long.csv", index=False)
    for name in ("wide.csv", "wide.tsv", "wide.parquet", "delimited.csv", "lists.parquet", "lines.jsonl", "long.csv"):
        check(photos, tmp_path / name)


def test_lists_by_the_shell(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    script = "ls photos | grep -E '^(a|c)' > lists/cat.txt; printf 'photos/b.jpg\\r\\nphotos/c.jpg' > lists/dog.txt"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "lists" / "dog.txt").write_text((tmp_path / "lists" / "dog.txt").read_text().replace("photos/", "./"))
    check(photos, tmp_path / "lists")


def test_folders(photos: Path, tmp_path: Path) -> None:
    for name, key in (("cat", "a"), ("dog", "b")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        shutil.copy(photos / f"{key}.jpg", tmp_path / "tree" / name)
    annotations = read_annotations(tmp_path / "tree")
    assert annotations.labels == NAMES
    assert join(annotations, list_images(tmp_path / "tree").paths).targets.tolist() == [[1, 0], [0, 1]]


def test_voc_by_its_writer(photos: Path, tmp_path: Path) -> None:
    from pascal_voc_writer import Writer

    (tmp_path / "voc").mkdir()
    for key, row in TARGETS.items():
        writer = Writer(str(photos / f"{key}.jpg"), 8, 8)
        for name, value in zip(NAMES, row, strict=True):
            if value:
                writer.addObject(name, 1, 1, 5, 5)
        writer.save(str(tmp_path / "voc" / f"{key}.xml"))
    check(photos, tmp_path / "voc")


def test_coco_as_its_own_reader_sees_it(photos: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    images = [{"id": i, "file_name": f"{key}.jpg", "width": 8, "height": 8} for i, key in enumerate(TARGETS)]
    annotations = [
        {"id": 10 * i + j, "image_id": i, "category_id": 7 + j, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
        for i, row in enumerate(TARGETS.values())
        for j, value in enumerate(row)
        if value
    ]
    categories = [{"id": 7 + j, "name": name} for j, name in enumerate(NAMES)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    coco = COCO(str(path))
    for j, name in enumerate(NAMES):
        own = {coco.loadImgs(i)[0]["file_name"] for i in coco.getImgIds(catIds=coco.getCatIds(catNms=[name]))}
        assert own == {f"{key}.jpg" for key, row in TARGETS.items() if row[j]}
    check(photos, path)


@pytest.mark.parametrize("how", ["json", "cls"])
def test_webdataset_shards_by_its_writer(photos: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "wds").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "wds" / "s-%06d.tar"), maxcount=2, verbose=0) as sink:
        for number, (key, row) in enumerate(TARGETS.items()):
            sample = {"__key__": f"sub/{key}", "jpg": (photos / f"{key}.jpg").read_bytes()}
            if how == "json":
                sample["json"] = {"labels": [name for name, value in zip(NAMES, row, strict=True) if value]}
            elif number < 2:
                sample["cls"] = number
            sink.write(sample)
    if how == "json":
        check(tmp_path / "wds", tmp_path / "wds")
        return
    annotations = read_annotations(tmp_path / "wds")
    assert annotations.labels == ("0", "1")
    joined = join(annotations, list_images(tmp_path / "wds").paths)
    assert joined.targets.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


@pytest.mark.ray
def test_our_own_shards_are_such_shards(shards: Path, ray_cluster: None, tmp_path: Path) -> None:
    """Packed again from themselves they hold the same images with the same labels."""
    from mlic.pack.pack import pack

    report = pack(PackConfig(images=shards, labels=shards, out=tmp_path / "again", group_by="none"))
    index = json.loads((shards / "index.json").read_text())
    assert report.label_counts == index["label_counts"]
    one, two = read_split(shards, None), read_split(tmp_path / "again", None)
    keys = two.keys.to_pylist()
    place = {key: i for i, key in enumerate(keys)}
    assert sorted(one.keys.to_pylist()) == sorted(keys)
    assert all((two.targets[place[key]] == one.targets[i]).all() for i, key in enumerate(one.keys.to_pylist()))


def test_unknown_labels_reach_the_targets(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,cat\na.jpg,-1\nb.jpg,1\nc.jpg,0\n")
    annotations = read_annotations(tmp_path / "l.csv")
    assert join(annotations, list_images(photos).paths).targets[:, 0].tolist() == [-1, 1, 0, 0]
    assert np.array(annotations.value).tolist() == [-1, 1]


def _shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_two_records_of_a_sample_are_refused(tmp_path: Path) -> None:
    """A sample's name ends at its first dot, so a.1.jpg and a.2.jpg are one."""
    members = {"a.1.jpg": b"x", "a.1.json": b'["cat"]', "a.2.jpg": b"y", "a.2.json": b'["dog"]'}
    with pytest.raises(DataError, match=r"the sample 'a' has two members that end in \.json, such as 'a\.2\.json'"):
        read_annotations(_shard(tmp_path / "0.tar", members), LabelOptions())


def test_of_several_images_of_a_sample_the_plain_one_counts(tmp_path: Path) -> None:
    members = {"a.depth.png": b"x", "a.jpg": b"y", "a.json": b'["cat"]'}
    read = read_annotations(_shard(tmp_path / "0.tar", members), LabelOptions())
    assert read.names.to_pylist() == ["a.jpg"]


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18)])
def test_an_array_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"0\.tar:a\.npy: "):
        read_annotations(_shard(tmp_path / "0.tar", {"a.jpg": b"x", "a.npy": data}), LabelOptions())
