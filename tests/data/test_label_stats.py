from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlic.data import label_stats


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 5))
def test_counts_against_loops(seed: int, n: int, num_labels: int) -> None:
    targets = np.random.default_rng(seed).integers(-1, 2, (n, num_labels)).astype(np.int8)
    together = label_stats.together(targets)
    for a in range(num_labels):
        for b in range(num_labels):
            assert together[a, b] == sum(row[a] == 1 and row[b] == 1 for row in targets)
    assert label_stats.cardinality(targets).sum() == n
    sets = [frozenset(np.flatnonzero(row == 1)) for row in targets]
    once = sum(sets.count(found) == 1 for found in set(sets))
    assert label_stats.label_sets(targets) == (len(set(sets)), once)


def test_implications_and_their_exceptions() -> None:
    rng = np.random.default_rng(0)
    people = rng.random(1000) < 0.5
    portrait = people & (rng.random(1000) < 0.3)
    baby = people & (rng.random(1000) < 0.1)
    everything = rng.random(1000) < 0.99
    targets = np.stack([people, portrait, baby, everything], axis=1).astype(np.int8)
    wrong = np.flatnonzero(portrait)[:3]
    targets[wrong, 0] = 0
    targets[np.flatnonzero(portrait)[3], 0] = -1
    found = label_stats.implications(targets, 20, 0.95)
    assert {(item.first, item.second) for item in found} == {(2, 0), (1, 0)}
    (item,) = [item for item in found if item.first == 1]
    assert item.second == 0
    assert set(wrong) <= set(item.exceptions.tolist())
    assert item.support == portrait.sum() - 1
    assert not [item for item in found if item.second == 3]  # what nearly all have is implied by nothing
    assert label_stats.implications(targets, 2000, 0.95) == []
