from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlic.data import shards
from mlic.errors import DataError

LABELS = ("cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        Image.fromarray(np.full((9, 9, 3), i * 20, np.uint8)).save(tmp_path / f"im{i}.jpg")
    (tmp_path / "im3.jpg").write_bytes(b"")
    return tmp_path


def sources(n: int = 12) -> list[shards.Source]:
    return [shards.Source(f"im{i}", f"im{i}.jpg", 600, (i % 2, -1 if i == 5 else 0)) for i in range(n)]


def write(folder: Path, plan: shards.ShardPlan) -> tuple[bytes, shards.Written]:
    out = io.BytesIO()
    account = shards.write(plan, LABELS, folder, out, 10**6)
    return out.getvalue(), account


def test_plan_is_a_function_of_the_samples_not_of_their_order() -> None:
    args = (64.0, 3, 7)
    plan = shards.plan({"train": sources(), "val": sources(5)}, *args)
    assert plan == shards.plan({"train": sources()[::-1], "val": sources(5)[::-1]}, *args)
    assert [(p.name, len(p.samples)) for p in plan] == [
        ("train-000000.tar", 4), ("train-000001.tar", 4), ("train-000002.tar", 4),
        ("val-000000.tar", 2), ("val-000001.tar", 1), ("val-000002.tar", 2),
    ]  # fmt: skip
    keys = [s.key for p in plan if p.split == "train" for s in p.samples]
    assert sorted(keys) == sorted(s.key for s in sources())
    assert keys != sorted(keys)
    assert [s.key for p in plan if p.split == "val" for s in p.samples] == [f"im{i}" for i in range(5)]


def test_shards_are_of_the_size_asked_for() -> None:
    big = [shards.Source(f"{i}", f"{i}.jpg", 1_000_000, (0, 0)) for i in range(100)]
    assert len(shards.plan({"train": big}, 10, 1, 0)) == 10
    assert len(shards.plan({"train": big[:2]}, 10, 8, 0)) == 2
    assert shards.plan({"train": []}, 10, 8, 0) == ()


def test_shards_are_tars_that_webdataset_reads(folder: Path) -> None:
    plan = shards.ShardPlan("train-000000.tar", "train", tuple(sources()))
    data, account = write(folder, plan)
    assert (account.size, account.bad) == (len(data), (("im3.jpg", "zero bytes"),))
    path = folder / plan.name
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names[:4] == ["im0.jpg", "im0.json", "im1.jpg", "im1.json"]
    assert len(names) == 22
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [f"im{i}" for i in range(12) if i != 3]
    assert read[1]["json"] == {"key": "im1", "file": "im1.jpg", "labels": ["cat"]}
    assert read[4]["json"]["unknown"] == ["dog"]
    assert read[0]["jpg"].shape == (9, 9, 3)


def test_offsets_point_at_the_images(folder: Path) -> None:
    data, account = write(folder, shards.ShardPlan("a-000000.tar", "a", tuple(sources())))
    for sample in account.samples:
        assert data[sample.offset : sample.offset + sample.size] == (folder / sample.file).read_bytes()


def test_bytes_do_not_depend_on_time_or_owner(folder: Path) -> None:
    plan = shards.ShardPlan("a-000000.tar", "a", tuple(sources()))
    first, _ = write(folder, plan)
    (folder / "im1.jpg").chmod(0o600)
    (folder / "im1.jpg").touch()
    assert write(folder, plan)[0] == first


def test_account_round_trip(folder: Path) -> None:
    _, account = write(folder, shards.ShardPlan("a-000000.tar", "a", tuple(sources())))
    assert shards.parse_written(shards.dump_written(account)) == account


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), unique=True, min_size=1))
def test_member_names_are_safe_and_tell_keys_apart(keys: list[str]) -> None:
    names = [shards.member_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        assert name.isascii()
        assert "." not in name


def test_a_long_name_survives(folder: Path) -> None:
    key = "deep/" * 40 + "im1"
    (folder / key).parent.mkdir(parents=True)
    (folder / "im1.jpg").rename(folder / f"{key}.jpg")
    plan = shards.ShardPlan("a-000000.tar", "a", (shards.Source(key, f"{key}.jpg", 9, (1, 0)),))
    data, _ = write(folder, plan)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"{key}.jpg", f"{key}.json"]


@pytest.mark.parametrize("name", ["a.jpg", "x/" * 48 + "im.jpg", "n" * 99, "n" * 100, "n" * 200])
@pytest.mark.parametrize("size", [0, 1, 511, 4711, 8**11 - 1, 8**11])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert shards._header(name, size) == info.tobuf(tarfile.GNU_FORMAT)


def test_missing_and_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        shards.read_index(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no index\.json"):
        shards.read_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        shards.read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="no index of shards of format 1"):
        shards.read_index(tmp_path)
