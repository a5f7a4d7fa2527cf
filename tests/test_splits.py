from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlic.data.splits import random_split


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
