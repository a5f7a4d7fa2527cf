"""Shards that are fetched ahead of the batches that read them, and dropped behind them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from mlic.config.remote_path import RemotePath
from mlic.data import shard_window, storage
from mlic.data.sample_columns import Names
from mlic.data.shard_window import ShardWindow, Use
from mlic.data.shards import Split
from mlic.errors import ClusterError

USES = [Use(0, 0, 1), Use(1, 0, 3), Use(2, 2, 3), Use(3, 4, 5), Use(4, 4, 5)]


class Store:
    """An object store, as far as a window of shards needs one."""

    def __init__(self) -> None:
        self.gets, self.failures = Counter[str](), dict[str, int]()

    def download(self, location: RemotePath, sink: BinaryIO) -> None:
        self.gets[location.name] += 1
        if self.failures.get(location.name, 0) >= self.gets[location.name]:
            raise OSError(5, "the connection was reset")
        sink.write(location.name.encode() * 10)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(storage, "download", found.download)
    monkeypatch.setattr(shard_window, "_PAUSE_S", 0.0)
    return found


def split() -> Split:
    shards = tuple(RemotePath(f"s3://b/{number}.tar") for number in range(5))
    none: Any = np.zeros(0)
    return Split("train", (), shards, (50,) * 5, Names.of(none, none), none, none, none, none, "f")


def open_files() -> int:
    """How many files without a name this process has open in the node's folder."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            count += "streamed" in str(link.readlink())
    return count


def test_each_shard_is_fetched_once_and_dropped(store: Store, tmp_path: Path) -> None:
    needed = [[0, 1], [0, 1], [1, 2], [1, 2], [3, 4], [3, 4]]
    with ShardWindow(split(), USES, 100) as window:
        for number, shards in enumerate(needed):
            files = window.begin(shards)
            assert [files[shard].read_at(0, 5).decode() for shard in shards] == [f"{shard}.tar" for shard in shards]
            window.end()
            assert open_files() <= 3
            assert len(store.gets) <= (2, 3, 3, 5, 5, 5)[number], "there is room for two"
        assert open_files() == 0
    assert set(store.gets.values()) == {1}
    assert not list((tmp_path / "node" / "streamed").iterdir()), "nothing is left behind by a process that dies"


def test_a_run_that_resumes_fetches_what_is_left(store: Store) -> None:
    with ShardWindow(split(), USES, 0) as window:
        window.skip(2)
        window.begin([1, 2])
        assert set(store.gets) == {"1.tar", "2.tar"}
        window.end()
    assert open_files() == 0


def test_with_room_more_shards_are_fetched_ahead(store: Store) -> None:
    with ShardWindow(split(), USES, 10**9) as window:
        window.begin([0])
    assert sum(store.gets.values()) <= 5
    assert {"0.tar", "1.tar"} <= set(store.gets)


@pytest.mark.parametrize("failures", [0, 2, 4])
def test_a_failing_request_is_tried_again(store: Store, failures: int) -> None:
    store.failures["1.tar"] = failures
    said: list[str] = []
    with ShardWindow(split(), USES, 0, said.append) as window:
        assert window.begin([0, 1])[1].read_at(0, 5) == b"1.tar"
    assert store.gets["1.tar"] == failures + 1
    assert len(said) == failures
    assert all("s3://b/1.tar could not be fetched (the connection was reset), attempt " in line for line in said)


def test_a_request_that_always_fails_is_an_error_with_its_name(store: Store) -> None:
    store.failures["1.tar"] = 100
    expected = "s3://b/1.tar could not be fetched in 5 attempts: the connection was"
    with ShardWindow(split(), USES, 0, lambda _: None) as window, pytest.raises(ClusterError, match=expected):
        window.begin([0, 1])
    assert open_files() == 0


def test_local_shards_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never: Callable[..., Any] = lambda *_: pytest.fail("a local shard was copied")  # noqa: E731
    monkeypatch.setattr(storage, "download", never)
    (tmp_path / "a.tar").write_bytes(b"a.tar")
    none: Any = np.zeros(0)
    local = Split("train", (), (tmp_path / "a.tar",), (5,), Names.of(none, none), none, none, none, none, "f")
    with ShardWindow(local, [Use(0, 0, 0)], 0) as window:
        assert window.begin([0])[0].read_at(0, 5) == b"a.tar"
