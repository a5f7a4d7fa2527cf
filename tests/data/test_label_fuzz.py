"""Generated tables, lists and JSON: what is read is what was written, or it is refused."""

from __future__ import annotations

import csv
import json
import os
import string
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import ImageNames, Joined, as_paths, join
from mlic.errors import DataError

Truth = dict[str, frozenset[str]]
Writer = Callable[[Path, Truth, list[str]], Path]

WORDS = st.sampled_from(
    ["cat", "dog", "hot dog", "Cat", "bird", "n", "y", "a", "b", "0", "1", "12", "image", "label", "none", "nan", "x"]
) | st.text(string.ascii_letters + string.digits + " -_'()[]{}/.:#äß漢", min_size=1, max_size=8).map(str.strip).filter(
    bool
)


@st.composite
def truths(draw: st.DrawFn) -> tuple[Truth, list[str]]:
    """Some images by name, each with its labels, and all labels."""
    labels = draw(st.lists(WORDS, min_size=1, max_size=6, unique=True))
    count = draw(st.integers(1, 14))
    names = [f"{draw(st.sampled_from(['p', 'im_', 'x y ']))}{i}.jpg" for i in range(count)]
    return {name: frozenset(draw(st.sets(st.sampled_from(labels)))) for name in names}, labels


def _csv(path: Path, rows: list[list[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def wide(folder: Path, truth: Truth, labels: list[str]) -> Path:
    rows: list[list[object]] = [["image", *labels]]
    return _csv(folder / "l.csv", rows + [[name, *(int(v in found) for v in labels)] for name, found in truth.items()])


def wide_words(folder: Path, truth: Truth, labels: list[str]) -> Path:
    rows: list[list[object]] = [[*labels, "file"]]
    body = [[*("yes" if v in found else "no" for v in labels), name] for name, found in truth.items()]
    return _csv(folder / "l.tsv", rows + body, "\t")


def lists_as_text(folder: Path, truth: Truth, labels: list[str]) -> Path:
    rows: list[list[object]] = [["image", "labels"]]
    return _csv(folder / "l.csv", rows + [[name, str(sorted(found))] for name, found in truth.items()])


def json_as_text(folder: Path, truth: Truth, labels: list[str]) -> Path:
    rows: list[list[object]] = [["tags", "image"]]
    return _csv(folder / "l.csv", rows + [[json.dumps(sorted(found)), name] for name, found in truth.items()])


def long(folder: Path, truth: Truth, labels: list[str]) -> Path:
    rows: list[list[object]] = [["image", "label"]]
    return _csv(folder / "l.csv", rows + [[name, v] for name, found in truth.items() for v in sorted(found)])


def json_lines(folder: Path, truth: Truth, labels: list[str]) -> Path:
    path = folder / "l.jsonl"
    path.write_text("".join(json.dumps({"image": n, "labels": sorted(v)}) + "\n" for n, v in truth.items()))
    return path


def json_mappings(folder: Path, truth: Truth, labels: list[str]) -> Path:
    path = folder / "l.jsonl"
    records = ({"image": n, "labels": {label: int(label in v) for label in labels}} for n, v in truth.items())
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parquet_lists(folder: Path, truth: Truth, labels: list[str]) -> Path:
    import pyarrow.parquet as pq

    column = pa.array([sorted(found) for found in truth.values()], pa.list_(pa.string()))
    pq.write_table(pa.table({"image": list(truth), "labels": column}), folder / "l.parquet")
    return folder / "l.parquet"


def fiftyone(folder: Path, truth: Truth, labels: list[str]) -> Path:
    content = {"classes": labels, "labels": {n: [labels.index(label) for label in v] for n, v in truth.items()}}
    (folder / "l.json").write_text(json.dumps(content))
    return folder / "l.json"


def delimited(delimiter: str) -> Writer:
    def write(folder: Path, truth: Truth, labels: list[str]) -> Path:
        rows: list[list[object]] = [["image", "labels"]]
        return _csv(folder / "l.csv", rows + [[name, delimiter.join(sorted(found))] for name, found in truth.items()])

    return write


WRITERS: dict[str, Writer] = {
    "wide": wide,
    "wide words": wide_words,
    "lists as text": lists_as_text,
    "JSON as text": json_as_text,
    "long": long,
    "JSON Lines": json_lines,
    "JSON mappings": json_mappings,
    "Parquet": parquet_lists,
    "FiftyOne": fiftyone,
    "by ;": delimited(";"),
    "by |": delimited("|"),
    "by ,": delimited(","),
    "by , and space": delimited(", "),
    "by space": delimited(" "),
}


def fits(how: str, truth: Truth, labels: list[str]) -> bool:
    """Whether a person would write these labels like this: none holds what separates them."""
    separator = {"by ;": ";", "by |": "|", "by ,": ",", "by , and space": ",", "by space": " "}.get(how)
    return separator is None or not any(separator in label for label in labels)


@settings(max_examples=int(os.environ.get("MLIC_EXAMPLES", "40")))
@given(written=truths())
@example(
    written=(
        {"p0.jpg": frozenset({"hot dog"}), "p1.jpg": frozenset({"dog"}), "p2.jpg": frozenset({"cat"})},
        ["hot dog", "dog", "cat"],
    )
)
@example(
    written=(
        {**{f"p{i}.jpg": frozenset({"cat"}) for i in range(5)}, "p5.jpg": frozenset({"cat", "dog"})},
        ["cat", "dog"],
    )
)
@pytest.mark.parametrize("how", WRITERS)
def test_what_is_written_is_read_or_refused(how: str, written: tuple[Truth, list[str]]) -> None:
    truth, labels = written
    if not fits(how, truth, labels):
        return
    paths = as_paths(sorted([*truth, "other.jpg"]))
    with tempfile.TemporaryDirectory() as folder:
        read = read_or_refused(WRITERS[how](Path(folder), truth, labels), paths)
    if isinstance(read, DataError):
        assert read.message
        assert read.hint
        return
    annotations, joined = read
    for name, row, is_annotated in zip(paths.to_pylist(), joined.targets, joined.annotated, strict=True):
        found = {label for label, value in zip(annotations.labels, row.tolist(), strict=True) if value == 1}
        meant = truth.get(name.decode(), frozenset())
        if how == "long" or how.startswith("by"):  # words for a missing value are no labels
            meant = frozenset(label for label in meant if label.lower() not in ("nan", "na", "null", "n/a", "<na>"))
        if is_annotated or annotations.positives_only:
            assert found == meant, name
    assert (joined.targets >= 0).all()


def read_or_refused(path: Path, paths: pa.Array) -> tuple[Annotations, Joined] | DataError:
    """What is read, or how it is refused; every other exception is a fault."""
    try:
        annotations = read_annotations(path, LabelOptions(image_names=ImageNames(paths)))
        return annotations, join(annotations, paths)
    except DataError as error:
        return error
