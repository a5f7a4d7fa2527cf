from __future__ import annotations

import dataclasses
import errno
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mlic.config.data import Preprocessing
from mlic.data import cache, shards
from mlic.data.loader import ShardReader, eval_batches, train_bounds
from mlic.data.pixels.augment import Normalizer, crops, margin, mirrors
from mlic.data.pixels.decoding import ahead
from mlic.data.sample_columns import Names
from mlic.data.sources.image_sources import list_images
from mlic.errors import DataError
from mlic.pack import shard_plan, shard_writer
from mlic.train.batches.epoch_order import EpochOrder


def batches(num_samples: int, epoch: int, batch_size: int, world_size: int) -> list[list[int]]:
    """The samples of each batch of an epoch, in their order."""
    order, bounds = EpochOrder(num_samples, None, 1, epoch), train_bounds(num_samples, batch_size, world_size)
    return [order.at(np.arange(start, end))[0].tolist() for start, end in pairwise(bounds.tolist())]


PREP = Preprocessing(image_size=16, color="rgb", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), resize="squash")


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_samples", [16, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("batch_size", [2, 16, 64, 500])
def test_every_training_sample_once(world_size: int, num_samples: int, batch_size: int) -> None:
    dealt = batches(num_samples, 3, batch_size, world_size)
    assert sorted(sample for batch in dealt for sample in batch) == list(range(num_samples))
    assert min(len(batch[rank::world_size]) for batch in dealt for rank in range(world_size)) >= 2  # for batch norm


def test_a_batch_is_the_same_for_any_number_of_ranks() -> None:
    one, four = (batches(100, 0, 16, world_size) for world_size in (1, 4))
    assert one[: len(four) - 1] == four[:-1]  # the last ones may differ: a rest too small for four ranks is joined
    assert one != batches(100, 1, 16, 1)


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="3 training samples are too few for 2 workers"):
        train_bounds(3, 2, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_samples", [0, 1, 7, 64, 65])
def test_every_evaluation_sample_once(world_size: int, num_samples: int) -> None:
    seen = [i for rank in range(world_size) for batch in eval_batches(num_samples, 4, rank, world_size) for i in batch]
    assert sorted(seen) == list(range(num_samples))


@pytest.fixture
def split(tmp_path: Path) -> shards.Split:
    """Ten grey images in two shards; the i-th has the value 20 * i and the target (i % 2, 1)."""
    for i in range(10):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    targets = np.array([(i % 2, 1) for i in range(10)], np.int8)
    samples = shard_plan.Samples(list_images(tmp_path), targets, np.zeros(10, np.int64))
    plans = shard_plan.plan(samples, ["val"], 64, 2, 0)
    tables = []
    for plan in plans:
        with (tmp_path / plan.name).open("wb") as out:
            tables.append(shard_writer.write(plan, samples.take(plan.rows), ("a", "b"), out, 10**6)[1])
    table = pa.concat_tables(tables)
    return shards.Split(
        "val",
        ("a", "b"),
        tuple(tmp_path / plan.name for plan in plans),
        tuple((tmp_path / plan.name).stat().st_size for plan in plans),
        Names.of(table.column("key"), table.column("file")),
        targets,
        np.repeat([0, 1], [len(part) for part in tables]),
        table.column("offset").to_numpy(),
        table.column("size").to_numpy(),
        "f" * 32,
    )


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_hold_the_images_that_were_asked_for(split: shards.Split, threads: int) -> None:
    wanted = [np.array([3, 9]), np.array([0]), np.array([5, 1, 2])]
    with ShardReader(split, PREP) as reader:
        got = list(reader.batches(wanted, threads))
    for index, batch in zip(wanted, got, strict=True):
        assert batch.images[:, 0, 0, 0].tolist() == [20 * i for i in index]
        assert batch.images.shape == (len(index), 16, 16, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.targets.tolist() == [[i % 2, 1] for i in index]
        assert batch.bad == ()


def test_an_image_that_does_not_decode_counts_nowhere(split: shards.Split) -> None:
    sizes = split.sizes.copy()
    sizes[4] = 10
    with ShardReader(dataclasses.replace(split, sizes=sizes), PREP) as reader:
        (batch,) = reader.batches([np.array([3, 4])], 1)
    assert batch.targets.tolist() == [[1, 1], [-1, -1]]
    assert [key for key, _ in batch.bad] == ["4"]
    assert split.targets[4].tolist() == [0, 1]


def test_the_cache_gives_what_decoding_gives(split: shards.Split, tmp_path: Path) -> None:
    sizes = split.sizes.copy()
    sizes[4] = 10
    damaged = dataclasses.replace(split, sizes=sizes)
    wanted = [np.array([3, 4, 9]), np.array([0, 1])]
    with ShardReader(damaged, PREP) as reader:
        plain = list(reader.batches(wanted, 1))
    for turn in range(2):  # built, then found
        with ShardReader(damaged, PREP) as reader:
            assert reader.use_cache(1.0, 2, tmp_path / "cache")
            if turn:
                for path in split.shards:  # what is cached is not read again
                    path.unlink()
            cached = list(reader.batches(wanted, 2))
        for a, b in zip(plain, cached, strict=True):
            assert a.images.equal(b.images)
            assert a.targets.equal(b.targets)
            assert a.bad == b.bad


def test_the_cache_keeps_to_its_limit(split: shards.Split, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    size = 10 * 16 * 16 * 3
    with ShardReader(split, PREP) as reader:
        assert not reader.use_cache((size - 1) / 1e9, 1, folder)
        assert not reader.use_cache(0, 1, folder)
        assert reader.use_cache(1.5 * size / 1e9, 1, folder)
    (first,) = folder.glob("*.u8")
    gray = Preprocessing(image_size=16, color="gray", mean=(0.5,), std=(0.5,), resize="squash")
    with ShardReader(split, gray) as reader:
        assert reader.use_cache(1.5 * size / 1e9, 1, folder)
        assert first.exists()
    other = dataclasses.replace(split, fingerprint="e" * 32)
    with ShardReader(other, PREP) as reader:
        assert reader.use_cache(1.5 * size / 1e9, 1, folder)
    assert not first.exists()
    assert sum(path.stat().st_size for path in folder.glob("*.u8")) <= 1.5 * size


def test_a_half_written_cache_is_built_again(split: shards.Split, tmp_path: Path) -> None:
    with ShardReader(split, PREP) as reader:
        assert reader.use_cache(1.0, 1, tmp_path)
        (path,) = tmp_path.glob("*.u8")
        path.write_bytes(path.read_bytes()[:-1])
        assert reader.use_cache(1.0, 1, tmp_path)
        (batch,) = reader.batches([np.arange(10)], 1)
    assert batch.images[:, 0, 0, 0].tolist() == [20 * i for i in range(10)]


def test_ahead_keeps_the_order_and_raises() -> None:
    for threads in (0, 4):
        assert list(ahead(lambda x: x * x, range(50), threads)) == [x * x for x in range(50)]
    results = ahead(lambda x: 1 // x, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_normalizer_matches_torchvision() -> None:
    from torchvision.transforms import v2

    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    mirror = torch.tensor([True, False, True, False])
    reference = v2.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])(images.permute(0, 3, 1, 2).float() / 255)
    reference[mirror] = reference[mirror].flip(3)
    got = Normalizer([0.4, 0.5, 0.6], [0.2, 0.3, 0.25], torch.device("cpu"))(images.clone(), mirror)
    torch.testing.assert_close(got, reference)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_mirrors_are_fair_and_seeded() -> None:
    numbers = np.arange(1000)
    assert 450 < int(mirrors(numbers, 1, 0).sum()) < 550
    assert mirrors(numbers, 1, 0)[7:9].equal(mirrors(numbers[7:9], 1, 0))
    assert not mirrors(numbers, 1, 0).equal(mirrors(numbers, 1, 1))


def test_the_normalizer_writes_to_the_same_memory_again() -> None:
    normalize = Normalizer([0.5], [0.25], torch.device("cpu"))
    images = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8)
    first = normalize(images)
    expected = first[:2].clone()
    second = normalize(images[:2])
    assert second.data_ptr() == first.data_ptr()
    assert second.equal(expected)


def test_crops_are_parts_of_the_image_and_seeded() -> None:
    numbers = np.arange(5000)
    boxes = crops(numbers, 0.25, 1, 0)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert 0.2 < (height * width).min() < 0.3
    assert 0.55 < (height * width).mean() < 0.65
    assert (boxes[40:42] == crops(numbers[40:42], 0.25, 1, 0)).all()
    assert (boxes != crops(numbers, 0.25, 1, 1)).any()


def test_crops_show_that_part_with_and_without_the_cache(tmp_path: Path) -> None:
    """A ramp from left to right: its crop begins and ends where the box does."""
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    samples = shard_plan.Samples(list_images(tmp_path), np.ones((1, 1), np.int8), np.zeros(1, np.int64))
    (plan,) = shard_plan.plan(samples, ["val"], 64, 1, 0)
    with (tmp_path / plan.name).open("wb") as out:
        table = shard_writer.write(plan, samples, ("a",), out, 10**6)[1]
    split = shards.Split(
        "val",
        ("a",),
        (tmp_path / plan.name,),
        ((tmp_path / plan.name).stat().st_size,),
        Names.of(table.column("key"), table.column("file")),
        samples.targets,
        np.zeros(1, np.int64),
        table.column("offset").to_numpy(),
        table.column("size").to_numpy(),
        "e" * 32,
    )
    prep = PREP.model_copy(update={"image_size": margin(56)})
    assert prep.image_size == 64
    found = []
    for cached in (False, True):
        with ShardReader(split, prep) as reader:
            assert reader.use_cache(1.0, 1, tmp_path / "cache") if cached else True
            (batch,) = reader.batches([np.array([0])], 1, [np.array([[0.25, 0.5, 0.75, 1.0]])], 56)
        found.append(batch.images)
    assert found[0].equal(found[1])
    assert found[0].shape == (1, 56, 56, 3)
    assert abs(int(found[0][0, 0, 0, 0]) - 128) <= 4
    assert int(found[0][0, 0, -1, 0]) == 252


def test_the_cache_has_its_room_before_it_is_written_to(tmp_path: Path) -> None:
    """A file with holes on a full disk would end the process by a signal."""
    cache._reserve(tmp_path / "cache", 3_000_000)
    found = (tmp_path / "cache").stat()
    assert found.st_size == 3_000_000
    assert found.st_blocks * 512 >= 3_000_000


def test_a_disk_without_room_for_the_cache_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = cache.stored("k", (4, 8), np.dtype(np.uint8), 1.0, tmp_path, lambda: iter(()))
    assert found is None
    assert "no cache in" in caplog.text
    assert not list(tmp_path.glob("*.part"))
