"""Views of large JSON documents: they hold what json.loads holds, and refuse what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlic.data.annotations.files.large_json import Elements, Members, view
from mlic.data.annotations.read import read_annotations
from mlic.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
LABELS = [f"label{i:02d}" for i in range(20)]


def plain(value: Any) -> Any:
    """A view as plain lists and dictionaries."""
    if isinstance(value, Elements):
        return [plain(item) for item in value]
    return {key: plain(value[key]) for key in value} if isinstance(value, Members) else value


@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_a_view_holds_what_the_document_holds(value: Any, indent: Any) -> None:
    text = json.dumps(value, indent=indent)
    seen = view(f" \n{text}\n")
    assert plain(seen) == value
    if isinstance(seen, Elements):
        assert seen[1:3] == value[1:3]
    if isinstance(seen, Members):
        assert list(seen.pairs()) == list(value.items())
        assert list(seen.elements) == list(value.values())


@given(VALUES, st.integers(0, 100), st.sampled_from('[]{},:"1a \\'))
def test_a_damaged_document_is_refused_or_read_alike(value: Any, at: int, mark: str) -> None:
    text = json.dumps(value)
    text = text[: at % len(text)] + mark + text[at % len(text) + 1 :]
    try:
        expected = json.loads(text)
        json.dumps(expected, ensure_ascii=False).encode()
    except ValueError:
        expected = None
    try:
        seen = plain(view(text))
    except ValueError as error:
        assert expected is None or "stands twice" in str(error)  # noqa: PT017 - both may be refused
    else:
        assert seen == expected


@pytest.mark.parametrize("text", ["[1,]", '{"a": 1,}', "[1] 2", '{"a" 1}', "{1: 2}", '{"a": 1', "[", '["\\ud800"]', ""])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Illegal|Extra data|surrogates"):
        view(text)


def test_large_lists_below_the_top_are_views_too() -> None:
    content = {"images": list(range(2000)), "few": [1, {"a": 2}], "by": {str(i): i for i in range(2000)}, "name": "x"}
    seen = view(json.dumps(content))
    assert isinstance(seen["images"], Elements)
    assert isinstance(seen["by"], Members)
    assert plain(seen) == content
    assert "label" not in seen
    with pytest.raises(KeyError):
        seen["label"]


def test_an_image_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text('{"a.jpg": ["cat"], "b.jpg": [], "a.jpg": ["dog"]}')
    with pytest.raises(DataError, match=r"'a\.jpg' stands twice"):
        read_annotations(file)


def _rows(count: int) -> list[tuple[str, list[str]]]:
    return [(f"images/part{i // 1000:04d}/photo_{i:07d}.jpg", LABELS[i % 17 : i % 17 + i % 4]) for i in range(count)]


def _wide(count: int) -> str:
    rows = (f"{name}," + ",".join(str(int(label in labels)) for label in LABELS) for name, labels in _rows(count))
    return "\n".join(["image," + ",".join(LABELS), *rows])


def _coco(count: int) -> str:
    rows = _rows(count)
    images = [{"id": i, "file_name": name, "width": 640, "height": 480} for i, (name, _) in enumerate(rows)]
    boxes = [
        {"id": i, "image_id": i, "category_id": LABELS.index(label), "bbox": [1.5, 2.5, 30.5, 40.75], "iscrowd": 0}
        for i, (_, labels) in enumerate(rows)
        for label in labels
    ]
    categories = [{"id": i, "name": label} for i, label in enumerate(LABELS)]
    return json.dumps({"images": images, "annotations": boxes, "categories": categories})


LAYOUTS: dict[str, Callable[[int], str]] = {
    "wide.csv": _wide,
    "cells.csv": lambda count: "\n".join(["image,labels", *(f"{name},{'|'.join(v)}" for name, v in _rows(count))]),
    "long.csv": lambda count: "\n".join(["image,label", *(f"{name},{one}" for name, v in _rows(count) for one in v)]),
    "lines.jsonl": lambda count: "\n".join(json.dumps({"image": name, "labels": v}) for name, v in _rows(count)),
    "records.json": lambda count: json.dumps([{"image": name, "labels": v} for name, v in _rows(count)]),
    "by_image.json": lambda count: json.dumps(dict(_rows(count))),
    "coco.json": _coco,
}
PROGRAM = """
import sys
from pathlib import Path
import numpy, pyarrow.compute, pyarrow.parquet
from mlic.data.annotations.read import read_annotations

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

read_annotations(Path(sys.argv[1]))  # what is loaded once
before = peak()
annotations = read_annotations(Path(sys.argv[2]))
print(len(annotations.names), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from Linux")
@pytest.mark.parametrize("name", LAYOUTS)
def test_reading_takes_no_more_memory_than_three_times_the_file(tmp_path: Path, name: str) -> None:
    """But for a few MB that allocators keep, which do not grow with the file."""
    small, large = tmp_path / "small" / name, tmp_path / "large" / name
    for file, count in ((small, 1000), (large, 100_000)):
        file.parent.mkdir()
        file.write_text(LAYOUTS[name](count))
    done = subprocess.run([sys.executable, "-c", PROGRAM, small, large], capture_output=True, text=True, check=True)
    images, taken = map(int, done.stdout.split())
    assert images >= 74_000
    assert taken < 3 * large.stat().st_size + 4e6
