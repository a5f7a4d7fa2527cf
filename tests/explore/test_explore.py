from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mlic.config.data import ExploreConfig
from mlic.errors import ConfigError
from mlic.explore.explore import explore

pytestmark = pytest.mark.ray


def test_shards(shards: Path, ray_cluster: None, tmp_path: Path) -> None:
    report = explore(ExploreConfig(data=shards, out=tmp_path / "look"))
    index = json.loads((shards / "index.json").read_text())
    assert report.labels == index["label_counts"]
    assert report.splits == {name: split["label_counts"] for name, split in index["splits"].items()}
    assert sum(report.cardinality) == report.samples == report.looked_at == 240
    assert sum(report.color.values()) + report.bad == 240
    assert 5 < report.color["grey"] < 40
    assert report.sizes == {"64 x 64": 240}
    assert ("ring", "disc") in [(row.first, row.second) for row in report.implications]
    found = {path.name for path in (tmp_path / "look").iterdir()}
    assert {"explore.html", "explore.json", "labels.png", "cardinality.png", "together.png", "splits.png"} <= found
    assert len([name for name in found if name.startswith("samples-")]) == 7
    for path in (tmp_path / "look").glob("*.png"):
        with Image.open(path) as image:
            image.load()
    page = (tmp_path / "look" / "explore.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "<script" not in page
    assert json.loads((tmp_path / "look" / "explore.json").read_text())["labels"] == report.labels
    before = page
    explore(ExploreConfig(data=shards, out=tmp_path / "look"))
    assert (tmp_path / "look" / "explore.html").read_text() == before


def test_images_with_their_labels(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    """Names from data are escaped, and images that do not read are counted."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(30):
        Image.new("RGB", (20 + i % 2, 10), (i * 8, 0, 0)).save(images / f"{i}.png")
    (images / "<b>x.jpg").write_bytes(b"no")
    (tmp_path / "l.csv").write_text("image,<i>red,$a_b$\n" + "".join(f"{i}.png,{i % 2},1\n" for i in range(30)))
    with (tmp_path / "l.csv").open("a") as file:
        file.write("<b>x.jpg,0,1\n")
    config = ExploreConfig(data=images, labels=tmp_path / "l.csv", out=tmp_path / "look", max_images=31)
    report = explore(config)
    assert (report.samples, report.bad, report.splits) == (31, 1, {})
    assert report.sizes == {"20 x 10": 15, "21 x 10": 15}
    page = (tmp_path / "look" / "explore.html").read_text()
    assert "<i>red" not in page
    assert "&lt;i&gt;red" in page
    with pytest.raises(ConfigError, match="--labels is not given"):
        explore(config.model_copy(update={"labels": None}))
    with pytest.raises(ConfigError, match="holds files that mlic did not write"):
        explore(config.model_copy(update={"out": corpus}))
    with pytest.raises(ConfigError, match="is not a folder"):
        explore(config.model_copy(update={"out": tmp_path / "l.csv"}))


def test_unknown_labels_are_neither_present_nor_absent(ray_cluster: None, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (20, 10), (i * 60, 0, 0)).save(images / f"{i}.png")
    (tmp_path / "l.csv").write_text("image,cat,dog\n0.png,1,-1\n1.png,0,-1\n2.png,0,0\n3.png,-1,1\n")
    report = explore(ExploreConfig(data=images, labels=tmp_path / "l.csv", out=tmp_path / "look"))
    assert (report.unknown, report.undecided) == ({"cat": 1, "dog": 2}, 1)
    assert (report.share("cat"), report.share("dog")) == (1 / 3, 1 / 2)
    text = report.text()
    assert "1 images without any, 1 without a known one" in text
    assert "unknown  cat 1  dog 2" in text
    assert "33.33%" in (tmp_path / "look" / "explore.html").read_text()
