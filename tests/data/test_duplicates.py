from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mlic.config.data import PackConfig
from mlic.data import duplicates
from mlic.data.shards import read_split
from mlic.pack.pack import pack


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def hashed(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(duplicates.perceptual_hash(data, 10**7), np.uint8)


def scene(seed: int) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((200, 150), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_survives_what_changes_no_picture(seed: int) -> None:
    image = scene(seed)
    original = hashed(jpeg(image))
    changed = [
        jpeg(image, 40),
        jpeg(image.resize((100, 75))),
        jpeg(image.resize((640, 480))),
        jpeg(ImageEnhance.Brightness(image).enhance(0.8)),
    ]
    for data in changed:
        assert np.bitwise_count(original ^ hashed(data)).sum() <= duplicates.MAX_DISTANCE
    others = [np.bitwise_count(original ^ hashed(jpeg(scene(seed + 100 + i)))).sum() for i in range(20)]
    assert min(others) > 2 * duplicates.MAX_DISTANCE


def test_every_near_pair_is_found() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (300, 16)).astype(np.uint8)
    for i in range(100):
        flips = np.zeros(128, np.uint8)
        flips[rng.choice(128, int(rng.integers(0, 16)), replace=False)] = 1
        hashes[100 + i] = hashes[i] ^ np.packbits(flips)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    expected = {(i, j) for i in range(300) for j in range(i + 1, 300) if apart[i, j] <= duplicates.MAX_DISTANCE}
    assert set(map(tuple, duplicates.near_pairs(hashes).tolist())) == expected
    assert len(expected) > 40


def test_flat_images_are_no_duplicates_of_each_other() -> None:
    assert len(duplicates.near_pairs(np.zeros((50, 16), np.uint8))) == 0


def test_a_large_family_of_copies_is_one_group() -> None:
    """3,000 copies of a picture, some of them a little changed: as many as share every band."""
    rng = np.random.default_rng(2)
    one = rng.integers(0, 256, 16).astype(np.uint8)
    family = np.repeat(one[None], 3000, axis=0)
    for row in range(0, 3000, 2):
        family[row, rng.integers(16)] ^= 1 << rng.integers(8)
    others = rng.integers(0, 256, (500, 16)).astype(np.uint8)
    digests = rng.integers(0, 256, (3500, 32)).astype(np.uint8)
    group = duplicates.clusters(digests, np.concatenate([family, others]))
    assert (group[:3000] == 0).all()
    assert (group[3000:] == np.arange(3000, 3500)).all()


def test_many_different_hashes_with_a_common_part_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 50)
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 256, (400, 16)).astype(np.uint8)
    hashes[:, :4] = hashes[0, :4]
    hashes[350:] = hashes[:50]
    hashes[350:, 15] ^= 0b10101
    found = set(map(tuple, duplicates.near_pairs(hashes).tolist()))
    assert {(i, 350 + i) for i in range(50)} <= found


def film(frames: int, bits: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Hashes (frames, 16) of which each differs from the one before in `bits` bits, one after the other."""
    plain = np.unpackbits(np.random.default_rng(seed).integers(0, 256, 16).astype(np.uint8))
    rows = []
    for frame in range(frames):
        row = plain.copy()
        flips = np.arange(frame * bits) % 128
        np.bitwise_xor.at(row, flips, 1)
        rows.append(np.packbits(row))
    return np.stack(rows)


def test_a_chain_of_near_duplicates_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """A film's frames are like their neighbours, and its ends have nothing in common; a still in it stays together."""
    hashes = film(120, 1, 3)
    hashes = np.concatenate([hashes, np.repeat(hashes[:1], 70, axis=0)])
    digests = np.random.default_rng(4).integers(0, 256, (190, 32)).astype(np.uint8)
    digests[119] = digests[0]
    group = duplicates.clusters(digests, hashes)
    assert "190 images are in chains of near-duplicates" in caplog.text
    assert (group[120:] == group[0]).all()  # the same hash
    assert group[119] == group[0]  # the same bytes
    assert [len(np.unique(group[start : start + 21])) for start in (0, 21, 42)] == [1, 1, 1]
    sizes = np.bincount(group[:120])
    assert sizes[sizes > 0].tolist() == [21 + 15, 21, 21, 21, 21]  # a leader and 20 frames; the last is the first again


def test_a_chain_among_other_groups_leaves_them_as_they_are() -> None:
    hashes = np.concatenate([film(80, 1, 3), film(3, 2, 9), film(60, 0, 11)])
    digests = np.random.default_rng(4).integers(0, 256, (143, 32)).astype(np.uint8)
    group = duplicates.clusters(digests, hashes)
    assert group[80:83].tolist() == [80, 80, 80]
    assert (group[83:] == 83).all()
    assert len(np.unique(group[:80])) == 4


def test_a_large_group_by_a_column_is_no_chain(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(4)
    hashes, digests = (rng.integers(0, 256, (80, width)).astype(np.uint8) for width in (16, 32))
    assert (duplicates.clusters(digests, hashes, np.zeros(80, np.int64)) == 0).all()
    assert caplog.text == ""


def test_a_short_chain_is_one_group(caplog: pytest.LogCaptureFixture) -> None:
    digests = np.random.default_rng(4).integers(0, 256, (50, 32)).astype(np.uint8)
    assert (duplicates.clusters(digests, film(50, 2, 3)) == 0).all()
    assert caplog.text == ""


def test_clusters_are_closed() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (6, 16)).astype(np.uint8)
    hashes[1], hashes[2] = hashes[0], hashes[0]
    hashes[1, 0] ^= 0b11111
    hashes[2, 0] ^= 0b11111
    hashes[2, 1] ^= 0b11111
    digests = np.random.default_rng(1).integers(0, 256, (6, 32)).astype(np.uint8)
    digests[5] = digests[4]
    assert duplicates.clusters(digests, hashes).tolist() == [0, 0, 0, 3, 4, 4]
    assert duplicates.clusters(digests, None).tolist() == [0, 1, 2, 3, 4, 4]
    column = np.array([-1, 7, -1, 7, 8, -1])
    assert duplicates.clusters(digests, None, column).tolist() == [0, 1, 2, 1, 4, 4]


@pytest.mark.ray
def test_copies_of_a_photograph_stay_in_one_split(ray_cluster: None, tmp_path: Path) -> None:
    """Three versions of each of 60 pictures: without groups most of them would be parted."""
    (tmp_path / "images").mkdir()
    for i in range(60):
        for j, data in enumerate((jpeg(scene(i)), jpeg(scene(i), 50), jpeg(scene(i).resize((120, 90))))):
            (tmp_path / "images" / f"im{3 * i + j}.jpg").write_bytes(data)
    (tmp_path / "labels.csv").write_text("image,even\n" + "".join(f"im{k}.jpg,{k // 3 % 2 ^ 1}\n" for k in range(180)))

    def parted(out: Path) -> int:
        where = {key: name for name in ("train", "val", "test") for key in read_split(out, name).keys.to_pylist()}
        return sum(len({where[f"im{3 * i + j}"] for j in range(3)}) > 1 for i in range(60))

    base = {"images": tmp_path / "images", "labels": tmp_path / "labels.csv"}
    report = pack(PackConfig(**base, out=tmp_path / "grouped"))
    assert report.near_duplicates == 180
    assert parted(tmp_path / "grouped") == 0
    assert report.splits == {"train": 144, "val": 18, "test": 18}
    pack(PackConfig(**base, out=tmp_path / "parted", group_by="none"))
    assert parted(tmp_path / "parted") > 10
