"""Verdicts about suspected label errors: read, refused where they do not fit, and applied before anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlic.config.data import PackConfig
from mlic.data import corrections
from mlic.data.label_join import as_paths
from mlic.data.shards import read_split
from mlic.errors import ConfigError, DataError
from mlic.pack.pack import pack
from mlic.pack.summary import PackReport

LABELS = ("people", "portrait")
PATHS = as_paths(["a/im1.jpg", "a/im2.jpg", "b/im3.jpg"])
TARGETS = np.array([[1, 0], [0, 1], [-1, 1]], np.int8)


def written(path: Path, *rows: str, header: str = "Filename\tlabel\tgiven\tverdict") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def applied(path: Path) -> tuple[list[list[int]], int]:
    targets, changed = corrections.apply(corrections.read(path), LABELS, PATHS, TARGETS)
    return targets.tolist(), changed


def test_verdicts_take_the_place_of_labels(tmp_path: Path) -> None:
    path = written(
        tmp_path / "c.tsv",
        "a/im1.jpg\tpeople\t1\t0",
        "im2\tpeople\t0\t?",
        "im2\tportrait\t1\t1",
        "3\tpeople\t-1\t1",
        "3\tportrait\t1\t-1",
    )
    assert applied(path) == ([[0, 0], [0, 1], [1, -1]], 3)
    assert TARGETS.tolist() == [[1, 0], [0, 1], [-1, 1]]


def test_what_spreadsheets_make_of_the_table_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    rows = ['"reason"\tverdict\tgiven\tlabel\tFilename', '"a, ""b""\nc"\t0 \t1\tpeople\ta/im1.jpg', "\t\t\t\t", ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert applied(path) == ([[0, 0], [0, 1], [-1, 1]], 1)


def test_the_table_as_it_was_written_changes_nothing(tmp_path: Path) -> None:
    suspect = corrections.Suspect("a/im1.jpg", "people", 1, 0, 0.03, 3.5, "score 0.03\tfor a label that is given")
    (tmp_path / "c.tsv").write_bytes(corrections.table([suspect]))
    read = corrections.read(tmp_path / "c.tsv")
    assert (read.names, read.labels, read.given.tolist(), read.decided.tolist()) == (
        ("a/im1.jpg",),
        ("people",),
        [1],
        [False],
    )
    assert applied(tmp_path / "c.tsv") == (TARGETS.tolist(), 0)


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        (["im1\tpeopel\t1\t0"], "c.tsv:2: there is no label 'peopel'", "did you mean people?"),
        (["im1\tzebra\t1\t0"], "c.tsv:2: there is no label 'zebra'", "the labels are people, portrait"),
        (["im1\tpeople\t1\t0", "x\tpeople\t1\t?", "y\tpeople\t1\t0"], "2 of 3 rows of .*'x' in line 3", "those rows"),
        (["im1\tpeople\t0\t1"], "c.tsv:2: 'people' of 'im1' is given as 0, and the label files say 1", "older"),
        (["im1\tpeople\t1\tyes"], "c.tsv:2: the verdict is 'yes'", "write 1, 0, -1"),
        (["im1\tpeople\t1\t"], "c.tsv:2: the verdict is ''", "write 1, 0, -1"),
        (["im1\tpeople\t2\t1"], "c.tsv:2: given is '2'", "leave that column"),
        (["im1\tpeople\t1"], "c.tsv:2 has 3 cells", "fix or delete"),
        (["im1\tpeople\t1\t0", "a/im1.jpg\tpeople\t1\t-1"], "c.tsv:3: .* another verdict in line 2", "keep one"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, rows: list[str], message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        applied(written(tmp_path / "c.tsv", *rows))
    assert hint in caught.value.hint


def test_what_is_no_table_of_suspects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.tsv do not exist"):
        corrections.read(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="has no column 'given'"):
        corrections.read(written(tmp_path / "c.tsv", header="Filename\tlabel\tverdict"))
    (tmp_path / "d.tsv").write_bytes(b"Filename\tlabel\tgiven\tverdict\n\xff\xfe\t")
    with pytest.raises(DataError, match="cannot read the corrections .*d.tsv"):
        corrections.read(tmp_path / "d.tsv")


def test_a_row_left_open_may_be_out_of_date(tmp_path: Path) -> None:
    assert applied(written(tmp_path / "c.tsv", "im1\tpeople\t0\t?"))[1] == 0


def packed(corpus: Path, labels: Path, out: Path, **settings: Any) -> PackReport:
    return pack(PackConfig(images=corpus / "images", labels=labels, out=out, folds=2, **settings))


@pytest.mark.ray
def test_corrected_shards_are_those_of_corrected_label_files(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    """The same shards, byte for byte: splits and folds are dealt out by the corrected labels too."""
    by_hand = shutil.copytree(corpus / "annotations", tmp_path / "by-hand")
    lists = {name: (by_hand / f"{name}.txt").read_text().split() for name in ("disc", "night")}
    wrong, added = lists["disc"][:25], [str(i) for i in range(1, 60) if str(i) not in lists["night"]]
    rows = [f"{name}.jpg\tdisc\t1\t0" for name in (f"im{number}" for number in wrong)]
    rows += [f"im{number}.jpg\tnight\t0\t1" for number in added] + [f"im{lists['disc'][30]}.jpg\tdisc\t1\t1"]
    table = written(tmp_path / "c.tsv", *rows)
    (by_hand / "disc.txt").write_text("\n".join(lists["disc"][25:]) + "\n")
    (by_hand / "night.txt").write_text("\n".join(sorted([*lists["night"], *added], key=int)) + "\n")
    report = packed(corpus, corpus / "annotations", tmp_path / "corrected", corrections=table)
    assert report.corrected == len(wrong) + len(added)
    assert f"corrected {report.corrected} labels" in report.text()
    plain = packed(corpus, by_hand, tmp_path / "plain")
    assert plain.corrected == 0
    assert "that the label files have otherwise" not in plain.text()
    names = sorted(path.name for path in (tmp_path / "plain").iterdir() if path.suffix in (".tar", ".parquet"))
    assert len(names) > 4
    for name in names:
        assert (tmp_path / "corrected" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    before = packed(corpus, corpus / "annotations", tmp_path / "before")
    assert before.label_counts["disc"] == report.label_counts["disc"] + 25
    assert (read_split(tmp_path / "before", None).targets != read_split(tmp_path / "plain", None).targets).any()
    assert json.loads((tmp_path / "corrected" / "index.json").read_text())["corrected"] == report.corrected

    written(table, *rows[::-1])  # the same verdicts
    assert packed(corpus, corpus / "annotations", tmp_path / "corrected", corrections=table) == report
    written(table, *rows[1:])
    with pytest.raises(ConfigError, match="made from different corrections"):
        packed(corpus, corpus / "annotations", tmp_path / "corrected", corrections=table)
    with pytest.raises(ConfigError, match="made from different corrections"):
        packed(corpus, corpus / "annotations", tmp_path / "corrected")
