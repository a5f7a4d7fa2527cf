"""Scan all images before packing: find duplicates and unreadable files."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlic.cluster import pool
from mlic.cluster.resources import Share
from mlic.config.types import Location
from mlic.data import duplicates, storage
from mlic.data.pixels import images
from mlic.data.sources.image_listing import Listing, Reader
from mlic.errors import PartialError
from mlic.runs.files import write_atomic
from mlic.runs.progress import Progress

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
GroupBy = Literal["near-duplicates", "identical", "none"]

_CHUNK = 500
_KEPT = ".scan.npz"
_ROW = np.dtype(
    [
        ("digest", "u1", 32),
        ("hash", "u1", duplicates.HASH_BYTES),
        ("width", "i4"),
        ("height", "i4"),
        ("kind", "S32"),
    ]
)


@dataclass(frozen=True)
class Scan:
    """What was seen of N files: `rows` (N,) with digest, hash, width, height and kind, and the reason of bad ones."""

    rows: Array
    bad: dict[int, str]

    @property
    def digests(self) -> Array:
        """The sha256 uint8 (N, 32) of each file."""
        return self.rows["digest"]

    @property
    def hashes(self) -> Array:
        """The perceptual hash uint8 (N, 16) of each image."""
        return self.rows["hash"]

    def groups(self, group_by: GroupBy, column: Array | None) -> Array:
        """Groups (N,) of the same, or nearly the same, images, and of those with the same value in `column`."""
        hashes = self.rows["hash"] if group_by == "near-duplicates" else None
        return duplicates.clusters(self.digests, hashes, column)


def scan(listing: Listing, out: Location, max_pixels: int, share: Share, known: str) -> Scan:
    """Scan images by Ray tasks. The result is kept in `out` under the fingerprint `known`, to resume a stopped run."""
    stored = _read_kept((out / _KEPT), known)
    if stored is not None:
        return stored
    starts = range(0, len(listing), _CHUNK)
    progress = Progress(logger, "scan", len(starts), "chunks", "images")
    rows = np.zeros(len(listing), _ROW)
    bad: dict[int, str] = {}
    pieces = ((np.arange(start, min(start + _CHUNK, len(listing))), listing) for start in starts)
    try:
        looks = pool.run(_look, (_taken(*piece) for piece in pieces), max_pixels, share.workers, _halves, _deadly)
        for (numbers, _), (headers, reasons) in looks:
            rows[numbers] = headers
            bad |= {int(numbers[row]): reason for row, reason in reasons.items()}
            progress.add(len(headers), len(reasons))
    except KeyboardInterrupt:
        raise PartialError(
            f"stopped after scanning {progress.images:,} of {len(listing):,} images.", "run the same command again."
        ) from None
    bad = dict(sorted(bad.items()))
    _keep((out / _KEPT), known, rows, bad)
    return Scan(rows, bad)


def forget(out: Location) -> None:
    """Remove the kept answer, once everything that needs it is written."""
    storage.delete(out / _KEPT)


def _taken(numbers: Array, listing: Listing) -> tuple[Array, Listing]:
    """The images by these numbers, as a piece of work."""
    return numbers, listing.take(numbers)


def _halves(piece: tuple[Array, Listing]) -> list[tuple[Array, Listing]]:
    numbers, listing = piece
    parts = [part for part in np.array_split(np.arange(len(numbers)), 2) if len(part)]
    return [(numbers[part], listing.take(part)) for part in parts]


def _deadly(piece: tuple[Array, Listing], reason: str) -> tuple[Array, dict[int, str]]:
    """The result for an image that kills every process that opens it: its digest is that of its name."""
    _, listing = piece
    row = np.zeros(1, _ROW)
    row["digest"][0] = np.frombuffer(duplicates.digest(listing.paths[0].as_py()), np.uint8)
    return row, {0: reason}


def _look(piece: tuple[Array, Listing], max_pixels: int) -> tuple[Array, dict[int, str]]:
    """A Ray task: what is seen of each image (n,), and the reasons of bad ones, whose digest is that of their name."""
    _, listing = piece
    rows = np.zeros(len(listing), _ROW)
    reasons: dict[int, str] = {}
    with Reader(listing) as reader:
        for i in range(len(listing)):
            try:
                data = reader.read(i)
                info = images.probe(data, max_pixels)
                digest = np.frombuffer(duplicates.digest(data), np.uint8)
                perceptual = np.frombuffer(duplicates.perceptual_hash(data, max_pixels), np.uint8)
                rows[i] = (digest, perceptual, info.width, info.height, info.kind.encode())
            except images.BadImage as error:
                rows["digest"][i] = np.frombuffer(duplicates.digest(listing.paths[i].as_py()), np.uint8)
                reasons[i] = str(error)
    return rows, reasons


def _keep(path: Location, known: str, rows: Array, bad: dict[int, str]) -> None:
    data = io.BytesIO()
    numbers = np.array(list(bad), dtype=np.int64)
    np.savez(data, known=np.array(known), rows=rows, numbers=numbers, reasons=np.array(list(bad.values()), dtype=str))
    write_atomic(path, data.getvalue())


def _read_kept(path: Location, known: str) -> Scan | None:
    try:
        with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as stored:
            if str(stored["known"]) != known:
                return None
            bad = dict(zip(stored["numbers"].tolist(), stored["reasons"].tolist(), strict=True))
            rows = stored["rows"]
            return Scan(rows, bad) if rows.dtype == _ROW else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        logger.warning("scanning the images again: %s cannot be read (%s)", path, error)
        return None
