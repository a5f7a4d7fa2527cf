"""Assign samples to splits and folds: at random, or stratified over all labels with groups kept together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ONE_BY_ONE = 64  # the last groups of a label are assigned one by one, so that each split gets at least one


def random_split(num_samples: int, shares: Mapping[str, float], seed: int, fixed: Array | None = None) -> Array:
    """The split (N,) of each sample, numbered in the order of `shares`, at random.

    Sizes are exact: each share of the samples is rounded down, and the remaining samples go to the splits with the
    largest remainders, the earlier split first. Samples whose `fixed` (N,) is not -1 keep that split, and the others
    fill up the splits.
    """
    fixed = np.full(num_samples, -1) if fixed is None else fixed
    chosen = fixed.astype(np.int64)
    free = np.random.default_rng(seed).permutation(np.flatnonzero(fixed < 0))
    room = _room(np.array(list(shares.values())), fixed, np.ones(num_samples, np.int64))
    sizes = _sizes(len(free), room)
    chosen[free] = np.repeat(np.arange(len(shares)), sizes)
    return chosen


def stratified_split(
    targets: Array, groups: Array | None, shares: Mapping[str, float], seed: int, fixed: Array | None = None
) -> Array:
    """The split (N,) of each sample, so that each split has its share of every label and no group is cut.

    `targets` is (N, L) with 1 where the label is given. `groups` (N,) is the number of each sample's group; if it is
    None, each sample is a group of its own. Samples whose `fixed` (N,) is not -1 keep that split. The rest of such a
    group gets the split of the group's first fixed sample.

    The method is the iterative stratification of Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label
    Data (2011). It starts with the rarest label, and assigns each of its samples to the split that lacks most of that
    label. Here it assigns whole groups, and groups with the same labels together. There is one addition: a label in at
    least as many groups as there are splits is in every split.
    """
    num_samples = len(targets)
    names, of = (np.arange(num_samples),) * 2 if groups is None else np.unique(groups, return_inverse=True)
    sizes = np.bincount(of, minlength=len(names))
    split_of = np.full(len(names), -1)
    if fixed is not None:
        known = np.flatnonzero(fixed >= 0)[::-1]
        split_of[of[known]] = fixed[known]
    kinds, kind_of = _kinds(targets, of, sizes)
    chosen = _deal(kinds, kind_of, sizes, split_of, np.array(list(shares.values())), np.random.default_rng([seed, 6]))
    result: Array = chosen[of]
    if fixed is not None:
        result = np.where(fixed >= 0, fixed, result)
    return result


def folds(targets: Array, groups: Array | None, count: int, seed: int, fixed: Array | None = None) -> Array:
    """The fold (N,) of each sample, from 0 to `count` - 1, stratified over all labels, with no group cut.

    Samples whose `fixed` (N,) is not -1 keep that fold.
    """
    return stratified_split(targets, groups, {str(fold): 1 / count for fold in range(count)}, seed + 1, fixed)


def leakage(splits: Array, groups: Array | None) -> int:
    """How many groups have samples in more than one split."""
    if groups is None:
        return 0
    pairs = np.unique(np.stack([groups, splits]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def _kinds(targets: Array, of: Array, sizes: Array) -> tuple[Array, Array]:
    """How often each kind of group has each label (K, L), and the kind (G,) of each group.

    Two groups are of the same kind if they have the same number of samples with each label.
    """
    bits = np.packbits(targets == 1, axis=1)
    alone = sizes[of] == 1
    kind_of = np.zeros(len(sizes), np.int64)
    rows, inverse = np.unique(bits[alone], axis=0, return_inverse=True)
    kind_of[of[alone]] = inverse.reshape(-1)
    held = np.unpackbits(rows, axis=1, count=targets.shape[1]).astype(np.int64)
    repeated = np.flatnonzero(sizes > 1)
    if not len(repeated):
        return held, kind_of
    numbers = np.full(len(sizes), -1)
    numbers[repeated] = np.arange(len(repeated))
    sums = np.zeros((len(repeated), targets.shape[1]), np.int64)
    np.add.at(sums, numbers[of[~alone]], targets[~alone] == 1)
    kind_of[repeated] = len(held) + np.arange(len(repeated))
    return np.concatenate([held, sums]), kind_of


def _deal(
    kinds: Array, kind_of: Array, sizes: Array, split_of: Array, shares: Array, rng: np.random.Generator
) -> Array:
    """The split (G,) of each group, given the kinds (K, L), the kind, the size and the fixed split (G,) of each."""
    chosen = split_of.copy()
    need, room = _lacking(kinds, kind_of, sizes, split_of, shares)
    has = np.stack([kinds[kind_of[split_of == split]].sum(axis=0) > 0 for split in range(len(shares))])
    order = rng.permutation(len(sizes))
    order = order[chosen[order] < 0]
    order = order[np.argsort(kind_of[order], kind="stable")]  # the free groups of each kind lie together, shuffled
    counts = np.bincount(kind_of[order], minlength=len(kinds))
    starts = np.cumsum(counts) - counts
    size_of = np.ones(len(kinds), np.int64)
    size_of[kind_of] = sizes
    shuffled = rng.permutation(len(kinds))
    open_ = counts > 0
    left = (kinds > 0).astype(np.float32).T @ counts  # how many free groups have each label
    while left.any():
        label = int(np.where(left > 0, left, len(sizes) + 1).argmin())
        members = shuffled[open_[shuffled] & (kinds[shuffled, label] > 0)]
        members = members[np.lexsort([counts[members], -kinds[members, label]])]  # large groups while there is room
        remaining = int(left[label])
        for kind in members:
            begin, end = starts[kind], starts[kind] + counts[kind]
            while begin < end:
                bulk = min(int(end - begin), remaining - _ONE_BY_ONE)
                if bulk > 1:
                    dealt = _sizes(bulk, np.where(shares > 0, np.maximum(need[:, label], 0), 0), shares)
                else:
                    dealt = _one(need[:, label], room, has[:, label], shares, remaining)
                amount = int(dealt.sum())
                chosen[order[begin : begin + amount]] = np.repeat(np.arange(len(shares)), dealt)
                need -= dealt[:, None] * kinds[kind]
                room -= dealt * size_of[kind]
                has |= (dealt > 0)[:, None] & (kinds[kind] > 0)
                begin, remaining = begin + amount, remaining - amount
        open_[members] = False
        left -= (kinds[members] > 0).T @ counts[members]
    _fill(chosen, order[chosen[order] < 0], sizes, room, shares)
    return chosen


def _lacking(kinds: Array, kind_of: Array, sizes: Array, split_of: Array, shares: Array) -> tuple[Array, Array]:
    """What each split still lacks of each label (S, L), and of samples (S,), beyond the groups that are fixed."""
    of_kind = np.bincount(kind_of, minlength=len(kinds))
    need = np.outer(shares, of_kind @ kinds)
    for split in range(len(shares)):
        need[split] -= np.bincount(kind_of[split_of == split], minlength=len(kinds)) @ kinds
    return need, _room(shares, split_of, sizes)


def _room(shares: Array, fixed: Array, sizes: Array) -> Array:
    """How many samples each split (S,) lacks of its share."""
    known = fixed >= 0
    taken = np.bincount(fixed[known].astype(np.int64), weights=sizes[known], minlength=len(shares))
    return shares * float(sizes.sum()) - taken


def _one(need: Array, room: Array, has: Array, shares: Array, remaining: int) -> Array:
    """Assign one group to one split (S,): the split that lacks most of the label in proportion to its share.

    Among splits that lack about as much, the one with most room gets it. So the splits fill at the same pace, with
    samples of the same kinds.
    """
    usable = shares > 0
    scale = np.where(usable, shares, 1)
    wanted = np.where(usable, need / scale, -np.inf)
    lacking = usable & ~has
    if lacking.any() and remaining <= lacking.sum():
        wanted = np.where(lacking, wanted, -np.inf)  # just enough are left to give each split its first
    best = np.flatnonzero(wanted >= wanted.max() - 1)
    dealt = np.zeros(len(wanted), np.int64)
    dealt[best[np.argmax((room / scale)[best])]] = 1
    return dealt


def _fill(chosen: Array, rest: Array, sizes: Array, room: Array, shares: Array) -> None:
    """Give the groups without a label to the splits with most room: large ones first, single samples all at once."""
    usable = np.flatnonzero(shares > 0)
    groups = rest[sizes[rest] > 1]
    for group in groups[np.argsort(-sizes[groups], kind="stable")]:
        split = int(usable[room[usable].argmax()])
        chosen[group] = split
        room[split] -= sizes[group]
    single = rest[sizes[rest] == 1]
    counts = _sizes(len(single), np.where(shares > 0, np.maximum(room, 0), 0), shares)
    chosen[single] = np.repeat(np.arange(len(shares)), counts)


def _sizes(total: int, weights: Array, otherwise: Array | None = None) -> Array:
    """Whole numbers that sum to `total`, in proportion to the weights; the largest remainders are rounded up.

    Where all weights are 0, `otherwise` are the weights.
    """
    weights = np.maximum(weights, 0)
    if weights.sum() <= 0 and otherwise is not None:
        weights = otherwise
    exact = total * weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), total / len(weights))
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    sizes[np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]] += 1
    return np.asarray(sizes)
