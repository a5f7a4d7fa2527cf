from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlic.pack.splits import folds, leakage, random_split, stratified_split


@given(st.integers(0, 500), st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_sample_is_in_one_split_and_sizes_are_exact(n: int, seed: int, weights: list[int]) -> None:
    shares = {f"s{i}": w / sum(weights) for i, w in enumerate(weights)}
    split = random_split(n, shares, seed)
    sizes = np.bincount(split, minlength=len(shares))
    assert len(split) == n
    assert all(abs(size - share * n) < 1 for size, share in zip(sizes, shares.values(), strict=True))


def test_seeded() -> None:
    shares = {"train": 0.8, "val": 0.2}
    a, b, c = (random_split(100, shares, seed).tolist() for seed in (1, 1, 2))
    assert a == b != c


SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@given(st.integers(0, 10_000), st.integers(3, 200), st.integers(1, 6), st.booleans())
def test_stratified_splits_part_the_samples_and_cut_no_group(seed: int, n: int, num_labels: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, num_labels)) < rng.random(num_labels) * 0.5).astype(np.int8)
    groups = rng.integers(0, max(1, n // 2), n) if grouped else None
    split = stratified_split(targets, groups, SHARES, seed)
    assert set(split) <= {0, 1, 2}
    assert leakage(split, groups) == 0
    assert (split == stratified_split(targets, groups, SHARES, seed)).all()


def test_stratified_shares_are_near_the_target_and_rare_labels_everywhere() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((3000, 12)) < np.geomspace(0.01, 0.5, 12)).astype(np.int8)
    targets[:, 0] = 0
    targets[rng.choice(3000, 3, replace=False), 0] = 1
    for groups in (None, rng.integers(0, 2000, 3000)):
        split = stratified_split(targets, groups, SHARES, 1)
        for number, share in enumerate(SHARES.values()):
            part = split == number
            assert abs(part.mean() - share) < 0.01
            assert targets[part, 0].sum() == 1
            for label in range(1, 12):
                assert abs(targets[part, label].sum() / targets[:, label].sum() - share) < 0.03
    split = random_split(3000, SHARES, 1)
    worst = max(
        abs(targets[split == number, label].sum() / targets[:, label].sum() - share)
        for number, share in enumerate(SHARES.values())
        for label in range(1, 12)
    )
    assert worst > 0.05  # what stratification is there to fix


def test_samples_without_labels_are_dealt_out_too() -> None:
    split = stratified_split(np.zeros((100, 2), np.int8), None, SHARES, 0)
    assert np.bincount(split).tolist() == [80, 10, 10]
    split = stratified_split(np.zeros((100, 2), np.int8), None, {"train": 1.0, "val": 0.0}, 0)
    assert np.bincount(split).tolist() == [100]


@given(st.integers(0, 1000), st.booleans())
def test_fixed_samples_stay_and_take_their_groups_along(seed: int, stratified: bool) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((200, 4)) < 0.3).astype(np.int8)
    fixed = np.where(rng.random(200) < 0.2, 2, -1)
    groups = np.arange(200) // 2
    if stratified:
        split = stratified_split(targets, groups, SHARES, seed, fixed)
        mates = np.repeat((fixed.reshape(-1, 2) >= 0).any(axis=1), 2)
        assert (split[mates] == 2).all()
        assert leakage(split, groups) == 0
    else:
        split = random_split(200, SHARES, seed, fixed)
    assert (split[fixed >= 0] == 2).all()
    split = stratified_split(targets, None, {"train": 0.9, "val": 0.1, "test": 0.0}, seed, fixed)
    assert ((split == 2) == (fixed == 2)).all()


def test_folds_hold_equal_shares_of_every_label() -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((1000, 5)) < [0.01, 0.05, 0.1, 0.3, 0.5]).astype(np.int8)
    fold = folds(targets, np.arange(1000) // 2, 5, 0)
    assert np.bincount(fold).tolist() == pytest.approx([200] * 5, abs=3)
    for label in range(5):
        counts = np.bincount(fold[targets[:, label] == 1], minlength=5)
        assert counts.max() - counts.min() <= 4
    assert leakage(fold, np.arange(1000) // 2) == 0


def test_leakage_counts_groups_in_two_splits() -> None:
    assert leakage(np.array([0, 1, 1, 1, 0]), np.array([5, 5, 6, 6, 7])) == 1
    assert leakage(np.array([0, 1]), None) == 0
