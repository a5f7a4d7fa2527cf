from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlic.data.splits import random_split, stratified_split


@given(st.integers(0, 500), st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_sample_is_in_one_split_and_sizes_are_exact(n: int, seed: int, weights: list[int]) -> None:
    shares = {f"s{i}": w / sum(weights) for i, w in enumerate(weights)}
    parts = random_split(n, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert all(abs(len(part) - share * n) < 1 for part, share in zip(parts, shares.values(), strict=True))


def test_seeded() -> None:
    shares = {"train": 0.8, "val": 0.2}
    a, b, c = (random_split(100, shares, seed)[1].tolist() for seed in (1, 1, 2))
    assert a == b != c


SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@given(st.integers(0, 10_000), st.integers(3, 200), st.integers(1, 6), st.booleans())
def test_stratified_splits_part_the_samples_and_cut_no_group(seed: int, n: int, num_labels: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, num_labels)) < rng.random(num_labels) * 0.5).astype(np.int8)
    groups = rng.integers(0, max(1, n // 2), n) if grouped else None
    parts = stratified_split(targets, groups, SHARES, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    if groups is not None:
        for a in range(3):
            for b in range(a):
                assert not set(groups[parts[a]]) & set(groups[parts[b]])
    again = stratified_split(targets, groups, SHARES, seed)
    assert all((x == y).all() for x, y in zip(parts, again, strict=True))


def test_stratified_shares_are_near_the_target_and_rare_labels_everywhere() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((3000, 12)) < np.geomspace(0.01, 0.5, 12)).astype(np.int8)
    targets[:, 0] = 0
    targets[rng.choice(3000, 3, replace=False), 0] = 1
    for groups in (None, rng.integers(0, 2000, 3000)):
        parts = stratified_split(targets, groups, SHARES, 1)
        for part, share in zip(parts, SHARES.values(), strict=True):
            assert abs(len(part) / 3000 - share) < 0.01
            assert targets[part, 0].sum() == 1
            for label in range(1, 12):
                assert abs(targets[part, label].sum() / targets[:, label].sum() - share) < 0.03
    worst = max(
        abs(targets[part, label].sum() / targets[:, label].sum() - share)
        for part, share in zip(random_split(3000, SHARES, 1), SHARES.values(), strict=True)
        for label in range(1, 12)
    )
    assert worst > 0.05  # what stratification is there to mend


def test_samples_without_labels_are_dealt_out_too() -> None:
    parts = stratified_split(np.zeros((100, 2), np.int8), None, SHARES, 0)
    assert [len(part) for part in parts] == [80, 10, 10]
    parts = stratified_split(np.zeros((100, 2), np.int8), None, {"train": 1.0, "val": 0.0}, 0)
    assert [len(part) for part in parts] == [100, 0]
