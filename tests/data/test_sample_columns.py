"""The columns of a split: from samples.parquet into memory, or mapped from a file of the node."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mlic.config.train import TrainConfig
from mlic.data import sample_columns, storage
from mlic.data.shards import Split, read_split
from mlic.errors import DataError
from mlic.train import setup

pytestmark = pytest.mark.ray


def same(one: Split, two: Split) -> bool:
    columns = ("targets", "shard", "offsets", "sizes")
    return one.keys.equals(two.keys) and all(np.array_equal(getattr(one, name), getattr(two, name)) for name in columns)


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's folder, where splits of any size are mapped."""
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(sample_columns, "MAPPED", 1)
    monkeypatch.setattr(sample_columns, "_SCANNED", 100)  # rows of one shard or two
    return tmp_path / "node" / "fetched"


@pytest.mark.parametrize("name", ["train", "val", None])
def test_a_mapped_split_is_that_in_memory(shards: Path, mapped: Path, name: str | None) -> None:
    found = [read_split(shards, name) for _ in range(2)]
    assert isinstance(found[0].targets.base, np.memmap)
    (file,) = (path for path in mapped.iterdir() if path.suffix != ".lock")
    assert file.stat().st_size == len(found[0]) * (20 + len(found[0].labels))
    shutil.rmtree(mapped)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(sample_columns, "MAPPED", 10**6)
        plain = read_split(shards, name)
    assert not mapped.exists()
    assert all(same(plain, split) for split in found)
    assert same(pickle.loads(pickle.dumps(found[0])), plain)  # noqa: S301 - our own
    rows = np.array([7, 3, 3])
    some = found[0].take(rows)
    assert some.keys.to_pylist() == [plain.key(i) for i in rows.tolist()]
    assert some.take(np.array([1])).files.to_pylist() == [plain.files[3].as_py()]


def test_names_are_read_when_they_are_asked_for(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = read_split(shards, "train")
    some = split.take(np.array([4, 2]))
    expected = [split.key(4), split.key(2)]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read", None)
        patch.setattr("pyarrow.parquet.ParquetFile", None)
        assert split.take(np.array([4, 2])).keys.to_pylist() == expected
        with pytest.raises(TypeError):
            _ = some.keys
    assert some.keys.to_pylist() == expected


def test_without_room_on_the_disk_it_is_in_memory(shards: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "KEEP_FREE", 10**18)
    assert len(read_split(shards, "val")) > 0
    assert not [path for path in mapped.iterdir() if path.suffix != ".lock"]


def test_a_table_of_shards_that_the_index_does_not_have(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    index = json.loads((folder / "index.json").read_text())
    name = next(name for name, shard in index["shards"].items() if shard["split"] == "val")
    del index["shards"][name]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"cannot read .*samples.parquet: {name} is not in the index"):
        read_split(folder, "val")


def test_labels_of_a_mapped_split_are_counted_once(shards: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(shards=shards)
    split = setup.train_split(config)
    counts = setup.label_counts(split)
    assert counts[0].tolist() == (split.targets == 1).sum(axis=0).tolist()
    assert counts[1].tolist() == (split.targets == 0).sum(axis=0).tolist()
    fewer = setup.label_counts(setup.train_split(config.model_copy(update={"limit": 20})))
    assert int(sum(fewer)[0]) == 20
    monkeypatch.setattr(setup, "_count", None)
    again = setup.label_counts(split)
    assert all(torch.equal(one, two) for one, two in zip(counts, again, strict=True))
