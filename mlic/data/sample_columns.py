"""What training reads of the table of samples: for large splits from a file that all processes of a node map.

A sample is a record of fixed size, so any of them is found without an index, and the pages of a mapped file are shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from mlic.config.types import Location
from mlic.data import storage

Array = np.ndarray[Any, Any]

MAPPED = 1_000_000  # samples of a split from which on it is mapped; below that, a process has room for its own copy
_BATCH = 65_536  # rows that are read at once
_TRIES = 3  # to open a file before another process removes it, to make room
_COLUMNS = ["shard", "offset", "size", "target"]


@dataclass(frozen=True)
class Columns:
    """N samples: `targets` int8 (N, L), `shard` (N,) numbers of shards, `offsets` and `sizes` int64 (N,) in bytes."""

    targets: Array
    shard: Array
    offsets: Array
    sizes: Array


@dataclass(frozen=True)
class Names:
    """The keys and files of samples, text columns (pyarrow), which are read when somebody asks for them.

    `read` gives a table with both; with `rows`, these rows of it.
    """

    read: Callable[[], pa.Table]
    rows: Array | None = None

    @classmethod
    def of(cls, keys: pa.Array, files: pa.Array) -> Names:
        """Names that are known."""
        return cls(partial(pa.table, {"key": keys, "file": files}))

    @cached_property
    def _table(self) -> pa.Table:
        table = self.read()
        return (table if self.rows is None else table.take(pa.array(self.rows, pa.int64()))).combine_chunks()

    @property
    def keys(self) -> pa.Array:
        """The keys of the samples."""
        return _whole(self._table.column("key"))

    @property
    def files(self) -> pa.Array:
        """The files of the samples."""
        return _whole(self._table.column("file"))

    def take(self, rows: Array) -> Names:
        """The names of the samples with these numbers."""
        if "_table" not in vars(self):
            return Names(self.read, rows if self.rows is None else self.rows[rows])
        taken = self._table.take(pa.array(rows, pa.int64()))
        return Names.of(taken.column("key"), taken.column("file"))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def read(table: Location, test: Any, shards: Sequence[str], num_labels: int, known_by: str) -> Columns:
    """Read the samples of samples.parquet that pass a `test`; `shards` are the names that they are numbered by.

    `known_by` identifies the table and the test among all that a node maps. Raises OSError, ValueError and what pyarrow
    raises; ValueError for a shard without a number.
    """
    if isinstance(table, Path):
        fragment = ds.ParquetFileFormat().make_fragment(str(table), LocalFileSystem())
    else:
        fragment = ds.ParquetFileFormat().make_fragment(pa.BufferReader(storage.read(table)))
    record = np.dtype([("offset", "<i8"), ("size", "<i8"), ("shard", "<i4"), ("targets", "i1", (num_labels,))])
    count = fragment.count_rows(filter=test)
    blocks = partial(_blocks, fragment, test, pa.array(shards, pa.string()), record)
    if count >= MAPPED:
        mapped = _mapped(known_by, record, count, blocks)
        if mapped is not None:
            return Columns(mapped["targets"], mapped["shard"], mapped["offset"], mapped["size"])
    rows = np.concatenate([np.zeros(0, record), *blocks()])
    return Columns(*(np.ascontiguousarray(rows[name]) for name in ("targets", "shard", "offset", "size")))


def _blocks(fragment: Any, test: Any, names: pa.Array, record: np.dtype[Any]) -> Iterator[Array]:
    for batch in fragment.scanner(columns=_COLUMNS, filter=test, batch_size=_BATCH).to_batches():
        shard = pc.index_in(batch.column("shard"), value_set=names)
        if shard.null_count:
            odd = batch.column("shard").filter(pc.is_null(shard))[0]
            raise ValueError(f"{odd} is not in the index")
        rows = np.empty(len(batch), record)
        rows["shard"] = shard.to_numpy()
        rows["offset"], rows["size"] = (batch.column(name).to_numpy() for name in ("offset", "size"))
        targets = batch.column("target").flatten().to_numpy(zero_copy_only=False)
        rows["targets"] = targets.reshape(len(batch), -1) if len(batch) else 0
        yield rows


def _mapped(
    known_by: str, record: np.dtype[Any], count: int, blocks: Callable[[], Iterator[Array]]
) -> np.memmap[Any, Any] | None:
    """The records from the node's file, which is written once; None if the disk has no room."""

    def write(sink: BinaryIO) -> None:
        for rows in blocks():
            sink.write(rows.tobytes())

    for _ in range(_TRIES):
        path = storage.made_here(f"samples 1 {known_by}", count * record.itemsize, write)
        if path is None:
            return None
        with contextlib.suppress(FileNotFoundError):  # another process has made room meanwhile
            return np.memmap(path, record, "r", shape=(count,))
    return None
