"""Pack images and label files into shards."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mlic.cluster import shared_folders
from mlic.cluster.connect import connect
from mlic.cluster.resources import Share, task_share
from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import corrections, label_join, shards, storage
from mlic.data.annotations.options import options_of
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import Joined
from mlic.data.sources import image_sources, parquet_images
from mlic.data.sources.image_listing import Listing
from mlic.errors import ConfigError, DataError
from mlic.pack import label_folders, shard_plan, shard_writer
from mlic.pack import summary as accounts
from mlic.pack.given_splits import folder_splits, given_splits, split_of_name
from mlic.pack.image_scan import forget, scan
from mlic.pack.shard_tasks import remove_accounts, tables, verify_all, write_all
from mlic.pack.splits import folds, random_split, stratified_split
from mlic.pack.summary import PackReport, Seen
from mlic.pack.understanding import Treatment, Understanding, understanding
from mlic.runs.files import fingerprint
from mlic.runs.run import Run

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_LARGE, _LARGE_SHARE = 50, 0.05  # images, and share of all, in a group that is worth a warning
_VERSION_NAME = r"~[0-9]+$"


@dataclass(frozen=True)
class Found:
    """What is to be packed, known before any image is opened: N images with distinct keys and `targets` int8 (N, L).

    `column` (N,) are the values of the group column as numbers, -1 for none; `fixed` (N,) the splits that some images
    have already, as numbers into `splits`, -1 for none. `duplicate`, `missing` and `not_annotated` are what is not
    packed, as (name, reason). `corrected` is the number of targets that differ from the label files. `inputs` are
    fingerprints of all that decides the shards, except the settings. `about` says in words what was understood.
    """

    listing: Listing
    labels: tuple[str, ...]
    source: str
    targets: Array
    column: Array | None
    splits: tuple[str, ...]
    fixed: Array
    duplicate: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    not_annotated: tuple[tuple[str, str], ...]
    corrected: int
    inputs: dict[str, str]
    about: Understanding


def pack(config: PackConfig) -> PackReport | Understanding:
    """Pack images and labels into shards, one Ray task a shard; shards that are whole already are kept.

    With `dry_run`, nothing is written, and the report says what was understood.

    The shards are a pure function of the listing, the labels and the settings: the same bytes for any number of workers
    and interruptions. Raises DataError for folders, label files or more
    unreadable images than `max_bad` allows, ConfigError where nothing can be written, and PartialError when it is
    interrupted.
    """
    if not storage.has_listing(config.out):
        raise ConfigError(f"{config.out} is on a web server, which is only read.", "give --out a folder or s3://...")
    listing = find(config)
    if config.dry_run:
        return listing.about
    logger.info("%s", "\n".join(listing.about.lines()))
    with Run.open(config.out, "pack", config, listing.inputs, config.fresh) as run:
        finished = run.finished and _whole(config.out)
        if finished and not config.verify:
            _clean_up(config.out)
            return PackReport(**run.report)
        if run.finished and not finished:
            logger.warning("%s has lost shards since it was packed; they are written again", config.out)
            storage.delete(config.out / shards.INDEX)
            run.reopen()
        with connect(config.address) as cluster:
            shared_folders.check_shared(cluster, config.out, config.images)
            share = task_share(cluster, config.workers, use_gpus=False)
            report = PackReport(**run.report) if finished else _pack(config, listing, share)
            if not finished:
                run.finish(report)
            if config.verify:
                verify_all(config.out, shards.read_index(config.out), config.max_pixels, share)
        _clean_up(config.out)
    return report


def find(config: PackConfig) -> Found:
    """List the images, read the labels and the given splits, and join them. Raises DataError."""
    listing = image_sources.list_images(config.images)
    if listing.others:
        logger.info("skipped %d files in %s without an image extension", listing.others, config.images)
    unique, doubled, first_rows = listing.unique()
    duplicate = [
        (listing.path(int(i)), f"has the key of {listing.path(int(j))}")
        for i, j in zip(doubled, first_rows, strict=True)
    ]
    options = options_of(config, unique.paths, config.split_column, config.group_column)
    annotations = read_annotations(config.labels, options)
    joined = label_join.join(annotations, unique.paths)
    if annotations.format == label_folders.FORMAT:
        unique, joined, copies = label_folders.merged(unique, joined)
        duplicate += copies
    about = understanding(config.images, annotations, joined, unique, _treatment(config, annotations, joined))
    for warning in about.warnings if not config.dry_run else ():
        logger.warning("%s", warning)
    joined, corrected, decisions = _corrected(config, annotations, joined, unique)
    splits, fixed = given_splits(config, annotations, joined, unique)
    if not (fixed >= 0).any():
        _warn_of_named_splits(unique)
    column = _group_column(annotations, joined)
    names, targets = _label_the_unlabelled(config, annotations.labels, _treated(joined, about.treatment))
    rows, not_annotated = _rows(config, joined, about.treatment, unique)
    inputs = {
        "images": listing.fingerprint(),
        "labels": annotations.fingerprint(),
        "splits": fingerprint(splits, fixed.tobytes()),
        "corrections": fingerprint(decisions),
    }
    if len(rows) < len(unique):
        unique, targets, fixed = unique.take(rows), targets[rows], fixed[rows]
        column = None if column is None else column[rows]
    _check_labels(config, names, unique)
    gone = {name for name, _ in duplicate}
    return Found(
        unique,
        names,
        annotations.source,
        targets,
        column,
        splits,
        fixed,
        tuple(duplicate),
        _missing(annotations, joined, gone),
        not_annotated,
        corrected,
        inputs,
        about,
    )


def _corrected(
    config: PackConfig, annotations: Annotations, joined: Joined, unique: Listing
) -> tuple[Joined, int, Any]:
    """The labels after --corrections, the number of cells that changed, and the decisions of the file, if any."""
    if config.corrections is None:
        return joined, 0, None
    verdicts = corrections.read(config.corrections)
    targets, corrected = corrections.apply(verdicts, annotations.labels, unique.paths, joined.targets)
    return replace(joined, targets=targets), corrected, verdicts.decisions()


def _treatment(config: PackConfig, annotations: Annotations, joined: Joined) -> Treatment:
    """What becomes of images that the label files do not name. Raises DataError if there may be none."""
    count = int((~joined.annotated).sum())
    if config.not_annotated == "fail" and count:
        raise DataError(
            f"{count:,} of {len(joined.annotated):,} images are not annotated.",
            "annotate them, or give --not-annotated leave-out.",
        )
    if config.not_annotated in ("leave-out", "negative", "unknown"):
        return config.not_annotated
    return "negative" if annotations.positives_only else "leave-out"


def _treated(joined: Joined, treatment: Treatment) -> Array:
    """The targets (N, L), those of images without annotation too."""
    if treatment != "unknown":
        return joined.targets
    targets = joined.targets.copy()
    targets[~joined.annotated] = -1
    return targets


def _rows(
    config: PackConfig, joined: Joined, treatment: Treatment, listing: Listing
) -> tuple[Array, tuple[tuple[str, str], ...]]:
    """The images that are to be packed, as numbers, and those left out because they are not annotated."""
    rows = np.arange(len(listing))
    left_out: tuple[tuple[str, str], ...] = ()
    if treatment == "leave-out":
        rows = np.flatnonzero(joined.annotated)
        left_out = tuple(
            (listing.path(int(i)), "is not annotated; --not-annotated says what such images are")
            for i in np.flatnonzero(~joined.annotated)
        )
    if config.limit is not None and config.limit < len(rows):
        logger.info("limited to %s of %s images", f"{config.limit:,}", f"{len(rows):,}")
        rows = rows[np.sort(np.random.default_rng([config.seed, 19]).permutation(len(rows))[: config.limit])]
    return rows, left_out


def _missing(annotations: Annotations, joined: Joined, gone: Collection[str]) -> tuple[tuple[str, str], ...]:
    """The names that are of no image, with where they stand."""
    missing = ((annotations.names[int(i)].as_py(), annotations.where(int(i))) for i in joined.missing)
    return tuple(sorted((name, f"{where} names no image") for name, where in missing if name not in gone))


def _check_labels(config: PackConfig, names: tuple[str, ...], listing: Listing) -> None:
    label_join.check_names(names)
    unknown = [name for name in config.thin_labels if name not in names]
    if unknown:
        raise DataError(f"thin_labels names {unknown[0]!r}.", f"the labels are {', '.join(names)}.")
    if config.expand and pc.any(pc.match_substring_regex(listing.keys, _VERSION_NAME)).as_py():
        raise DataError("some images end in ~ and a number, as versions do.", "rename them, or leave --expand out.")


def _label_the_unlabelled(config: PackConfig, names: tuple[str, ...], targets: Array) -> tuple[tuple[str, ...], Array]:
    """With `as-label`, add a label for images without labels; it is unknown if one of their labels is unknown."""
    if config.unlabelled != "as-label":
        return names, targets
    if config.unlabelled_label in names:
        raise DataError(
            f"{config.unlabelled_label!r} is a label already.", "give --set unlabelled_label=NAME another name."
        )
    none = np.where((targets == -1).any(axis=1), -1, 1).astype(np.int8)
    none[(targets == 1).any(axis=1)] = 0
    return (*names, config.unlabelled_label), np.concatenate([targets, none[:, None]], axis=1)


def _pack(config: PackConfig, listing: Found, share: Share) -> PackReport:
    samples, seen = arrange(config, listing, share)
    expansion = shard_plan.Expansion(
        config.expand,
        config.expand_by,
        config.thin,
        tuple(listing.labels.index(name) for name in config.thin_labels),
        config.seed,
    )
    plan = shard_plan.plan(samples, listing.splits, config.shard_mb, config.min_shards, config.seed, expansion)
    written = write_all(config, plan, samples, listing.labels, expansion, share, seen.bad)
    account, trouble = accounts.settle(seen, written)
    if not any(shard.samples for shard in written):
        raise DataError(
            f"none of the {account.unreadable:,} images in {config.images} can be read.", "check the folder."
        )
    index = accounts.index(config, listing.labels, listing.source, seen, account, trouble, listing.splits, written)
    table = shard_writer.table_bytes(tables(config.out, [shard.name for shard in written]))
    accounts.warn(trouble, index["label_counts"], index["leakage"])
    accounts.write_files(config.out, trouble, table, index)
    accounts.warn_of_depths(shards.read_table(config.out, ["format"]).column("format").to_pylist())
    return accounts.report(config, index, account.packed_labelled + account.packed_unlabelled)


def arrange(config: PackConfig, inputs: Found, share: Share) -> tuple[shard_plan.Samples, Seen]:
    """Scan the images if the settings ask for it, leave out what is not to be packed, and assign the splits."""
    listing, targets = inputs.listing, inputs.targets
    group, digest, bad, scanned = None, None, dict[int, str](), None
    if config.group_by != "none" or inputs.column is not None:
        known = fingerprint(sorted(inputs.inputs.items()), config.max_pixels)
        seen = scan(listing, config.out, config.max_pixels, share, known)
        group, digest, bad = seen.groups(config.group_by, inputs.column), seen.digests, seen.bad
        scanned = seen.rows
        _warn_of_chain(group)
    usable = np.ones(len(listing), bool)
    usable[list(bad)] = False
    dropped = usable & ~(targets == 1).any(axis=1) if config.unlabelled == "drop" else np.zeros(len(listing), bool)
    rows = np.flatnonzero(usable & ~dropped)
    samples = shard_plan.Samples(listing, targets, np.zeros(len(listing), np.int64), group, None, digest).take(rows)
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


def _warn_of_named_splits(listing: Listing) -> None:
    """Warn if archives or folders are named after splits: the names alone do not assign the splits."""
    folders = folder_splits(listing)
    if len(folders) > 1:
        logger.warning(
            "folders of images are named after the splits %s, but the images are assigned to splits at random; "
            "--split-files %s keeps them",
            ", ".join(sorted(folders)),
            listing.root,
        )
        return
    found = {split_of_name(parquet_images.stem(listing.root, archive)) for archive in listing.archives}
    names = {name for name in found if name is not None}
    if len(names) > 1:
        logger.warning(
            "the archives are named after the splits %s, but their images are assigned to splits at random; "
            "--split-files keeps them",
            ", ".join(sorted(names)),
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


def _group_column(annotations: Annotations, joined: Joined) -> Array | None:
    """The value (N,) of the group column of each image, as a number; -1 where it is empty or the image has no line."""
    values = annotations.columns.get("group")
    if values is None:
        return None
    encoded = values.dictionary_encode()
    empty = np.array([not value for value in encoded.dictionary.to_pylist()], bool)
    number = np.where(empty[encoded.indices.to_numpy()], -1, encoded.indices.to_numpy())
    return np.where(joined.names >= 0, number[joined.names], -1)


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
