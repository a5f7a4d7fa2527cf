from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlic.data import shards, storage
from mlic.data.sources.image_sources import list_images
from mlic.pack import shard_plan, shard_writer
from mlic.pack.shard_plan import Expansion, Samples, ShardPlan
from mlic.pack.tar import BUFFER, Tar, member_name

LABELS = ("cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        Image.fromarray(np.full((9, 9, 3), i * 20, np.uint8)).save(tmp_path / f"im{i}.jpg")
    (tmp_path / "im3.jpg").write_bytes(b"")
    return tmp_path


def samples(folder: Path, split: int = 0) -> Samples:
    """im0, im1, im10, im11, im2 ...; odd ones are cats, and whether im5 is a dog is unknown."""
    listing = list_images(folder)
    numbers = np.array([int(listing.key(i).rpartition("im")[2]) for i in range(len(listing))])
    targets = np.stack([numbers % 2, np.where(numbers == 5, -1, 0)], axis=1).astype(np.int8)
    return Samples(listing, targets, np.full(len(listing), split))


def write(
    plan: ShardPlan,
    found: Samples,
    expansion: Expansion = Expansion(),  # noqa: B008
) -> tuple[bytes, shard_plan.Written, dict[str, list[Any]]]:
    out = io.BytesIO()
    written, table = shard_writer.write(plan, found.take(plan.rows), LABELS, out, 10**6, expansion)
    return out.getvalue(), written, table.to_pydict()


def whole(found: Samples) -> ShardPlan:
    return ShardPlan("a-000000.tar", "a", np.arange(len(found)), np.zeros(len(found), np.int16))


def test_plan(folder: Path) -> None:
    found = samples(folder)
    found.split[:5] = 1
    plan = shard_plan.plan(found, ["train", "val"], 64.0, 3, 7)
    assert [(p.name, len(p.rows)) for p in plan] == [
        ("train-000000.tar", 2),
        ("train-000001.tar", 3),
        ("train-000002.tar", 2),
        ("val-000000.tar", 2),
        ("val-000001.tar", 1),
        ("val-000002.tar", 2),
    ]
    rows = np.concatenate([p.rows for p in plan])
    assert sorted(rows.tolist()) == list(range(12))
    assert rows[:7].tolist() != sorted(rows[:7].tolist())
    assert rows[7:].tolist() == list(range(5))


def test_shards_are_of_the_size_asked_for(folder: Path) -> None:
    found = samples(folder)
    found.listing.sizes[:] = 1_000_000
    assert len(shard_plan.plan(found, ["val"], 2, 1, 0)) == 6
    assert len(shard_plan.plan(found, ["val"], 100, 50, 0)) == 12
    assert shard_plan.plan(found.take(np.zeros(0, np.int64)), ["val"], 10, 8, 0) == ()


def test_shards_are_tars_that_webdataset_reads(folder: Path) -> None:
    found = samples(folder)
    data, written, table = write(whole(found), found)
    assert (written.size, written.bad) == (len(data), (("im3.jpg", "zero bytes"),))
    assert (written.samples, written.label_counts, written.unlabelled) == (11, (5, 0), 6)
    path = folder / written.name
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names[:4] == ["im0.jpg", "im0.json", "im1.jpg", "im1.json"]
    assert len(names) == 22
    read = {s["__key__"]: s for s in webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8")}
    assert list(read) == table["key"]
    assert read["im1"]["json"] == {"key": "im1", "file": "im1.jpg", "labels": ["cat"]}
    assert read["im5"]["json"]["unknown"] == ["dog"]
    assert read["im0"]["jpg"].shape == (9, 9, 3)
    assert shards.verify(path, {"size": written.size, "sha256": written.sha256, "samples": 11}, 10**6) is None


def test_offsets_point_at_the_images_and_their_records(folder: Path) -> None:
    found = samples(folder)
    data, written, table = write(whole(found), found)
    (folder / "a.tar").write_bytes(data)
    with storage.File(folder / "a.tar") as file:
        for row in range(written.samples):
            image, record = shards.read_sample(file, table["offset"][row], table["size"][row])
            assert image == (folder / table["file"][row]).read_bytes()
            assert record is not None
            assert record["key"] == table["key"][row]


def test_bytes_do_not_depend_on_time_owner_or_known_digests(folder: Path) -> None:
    found = samples(folder)
    first, _, table = write(whole(found), found)
    (folder / "im1.jpg").chmod(0o600)
    (folder / "im1.jpg").touch()
    assert write(whole(found), found)[0] == first
    rows = [found.listing.path(i) for i in range(12)]
    digest = np.zeros((12, 32), np.uint8)
    for file, sha256 in zip(table["file"], table["sha256"], strict=True):
        digest[rows.index(file)] = np.frombuffer(bytes.fromhex(sha256), np.uint8)
    again, _, known = write(whole(found), replace(found, digest=digest))
    assert (again, known) == (first, table)


def test_accounts_and_the_table(folder: Path) -> None:
    found = samples(folder)
    plan = whole(found)
    written, table = shard_writer.write(plan, found, LABELS, io.BytesIO(), 10**6)
    again, rows = shard_writer.parse_account(shard_writer.dump_account(written, table))
    assert again == written
    assert rows.equals(table)
    (folder / shards.TABLE).write_bytes(shard_writer.table_bytes(iter([table, rows])))
    assert shards.read_table(folder, ["key"]).column("key").to_pylist() == table.column("key").to_pylist() * 2
    for broken in (b"", b"x" * 100, shard_writer.table_bytes(iter([table]))):
        with pytest.raises((ValueError, KeyError, TypeError)):
            shard_writer.parse_written(broken)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), unique=True, min_size=1))
def test_member_names_are_safe_and_tell_keys_apart(keys: list[str]) -> None:
    names = [member_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        assert name.isascii()
        assert "." not in name


@pytest.mark.parametrize("depth", [18, 19, 40])
def test_long_names_survive(folder: Path, depth: int) -> None:
    key = "deep/" * depth + "im1"
    (folder / key).parent.mkdir(parents=True)
    (folder / "im1.jpg").rename(folder / f"{key}.jpg")
    found = samples(folder / "deep")
    plan = whole(found)
    data, _, table = write(plan, found)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"{key[5:]}.jpg", f"{key[5:]}.json"]
    start = table["offset"][0]
    assert data[start : start + table["size"][0]] == (folder / f"{key}.jpg").read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "x/" * 48 + "im.jpg", "n" * 99, "n" * 100, "n" * 200])
@pytest.mark.parametrize("size", [0, 1, 511, 4711, 8**11 - 1])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar = Tar(io.BytesIO())
    tar.put_header(name, size)
    assert bytes(tar.view[: tar.used]) == info.tobuf(tarfile.GNU_FORMAT)


def test_images_larger_than_the_buffer(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "im5.png")
    (folder / "im5.jpg").unlink()
    found = samples(folder)
    data, written, table = write(whole(found), found)
    assert max(table["size"]) > BUFFER
    (folder / "a.tar").write_bytes(data)
    expected = {"size": written.size, "sha256": written.sha256, "samples": 11}
    assert shards.verify(folder / "a.tar", expected, 10**8) is None


def test_versions_of_training_images(folder: Path) -> None:
    found = samples(folder)
    found.split[[i for i in range(12) if found.listing.path(i) in ("im3.jpg", "im4.jpg", "im5.jpg")]] = 1
    expansion = Expansion(2, ("rotate", "shift", "flip"), seed=3)
    plan = shard_plan.plan(found, ["train", "val"], 64, 1, 0, expansion)
    assert [(p.split, len(p.rows)) for p in plan] == [("train", 27), ("val", 3)]
    data, _, table = write(plan[0], found, expansion)
    assert sorted(table["version"]) == [0] * 9 + [1] * 9 + [2] * 9
    for key, version, file in zip(table["key"], table["version"], table["file"], strict=True):
        assert key == Path(file).stem + (f"~{version}" if version else "")
    assert write(plan[0], found, expansion)[0] == data
    (folder / "a.tar").write_bytes(data)
    with storage.File(folder / "a.tar") as file:
        pictures = {
            key: shards.read_sample(file, offset, size)
            for key, offset, size in zip(table["key"], table["offset"], table["size"], strict=True)
        }
    original, changed = pictures["im11"], pictures["im11~1"]
    assert original[0] != changed[0]
    assert original[1] is not None
    assert changed[1] is not None
    assert original[1]["labels"] == changed[1]["labels"] == ["cat"]
    assert Image.open(io.BytesIO(changed[0])).size == (9, 9)


def test_thinning_keeps_a_version_of_each_image(folder: Path) -> None:
    found = samples(folder)
    expansion = Expansion(4, ("erase",), thin=0.9, thin_labels=(), seed=1)
    (plan,) = shard_plan.plan(found, ["train"], 64, 1, 0, expansion)
    labelled = (found.targets == 1).any(axis=1)
    counts = np.bincount(plan.rows, minlength=12)
    assert (counts[labelled] == 5).all()
    assert (counts[~labelled] >= 1).all()
    assert counts[~labelled].sum() < 15
    everything = replace(expansion, thin=1.0, thin_labels=(0,))
    (plan,) = shard_plan.plan(found, ["train"], 64, 1, 0, everything)
    assert np.bincount(plan.rows).tolist() == [1] * 12


def test_what_verification_finds(folder: Path) -> None:
    found = samples(folder)
    data, written, _ = write(whole(found), found)
    expected = {"size": written.size, "sha256": written.sha256, "samples": 11}
    path = folder / "a.tar"
    for damage, error in {
        "short": (data[:-1], "bytes, not"),
        "flipped": (data[:700] + bytes([data[700] ^ 1]) + data[701:], "another sha256"),
    }.values():
        path.write_bytes(damage)
        assert error in str(shards.verify(path, expected, 10**6))
    path.write_bytes(data)
    assert "holds 11 images" in str(shards.verify(path, {**expected, "samples": 12}, 10**6))
    assert "above the limit" in str(shards.verify(path, expected, 10))
    path.unlink()
    assert "cannot be read" in str(shards.verify(path, expected, 10**6))


def test_records_are_json_of_any_name(tmp_path: Path) -> None:
    name = 'a "b"\n\\ ünï'
    Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    found = Samples(list_images(tmp_path), np.array([[1, 0]], np.int8), np.zeros(1, np.int64))
    data, _, _ = write(whole(found), found)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        record = json.load(tar.extractfile(tar.getmembers()[1]))  # type: ignore[arg-type]
    assert record == {"file": f"{name}.png", "key": name, "labels": ["cat"]}
