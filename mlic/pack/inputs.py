"""What is to be packed: images with their labels and given splits, known before any image is opened."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mlic.config.data import PackConfig
from mlic.data import corrections, label_join
from mlic.data.annotations.options import options_of
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import Joined
from mlic.data.sources import image_sources, parquet_images
from mlic.data.sources.image_listing import Listing
from mlic.errors import DataError
from mlic.pack import label_folders
from mlic.pack.given_splits import folder_splits, given_splits, split_of_name
from mlic.pack.understanding import Treatment, Understanding, understanding
from mlic.runs.files import fingerprint

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


_VERSION_NAME = r"~[0-9]+$"


@dataclass(frozen=True)
class PackInputs:
    """What is to be packed, known before any image is opened: N images with distinct keys and `targets` int8 (N, L).

    `column` (N,) are the values of the group column as numbers, -1 for none; `fixed` (N,) the splits that some images
    have already, as numbers into `splits`, -1 for none. `annotated` bool (N,) marks images that the label files name;
    `positives_only` says that these files list the labels that an image has, and not those that it lacks.
    `duplicate`, `missing` and `not_annotated` are what is not packed, as (name, reason). `corrected` is the number of
    targets that differ from the label files. `inputs` are fingerprints of all that decides the shards, except the
    settings. `about` says in words what was understood.
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
    annotated: Array
    positives_only: bool


def find(config: PackConfig) -> PackInputs:
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
    annotated = joined.annotated
    if len(rows) < len(unique):
        unique, targets, fixed = unique.take(rows), targets[rows], fixed[rows]
        column = None if column is None else column[rows]
        annotated = annotated[rows]
    _check_labels(config, names, unique)
    gone = {name for name, _ in duplicate}
    return PackInputs(
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
        annotated,
        annotations.positives_only,
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


def _group_column(annotations: Annotations, joined: Joined) -> Array | None:
    """The value (N,) of the group column of each image, as a number; -1 where it is empty or the image has no line."""
    values = annotations.columns.get("group")
    if values is None:
        return None
    encoded = values.dictionary_encode()
    empty = np.array([not value for value in encoded.dictionary.to_pylist()], bool)
    number = np.where(empty[encoded.indices.to_numpy()], -1, encoded.indices.to_numpy())
    return np.where(joined.names >= 0, number[joined.names], -1)
