from __future__ import annotations

from mlic.train.throughput import RankTimes, behind


def test_only_a_rank_that_holds_up_the_others_is_named() -> None:
    even = [RankTimes(f"node{i}", 0.01, 0.1 + 0.01 * i) for i in range(4)]
    assert behind(even, 0.4) is None
    said = behind([*even, RankTimes("node4", 0.3, 0.1)], 0.5)
    assert said is not None
    assert "rank 4 on node4 falls behind: it has its loss after 400 ms" in said
    assert "waiting for data" in said
    assert "the other ranks after 130 ms" in said
    assert behind([*even, RankTimes("node4", 0.01, 0.25)], 3.0) is None  # a twentieth of a step
    two = behind([RankTimes("a", 0.0, 0.1), RankTimes("b", 0.0, 0.2)], 0.4)
    assert two is not None
    assert "rank 1 on b" in two
