"""Images in the cells of Parquet files, as Hugging Face's datasets have them.

A cell of Parquet cannot be read alone, but a group of rows at least. So each node unpacks the images of a file once,
one after another, into a file of its own in which every image is read by its offset.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from mlic.config.types import Location
from mlic.data import storage
from mlic.data.pixels import images
from mlic.errors import ClusterError, DataError

_NAMES = ("image", "img", "images", "jpg", "png", "webp")  # of columns, the likely ones first
_ROWS = 64  # read at a time: photographs of some MB each
_TRIES = 5  # attempts to open a file that other processes keep removing


def column_of_images(file: Location) -> str | None:
    """The column whose cells hold image files, as bytes or as {bytes, path}; None where there is none.

    Raises DataError for a file that is not Parquet.
    """
    with _opened(file) as table:
        columns = [field.name for field in table.schema_arrow if holds_bytes(field.type)]
        columns.sort(key=lambda name: _NAMES.index(name) if name in _NAMES else len(_NAMES))
        return next((name for name in columns if images.looks_like_image(_first(table, name))), None)


def holds_bytes(kind: Any) -> bool:
    """Whether the cells of a column of this type hold bytes, alone or in a field of their own."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(inner):
        position = inner.get_field_index("bytes")
        inner = None if position < 0 else inner.field(position).type
    return inner is not None and any(test(inner) for test in _BINARY)


_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def _first(table: Any, column: str) -> bytes:
    """The first bytes of the first cell that has some."""
    for cells in _cells(table, column):
        for cell in cells:
            if cell.is_valid and cell.as_buffer().size:
                return bytes(cell.as_buffer()[:32])
    return b""


def _cells(table: Any, column: str) -> Iterator[Any]:
    """The bytes of a column's cells, some rows at a time."""
    is_struct = pa.types.is_struct(table.schema_arrow.field(column).type)
    for batch in table.iter_batches(_ROWS, columns=[f"{column}.bytes" if is_struct else column]):
        cells = batch.column(0).field("bytes") if is_struct else batch.column(0)
        yield cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells


def names(root: Location, files: Sequence[Location]) -> list[list[str]]:
    """The names of the images of each file, in the order of its rows, for files in the folder `root` or for `root`.

    An image is called by its `path` if every row of its file has one of its own, else by the file and the row. Where
    two files have the same name, the file is put before all names. Raises DataError.
    """
    called = [_in_file(file, stem(root, file)) for file in files]
    everything = [name for of_file in called for name in of_file]
    if len(set(everything)) == len(everything):
        return called
    return [[f"{stem(root, file)}/{name}" for name in of] for file, of in zip(files, called, strict=True)]


def stem(root: Location, file: Location) -> str:
    """The path of a file within a folder, without its ending."""
    above, path = (str(location).partition("?")[0].rstrip("/") for location in (root, file))
    inside = posixpath.basename(path) if path == above else path.removeprefix(above + "/")
    return posixpath.splitext(inside)[0]


def _in_file(file: Location, called: str) -> list[str]:
    column = column_of_images(file)
    with _opened(file) as table:
        count = table.metadata.num_rows
        paths = [] if column is None else _paths(table, column)
    if all(paths) and len(set(paths)) == count:
        return paths
    return [f"{called}/{row:0{max(6, len(str(count)))}}" for row in range(count)]


def _paths(table: Any, column: str) -> list[str]:
    """What the cells of images say of their paths, within some folder; "" where they say nothing that is text."""
    kind = table.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return []
    cells = table.read(columns=[f"{column}.path"]).column(0).combine_chunks().field("path")
    try:
        texts = cells.cast(pa.large_binary()).to_pylist()
        return [_inside((text or b"").decode("utf-8")) for text in texts]
    except (pa.ArrowException, UnicodeDecodeError):
        return []


def _inside(path: str) -> str:
    """A path without what leads out of a folder: `/data/a.jpg` and `../data/a.jpg` are `data/a.jpg`."""
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def copy_without_images(root: Location, files: Sequence[Location], into: Path) -> None:
    """Write tables with the images' names in place of the images to the folder `into`, a file for each of `files`."""
    import pyarrow.parquet as pq

    into.mkdir(parents=True)
    for number, (file, called) in enumerate(zip(files, names(root, files), strict=True)):
        column = column_of_images(file)
        with _opened(file) as table:
            schema = table.schema_arrow
            kept = table.read(columns=[field.name for field in schema if not holds_bytes(field.type)])
            position = sum(not holds_bytes(field.type) for field in list(schema)[: schema.get_field_index(column)])
            kept = kept.add_column(position, column, pa.array(called, pa.string()))
            pq.write_table(kept.replace_schema_metadata(schema.metadata), into / f"{number:06d}.parquet")


def members(file: Location) -> list[tuple[int, int]]:
    """Size and offset in the unpacked file of each image, in the order of the rows. Raises what `unpacked` does."""
    with _opened(file) as table:
        count = table.metadata.num_rows
    with opened(file) as whole:
        sizes = np.frombuffer(whole.read_at(whole.size - 8 * count, 8 * count), "<i8")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return list(zip(sizes.tolist(), starts.tolist(), strict=False))


def opened(file: Location) -> storage.File:
    """This node's file with the images, which stays readable if it is removed. Raises what `unpacked` does."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # another process has made room between the two calls
            return storage.File(unpacked(file))
    raise ClusterError(
        f"{storage.node_folder()} has no room for the images of {file} beside those of other files.",
        "free some space, or set MLIC_CACHE_DIR to a folder on a larger disk.",
    )


def unpacked(file: Location) -> Path:
    """This node's file with the bytes of all images, one after another, and then their sizes as 64-bit integers.

    Raises DataError for a broken file, and ClusterError if the node has no room.
    """
    column = column_of_images(file) or ""
    place = file.resolve() if isinstance(file, Path) else file
    with _opened(file) as table:
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        needed = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in (column, f"{column}.bytes")
        )

        def write(sink: BinaryIO) -> None:
            sizes = []
            for cells in _cells(table, column):
                for cell in cells:
                    data = cell.as_buffer() if cell.is_valid else None
                    sizes.append(0 if data is None else data.size)
                    sink.write(b"" if data is None else data)
            sink.write(np.array(sizes, "<i8").tobytes())

        known_by = f"{place} {storage.size(file)} {storage.changed_ns(file)} images"
        made = storage.made_here(known_by, needed, write)
    if made is None:
        raise ClusterError(
            f"{storage.node_folder()} has no room for {needed / 1e9:.1f} GB of images of {file}.",
            "free some space, or set MLIC_CACHE_DIR to a folder on a larger disk.",
        )
    return made


@contextlib.contextmanager
def _opened(file: Location) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with storage.stream(file) as source:
        try:
            with pq.ParquetFile(source) as table:
                yield table
        except pa.ArrowException as error:
            raise DataError(f"{file} is not valid Parquet: {str(error).rstrip('.')}.", "write it again.") from None
