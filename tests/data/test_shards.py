from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlic.data import shards
from mlic.errors import DataError


def test_missing_and_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        shards.read_index(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no index\.json"):
        shards.read_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        shards.read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="is not an index of shards of format 1"):
        shards.read_index(tmp_path)
    with pytest.raises(DataError, match=r"index\.json is a file, not a folder of shards"):
        shards.read_index(tmp_path / "index.json")
    (tmp_path / "train.parquet").touch()
    with pytest.raises(DataError, match=r"train\.parquet is a file") as error:
        shards.read_index(tmp_path / "train.parquet")
    assert error.value.hint.startswith("mlic pack train.parquet --labels LABELS")


@pytest.mark.ray
def test_taking_samples_of_a_split(shards: Path) -> None:
    from mlic.data.shards import read_split

    split = read_split(shards, None)
    rows = np.array([200, 3, 77])
    part = split.take(rows)
    assert [part.key(i) for i in range(3)] == [split.key(i) for i in rows]
    assert (part.targets == split.targets[rows]).all()
    assert [part.shards[i] for i in part.shard] == [split.shards[i] for i in split.shard[rows]]
    assert len(part.shards) <= 3
