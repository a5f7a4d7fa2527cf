"""A person answers on a page, with the keyboard, and mlic reads the answers."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlic.config.load import build
from mlic.config.review import ReviewConfig
from mlic.data import corrections
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.errors import ConfigError, DataError
from mlic.review.review import review
from tests import chromium

ODD = 'a "b"</script><!--,\t'
SUSPECTS = [
    {"Filename": "p1.jpg", "label": "cat", "given": "0", "suggestion": "1", "reason": "score 0.9"},
    {"Filename": "p2.jpg", "label": "dog", "given": "1", "suggestion": "0", "reason": "score 0.1"},
    {"Filename": "p1.jpg", "label": "dog", "given": "1", "suggestion": "0", "reason": "score 0.2"},
    {"Filename": "p3.jpg", "label": ODD, "given": "-1", "suggestion": "1", "reason": "score 0.7"},
]
needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium or chrome on the PATH")
PRESS = """
const press = keys => keys.forEach(key =>
  inner.dispatchEvent(new KeyboardEvent("keydown", {key: key, bubbles: true, cancelable: true})));
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(1, 5):
        pixels = np.full((60, 90, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.jpg")
    return folder


def suspects(folder: Path) -> Path:
    path = folder / "suspects.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, corrections.COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows([row | {"verdict": "?", "score": "0.5", "evidence": "2"} for row in SUSPECTS])
    return path


def answered(page: Path, keys: list[str], folder: Path, width: int = 1200) -> tuple[dict[str, Any], str]:
    """What the page is like after some keys, and the table that it would save."""
    script = f"{PRESS} press({json.dumps(keys)}); result = frame.table();"
    seen, complaints = chromium.visit(page, width, folder, script)
    assert complaints == []
    return seen, str(seen["result"])


def test_what_a_page_holds(images: Path, tmp_path: Path) -> None:
    report = review(ReviewConfig(table=suspects(tmp_path), images=images, out=tmp_path / "r.html"))
    assert (report.images, report.questions, report.bad) == (3, 4, 0)
    text = (tmp_path / "r.html").read_text()
    found = re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    assert list(content["images"]) == ["p1.jpg", "p2.jpg", "p3.jpg"]
    assert [question["label"] for question in content["images"]["p1.jpg"]] == ["cat", "dog"]
    assert content["images"]["p3.jpg"][0]["label"] == ODD
    assert "http" not in re.sub(r"data:[^\"']*", "", text).replace("http-equiv", "")
    few = review(ReviewConfig(table=suspects(tmp_path), images=images, out=tmp_path / "r.html", count=1))
    assert (few.images, few.questions) == (1, 2)


@needs_chromium
def test_verdicts_by_keys_are_read_back(images: Path, tmp_path: Path) -> None:
    review(ReviewConfig(table=suspects(tmp_path), images=images, out=tmp_path / "r.html"))
    seen, table = answered(tmp_path / "r.html", ["1", "1", "u", "0", "?", "u", "0", "u", "1", "Enter"], tmp_path)
    assert "image 3 of 3, 3 decided" in seen["text"]
    assert seen["broken"] == 0
    (tmp_path / "done.tsv").write_text(table, encoding="utf-8")
    read = corrections.read(tmp_path / "done.tsv")
    rows = {(name, label): (given, verdict) for name, label, given, verdict in read.decisions()}
    assert rows == {
        ("p1.jpg", "cat"): (0, 1),
        ("p1.jpg", "dog"): (1, 0),
        ("p2.jpg", "dog"): (1, 1),
        ("p3.jpg", ODD): (-1, 1),
    }


@needs_chromium
def test_rows_that_are_not_asked_about_are_saved_too(images: Path, tmp_path: Path) -> None:
    table = suspects(tmp_path)
    lines = table.read_text().splitlines()
    decided = lines[1].replace("\t?\t", "\t1\t")
    table.write_text("\n".join([lines[0], decided, *lines[2:]]) + "\n")
    review(ReviewConfig(table=table, images=images, out=tmp_path / "r.html", count=1))
    _, text = answered(tmp_path / "r.html", ["0"], tmp_path)
    (tmp_path / "done.tsv").write_text(text, encoding="utf-8")
    read = corrections.read(tmp_path / "done.tsv")
    assert len(read.names) == len(SUSPECTS)
    assert read.decisions() == [("p1.jpg", "cat", 0, 1), ("p2.jpg", "dog", 1, 0)]


@needs_chromium
def test_labels_of_predictions_become_a_label_file(images: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"key": ["p1", "p2", "p3"], "file": ["p1.jpg", "p2.jpg", "p3.jpg"]})
    for label, scores in {"cat": [0.6, 0.99, 0.55], "dog": [0.1, 0.01, 0.3]}.items():
        table[label], table[f"{label}_score"] = [int(score >= 0.5) for score in scores], scores
    table.to_csv(tmp_path / "p.csv", index=False)
    report = review(ReviewConfig(table=tmp_path / "p.csv", images=images, out=tmp_path / "r.html"))
    assert (report.images, report.questions) == (2, 4)  # p2 is sure
    seen, text = answered(tmp_path / "r.html", ["0", "?", "ArrowLeft", "ArrowRight", "Enter"], tmp_path, 390)
    assert seen["wide"] <= seen["width"]
    assert list(csv.reader(io.StringIO(text))) == [
        ["image", "cat", "dog"],
        ["p3.jpg", "0", "nan"],
        ["p1.jpg", "1", "0"],
    ]
    (tmp_path / "labels.csv").write_text(text)
    annotations = read_annotations(tmp_path / "labels.csv", LabelOptions())
    assert annotations.labels == ("cat", "dog")
    assert sorted(annotations.value.tolist()) == [-1, 1]  # the others are the fill, 0
    assert annotations.fill == 0


def test_chosen_images_are_asked_about_whole(images: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.tsv"
    batch.write_text(
        "rank\tkey\tfile\tuncertainty\tsuggested\tin_doubt\tscore\tthreshold\n1\tp2\tp2.jpg\t1\tdog\tdog\t.5\t.4\n"
    )
    with pytest.raises(DataError, match=r"batch\.tsv\.scores\.parquet is missing"):
        review(ReviewConfig(table=batch, images=images, out=tmp_path / "r.html"))
    frame = pd.DataFrame({"key": ["p2"], "file": ["p2.jpg"], "cat_score": [0.2], "dog_score": [0.45]})
    frame.astype({"cat_score": "float32", "dog_score": "float32"}).to_parquet(tmp_path / "batch.tsv.scores.parquet")
    report = review(ReviewConfig(table=batch, images=images, out=tmp_path / "r.html"))
    assert (report.images, report.questions, report.corrects) == (1, 2, False)
    assert '"suggestion": "1"' in (tmp_path / "r.html").read_text()  # dog, as its own threshold has it


def test_what_cannot_be_asked(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        review(ReviewConfig(table=tmp_path / "none.tsv", images=images, out=tmp_path / "r.html"))
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "empty" / "x.png")
    with pytest.raises(DataError, match=r"3 of 3 images are not in .*'p1\.jpg' is the first"):
        review(ReviewConfig(table=suspects(tmp_path), images=tmp_path / "empty", out=tmp_path / "r.html"))
    (images / "p2.jpg").write_bytes(b"broken")
    assert review(ReviewConfig(table=suspects(tmp_path), images=images, out=tmp_path / "r.html")).bad == 1
    with pytest.raises(ConfigError, match=r"out should end in \.html"):
        build(ReviewConfig, {"table": "a.tsv", "images": "x", "out": "r.pdf"})
