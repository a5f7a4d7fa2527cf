"""Which sample goes to which split: at random, or stratified over all labels with groups that are never cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def random_split(num_samples: int, shares: Mapping[str, float], seed: int) -> list[Array]:
    """Deal sample numbers out to splits at random.

    Sizes are exact: each share of `num_samples` rounded down, and what is left given to the largest remainders, the
    earlier split first. Returns one sorted int64 array of sample numbers a split, in the order of `shares`.
    """
    order = np.random.default_rng(seed).permutation(num_samples)
    sizes = _sizes(num_samples, np.array(list(shares.values())))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def stratified_split(targets: Array, groups: Array | None, shares: Mapping[str, float], seed: int) -> list[Array]:
    """Deal samples out so that each split has its share of every label, and no group is cut.

    `targets` is (N, L) with 1 where the label is given; `groups` (N,) numbers the samples' groups, each sample its own
    where it is None. The method is the iterative stratification of Sechidis, Tsoumakas and Vlahavas, On the
    Stratification of Multi-Label Data (2011): the rarest label first, each of its samples to the split that lacks most
    of it; here over whole groups, and with one addition: a label in at least as many groups as there are splits is in
    every split. Returns one sorted int64 array of sample numbers a split, in the order of `shares`.
    """
    num_samples = len(targets)
    positive = (targets == 1).astype(np.int64)
    if groups is None:
        groups = np.arange(num_samples)
    names, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of, minlength=len(names))
    held = np.zeros((len(names), targets.shape[1]), dtype=np.int64)
    np.add.at(held, group_of, positive)
    chosen = _deal(held, sizes, np.array(list(shares.values())), np.random.default_rng([seed, 6]))
    split_of = chosen[group_of]
    return [np.flatnonzero(split_of == number) for number in range(len(shares))]


def _deal(held: Array, sizes: Array, shares: Array, rng: np.random.Generator) -> Array:
    """The split (G,) of each group, given its positives (G, L) and its number of samples (G,)."""
    num_groups = len(held)
    chosen = np.full(num_groups, -1)
    need = np.outer(shares, held.sum(axis=0))  # of each label, in each split: what it still lacks
    room = shares * sizes.sum()
    has = np.zeros((len(shares), held.shape[1]), dtype=bool)
    usable = shares > 0
    order = rng.permutation(num_groups)
    left = (held > 0).sum(axis=0)
    while (left > 0).any():
        label = int(np.where(left > 0, left, num_groups + 1).argmin())
        members = order[(held[order, label] > 0) & (chosen[order] < 0)]
        members = members[np.argsort(-held[members, label], kind="stable")]  # large groups while there is room for them
        for position, group in enumerate(members):
            lacking = usable & ~has[:, label]
            wanted = need[:, label]
            if lacking.any() and len(members) - position <= lacking.sum():
                wanted = np.where(lacking, wanted, -np.inf)  # just enough are left to give each split its first
            best = np.flatnonzero(usable & (wanted >= wanted[usable].max() - 1e-9))
            split = int(best[np.argmax(room[best])])
            chosen[group] = split
            need[split] -= held[group]
            room[split] -= sizes[group]
            has[split] |= held[group] > 0
        left = ((held > 0) & (chosen < 0)[:, None]).sum(axis=0)
    _fill(chosen, order[chosen[order] < 0], sizes, room)
    return chosen


def _fill(chosen: Array, rest: Array, sizes: Array, room: Array) -> None:
    """Give the groups without a label to the splits with most room: large ones first, single samples all at once."""
    for group in rest[np.argsort(-sizes[rest], kind="stable")]:
        if sizes[group] == 1:
            break
        split = int(room.argmax())
        chosen[group] = split
        room[split] -= sizes[group]
    single = rest[chosen[rest] < 0]
    counts = _sizes(len(single), np.maximum(room, 0) if room.max() > 0 else np.ones(len(room)))
    chosen[single] = np.repeat(np.arange(len(room)), counts)


def _sizes(total: int, weights: Array) -> Array:
    """Whole numbers that sum to `total`, in proportion to the weights; the largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    sizes[np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]] += 1
    return np.asarray(sizes)
