"""What training reads of the table of samples: for large splits from a file that all processes of a node map.

A sample is a record of fixed size, so any of them is found without an index, and the pages of a mapped file are shared.
"""

from __future__ import annotations

import bisect
import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import LocalFileSystem

from mlic.config.types import Location
from mlic.data import storage

Array = np.ndarray[Any, Any]

MAPPED = 1_000_000  # samples of a split from which on it is mapped; below that, a process has room for its own copy
_BATCH = 65_536  # rows that become records at once
_SCANNED = 10 * _BATCH  # rows that are read at once
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
        return whole_column(self._table.column("key"))

    @property
    def files(self) -> pa.Array:
        """The files of the samples."""
        return whole_column(self._table.column("file"))

    def take(self, rows: Array) -> Names:
        """The names of the samples with these numbers."""
        if "_table" not in vars(self):
            return Names(self.read, rows if self.rows is None else self.rows[rows])
        taken = self._table.take(pa.array(rows, pa.int64()))
        return Names.of(taken.column("key"), taken.column("file"))


def whole_column(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


@dataclass(frozen=True)
class Rows:
    """The rows of samples.parquet whose columns pass all conditions: (column, "==", "!=" or ">=", value)."""

    conditions: tuple[tuple[str, str, str | int], ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that are compared."""
        return [column for column, _, _ in self.conditions]

    def expression(self) -> Any:
        """As pyarrow's data sets take it; None for all rows."""
        tests = [_COMPARE[sign][0](pc.field(column), value) for column, sign, value in self.conditions]
        return reduce(operator.and_, tests) if tests else None

    def of(self, table: pa.Table) -> pa.Table:
        """These rows of a table."""
        for column, sign, value in self.conditions:
            table = table.filter(_COMPARE[sign][1](table.column(column), value))
        return table


_COMPARE = {
    "==": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    ">=": (operator.ge, pc.greater_equal),
}


def read_table(path: Location, columns: Sequence[str] | None, rows: Rows) -> pa.Table:
    """Columns, or all with None, of rows of samples.parquet. Raises OSError, ValueError and what pyarrow raises."""
    source = path if isinstance(path, Path) else pa.py_buffer(storage.read(path))
    if rows.conditions and _is_large(source):
        return _fragment(source).to_table(columns=columns, filter=rows.expression())
    return _small_table(source, columns, rows)


def read(path: Location, rows: Rows, shards: Sequence[str], num_labels: int, known_by: str) -> Columns:
    """Read samples of samples.parquet; `shards` are the names that they are numbered by, sorted.

    `known_by` identifies the table and the rows among all that a node maps. Raises OSError, ValueError and what pyarrow
    raises; ValueError for a shard without a number.
    """
    source = path if isinstance(path, Path) else pa.py_buffer(storage.read(path))
    record = np.dtype([("offset", "<i8"), ("size", "<i8"), ("shard", "<i4"), ("targets", "i1", (num_labels,))])
    numbered = partial(_records, shards, record)
    if not _is_large(source):
        blocks = map(numbered, _small_table(source, _COLUMNS, rows).to_batches(_BATCH))
    else:
        fragment, test = _fragment(source), rows.expression()
        count = fragment.count_rows(filter=test)
        if count >= MAPPED:
            mapped = _mapped(known_by, record, count, lambda: map(numbered, _scanned(fragment, test)))
            if mapped is not None:
                return Columns(mapped["targets"], mapped["shard"], mapped["offset"], mapped["size"])
        blocks = map(numbered, _scanned(fragment, test))
    records = np.concatenate([np.zeros(0, record), *blocks])
    return Columns(*(np.ascontiguousarray(records[name]) for name in ("targets", "shard", "offset", "size")))


def _is_large(source: Path | pa.Buffer) -> bool:
    """Whether a table has so many rows that only those row groups are read that can hold what is asked for."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(_opened(source)) as file:
        return int(file.metadata.num_rows) >= MAPPED


def _small_table(source: Path | pa.Buffer, columns: Sequence[str] | None, rows: Rows) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(_opened(source)) as file:
        table = rows.of(file.read(None if columns is None else [*columns, *rows.columns]))
    return table if columns is None else table.select(columns)


def _fragment(source: Path | pa.Buffer) -> Any:
    """A table as a part of a data set (pyarrow). The import of data sets brings pandas, which takes half a second."""
    import pyarrow.dataset as ds

    files = LocalFileSystem() if isinstance(source, Path) else None
    return ds.ParquetFileFormat().make_fragment(_opened(source), files)


def _scanned(fragment: Any, test: Any) -> Iterator[pa.RecordBatch]:
    """The rows that pass a test, with a few row groups in memory; pyarrow's scanner reads further and further ahead."""
    row_groups, rows = list[int](), 0
    for group in (fragment if test is None else fragment.subset(test)).row_groups:
        row_groups.append(group.id)
        rows += group.num_rows
        if rows >= _SCANNED:
            yield from _batches(fragment, row_groups, test)
            row_groups, rows = [], 0
    if row_groups:
        yield from _batches(fragment, row_groups, test)


def _batches(fragment: Any, row_groups: list[int], test: Any) -> list[pa.RecordBatch]:
    table = fragment.subset(row_group_ids=row_groups).to_table(columns=_COLUMNS, filter=test)
    return list(table.to_batches(_BATCH))


def _opened(source: Path | pa.Buffer) -> Any:
    return str(source) if isinstance(source, Path) else pa.BufferReader(source)


def _records(names: Sequence[str], record: np.dtype[Any], batch: pa.RecordBatch) -> Array:
    # A batch has few shards, and a table of millions of names would be built again for each batch.
    encoded = batch.column("shard").dictionary_encode()
    numbers = np.array([_number(names, name) for name in encoded.dictionary.to_pylist()], np.int32)
    rows = np.empty(len(batch), record)
    rows["shard"] = numbers[encoded.indices.to_numpy()] if len(batch) else 0
    rows["offset"], rows["size"] = (batch.column(name).to_numpy() for name in ("offset", "size"))
    targets = batch.column("target").flatten().to_numpy(zero_copy_only=False)
    rows["targets"] = targets.reshape(len(batch), -1) if len(batch) else 0
    return rows


def _number(names: Sequence[str], name: str) -> int:
    number = bisect.bisect_left(names, str(name))
    if number == len(names) or names[number] != name:
        raise ValueError(f"{name} is not in the index, as if mlic pack had been stopped")
    return number


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
