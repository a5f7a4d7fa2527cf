"""The decoded images of a split in one memory-mapped file per node, shared by all its ranks and trials.

Decoding is most of a loader's work, and it gives the same pixels in every epoch, on every rank and in every trial. The
name of the file is a hash of all that decides its bytes: the fingerprint of the shards and the preprocessing. So the
file is never stale. It is written under a lock and under another name, so it is either complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.data import Preprocessing
from mlic.data import storage
from mlic.data.shards import Split

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_BLOCK = 2**24  # bytes


@dataclass(frozen=True)
class Decoded:
    """Images uint8 or uint16 (N, H, W, C), or features float32 (N, F), mapped from the file; `bad` are zeros."""

    images: Array
    bad: dict[int, str]


def decoded(
    split: Split,
    preprocessing: Preprocessing,
    limit_gb: float,
    folder: Path,
    decode: Callable[[], Iterable[tuple[Array, Array, dict[int, str]]]],
) -> Decoded | None:
    """Open the cache of a split, and build it first if it does not exist.

    `decode` yields (sample numbers (B,), images (B, H, W, C), reasons by sample number), with every sample exactly
    once. Returns None when the images need more than `limit_gb` or than the disk has left. If the total would exceed
    the limit, files of other splits are removed, the least recently used first.
    """
    shape = (len(split), preprocessing.image_size, preprocessing.image_size, preprocessing.channels)
    return stored(
        f"{split.fingerprint} {split.name} {preprocessing.pixels}",
        shape,
        np.dtype(preprocessing.dtype),
        limit_gb,
        folder,
        decode,
    )


def stored(
    known_by: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    limit_gb: float,
    folder: Path,
    parts: Callable[[], Iterable[tuple[Array, Array, dict[int, str]]]],
) -> Decoded | None:
    """Open the node's array that `known_by` identifies, and build it first from `parts` if it does not exist."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not 0 < size <= limit_gb * 1e9:
        return None
    path = folder / f"{hashlib.sha256(known_by.encode()).hexdigest()[:24]}.{dtype.kind}{8 * dtype.itemsize}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with storage.locked(path.with_suffix(".lock")):
            bad = _read_bad(path, size)
            if bad is None:
                _make_room(folder, path, int(limit_gb * 1e9) - size)
                if shutil.disk_usage(folder).free < size + storage.KEEP_FREE:
                    return None
                bad = _build(path, shape, dtype, parts())
            os.utime(path)
            return Decoded(np.memmap(path, dtype, "r", shape=shape), bad)
    except OSError as error:
        logger.warning("no cache in %s: %s", folder, error)
        return None


def _build(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[tuple[Array, Array, dict[int, str]]]
) -> dict[int, str]:
    part = path.with_suffix(f".{os.getpid()}.part")
    bad: dict[int, str] = {}
    try:
        _reserve(part, int(np.prod(shape)) * dtype.itemsize)
        images = np.memmap(part, dtype, "r+", shape=shape)
        for index, pixels, reasons in parts:
            images[index] = pixels
            bad |= reasons
        images.flush()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"size": path.stat().st_size, "bad": bad}))
    return bad


def _reserve(path: Path, size: int) -> None:
    """Create a file of `size` bytes, with disk space allocated for all of them. Raises OSError.

    In a sparse file, a write to a hole while the disk, or a quota, is full would kill the process by a signal.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - start)))


def _read_bad(path: Path, size: int) -> dict[int, str] | None:
    """What the cache's description says, or None when there is no whole cache."""
    try:
        state = json.loads(path.with_suffix(".json").read_text())
        if path.stat().st_size != size or state["size"] != size:
            return None
        return {int(number): str(reason) for number, reason in state["bad"].items()}
    except (OSError, ValueError, KeyError):
        return None


def _make_room(folder: Path, keep: Path, allowed: int) -> None:
    """Remove caches, the longest unused first, until the others take no more than `allowed` bytes.

    A process that has mapped a removed cache can still use it; only the name disappears.
    """
    others = storage.longest_unused(
        path for path in [*folder.glob("*.u8"), *folder.glob("*.u16"), *folder.glob("*.f32")] if path != keep
    )
    sizes = {path: _size(path) for path in others}
    total = sum(sizes.values())
    for path in others:
        if total <= allowed:
            return
        total -= sizes[path]
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has made room
        return 0
