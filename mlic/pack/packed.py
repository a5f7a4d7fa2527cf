"""The shards that exist already, and which images are new beside them."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import duplicates, shards, storage
from mlic.data.pixels.images import BadImage
from mlic.data.sample_columns import whole_column
from mlic.data.sources.image_listing import Listing, Reader, as_text
from mlic.errors import DataError
from mlic.pack import shard_plan
from mlic.pack.inputs import PackInputs
from mlic.runs.run import read_state

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

SHARD_NAME = re.compile(r"([a-z_0-9]+)-(\d{6})\.tar")
APPENDING = "appending"  # the fact in run.json that says which images were appended last, or are being appended
_COMPARED = 32  # packed images whose bytes are compared with those of the file that has their name now
ELSEWHERE = "to take them in, pack all images into another folder with --keep-test {}."


@dataclass(frozen=True)
class Packed:
    """The shards that exist: their `index`, all rows of their table, and the M rows of images, without versions."""

    index: dict[str, Any]
    table: pa.Table
    images: pa.Table

    def column(self, name: str) -> pa.Array:
        """A column (M,) of the images."""
        return whole_column(self.images.column(name))

    @property
    def targets(self) -> Array:
        """The targets int8 (M, L) of the images."""
        values: Array = self.column("target").flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, len(self.index["labels"]))


def is_packed(out: Location) -> bool:
    """Whether a folder holds complete shards, to which images can be appended."""
    return storage.size(out / shards.INDEX) is not None


def check_whole(out: Location) -> None:
    """Raise DataError if images were appended to shards that are no longer complete: they are not packed anew.

    Packing them anew would assign the splits anew, and the test split would be another one.
    """
    if APPENDING not in (read_state(out) or {}):
        return
    try:
        shards.check_sizes(out, shards.read_index(out), None)
        shards.read_table(out, ["shard"])
    except DataError as error:
        raise DataError(
            f"{error} Images were appended to these shards, so they are not packed anew.",
            "bring the file back, or pack all images into another folder with a test set of your choice.",
        ) from None


def read_packed(out: Location, index: dict[str, Any]) -> Packed:
    """The packed samples. A table may hold more than the index names, if an earlier attempt was killed between both."""
    table = shards.read_table(out)
    table = table.filter(pc.is_in(table.column("shard"), value_set=pa.array(list(index["shards"]), pa.string())))
    return Packed(index, table, table.filter(pc.equal(table.column("version"), 0)).combine_chunks())


def new_images(config: PackConfig, inputs: PackInputs, packed: Packed) -> tuple[Array, PackInputs]:
    """The numbers (K,) of the images that are not packed, and the inputs with the labels in the order of the shards.

    Raises DataError for other labels than those of the shards, and for files that have changed since they were packed.
    """
    inputs = _with_labels_of(inputs, packed.index["labels"], config.out)
    names, files = as_text(inputs.listing.paths), packed.column("file")
    position = pc.index_in(names, value_set=files).fill_null(-1).to_numpy().astype(np.int64)
    again, new = np.flatnonzero(position >= 0), np.flatnonzero(position < 0)
    if config.group_column is not None and len(again) < len(packed.images):
        raise DataError(
            f"{len(packed.images) - len(again):,} packed images are not in {config.images}, so the groups of "
            f"{config.group_column!r} that they are in are not known.",
            "give all images and all label lines, the new ones among them.",
        )
    _check_same(config, inputs.listing.take(again), packed, position[again])
    _warn_of_other_labels(config, inputs, packed, again, position[again])
    test = inputs.splits.index("test") if "test" in inputs.splits else len(inputs.splits)
    given_to_test = new[inputs.fixed[new] == test]
    if len(given_to_test):
        raise DataError(
            f"{len(given_to_test):,} new images are given to the split test, such as "
            f"{inputs.listing.path(int(given_to_test[0]))}, and --append leaves that split as it is.",
            "pack all images into another folder, or give these images no split.",
        )
    return new, replace(inputs, listing=_with_free_keys(inputs.listing, new, packed))


def _with_labels_of(inputs: PackInputs, labels: list[str], out: Location) -> PackInputs:
    """The inputs with their targets (N, L) in the order of the shards' labels."""
    more = [name for name in inputs.labels if name not in labels]
    if more:
        raise DataError(
            f"the label files have labels that {out} does not have: {', '.join(map(repr, more[:5]))}.",
            "leave them out by --ignore-columns, or " + ELSEWHERE.format(out),
        )
    less = [name for name in labels if name not in inputs.labels]
    if less and not inputs.positives_only:
        raise DataError(
            f"the label files say nothing about {', '.join(map(repr, less[:5]))}, which {out} has as labels.",
            "add columns for them; blank cells mean that a label is unknown.",
        )
    if less:
        logger.warning("no new image has the label %s", ", ".join(less[:5]) + (" ..." if len(less) > 5 else ""))
    targets = np.zeros((len(inputs.targets), len(labels)), np.int8)
    targets[:, [labels.index(name) for name in inputs.labels]] = inputs.targets
    targets[(inputs.targets == -1).all(axis=1)] = -1  # not annotated, and unknown by --not-annotated
    return replace(inputs, labels=tuple(labels), targets=targets)


def _check_same(config: PackConfig, listing: Listing, packed: Packed, rows: Array) -> None:
    """Raise DataError if files with the names of packed images hold other images.

    Sizes are compared, and the bytes of some images.
    """
    sizes, sha256 = packed.column("size").to_numpy()[rows], packed.column("sha256")
    changed = np.flatnonzero(listing.sizes != sizes).tolist()
    drawn = np.random.default_rng(config.seed).permutation(len(rows))[:_COMPARED]
    with Reader(listing) as reader:
        for i in drawn.tolist() if not changed else ():
            with contextlib.suppress(BadImage):  # it is packed already, so nobody needs to read it
                if duplicates.digest(reader.read(i)).hex() != sha256[int(rows[i])].as_py():
                    changed.append(i)
    if changed:
        raise DataError(
            f"{len(changed):,} files have the names of packed images and another content, such as "
            f"{listing.path(changed[0])}.",
            "give new images names of their own; if images were edited, " + ELSEWHERE.format(config.out),
        )


def _warn_of_other_labels(config: PackConfig, inputs: PackInputs, packed: Packed, again: Array, rows: Array) -> None:
    """Warn if the label files say something else about packed images now."""
    is_other = (inputs.targets[again] != packed.targets[rows]).any(axis=1) & inputs.annotated[again]
    if is_other.any():
        logger.warning(
            "%s packed images have other labels in the label files now, such as %s, and keep those that are packed; %s",
            f"{int(is_other.sum()):,}",
            inputs.listing.path(int(again[is_other.argmax()])),
            ELSEWHERE.format(config.out),
        )


def _with_free_keys(listing: Listing, new: Array, packed: Packed) -> Listing:
    """The listing, in which new images with the key of a packed one have their whole path as key. Raises DataError."""
    taken, by_path = packed.column("key"), listing.by_path
    fresh = listing.take(new)
    clash = pc.is_in(as_text(fresh.keys), value_set=taken).to_numpy(zero_copy_only=False)
    if not clash.any():
        return listing
    by_path = np.zeros(len(listing), bool) if by_path is None else by_path.copy()
    by_path[new[clash]] = True
    listing = replace(listing, by_path=by_path)
    fresh = listing.take(new)
    clash = pc.is_in(as_text(fresh.keys), value_set=taken).to_numpy(zero_copy_only=False)
    if clash.any():
        name = fresh.path(int(clash.argmax()))
        raise DataError(f"{name} is packed already under another path.", "give it a name of its own.")
    return listing


def by_shard(table: pa.Table) -> list[pa.Table]:
    """The table cut where another shard begins, so that each shard is a row group as before."""
    shard = table.column("shard").dictionary_encode().combine_chunks().indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(table)]
    return [table.slice(begin, end - begin) for begin, end in pairwise(bounds)]


def next_numbers(index: dict[str, Any]) -> dict[str, int]:
    """The number of the next shard of each split."""
    numbers = dict[str, int]()
    for name in index["shards"]:
        match = SHARD_NAME.fullmatch(name)
        if match is not None:
            numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2]) + 1)
    return numbers


def written_before(packed: Packed) -> list[shard_plan.Written]:
    """What writing the packed shards gave, from the index and the table."""
    labels = len(packed.index["labels"])
    numbers = {name: number for number, name in enumerate(packed.index["shards"])}
    of_row = packed.table.column("shard").to_pylist()
    shard = np.array([numbers[name] for name in of_row], np.int64)
    is_positive = (
        whole_column(packed.table.column("target")).flatten().to_numpy(zero_copy_only=False).reshape(-1, labels) == 1
    )
    counts = np.zeros((len(numbers), labels), np.int64)
    np.add.at(counts, shard, is_positive)
    unlabelled = np.bincount(shard[~is_positive.any(axis=1)], minlength=len(numbers))
    return [
        shard_plan.Written(
            name,
            entry["split"],
            entry["size"],
            entry["sha256"],
            entry["samples"],
            tuple(counts[number].tolist()),
            int(unlabelled[number]),
            (),
        )
        for number, (name, entry) in enumerate(packed.index["shards"].items())
    ]
