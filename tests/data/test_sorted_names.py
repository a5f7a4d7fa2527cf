"""Names of many images, sorted by runs on disk: the same columns as in memory, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlic.data.sources import image_sources, sorted_names
from mlic.data.sources.image_listing import Listing
from mlic.data.sources.sorted_names import SortedNames


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Files of which some have one stem, one name is no UTF-8, and sizes tell them apart."""
    names = [f"{folder}/{i % 7}/im{i:03d}.jpg" for folder in ("b", "a", "c") for i in range(40)]
    names += ["a/0/im000.png", "b/0/im000.jpeg", "a.jpg", "\udcff.jpg"]
    for size, name in enumerate(names, start=10):
        path = tmp_path / "photos" / os.fsdecode(os.fsencode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path / "photos"


def on_disk(photos: Path, monkeypatch: pytest.MonkeyPatch, run: int) -> Listing:
    monkeypatch.setattr(image_sources, "_RUN", run)
    monkeypatch.setattr(image_sources, "_CHUNK", run)
    monkeypatch.setattr(sorted_names, "_EVERY", 4)
    return image_sources.list_images(photos)


@pytest.mark.parametrize("run", [1, 7, 31, 62])
def test_a_listing_by_runs_is_that_in_memory(photos: Path, monkeypatch: pytest.MonkeyPatch, run: int) -> None:
    plain = image_sources.list_images(photos)
    assert plain.stored_keys is None
    mapped = on_disk(photos, monkeypatch, run)
    assert mapped.stored_keys is not None
    for one, other in ((plain, mapped), (plain.with_distinct_keys(), mapped.with_distinct_keys())):
        assert one.keys.to_pylist() == other.keys.to_pylist()
        assert one.paths.to_pylist() == other.paths.to_pylist()
        assert (one.sizes.tolist(), one.stamps.tolist()) == (other.sizes.tolist(), other.stamps.tolist())
    assert plain.fingerprint() == mapped.fingerprint()
    some = np.array([50, 3, 99])
    assert mapped.take(some).keys.to_pylist() == plain.take(some).keys.to_pylist()


def test_members_of_archives(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    for name in ("one", "two"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.add(photos / "a", arcname="a")
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.tar").rename(folder / f"{name}.tar")
    plain = image_sources.list_images(folder)
    mapped = on_disk(folder, monkeypatch, 10)
    assert plain.members is not None
    assert mapped.members is not None
    assert (plain.members == mapped.members).all()
    assert plain.paths.to_pylist() == mapped.paths.to_pylist()
    assert mapped.by_archive
    with plain.opened() as one, mapped.opened() as other:
        assert [one(i) for i in range(len(plain))] == [other(i) for i in range(len(plain))]


def test_files_of_runs_have_no_name(tmp_path: Path) -> None:
    names = SortedNames(tmp_path, [np.dtype(np.int64)])
    for start in (5, 0, 10):
        texts = pa.array([b"%02d" % i for i in range(start, start + 5)], pa.large_binary())
        names.add(texts, texts, [np.arange(start, start + 5)])
    found = names.mapped(4)
    assert found.keys.to_pylist() == [b"%02d" % i for i in range(15)]
    assert found.numbers[0].tolist() == list(range(15))
    assert list(tmp_path.iterdir()) == []
