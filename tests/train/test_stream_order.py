"""The order in which shards are streamed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mlic.data.loader import train_bounds
from mlic.errors import ConfigError
from mlic.train.batches import stream_order
from mlic.train.batches.epoch_order import EpochOrder
from mlic.train.batches.stream_order import StreamOrder

Array = np.ndarray[Any, Any]
SIZES = np.random.default_rng(0).integers(20, 40, 37)
ROWS = np.concatenate([[0], np.cumsum(SIZES)])
RATES = np.random.default_rng(1).uniform(0.2, 2.5, int(ROWS[-1]))


def order(rates: Array | None, epoch: int = 0, groups: int = 4) -> StreamOrder:
    return StreamOrder(EpochOrder(int(ROWS[-1]), rates, 7, epoch), ROWS, groups)


def bounds(stream: StreamOrder, batch_size: int = 32) -> list[int]:
    return [int(bound) for bound in train_bounds(len(stream), batch_size, 4, stream.least_batch)]


@pytest.mark.parametrize("rates", [None, RATES], ids=["once", "weighted"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_an_epoch_shows_the_samples_of_the_usual_order(rates: Array | None, groups: int) -> None:
    stream, usual = order(rates, 3, groups), EpochOrder(int(ROWS[-1]), rates, 7, 3)
    assert len(stream) == len(usual)
    found = [stream.batch(start, end, 0, 1)[:2] for start, end in pairwise(bounds(stream))]
    samples, times = (np.concatenate(column) for column in zip(*found, strict=True))
    expected = usual.at(np.arange(len(usual)))
    pairs = [sorted(zip(*(column.tolist() for column in both), strict=True)) for both in ((samples, times), expected)]
    assert pairs[0] == pairs[1]
    assert (usual.totals(ROWS) == np.bincount(np.searchsorted(ROWS, samples, "right") - 1, minlength=37)).all()


def test_batches_are_the_same_for_any_number_of_ranks_that_divides_the_groups() -> None:
    streams = {ranks: [order(RATES) for _ in range(ranks)] for ranks in (1, 2, 4)}
    for start, end in pairwise(bounds(order(RATES))):
        whole = streams[1][0].batch(start, end, 0, 1)
        for ranks, of_ranks in streams.items():
            parts = [stream.batch(start, end, rank, ranks) for rank, stream in enumerate(of_ranks)]
            assert all(np.array_equal(samples, whole[0]) for samples, _, _ in parts)
            assert sorted(np.concatenate([mine for _, _, mine in parts])) == list(range(end - start))
            assert min(len(mine) for _, _, mine in parts) >= 2  # for batch norm
            assert max(len(mine) for _, _, mine in parts) <= 1.5 * (end - start) / ranks


def test_any_batch_is_found_without_those_before_it() -> None:
    stream = order(RATES)
    for start, end in list(pairwise(bounds(stream)))[::-1]:
        assert all(map(np.array_equal, stream.batch(start, end, 1, 2), order(RATES).batch(start, end, 1, 2)))
    first, second = (order(None, epoch).batch(0, 32, 0, 1)[0] for epoch in (0, 1))
    assert set(first.tolist()) != set(second.tolist())


def test_one_rank_reads_a_shard_and_it_is_known_when() -> None:
    stream, ends = order(RATES), bounds(order(RATES))
    of_ranks = [stream.uses(ends, rank, 2) for rank in range(2)]
    assert sorted(use.shard for uses in of_ranks for use in uses) == list(range(37))
    seen: list[dict[int, list[int]]] = [{}, {}]
    for number, (start, end) in enumerate(pairwise(ends)):
        for rank in range(2):
            samples, _, mine = stream.batch(start, end, rank, 2)
            for shard in set((np.searchsorted(ROWS, samples[mine], "right") - 1).tolist()):
                seen[rank].setdefault(shard, []).append(number)
    for uses, batches in zip(of_ranks, seen, strict=True):
        assert [use.first for use in uses] == sorted(use.first for use in uses)
        assert {use.shard for use in uses} == set(batches)
        assert all(use.first <= min(batches[use.shard]) <= max(batches[use.shard]) <= use.last for use in uses)
        assert np.mean([use.last - use.first for use in uses]) < len(ends) / 3, "few shards are open at a time"


def test_batches_mix_shards() -> None:
    stream = order(None)
    mixed = [
        len(set((np.searchsorted(ROWS, stream.batch(start, end, 0, 1)[0], "right") - 1).tolist()))
        for start, end in pairwise(bounds(stream))
    ]
    assert min(mixed) >= 4
    assert np.mean(mixed) > 6


def test_the_number_of_groups() -> None:
    assert stream_order.num_groups(64, 10_000, 256) == 64
    assert stream_order.num_groups(64, 100, 256) == 8
    assert stream_order.num_groups(64, 10_000, 32) == 8
    assert stream_order.num_groups(64, 3, 32) == 1
    stream_order.check(64, 16)
    with pytest.raises(ConfigError, match="in 8 groups, which 3 workers do not divide") as error:
        stream_order.check(8, 3)
    assert "--workers 2" in error.value.hint
