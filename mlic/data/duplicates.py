"""Images that are the same, or nearly: by their bytes, and by a hash that survives scaling and re-encoding."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from mlic.data import images

Array = np.ndarray[Any, Any]

HASH_BYTES = 16
_SIDE = 9
MAX_DISTANCE = 10
# Hashes are cut into bands, and images that share a band are compared. Two hashes that differ in fewer bits than there
# are bands share one. Of very many images narrow bands would be shared by too many, so there they are fewer and wider,
# and pairs that differ in 8 to 10 bits are found mostly, not always.
_BANDS, _WIDE_BANDS, _MANY = MAX_DISTANCE + 1, 8, 500_000
_CROWD = 2000  # a band value in more images than this says nothing about them
_FLAT = (
    20  # bits: an image with fewer edges one way or the other, a dark or empty one, looks like all others of its kind
)


def digest(data: bytes) -> bytes:
    """The sha256 (32 bytes) of a file."""
    return hashlib.sha256(data).digest()


def perceptual_hash(data: bytes, max_pixels: int) -> bytes:
    """A difference hash (16 bytes) of an image: which of neighbouring cells of a 9 x 9 grey thumbnail is brighter.

    64 bits from left to right and 64 from top to bottom. Raises BadImage. The idea is Neal Krawetz's dHash (2013).
    """
    pixels = images.decode(data, "gray", max_pixels, side=4 * _SIDE)
    small = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.int16)
    across = small[: _SIDE - 1, 1:] > small[: _SIDE - 1, :-1]
    down = small[1:, : _SIDE - 1] > small[:-1, : _SIDE - 1]
    return np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes()


def clusters(digests: Array, hashes: Array | None) -> Array:
    """Groups (N,) of the same or nearly the same images, numbered by their first member.

    `digests` is uint8 (N, 32); `hashes` is uint8 (N, 16), or None to compare bytes alone. Two images are nearly the
    same when their hashes differ in at most MAX_DISTANCE of 128 bits; groups are closed under that.
    """
    parent = np.arange(len(digests))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def join(i: int, j: int) -> None:
        a, b = find(i), find(j)
        parent[max(a, b)] = min(a, b)

    for members in _equal_rows(digests):
        for member in members[1:]:
            join(int(members[0]), int(member))
    if hashes is not None:
        for i, j in near_pairs(hashes):
            join(i, j)
    return np.array([find(i) for i in range(len(parent))])


def near_pairs(hashes: Array) -> list[tuple[int, int]]:
    """Pairs (i < j) of hashes, uint8 (N, 16), at most MAX_DISTANCE bits apart; hashes of flat images are left out."""
    ones = np.bitwise_count(hashes).sum(axis=1)
    usable = np.flatnonzero((ones >= _FLAT) & (ones <= 8 * HASH_BYTES - _FLAT))
    bits = np.unpackbits(hashes[usable], axis=1)
    found: set[tuple[int, int]] = set()
    for band in np.array_split(bits, _BANDS if len(usable) <= _MANY else _WIDE_BANDS, axis=1):
        values = band @ (1 << np.arange(band.shape[1]))
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order])) + 1
        for members in np.split(order, edges):
            if 2 <= len(members) <= _CROWD:
                rows = hashes[usable[members]]
                apart = np.bitwise_count(rows[:, None] ^ rows[None]).sum(axis=2)
                for a, b in zip(*np.nonzero(np.triu(apart <= MAX_DISTANCE, k=1)), strict=True):
                    i, j = sorted((int(usable[members[a]]), int(usable[members[b]])))
                    found.add((i, j))
    return sorted(found)


def _equal_rows(rows: Array) -> list[list[int]]:
    members: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.tobytes()].append(i)
    return [group for group in members.values() if len(group) > 1]
