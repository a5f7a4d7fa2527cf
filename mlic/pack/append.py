"""Append new images to a folder of shards: they go into new shards, and what is packed stays byte for byte.

The test split is frozen: it gets no image, and a new image that is nearly a test image is left out. Other
near-duplicates of packed images go to the split of those. Nobody reads the new shards until the index names them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.cluster.resources import Share
from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import duplicates, shards, storage
from mlic.data.sources.image_listing import Listing, as_text
from mlic.errors import ConfigError, DataError
from mlic.pack import shard_plan, shard_writer
from mlic.pack import summary as accounts
from mlic.pack.image_scan import Scan, scan
from mlic.pack.inputs import PackInputs
from mlic.pack.packed import (
    APPENDING,
    ELSEWHERE,
    SHARD_NAME,
    Packed,
    by_shard,
    is_packed,
    new_images,
    next_numbers,
    read_packed,
    written_before,
)
from mlic.pack.shard_tasks import tables, write_all
from mlic.pack.splits import folds, random_split, stratified_split
from mlic.pack.summary import PackReport, Seen
from mlic.pack.understanding import Understanding
from mlic.runs.files import fingerprint
from mlic.runs.run import Run, read_state

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


def about_new(config: PackConfig, inputs: PackInputs) -> Understanding:
    """What was understood, and how many images --append would pack."""
    if not config.append or not is_packed(config.out):
        return inputs.about
    packed = read_packed(config.out, shards.read_index(config.out))
    new, _ = new_images(config, inputs, packed)
    note = f"{len(new):,} images are new, and {len(packed.images):,} are packed in {config.out}"
    return inputs.about.model_copy(update={"notes": (*inputs.about.notes, note)})


def append(config: PackConfig, inputs: PackInputs, run: Run[Location], share: Share) -> PackReport:
    """Write the images that are not packed yet into new shards. Raises DataError and PartialError as `pack`.

    The result is a function of the packed shards and the inputs: the same for any number of workers and interruptions.
    """
    index, known = shards.read_index(config.out), fingerprint(sorted(inputs.inputs.items()))
    history = index.get("appended", [])
    if history and history[-1]["inputs"] == known:  # an earlier attempt was killed after its last file
        return _report(config, index, history[-1]["images"])
    _forget_other_attempts(config.out, index, run, fingerprint(known, index["fingerprint"]))
    packed = read_packed(config.out, index)
    new, inputs = new_images(config, inputs, packed)
    logger.info("append: %s new images, %s are packed", f"{len(new):,}", f"{len(packed.images):,}")
    if not len(new):
        return _report(config, index, 0)
    samples, seen, names = _arrange(config, inputs, new, packed, share)
    labels = tuple(index["labels"])
    expansion = shard_plan.expansion(config, labels)
    plan = shard_plan.plan(samples, names, config.shard_mb, 1, config.seed, expansion, next_numbers(index))
    written = write_all(config, plan, samples, labels, expansion, share, seen.bad)
    account, trouble = accounts.settle(seen, written)
    count = account.packed_labelled + account.packed_unlabelled
    after = _index_of_all(config, inputs, packed, seen, account, trouble, names, written)
    entry = {"inputs": known, "images": count, "shards": len(written), "of": index["fingerprint"]}
    after["appended"] = [*history, entry]
    new_tables = list(tables(config.out, [shard.name for shard in written]))
    accounts.warn(trouble, after["label_counts"], after["leakage"])
    accounts.warn_of_depths([kind for table in new_tables for kind in table.column("format").to_pylist()])
    table = shard_writer.table_bytes(iter([*by_shard(packed.table), *new_tables]))
    accounts.write_files(config.out, trouble, table, after)
    return _report(config, after, count)


def _report(config: PackConfig, index: dict[str, Any], appended: int) -> PackReport:
    account = index["account"]
    images = account["packed_labelled"] + account["packed_unlabelled"]
    return accounts.report(config, index, images).model_copy(update={"appended": appended})


def _forget_other_attempts(out: Location, index: dict[str, Any], run: Run[Location], known: str) -> None:
    """Remove shards that an attempt with other inputs has left: theirs have the names of those that come now."""
    if (read_state(out) or {}).get(APPENDING) == known:
        return
    for name in storage.names(out):
        shard = name[1:].removesuffix(".parquet") if name.startswith(".") else name
        if SHARD_NAME.fullmatch(shard) and shard not in index["shards"]:
            storage.delete(out / name)
    run.note(**{APPENDING: known})


# Splits and folds


def _arrange(
    config: PackConfig, inputs: PackInputs, new: Array, packed: Packed, share: Share
) -> tuple[shard_plan.Samples, Seen, tuple[str, ...]]:
    """The new samples with their splits, what was seen of the new images, and the names of all splits."""
    listing, targets = inputs.listing.take(new), inputs.targets[new]
    names = (*packed.index["splits"], *(name for name in inputs.splits if name not in packed.index["splits"]))
    scanned, groups = None, None
    if config.group_by != "none" or inputs.column is not None:
        known = fingerprint(sorted(inputs.inputs.items()), config.max_pixels, packed.index["fingerprint"])
        scanned = scan(listing, config.out, config.max_pixels, share, known)
        groups = _groups(config, inputs, scanned, new, packed)
    bad = {} if scanned is None else scanned.bad
    like_test = {i: reason for i, reason in _like_test(groups, len(new), packed).items() if i not in bad}
    usable = np.ones(len(new), bool)
    usable[[*bad, *like_test]] = False
    dropped = usable & ~(targets == 1).any(axis=1) if config.unlabelled == "drop" else np.zeros(len(new), bool)
    rows = np.flatnonzero(usable & ~dropped)
    samples = shard_plan.Samples(
        listing,
        targets,
        np.zeros(len(new), np.int64),
        None if groups is None else groups[len(packed.images) :],
        None,
        None if scanned is None else scanned.digests,
        None if scanned is None else scanned.hashes,
    ).take(rows)
    given = np.array([*(names.index(name) for name in inputs.splits), -1])[inputs.fixed[new[rows]]]
    samples = _with_splits(config, samples, groups, given, names, packed)
    packed_names = {*packed.column("file").to_pylist(), *packed.column("key").to_pylist()}
    seen = Seen(
        samples.listing,
        samples.targets,
        samples.split,
        samples.group,
        int(dropped.sum()),
        [*_others(inputs.duplicate, packed_names), *((listing.path(i), reason) for i, reason in like_test.items())],
        _others(inputs.missing, packed_names),
        {listing.path(i): reason for i, reason in bad.items()},
        not_annotated=_others(inputs.not_annotated, packed_names),
    )
    return samples, seen, names


def _others(items: Sequence[tuple[str, str]], packed_names: set[str]) -> list[tuple[str, str]]:
    """What is left out and is not about a packed image."""
    return [(name, reason) for name, reason in items if name not in packed_names]


def _groups(config: PackConfig, inputs: PackInputs, scanned: Scan, new: Array, packed: Packed) -> Array:
    """The groups (M + K,) of the packed and the new images, numbered by their first member in this order."""
    digests = np.frombuffer(bytes.fromhex("".join(packed.column("sha256").to_pylist())), np.uint8).reshape(-1, 32)
    hashes = None
    if config.group_by == "near-duplicates":
        if "hash" not in packed.images.column_names or packed.images.column("hash").null_count:
            raise ConfigError(
                f"{config.out} was packed by an earlier version of mlic, which did not keep what near-duplicates are "
                "recognised by.",
                ELSEWHERE.format(config.out),
            )
        kept = np.frombuffer(b"".join(packed.column("hash").to_pylist()), np.uint8)
        hashes = np.concatenate([kept.reshape(-1, duplicates.HASH_BYTES), scanned.hashes])
    column = None
    if inputs.column is not None:
        at = pc.index_in(packed.column("file"), value_set=as_text(inputs.listing.paths)).to_numpy()
        column = np.concatenate([inputs.column[at], inputs.column[new]])
    return duplicates.clusters(np.concatenate([digests, scanned.digests]), hashes, column)


def _like_test(groups: Array | None, count: int, packed: Packed) -> dict[int, str]:
    """The new images, by number, that are in a group with a packed test image: in no split they would do no harm."""
    if groups is None:
        return {}
    is_test = pc.equal(packed.column("split"), "test").to_numpy(zero_copy_only=False)
    test = np.flatnonzero(is_test)
    first = dict(zip(groups[test[::-1]].tolist(), test[::-1].tolist(), strict=True))
    files = packed.column("file")
    of_group = enumerate(groups[len(groups) - count :].tolist())
    return {
        i: f"is the same as the test image {files[first[group]].as_py()}, or nearly, or in one group with it"
        for i, group in of_group
        if group in first
    }


def _with_splits(
    config: PackConfig,
    samples: shard_plan.Samples,
    groups: Array | None,
    given: Array,
    names: tuple[str, ...],
    packed: Packed,
) -> shard_plan.Samples:
    """The new samples with their splits and folds: those of the packed images that they are in a group with, or dealt.

    `given` (K,) are the splits that the samples have already, as numbers into `names`, -1 for none.
    """
    shares = {name: 0.0 if name == "test" else config.split.get(name, 0.0) for name in names}
    if not any(shares.values()):
        raise DataError(
            "all shares of --split are of the split test, which takes no new image.", "pack into another folder."
        )
    shares = {name: value / sum(shares.values()) for name, value in shares.items()}
    split_of = np.array([names.index(name) for name in packed.column("split").to_pylist()], np.int64)
    fixed = np.where(given >= 0, given, _inherited(samples, groups, split_of))
    if config.split_by == "random":
        split = random_split(len(samples), shares, config.seed, fixed)
    else:
        split = stratified_split(samples.targets, samples.group, shares, config.seed, fixed)
    fold = None
    if config.folds:
        inherited = _inherited(samples, groups, packed.column("fold").to_numpy().astype(np.int64))
        fold = folds(samples.targets, samples.group, config.folds, config.seed, inherited)
    return replace(samples, split=split, fold=fold, group=_numbers(samples, groups, packed))


def _inherited(samples: shard_plan.Samples, groups: Array | None, values: Array) -> Array:
    """The value, of `values` (M,), that the first packed image in the group of each new sample has; -1 for none."""
    if samples.group is None or groups is None:
        return np.full(len(samples), -1)
    of_group = np.full(len(groups), -1, np.int64)
    of_group[groups[: len(values)][::-1]] = values[::-1]
    inherited: Array = of_group[samples.group]
    return inherited


def _numbers(samples: shard_plan.Samples, groups: Array | None, packed: Packed) -> Array | None:
    """The groups of the new samples in the numbers of the table: those of packed images, or numbers that are free."""
    if samples.group is None or groups is None:
        return None
    before = packed.column("group").to_numpy().astype(np.int64)
    inherited = _inherited(samples, groups, before)
    return np.where(inherited >= 0, inherited, samples.group + int(before.max(initial=-1)) + 1)


# The index of old and new shards


def _index_of_all(
    config: PackConfig,
    inputs: PackInputs,
    packed: Packed,
    seen: Seen,
    account: accounts.Account,
    trouble: dict[str, list[tuple[str, str]]],
    names: tuple[str, ...],
    written: Sequence[shard_plan.Written],
) -> dict[str, Any]:
    """index.json of the packed and the new shards together."""
    files = pa.concat_arrays([packed.column("file").cast(pa.binary()), seen.files.paths.cast(pa.binary())])
    zeros = np.zeros(len(files), np.int64)
    split_of = np.array([names.index(name) for name in packed.column("split").to_pylist()], np.int64)
    group = None if seen.group is None else np.concatenate([packed.column("group").to_numpy(), seen.group])
    everything = Seen(
        Listing(config.images, files, zeros, zeros),
        np.concatenate([packed.targets, seen.targets]),
        np.concatenate([split_of, seen.split]),
        group,
        seen.dropped,
        corrected=packed.index.get("corrected", 0),
        is_dealt=False,
    )
    before = packed.index["account"]
    count = before["packed_labelled"] + before["packed_unlabelled"]
    both = account.model_copy(
        update={
            "found": account.found + count,
            "packed_labelled": account.packed_labelled + before["packed_labelled"],
            "packed_unlabelled": account.packed_unlabelled + before["packed_unlabelled"],
        }
    )
    shards_written = [*written_before(packed), *written]
    return accounts.index(
        config, tuple(packed.index["labels"]), inputs.source, everything, both, trouble, names, shards_written
    )
