"""Explore a data set before training: its labels, images, splits and duplicates."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic.cluster import pool
from mlic.cluster.connect import connect_unless_few
from mlic.cluster.resources import Cluster, task_share
from mlic.config.data import ExploreConfig
from mlic.data import duplicates, label_join, label_stats, shards, storage
from mlic.data.annotations.options import options_of
from mlic.data.annotations.read import read_annotations
from mlic.data.pixels import deep_images, images
from mlic.data.shards import INDEX, Split
from mlic.data.sources import image_sources
from mlic.data.sources.image_listing import Listing
from mlic.errors import ConfigError
from mlic.explore import explore_page
from mlic.explore.plots import figures_of
from mlic.explore.result import ExploreReport, ImplicationRow
from mlic.html import plots
from mlic.runs.files import disk_errors, write_atomic, write_json
from mlic.runs.progress import Progress

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_CHUNK = 500
_GRAY_WITHIN = 4  # levels between channels: what JPEG makes of three equal ones
_THUMBNAIL = 128
_PER_LABEL = 12
_SUPPORT, _CONFIDENCE = 20, 0.95
_LISTED = 20
_FILE = "explore.json"


@dataclass(frozen=True)
class Data:
    """N samples to explore, from shards or from images and label files; `split` names each one's split, if any."""

    source: Split | Listing
    targets: Array
    labels: tuple[str, ...]
    split: list[str] | None

    def key(self, i: int) -> str:
        return self.source.key(int(i))


@dataclass(frozen=True)
class Look:
    """The n opened images: `rows` are their numbers in the data.

    `seen` has one record for each image, None for a bad one. `hashes` uint8 (n, 48) are their digests and perceptual
    hashes; `thumbnails` are JPEG files by row.
    """

    rows: Array
    seen: list[dict[str, Any] | None]
    hashes: Array
    thumbnails: dict[int, bytes]


def explore(config: ExploreConfig) -> ExploreReport:
    """Explore shards, or a folder of images with its labels, and write a page, PNGs and JSON.

    Raises DataError for bad input and ConfigError where the output would overwrite what mlic did not write.
    """
    data = _read(config)
    _refuse_foreign(config.out)
    rng = np.random.default_rng([config.seed, 12])
    shown = _samples_of_labels(data, rng)
    chosen = np.sort(rng.permutation(len(data.targets))[: config.max_images])
    rows = np.unique(np.concatenate([chosen, *shown.values()]).astype(np.int64))
    with connect_unless_few(config.address, config.workers, len(rows)) as cluster:
        look = _look(data, rows, {i for some in shown.values() for i in some.tolist()}, cluster, config)
    report = _summary(config, data, look)
    with disk_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    pictures = figures_of(report)
    grids = {
        label: plots.grid([look.thumbnails[i] for i in found.tolist() if i in look.thumbnails])
        for label, found in shown.items()
    }
    for name, picture in pictures.items():
        write_atomic(config.out / f"{name}.png", picture)
    for number, grid in enumerate(grids.values()):
        if grid is not None:
            write_atomic(config.out / f"samples-{number:03d}.png", plots.png(grid))
    write_atomic(report.page, explore_page.render(report, pictures, grids).encode())
    write_json(config.out / _FILE, {"format": 1, "kind": "explore", **report.model_dump(mode="json")})
    return report


def _read(config: ExploreConfig) -> Data:
    if storage.size(config.data / INDEX) is not None:
        if config.labels is not None or config.format != "auto":
            raise ConfigError(f"{config.data} are shards, which have their labels.", "leave --labels and --format out.")
        split = shards.read_split(config.data, None)
        names = shards.read_table(config.data, ["split"]).column("split").to_pylist()
        return Data(split, split.targets, split.labels, names)
    if config.labels is None:
        if not storage.is_folder(config.data):
            shards.read_index(config.data)  # raises an error that says what is there, and how to pack it
        raise ConfigError("--labels is not given.", "name the label files of the images, or give a folder of shards.")
    listing = image_sources.list_images(config.data).unique()[0]
    annotations = read_annotations(config.labels, options_of(config, listing.paths))
    joined = label_join.join(annotations, listing.paths)
    for warning in annotations.warnings:
        logger.warning("%s", warning)
    if annotations.positives_only or joined.annotated.all():
        return Data(listing, joined.targets, annotations.labels, None)
    rows = np.flatnonzero(joined.annotated)
    logger.warning(
        "%s of %s images are not annotated and left out", f"{len(listing) - len(rows):,}", f"{len(listing):,}"
    )
    return Data(listing.take(rows), joined.targets[rows], annotations.labels, None)


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder.", "name a folder by --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if json.loads((out / _FILE).read_text(encoding="utf-8")).get("kind") == "explore":
            return
    raise ConfigError(f"{out} holds files that mlic did not write.", "name another folder by --out.")


def _samples_of_labels(data: Data, rng: np.random.Generator) -> dict[str, Array]:
    """A few samples of each label, at random, and of those without any."""
    rows_of = {label: np.flatnonzero(data.targets[:, i] == 1) for i, label in enumerate(data.labels)}
    rows_of["(no label)"] = np.flatnonzero(~(data.targets == 1).any(axis=1))
    return {label: rng.permutation(found)[:_PER_LABEL] for label, found in rows_of.items() if len(found)}


def _look(data: Data, rows: Array, shown: set[int], cluster: Cluster, config: ExploreConfig) -> Look:
    """Open the images with these numbers by Ray tasks."""
    share = task_share(cluster, config.workers, use_gpus=False)
    starts = range(0, len(rows), _CHUNK)
    progress = Progress(logger, "explore", len(starts), "chunks", "images")
    position_of = {int(row): i for i, row in enumerate(rows)}
    seen: list[dict[str, Any] | None] = [None] * len(rows)
    hashes, thumbnails = np.zeros((len(rows), 48), np.uint8), dict[int, bytes]()
    pieces = (_piece(data.source, rows[start : start + _CHUNK], shown) for start in starts)
    for (numbers, _, _), (records, some, pictures) in pool.run(_open, pieces, None, share.workers, _halves, _deadly):
        for i, number in enumerate(numbers.tolist()):
            seen[position_of[number]], hashes[position_of[number]] = records[i], some[i]
        thumbnails |= {int(numbers[i]): picture for i, picture in pictures.items()}
        progress.add(len(records), sum(record is None for record in records))
    return Look(rows, seen, hashes, thumbnails)


_Piece = tuple[Array, Split | Listing, list[bool]]  # numbers of images, the images, and whether each is shown
_Seen = tuple[list[dict[str, Any] | None], Array, dict[int, bytes]]


def _piece(source: Split | Listing, numbers: Array, shown: set[int]) -> _Piece:
    return numbers, source.take(numbers), [int(number) in shown for number in numbers]


def _halves(piece: _Piece) -> list[_Piece]:
    numbers, source, shown = piece
    parts = [part for part in np.array_split(np.arange(len(numbers)), 2) if len(part)]
    return [(numbers[part], source.take(part), [shown[i] for i in part]) for part in parts]


def _deadly(piece: _Piece, _reason: str) -> _Seen:
    """The result for an image that kills every process that opens it: that of an image that cannot be decoded."""
    source = piece[1]
    return [None], _unread(source.key(0)), {}


def _unread(key: str) -> Array:
    """The hashes uint8 (1, 48) of an image that is not read: its digest is that of its name."""
    thumbnail = np.zeros((1, 48), np.uint8)
    thumbnail[0, :32] = np.frombuffer(duplicates.digest(key.encode("utf-8", "replace")), np.uint8)
    return thumbnail


def _open(piece: _Piece, _shared: None) -> _Seen:
    """A Ray task: a description of each image, its hashes, and thumbnails of the images that are shown."""
    numbers, source, shown = piece
    seen: list[dict[str, Any] | None] = []
    hashes = np.zeros((len(numbers), 48), np.uint8)
    thumbnails = {}
    with source.opened() as read:
        for i in range(len(source)):
            try:
                data = read(i)
                record, pixels = _describe(data)
                hashes[i, :32] = np.frombuffer(duplicates.digest(data), np.uint8)
                hashes[i, 32:] = np.frombuffer(duplicates.perceptual_hash(data, images.MAX_PIXELS), np.uint8)
            except images.BadImage:
                seen.append(None)
                hashes[i] = _unread(source.key(i))[0]
                continue
            seen.append(record)
            if shown[i]:
                small = Image.fromarray(pixels)
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                out = io.BytesIO()
                small.save(out, "JPEG", quality=88)
                thumbnails[i] = out.getvalue()
    return seen, hashes, thumbnails


def _describe(data: bytes) -> tuple[dict[str, Any], Array]:
    """Size, format, kind of colour and brightness of an image, and its pixels."""
    info = images.probe(data, images.MAX_PIXELS)
    pixels = deep_images.picture(data, "rgb", images.MAX_PIXELS, side=2 * _THUMBNAIL)
    spread = int((pixels.max(axis=2).astype(int) - pixels.min(axis=2)).max())
    color = "colour" if spread > _GRAY_WITHIN else "grey" if images.is_gray_file(data) else "grey as RGB"
    record = {
        "size": f"{info.width} x {info.height}",
        "format": info.kind,
        "color": color,
        "brightness": float(pixels.mean()),
    }
    return record, pixels


def _summary(config: ExploreConfig, data: Data, look: Look) -> ExploreReport:
    targets = data.targets
    good = [record for record in look.seen if record is not None]
    group = duplicates.clusters(look.hashes[:, :32], look.hashes[:, 32:])
    names, sizes = np.unique(group, return_counts=True)
    repeated = names[sizes > 1]
    rules = label_stats.implications(targets, _SUPPORT, _CONFIDENCE)
    different, once = label_stats.label_sets(targets)
    splits: dict[str, dict[str, int]] = {}
    if data.split is not None:
        of = np.array(data.split)
        splits = {name: _counts(data, targets[of == name]) for name in dict.fromkeys(data.split)}
    brightness = np.histogram([record["brightness"] for record in good], bins=32, range=(0, 256))[0]
    return ExploreReport(
        data=config.data,
        out=config.out,
        samples=len(targets),
        labels=_counts(data, targets),
        unknown=dict(zip(data.labels, (targets == -1).sum(axis=0).tolist(), strict=True)),
        cardinality=label_stats.cardinality(targets).tolist(),
        undecided=int(((targets != 1).all(axis=1) & (targets == -1).any(axis=1)).sum()),
        label_sets=different,
        label_sets_seen_once=once,
        together=label_stats.together(targets).tolist(),
        implications=tuple(
            ImplicationRow(
                first=data.labels[item.first],
                second=data.labels[item.second],
                support=item.support,
                exceptions=len(item.exceptions),
                keys=tuple(data.key(i) for i in item.exceptions[:_LISTED]),
            )
            for item in rules
        ),
        splits=splits,
        looked_at=len(look.seen),
        bad=len(look.seen) - len(good),
        color=_tally(good, "color"),
        formats=_tally(good, "format"),
        sizes=_tally(good, "size"),
        brightness=brightness.tolist(),
        duplicate_groups=len(repeated),
        duplicates=tuple(
            tuple(data.key(i) for i in look.rows[np.flatnonzero(group == name)[:_LISTED]]) for name in repeated[:100]
        ),
        page=config.out / "explore.html",
    )


def _counts(data: Data, targets: Array) -> dict[str, int]:
    return dict(zip(data.labels, (targets == 1).sum(axis=0).tolist(), strict=True))


def _tally(records: list[dict[str, Any]], name: str) -> dict[str, int]:
    return dict(Counter(record[name] for record in records).most_common())
