"""Pack images and label files into shards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlic.cluster import shared_folders
from mlic.cluster.connect import connect_unless_few
from mlic.cluster.resources import Share, task_share
from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import shards, storage
from mlic.errors import ConfigError, DataError
from mlic.pack import shard_plan, shard_writer
from mlic.pack import summary as accounts
from mlic.pack.append import about_new, append
from mlic.pack.image_scan import forget, scan
from mlic.pack.inputs import PackInputs, find
from mlic.pack.packed import check_whole, is_packed
from mlic.pack.shard_tasks import remove_accounts, tables, verify_all, write_all
from mlic.pack.splits import folds, random_split, stratified_split
from mlic.pack.summary import PackReport, Seen
from mlic.pack.understanding import Understanding
from mlic.runs.files import fingerprint
from mlic.runs.run import Run

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_LARGE, _LARGE_SHARE = 50, 0.05  # images, and share of all, in a group that is worth a warning


def pack(config: PackConfig) -> PackReport | Understanding:
    """Pack images and labels into shards, one Ray task a shard; shards that are whole already are kept.

    With `dry_run`, nothing is written, and the report says what was understood. With `append`, only images that are not
    packed yet are written, see `append`.

    The shards are a pure function of the listing, the labels and the settings: the same bytes for any number of workers
    and interruptions. Raises DataError for folders, label files or more
    unreadable images than `max_bad` allows, ConfigError where nothing can be written, and PartialError when it is
    interrupted.
    """
    if not storage.has_listing(config.out):
        raise ConfigError(f"{config.out} is on a web server, which is only read.", "give --out a folder or s3://...")
    inputs = find(config)
    about = about_new(config, inputs)  # what cannot be appended is refused here, before the folder is touched
    if config.dry_run:
        return about
    logger.info("%s", "\n".join(about.lines()))
    may_change = tuple(inputs.inputs) if config.append and is_packed(config.out) else ()
    with Run.open(config.out, "pack", config, inputs.inputs, config.fresh, may_change) as run:
        finished = run.finished and _whole(config.out)
        if finished and not config.verify:
            _clean_up(config.out)
            return PackReport(**run.report)
        is_grown = run.renewed and not run.finished and is_packed(config.out)
        if not finished and not is_grown:
            check_whole(config.out)
        if run.finished and not finished:
            logger.warning("%s has lost shards since it was packed; they are written again", config.out)
            storage.delete(config.out / shards.INDEX)
            run.reopen()
        with connect_unless_few(config.address, config.workers, len(inputs.listing)) as cluster:
            shared_folders.check_shared(cluster, config.out, config.images)
            share = task_share(cluster, config.workers, use_gpus=False)
            if finished:
                report = PackReport(**run.report)
            else:
                report = append(config, inputs, run, share) if is_grown else _pack(config, inputs, share)
                run.finish(report)
            if config.verify:
                verify_all(config.out, shards.read_index(config.out), config.max_pixels, share)
        _clean_up(config.out)
    return report


def _pack(config: PackConfig, inputs: PackInputs, share: Share) -> PackReport:
    samples, seen = arrange(config, inputs, share)
    expansion = shard_plan.expansion(config, inputs.labels)
    plan = shard_plan.plan(samples, inputs.splits, config.shard_mb, config.min_shards, config.seed, expansion)
    written = write_all(config, plan, samples, inputs.labels, expansion, share, seen.bad)
    account, trouble = accounts.settle(seen, written)
    if not any(shard.samples for shard in written):
        raise DataError(
            f"none of the {account.unreadable:,} images in {config.images} can be read.", "check the folder."
        )
    index = accounts.index(config, inputs.labels, inputs.source, seen, account, trouble, inputs.splits, written)
    table = shard_writer.table_bytes(tables(config.out, [shard.name for shard in written]))
    accounts.warn(trouble, index["label_counts"], index["leakage"])
    accounts.write_files(config.out, trouble, table, index)
    accounts.warn_of_depths(shards.read_table(config.out, ["format"]).column("format").to_pylist())
    return accounts.report(config, index, account.packed_labelled + account.packed_unlabelled)


def arrange(config: PackConfig, inputs: PackInputs, share: Share) -> tuple[shard_plan.Samples, Seen]:
    """Scan the images if the settings ask for it, leave out what is not to be packed, and assign the splits."""
    listing, targets = inputs.listing, inputs.targets
    group, digest, hashes, bad, scanned = None, None, None, dict[int, str](), None
    if config.group_by != "none" or inputs.column is not None:
        known = fingerprint(sorted(inputs.inputs.items()), config.max_pixels)
        seen = scan(listing, config.out, config.max_pixels, share, known)
        group, digest, bad = seen.groups(config.group_by, inputs.column), seen.digests, seen.bad
        hashes, scanned = seen.hashes, seen.rows
        _warn_of_chain(group)
    usable = np.ones(len(listing), bool)
    usable[list(bad)] = False
    dropped = usable & ~(targets == 1).any(axis=1) if config.unlabelled == "drop" else np.zeros(len(listing), bool)
    rows = np.flatnonzero(usable & ~dropped)
    samples = shard_plan.Samples(listing, targets, np.zeros(len(listing), np.int64), group, None, digest, hashes)
    samples = samples.take(rows)
    if not len(samples) and not bad:
        raise DataError("every image is unlabelled, and those are dropped.", "give --unlabelled keep.")
    split = deal(config, samples, inputs.splits, inputs.fixed[rows])
    _warn_of_empty_splits(inputs.splits, split)
    samples = replace(samples, split=split, fold=_folds(config, samples, split, inputs.splits))
    reasons = {listing.path(i): reason for i, reason in bad.items()}
    return samples, Seen(
        samples.listing,
        samples.targets,
        split,
        samples.group,
        int(dropped.sum()),
        inputs.duplicate,
        inputs.missing,
        reasons,
        inputs.corrected,
        inputs.not_annotated,
        None if scanned is None else scanned[rows],
    )


def _warn_of_empty_splits(names: Sequence[str], split: Array) -> None:
    """Warn if a split that training needs has no image."""
    counts = dict(zip(names, np.bincount(split, minlength=len(names)).tolist(), strict=True))
    for name in ("train", "val"):
        if not counts.get(name):
            others = ", ".join(f"{other} {count:,}" for other, count in counts.items() if count)
            logger.warning(
                "the split %r is empty (%s), and mlic train needs it; --split-names OTHER=%s renames one",
                name,
                others,
                name,
            )


def _warn_of_chain(group: Array) -> None:
    """Warn of a group that is too large for good splits: chains of near-duplicates can become very long."""
    largest = int(np.bincount(np.unique(group, return_inverse=True)[1]).max(initial=0))
    if largest > max(_LARGE, _LARGE_SHARE * len(group)):
        logger.warning(
            "%s images (%.0f%%) form one group of near-duplicates, which stays in one split; "
            "--group-by identical splits it",
            f"{largest:,}",
            100 * largest / len(group),
        )


def deal(config: PackConfig, samples: shard_plan.Samples, names: Sequence[str], fixed: Array) -> Array:
    """The split (N,) of each sample, a number into `names`."""
    shares = {name: config.split.get(name, 0.0) for name in names}
    if config.keep_test is not None:  # the others share what is left
        rest = 1 - shares.pop("test")
        left = 1 - (fixed >= 0).mean() if len(fixed) else 1.0
        shares = {name: 0.0 if name == "test" else shares[name] / rest * left for name in names}
    if config.split_by == "random":
        return random_split(len(samples), shares, config.seed, fixed)
    split = stratified_split(samples.targets, samples.group, shares, config.seed, fixed)
    joined = int(((fixed < 0) & (split == names.index("test"))).sum()) if config.keep_test is not None else 0
    if joined:
        logger.warning("%d images were added to the test split because they are near-duplicates of test images", joined)
    return split


def _folds(config: PackConfig, samples: shard_plan.Samples, split: Array, names: Sequence[str]) -> Array | None:
    """The fold (N,) of each sample; -1 for the samples of the test split."""
    if not config.folds:
        return None
    rows = np.flatnonzero(split != (names.index("test") if "test" in names else -1))
    fold = np.full(len(samples), -1)
    group = None if samples.group is None else samples.group[rows]
    fold[rows] = folds(samples.targets[rows], group, config.folds, config.seed)
    return fold


def _clean_up(out: Location) -> None:
    """Remove the files for resuming a stopped run, and those of a run that was killed after its report."""
    remove_accounts(out)
    forget(out)


def _whole(out: Location) -> bool:
    """Whether everything that the index names is there in its full size."""
    try:
        shards.check_sizes(out, shards.read_index(out), None)
        shards.read_table(out, ["shard"])
    except DataError as error:
        logger.debug("%s", error)
        return False
    return True
