"""The shards of a split that is streamed: some are fetched ahead, and each is dropped when its last batch is loaded."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.shards import Split
from mlic.errors import ClusterError

logger = logging.getLogger(__name__)

_THREADS = 4  # shards that are fetched at once
_TRIES = 5
_PAUSE_S = 0.5  # before a second try; twice as long before each further one
_CHUNK = 8 * 2**20


class Use(NamedTuple):
    """A shard, and the first and the last batch that read it."""

    shard: int
    first: int
    last: int


class ShardWindow:
    """Files of shards, by number, for batches that are begun and ended in their order.

    A shard of an object store is copied to the node's folder. The copy has no name there while it is read, so that
    nothing is left behind by a process that dies. Local shards are read where they lie.
    """

    def __init__(
        self, split: Split, uses: Sequence[Use], limit: float, report: Callable[[str], None] = logger.warning
    ) -> None:
        """`uses` are sorted by their first batch. Shards are fetched ahead while all take at most `limit` bytes."""
        self._split, self._limit, self._report = split, limit, report
        self._waiting = deque(uses)
        self._held: dict[int, tuple[Use, Future[storage.File]]] = {}
        self._begun, self._ended = 0, 0
        self._pool = ThreadPoolExecutor(_THREADS, "fetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        for held in self._held.values():
            with suppress(Exception):  # what was not fetched is not to be closed
                held[1].result(timeout=0).close()
        self._held.clear()

    def skip(self, batches: int) -> None:
        """Leave out the first batches, which a run that resumes has read already."""
        self._begun = self._ended = batches
        self._waiting = deque(use for use in self._waiting if use.last >= batches)

    def begin(self, shards: Iterable[int]) -> dict[int, storage.File]:
        """The files of the shards that the next batch reads. Raises ClusterError for one that cannot be fetched."""
        self._fetch_ahead()
        self._begun += 1
        return {shard: self._held[shard][1].result() for shard in shards}

    def end(self) -> None:
        """A batch is loaded, the first of those that are not: shards that only it still needed are dropped."""
        for use, future in list(self._held.values()):
            if use.last <= self._ended:
                future.result().close()
                del self._held[use.shard]
        self._ended += 1
        self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        """Begin to fetch what the next batch needs, and further shards while there is room."""
        sizes = self._split.shard_sizes
        held = sum(sizes[shard] for shard in self._held)
        while self._waiting:
            use = self._waiting[0]
            held += sizes[use.shard]
            if use.first > self._begun and held > self._limit:
                return
            self._held[use.shard] = use, self._pool.submit(self._opened, self._split.shards[use.shard])
            self._waiting.popleft()

    def _opened(self, shard: Location) -> storage.File:
        if not isinstance(shard, RemotePath):
            return storage.File(shard)
        for attempt in range(1, _TRIES + 1):
            try:
                return _fetched(shard)
            except OSError as error:
                why = error.strerror or str(error)
                if attempt == _TRIES:
                    break
                self._report(f"{shard} could not be fetched ({why}), attempt {attempt} of {_TRIES}")
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise ClusterError(
            f"{shard} could not be fetched in {_TRIES} attempts: {why}.", "run the same command again to resume."
        )


def _fetched(shard: RemotePath) -> storage.File:
    """A copy of a shard, whose name is removed as soon as it is open. Raises OSError."""
    folder = storage.node_folder() / "streamed"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            storage.download(shard, sink)
        return storage.File(Path(name))
    finally:
        Path(name).unlink()
