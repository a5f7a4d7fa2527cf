"""Look at every image before it is packed: which of them are the same, or nearly, and which cannot be read?"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlic.cluster.ray import Share
from mlic.cluster.runs import write_atomic
from mlic.data import duplicates, images
from mlic.errors import PartialError
from mlic.stages.progress import Progress

logger = logging.getLogger(__name__)

GroupBy = Literal["near-duplicates", "identical"]
_CHUNK = 500
_KEPT = ".scan.npz"


@dataclass(frozen=True)
class Scan:
    """What was seen of N files: `digests` uint8 (N, 32), `hashes` uint8 (N, 16), and the reason of each bad one."""

    digests: np.ndarray[Any, Any]
    hashes: np.ndarray[Any, Any]
    bad: dict[int, str]

    def groups(self, group_by: GroupBy) -> np.ndarray[Any, Any]:
        """Groups (N,) of the same, or nearly the same, images."""
        return duplicates.clusters(self.digests, self.hashes if group_by == "near-duplicates" else None)


def scan(files: Sequence[images.ImageFile], folder: Path, out: Path, max_pixels: int, share: Share, known: str) -> Scan:
    """Scan files by Ray tasks. The answer is kept in `out` under the fingerprint `known`, for a run that is stopped."""
    kept = _read_kept(out / _KEPT, known)
    if kept is not None:
        return kept
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(_look)
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    progress = Progress(logger, "scan", len(chunks), "chunks", "images")
    waiting = list(enumerate(chunks))[::-1]
    running: dict[Any, int] = {}
    found: dict[int, tuple[np.ndarray[Any, Any], list[str | None]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < share.workers:
                number, chunk = waiting.pop()
                running[task.remote([folder / file.path for file in chunk], max_pixels)] = number
            (ready,), _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready)
            found[number] = ray.get(ready)
            progress.add(len(found[number][1]), sum(reason is not None for reason in found[number][1]))
    except KeyboardInterrupt:
        raise PartialError(
            f"stopped after a look at {progress.images:,} of {len(files):,} images.", "run the same command again."
        ) from None
    rows = np.concatenate([found[number][0] for number in range(len(chunks))])
    reasons = [reason for number in range(len(chunks)) for reason in found[number][1]]
    bad = {i: reason for i, reason in enumerate(reasons) if reason is not None}
    _keep(out / _KEPT, known, rows, bad)
    return Scan(rows[:, :32], rows[:, 32:], bad)


def forget(out: Path) -> None:
    """Remove the kept answer, once everything that needs it is written."""
    (out / _KEPT).unlink(missing_ok=True)


def _look(paths: Sequence[Path], max_pixels: int) -> tuple[np.ndarray[Any, Any], list[str | None]]:
    """A Ray task: digest and hash of each file, uint8 (n, 48), and why it is bad; a bad one's row is its own digest."""
    rows = np.zeros((len(paths), 32 + duplicates.HASH_BYTES), dtype=np.uint8)
    reasons: list[str | None] = []
    for row, path in zip(rows, paths, strict=True):
        try:
            data = images.read_file(path)
            images.probe(data, max_pixels)
            row[:32] = np.frombuffer(duplicates.digest(data), np.uint8)
            row[32:] = np.frombuffer(duplicates.perceptual_hash(data, max_pixels), np.uint8)
            reasons.append(None)
        except images.BadImage as error:
            row[:32] = np.frombuffer(duplicates.digest(str(path).encode("utf-8", "surrogateescape")), np.uint8)
            row[32:] = 0
            reasons.append(str(error))
    return rows, reasons


def _keep(path: Path, known: str, rows: np.ndarray[Any, Any], bad: dict[int, str]) -> None:
    data = io.BytesIO()
    numbers = np.array(list(bad), dtype=np.int64)
    np.savez(data, known=np.array(known), rows=rows, numbers=numbers, reasons=np.array(list(bad.values()), dtype=str))
    write_atomic(path, data.getvalue())


def _read_kept(path: Path, known: str) -> Scan | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["known"]) != known:
                return None
            bad = dict(zip(kept["numbers"].tolist(), kept["reasons"].tolist(), strict=True))
            return Scan(kept["rows"][:, :32], kept["rows"][:, 32:], bad)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        logger.warning("the images are scanned again: %s does not read (%s)", path, error)
        return None
