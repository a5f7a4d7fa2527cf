from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlic.batch_predict import prediction_files
from mlic.batch_predict.merge import PredictReport
from mlic.batch_predict.prediction_files import Predictions, Values
from mlic.errors import DataError

LABELS = ("cat", "big dog", "ant")
SCORES = np.float32([[0.125, 0.5, 1e-7], [0.9999999, 0.25, 0.3]])
KEYS, FILES = ("x/im1", 'odd "name", b'), ("x/im1.jpg", 'odd "name", b.png')
DECIDED = SCORES >= 0.3


def parts() -> list[Predictions]:
    return [
        Predictions(LABELS, KEYS[i : i + 1], FILES[i : i + 1], SCORES[i : i + 1], DECIDED[i : i + 1]) for i in (0, 1)
    ]


@pytest.mark.parametrize("values", get_args(Values))
@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str, values: Values) -> None:
    path = tmp_path / f"p{suffix}"
    assert prediction_files.write(path, suffix, LABELS, values, parts()) == 2
    found = prediction_files.read(path)
    assert (found.labels, found.keys, found.files) == (LABELS, KEYS, FILES)
    if values == "decisions":
        assert found.scores is None
    else:
        assert found.scores is not None
        np.testing.assert_allclose(found.scores, SCORES, rtol=1e-6)
    if values == "scores":
        assert found.decisions is None
    else:
        assert found.decisions is not None
        assert (found.decisions == DECIDED).all()


def test_reference_layout(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    prediction_files.write(path, ".tsv", LABELS, prediction_files.resolve_values(".tsv", "auto"), parts())
    assert path.read_text().splitlines()[:2] == ["Filename\tcat\tbig dog\tant", "x/im1.jpg\t0\t1\t0"]


def test_layout_of_reference_system_a(tmp_path: Path) -> None:
    path, plain = tmp_path / "p.txt", [dataclasses.replace(part, files=("im1.jpg",)) for part in parts()]
    prediction_files.write(path, ".txt", LABELS, prediction_files.resolve_values(".txt", "auto"), plain)
    assert path.read_text().splitlines()[0] == "im1.jpg 0 1 0"
    found = prediction_files.read(path)
    assert (found.labels, found.files) == ((), ("im1.jpg",) * 2)
    assert found.decisions is not None
    assert (found.decisions == DECIDED).all()
    with pytest.raises(DataError, match="'a b.jpg' has a space in its name, which a .txt file cannot hold"):
        prediction_files.check_plain(pa.array([b"a.jpg", b"a b.jpg"]))
    prediction_files.check_plain(pa.array([b"a.jpg", b"a_\xff.jpg"]))


def test_others_can_read_them(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        prediction_files.write(
            tmp_path / f"p{suffix}", suffix, LABELS, prediction_files.resolve_values(suffix, "auto"), parts()
        )
    for table in (pd.read_csv(tmp_path / "p.csv"), pd.read_parquet(tmp_path / "p.parquet")):
        assert table["file"].tolist() == list(FILES)
        assert table["big dog"].tolist() == [1, 0]
        assert table["big dog_score"].tolist() == [0.5, 0.25]
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == list(KEYS)
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first == {
        "key": "x/im1",
        "file": "x/im1.jpg",
        "labels": ["big dog"],
        "scores": {"cat": 0.125, "big dog": 0.5, "ant": 1e-7},
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.tsv", "Filename\tcat\nim1.jpg\t1\t0\n"),
        ("p.tsv", "Filename\tcat\nim1.jpg\tmaybe\n"),
        ("p.tsv", "Filename\tcat\nim1.jpg\t1.5\n"),
        ("p.tsv", "Filename\tcat\tcat\nim1.jpg\t1\t0\n"),
        ("p.tsv", "Filename\tcat\nim1.jpg\t\n"),
        ("p.txt", "im1.jpg 1 0\nim2.jpg 1\n"),
        ("p.csv", ""),
        ("p.jsonl", ""),
        ("p.jsonl", '{"key": 1}\n'),
        ("p.parquet", "not parquet"),
        ("p.csv", "key,file,cat,dog,dog_score,cat_score\na,a.jpg,1,0,0.1,0.9\n"),
    ],
)
def test_what_does_not_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="cannot be read as predictions"):
        prediction_files.read(tmp_path / name)
    with pytest.raises(DataError, match="do not exist"):
        prediction_files.read(tmp_path / "nowhere.tsv")


def test_files_of_other_programs(tmp_path: Path) -> None:
    """Lines without a header, a table whose first column has another name, and scores under the labels' own names."""
    (tmp_path / "a.txt").write_text("im7.jpg 1 0\nim8.jpg 0 0\n")
    found = prediction_files.read(tmp_path / "a.txt")
    assert (found.labels, found.columns, found.keys) == ((), 2, ("im7", "im8"))
    assert found.decisions is not None
    assert found.decisions.tolist() == [[True, False], [False, False]]
    (tmp_path / "b.csv").write_text("ids,baby,bird\nim20001.jpg,1.0,0.0\n")
    found = prediction_files.read(tmp_path / "b.csv")
    assert (found.labels, found.keys, found.files) == (("baby", "bird"), ("im20001",), ("im20001.jpg",))
    (tmp_path / "c.tsv").write_text("Filename\tbaby\tbird\n20001\t0.25\t1\n")
    found = prediction_files.read(tmp_path / "c.tsv")
    assert found.decisions is None
    assert found.scores is not None
    assert found.scores.tolist() == [[0.25, 1.0]]


@pytest.mark.parametrize(
    ("found", "bad", "max_bad", "code"),
    [
        (0, 0, 0.01, 0),
        (5, 0, 0.01, 0),
        (5, 4, 0.01, 0),
        (5, 5, 1.0, 3),
        (100, 11, 0.01, 3),
        (100, 11, 0.2, 0),
        (2000, 20, 0.01, 0),
    ],
)
def test_too_many_bad_images_are_no_success(found: int, bad: int, max_bad: float, code: int) -> None:
    report = PredictReport(
        out=Path("p.tsv"),
        model=Path("m"),
        fingerprint="",
        sha256="",
        values="scores",
        top_k=0,
        found=found,
        predicted=found - bad,
        bad=bad,
        errors=None,
        max_bad=max_bad,
    )
    assert report.exit_code == code
    assert ("no success" in report.text()) == bool(code)
