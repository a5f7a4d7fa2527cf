"""Update an output: rows of images that have not changed are taken from its parts, and only the others are predicted.

A part notes the size and the time of the last change of each image. So the parts are a store of rows by file, size and
time, whatever the folder looked like when they were written; of two rows of one file, that of the later part counts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.batch_predict.actor import Items
from mlic.batch_predict.merge import part_at, part_numbers, read_part
from mlic.config.predict import PredictConfig
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.sources.image_listing import Listing, as_text
from mlic.errors import ConfigError

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_OPEN = 8  # parts held in memory: neighbours in the order of the keys are in few of them


@dataclass(frozen=True)
class Known:
    """The M rows of the parts, those of later parts first: which image each is about, and where it stands.

    `keys` and `files` are text (M,); `sizes` (bytes) and `stamps` (time of the last change, ns) are those of the image
    when it was predicted. A row is number `row` of the part `part`, int64 (M,).
    """

    keys: pa.Array
    files: pa.Array
    sizes: Array
    stamps: Array
    part: Array
    row: Array


@dataclass(frozen=True)
class Rows:
    """The N rows of an output in the order of the keys: where each stands in the parts, as in `Known`."""

    keys: pa.Array
    files: pa.Array
    part: Array
    row: Array

    def __len__(self) -> int:
        return len(self.part)


@dataclass(frozen=True)
class Comparison:
    """`at` int64 (N,) is the known row of each image, or -1; `gone` are the known rows without an image."""

    at: Array
    changed: int
    gone: Array

    @property
    def todo(self) -> Array:
        """The numbers of the images that have to be predicted."""
        return np.flatnonzero(self.at < 0)


def check(config: PredictConfig, items: Items) -> None:
    """Raise ConfigError if the images of an update do not say when they have changed."""
    if not isinstance(items.source, Listing):
        raise ConfigError(
            f"--update is for folders of images, and {config.images} holds shards.", "name another --out."
        )
    if items.source.members is not None and not items.source.stamps.all():
        raise ConfigError(
            f"--update needs the times at which images have changed, and archives in {config.images} do not tell them.",
            "unpack them, or name another --out.",
        )


def read_known(parts: Location) -> Known:
    """All rows of the parts. Raises ConfigError for parts of an earlier version, which lack the images' sizes."""
    tables, numbers = [], part_numbers(parts)[::-1]
    for number in numbers:
        table = read_part(parts, number, ("key", "file", "size", "stamp"))
        if table.num_columns < 4:
            raise ConfigError(
                f"{part_at(parts, number)} was written by an earlier version of mlic, which did not note the sizes and "
                "times of images.",
                "--fresh predicts all of them.",
            )
        tables.append(table)
    lengths = [table.num_rows for table in tables]
    columns = {name: [chunk for table in tables for chunk in table.column(name).chunks] for name in ("key", "file")}
    key, file = (pa.concat_arrays([pa.array([], pa.string()), *columns[name]]) for name in ("key", "file"))
    size, stamp = (
        np.concatenate([np.zeros(0, np.int64), *(table.column(name).to_numpy() for table in tables)])
        for name in ("size", "stamp")
    )
    part = np.repeat(np.array(numbers, np.int64), lengths)
    row = np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)])
    return Known(key, file, size, stamp, part, row)


def compare(items: Items, known: Known) -> Comparison:
    """Find the known row of each image that has still the size and the time that it had when it was predicted."""
    source = items.source
    assert isinstance(source, Listing)  # noqa: S101 - see `check`
    files = as_text(items.files)
    found = pc.index_in(files, value_set=known.files).fill_null(-1).to_numpy().astype(np.int64)
    is_same = (
        (found >= 0)
        & (known.sizes[found] == source.sizes[items.rows])
        & (known.stamps[found] == source.stamps[items.rows])
        if len(known.sizes)
        else np.zeros(len(found), bool)
    )
    first = pc.index_in(known.files, value_set=known.files).to_numpy() == np.arange(len(known.files))
    gone = np.flatnonzero(first & ~pc.is_in(known.files, value_set=files).to_numpy(zero_copy_only=False))
    return Comparison(np.where(is_same, found, -1), int((found >= 0).sum() - is_same.sum()), gone)


def check_gone(config: PredictConfig, known: Known, comparison: Comparison) -> None:
    """Raise ConfigError if images of the output are gone and nobody has said what becomes of their rows."""
    if len(comparison.gone) and config.gone == "fail":
        name = known.files[int(comparison.gone[0])].as_py()
        raise ConfigError(
            f"{len(comparison.gone):,} images of the output are gone from {config.images}, such as {name!r}.",
            "--update --gone drop removes their rows, --update --gone keep keeps them.",
        )


def say(items: Items, comparison: Comparison, gone: str) -> None:
    """Log what an update does."""
    todo = len(comparison.todo)
    logger.info(
        "update: %d new images, %d changed, %d as before%s",
        todo - comparison.changed,
        comparison.changed,
        len(items) - todo,
        f"; {len(comparison.gone)} gone ({gone})" if len(comparison.gone) else "",
    )


def output_rows(config: PredictConfig, items: Items, known: Known, comparison: Comparison) -> Rows:
    """The rows of the output: of all images and, if they are kept, of those that are gone."""
    kept = comparison.gone if config.gone == "keep" else comparison.gone[:0]
    at = np.concatenate([comparison.at, kept])
    keys = pa.concat_arrays([as_text(items.keys), known.keys.take(pa.array(kept))])
    files = pa.concat_arrays([as_text(items.files), known.files.take(pa.array(kept))])
    if len(kept):
        order = pc.sort_indices(pa.table([keys.cast(pa.binary()), files], ["key", "file"]), [("key", "ascending")])
        keys, files, at = keys.take(order), files.take(order), at[order.to_numpy()]
    return Rows(keys, files, known.part[at], known.row[at])


def tables(parts: Location, rows: Rows, chunk: int) -> Iterator[pa.Table]:
    """The rows of the output in tables of `chunk` rows, as the parts of a run over all images would be."""

    @functools.lru_cache(_OPEN)
    def part(number: int) -> pa.Table:
        return read_part(parts, number).select(["key", "file", "error", "scores"])

    for start in range(0, len(rows), chunk):
        numbers, places = rows.part[start : start + chunk], rows.row[start : start + chunk]
        of_part = [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]
        pieces = [part(number).take(pa.array(places[at])) for number, at in of_part]
        order = np.argsort(np.concatenate([at for _, at in of_part]))
        table = pa.concat_tables(pieces).take(pa.array(order))
        table = table.set_column(0, "key", rows.keys.slice(start, chunk))
        yield table.set_column(1, "file", rows.files.slice(start, chunk))


def delete_unused(parts: Location, rows: Rows) -> None:
    """Remove the parts that hold no row of the output."""
    for number in set(part_numbers(parts)) - set(np.unique(rows.part).tolist()):
        storage.delete(part_at(parts, number))


def begin(parts: Location) -> int:
    """The number of the first new part. Journals of parts are removed: they may be about other images by now."""
    for name in storage.names(parts):
        if name.endswith(".trail"):
            storage.delete(parts / name)
    return max(part_numbers(parts), default=-1) + 1
