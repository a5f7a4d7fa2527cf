"""Sort the names of more images than memory should hold: by runs on disk, into columns that are mapped.

This is an external merge sort (Knuth, The Art of Computer Programming 3, section 5.4): runs are sorted in memory and
written, and then a range of keys after the other is read from all runs, sorted and appended to the columns. The files
have no name, so nothing is left of a process that is killed.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.errors import ClusterError

Array = np.ndarray[Any, Any]

_ALIGNED = 64  # bytes, as Arrow's buffers are
_EVERY = 4096  # rows of a run between two keys that are looked at to divide the keys into ranges


@dataclass(frozen=True)
class Sorted:
    """N names in the order of their keys and paths, columns of bytes (N,), with their `numbers`, each (N,)."""

    keys: pa.Array
    paths: pa.Array
    numbers: tuple[Array, ...]


class SortedNames:
    """Takes in names in any order, and maps them in their order. `kinds` are the dtypes of the numbers of a name.

    Both methods raise ClusterError if `folder` has no room.
    """

    def __init__(self, folder: Path, kinds: Sequence[np.dtype[Any]]) -> None:
        self._folder, self._kinds = folder, tuple(kinds)
        self._runs = self._file()
        self._places: list[tuple[int, int]] = []  # where each run begins and ends

    def add(self, keys: pa.Array, paths: pa.Array, numbers: Sequence[Array]) -> None:
        """Write a run of names (n,), with their keys and numbers, each (n,)."""
        names = [f"n{i}" for i in range(len(numbers))]
        columns = [_as_bytes(column.astype(kind)) for column, kind in zip(numbers, self._kinds, strict=True)]
        run = _in_order(pa.table([keys, paths, *columns], ["key", "path", *names])).combine_chunks()
        self._runs.write(bytes(-self._runs.tell() % _ALIGNED))
        begin = self._runs.tell()
        with _room(self._folder), pa.ipc.new_file(pa.PythonFile(self._runs, "w"), run.schema) as sink:
            sink.write_table(run)
        self._runs.flush()
        self._places.append((begin, self._runs.tell()))

    def mapped(self, at_once: int) -> Sorted:
        """The names of all runs in their order; `at_once` of them, about, are in memory at a time."""
        whole = pa.py_buffer(mmap.mmap(self._runs.fileno(), 0, access=mmap.ACCESS_READ))
        slices = [whole.slice(begin, end - begin) for begin, end in self._places]
        runs = [pa.ipc.open_file(pa.BufferReader(piece)).read_all() for piece in slices]
        keys, paths = (_Texts(self._file(), self._file()) for _ in range(2))
        numbers = [self._file() for _ in self._kinds]
        with _room(self._folder):
            for part in _ranges(runs, at_once):
                keys.add(part.column("key"))
                paths.add(part.column("path"))
                for i, file in enumerate(numbers):
                    for chunk in part.column(f"n{i}").chunks:
                        file.write(_values(chunk))
        self._runs.close()
        columns = (np.frombuffer(_mapped(file), kind) for file, kind in zip(numbers, self._kinds, strict=True))
        return Sorted(keys.mapped(), paths.mapped(), tuple(columns))

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Raise ClusterError where the disk has no room."""
    try:
        yield
    except OSError as error:
        raise ClusterError(
            f"cannot write the names of images to {folder}: {error.strerror or error}.",
            "free some space, or set MLIC_CACHE_DIR to a folder on a larger disk.",
        ) from None


def _ranges(runs: Sequence[pa.Table], at_once: int) -> Iterator[pa.Table]:
    """The rows of all runs in their order, a range of keys at a time."""
    looked_at = sorted(key for run in runs for key in run.column("key")[_EVERY - 1 :: _EVERY].to_pylist())
    borders = sorted(set(looked_at[max(1, at_once // _EVERY) :: max(1, at_once // _EVERY)]))
    begins = [0] * len(runs)
    for border in [*borders, None]:
        ends = [len(run) if border is None else _place(run.column("key"), border) for run in runs]
        pieces = [run.slice(begin, end - begin) for run, begin, end in zip(runs, begins, ends, strict=True)]
        yield _in_order(pa.concat_tables(pieces))
        begins = ends


def _place(keys: pa.ChunkedArray, border: bytes) -> int:
    """How many of sorted keys come before a border."""
    return bisect.bisect_left(range(len(keys)), border, key=lambda i: keys[i].as_py())


def _in_order(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table, [("key", "ascending"), ("path", "ascending")]))


def _as_bytes(column: Array) -> pa.Array:
    """Numbers (n,) of any dtype as a column of their bytes."""
    width = column.dtype.itemsize
    buffers = [None, pa.py_buffer(np.ascontiguousarray(column))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(column), buffers)


def _values(column: pa.Array) -> memoryview:
    """The bytes of a column of fixed width."""
    width = column.type.byte_width
    return memoryview(column.buffers()[1])[column.offset * width : (column.offset + len(column)) * width]


class _Texts:
    """A column of bytes that is written piece by piece: the bytes, and where each text ends."""

    def __init__(self, data: IO[bytes], ends: IO[bytes]) -> None:
        self._data, self._ends = data, ends
        self._size = self._count = 0
        ends.write(np.zeros(1, np.int64).tobytes())

    def add(self, column: pa.ChunkedArray) -> None:
        for chunk in column.chunks:
            ends = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            if chunk.buffers()[2] is not None:
                self._data.write(memoryview(chunk.buffers()[2])[int(ends[0]) : int(ends[-1])])
            self._ends.write((ends[1:] - ends[0] + self._size).tobytes())
            self._size += int(ends[-1] - ends[0])
            self._count += len(chunk)

    def mapped(self) -> pa.Array:
        """The whole column."""
        ends, data = (pa.py_buffer(_mapped(file)) for file in (self._ends, self._data))
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), self._count, [None, ends, data])


def _mapped(file: IO[bytes]) -> mmap.mmap | bytes:
    """The content of a file, which is closed: its map keeps it."""
    file.flush()
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
    file.close()
    return content
