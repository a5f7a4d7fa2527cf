"""Find identical and near-duplicate images, by their bytes and by a perceptual hash."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from mlic.data.pixels import deep_images

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

HASH_BYTES = 16
_SIDE = 9
MAX_DISTANCE = 10
# Hashes are cut into bands, and images that share a band are compared. Two hashes share a band if they differ in fewer
# bits than there are bands. In a very large set, too many images would share a narrow band. There, a hash has 8 bands
# of 16 bits, and pairs that differ in 8 to 10 bits are found in most cases, but not always.
_BANDS, _MANY = MAX_DISTANCE + 1, 500_000
_BLOCK = 2000  # hashes that are compared with one another at once
_MOST_PAIRS = 2 * 10**9  # most comparisons for a value of a band; beyond that, only neighbours are compared
_CHAIN = 50  # images in a group that may be a chain
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
    pixels = deep_images.picture(data, "gray", max_pixels, side=4 * _SIDE)
    small = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.int16)
    across = small[: _SIDE - 1, 1:] > small[: _SIDE - 1, :-1]
    down = small[1:, : _SIDE - 1] > small[:-1, : _SIDE - 1]
    return np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes()


def clusters(digests: Array, hashes: Array | None, column: Array | None = None) -> Array:
    """Groups (N,) of the same or nearly the same images, numbered by their first member.

    `digests` is uint8 (N, 32); `hashes` is uint8 (N, 16), or None to compare bytes alone; samples with the same value
    in `column` (N,) are in a group too, except those with -1. Two images are nearly the same when their hashes differ
    in at most MAX_DISTANCE of 128 bits. Groups are closed under all these relations.

    A chain of near-duplicates, as the frames of a film are, is cut, since its ends may have nothing in common: where a
    group has more than 50 members, and one differs from the first in more than 2 * MAX_DISTANCE bits, it becomes
    groups around leaders. A leader is the first member without a group, and those within this distance are its group
    (Hartigan, Clustering Algorithms, 1975, chapter 3).
    """
    size = len(digests)
    fixed = [_same_rows(digests)]
    if column is not None:
        known = np.flatnonzero(column >= 0)
        fixed.append(known[_same_values(column[known])])
    always = np.concatenate(fixed)
    if hashes is None:
        return _first_members(_components(size, always))
    return _first_members(_components(size, np.concatenate([always, _near_groups(hashes)])))


def _near_groups(hashes: Array) -> Array:
    """Pairs (N, 2) of the leader of a group of near-duplicates and an image; see `clusters`."""
    number = _components(len(hashes), near_pairs(hashes))
    pairs = np.stack([_first_members(number), np.arange(len(hashes))], axis=1)
    chains = [np.flatnonzero(number == chain) for chain in np.flatnonzero(_are_chains(number, hashes))]
    if not chains:
        return pairs
    logger.warning(
        "%s images are in chains of near-duplicates whose ends have little in common, such as the frames of a film; "
        "each is cut into groups, and --group-column keeps together what belongs together",
        f"{sum(map(len, chains)):,}",
    )
    for members in chains:
        pairs[members] = _around_leaders(hashes, members)
    return pairs


def _around_leaders(hashes: Array, members: Array) -> Array:
    """Pairs (M, 2) of the leader and the image, for each of `members` (M,)."""
    rows, leader, left = hashes[members], np.full(len(members), -1), np.arange(len(members))
    while len(left):
        first = left[0]
        near = np.bitwise_count(rows[left] ^ rows[first]).sum(axis=1) <= 2 * MAX_DISTANCE
        leader[left[near]] = members[first]
        left = left[~near]
    return np.stack([leader, members], axis=1)


def _components(size: int, pairs: Array) -> Array:
    """The number (N,) of the component of each of `size` images that the pairs (P, 2) link."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, two = pairs.T
    links = coo_matrix((np.ones(len(pairs), np.int8), (one, two)), shape=(size, size))
    number: Array = connected_components(links, directed=False)[1]
    return number


def _first_members(number: Array) -> Array:
    """The components (N,) numbered by their first member."""
    first = np.full(len(number), len(number))
    np.minimum.at(first, number, np.arange(len(number)))
    return np.asarray(first[number], np.int64)


def _are_chains(number: Array, hashes: Array) -> Array:
    """Whether each component is large, and has members that are far from its first one."""
    sizes = np.bincount(number)
    large = np.flatnonzero((sizes > _CHAIN)[number])
    first = _first_members(number)
    far = np.bitwise_count(hashes[large] ^ hashes[first[large]]).sum(axis=1) > 2 * MAX_DISTANCE
    is_chain = np.zeros(len(sizes), bool)
    is_chain[number[large[far]]] = True
    return is_chain


def near_pairs(hashes: Array) -> Array:
    """Pairs (P, 2) of hashes, uint8 (N, 16), at most MAX_DISTANCE bits apart; hashes of flat images are left out.

    The first of several equal hashes represents all of them: each of the others has one pair, with that first hash.
    """
    ones = np.bitwise_count(hashes).sum(axis=1)
    usable = np.flatnonzero((ones >= _FLAT) & (ones <= 8 * HASH_BYTES - _FLAT))
    _, first, of = np.unique(hashes[usable], axis=0, return_index=True, return_inverse=True)
    same = np.stack([usable[first[of.reshape(-1)]], usable], axis=1)
    pair_lists: list[Array] = [np.zeros((0, 2), np.int64), same[same[:, 0] != same[:, 1]]]
    usable = usable[np.sort(first)]
    for values in _bands(hashes[usable]):
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order])) + 1
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
        crowds = np.flatnonzero(ends - starts >= 2)
        for start, end in zip(starts[crowds], ends[crowds], strict=True):
            pair_lists += _near_in(hashes, usable[order[start:end]])
    return np.unique(np.concatenate(pair_lists), axis=0)


def _near_in(hashes: Array, members: Array) -> Iterator[Array]:
    """The near pairs (P, 2) among images that share a band, one block compared with one block at a time.

    If very many images share a value, each is compared only with those whose hashes are its neighbours in sorted order.
    """
    rows = np.ascontiguousarray(hashes[members]).view(np.uint64)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    members, rows = members[order], rows[order]
    reach = len(members) if len(members) ** 2 <= _MOST_PAIRS else max(_BLOCK, _MOST_PAIRS // len(members))
    for first in range(0, len(members), _BLOCK):
        for second in range(first, min(len(members), first + reach), _BLOCK):
            one, two = rows[first : first + _BLOCK], rows[second : second + _BLOCK]
            near = np.bitwise_count(one[:, None] ^ two[None]).sum(axis=2) <= MAX_DISTANCE
            a, b = np.nonzero(np.triu(near, k=1) if first == second else near)
            if len(a):
                yield np.sort(np.stack([members[first + a], members[second + b]], axis=1), axis=1)


def _bands(hashes: Array) -> Iterator[Array]:
    """The bits of the hashes in bands, each band's bits as one number (N,)."""
    if len(hashes) > _MANY:
        yield from hashes.view(np.uint16).T
        return
    bits = np.unpackbits(hashes, axis=1)
    for band in np.array_split(bits, _BANDS, axis=1):
        yield band @ (1 << np.arange(band.shape[1]))


def _same_rows(rows: Array) -> Array:
    """Pairs (P, 2) that link equal digests, uint8 (N, 32): those whose first 8 bytes are equal and then all."""
    pairs = _same_values(np.ascontiguousarray(rows[:, :8]).view(np.uint64).ravel())
    same_pairs: Array = pairs[(rows[pairs[:, 0]] == rows[pairs[:, 1]]).all(axis=1)]
    return same_pairs


def _same_values(values: Array) -> Array:
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    return np.stack([order[same], order[same + 1]], axis=1)
