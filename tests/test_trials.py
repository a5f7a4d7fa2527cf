from __future__ import annotations

import pytest

from mlic.cluster.ray import Share
from mlic.config import TuneConfig
from mlic.errors import ClusterError
from mlic.stages import trials
from tests.test_cluster import cluster


@pytest.mark.parametrize(
    ("nodes", "settings", "at_once", "share"),
    [
        ([(2, 0)], {}, 2, Share(1, 1, 0)),
        ([(8, 0), (4, 0)], {"cpus_per_trial": 3}, 3, Share(1, 3, 0)),
        ([(16, 4), (16, 4)], {}, 8, Share(1, 4, 1)),
        ([(16, 4)], {"gpus_per_trial": 0.5}, 8, Share(1, 2, 0.5)),
        ([(4, 4)], {"gpus_per_trial": 0.25}, 4, Share(1, 1, 0.25)),
        ([(16, 4)], {"gpus_per_trial": 0}, 16, Share(1, 1, 0)),
        ([(16, 4), (16, 4)], {"workers_per_trial": 4}, 2, Share(4, 4, 1)),
        ([(16, 4)], {"workers": 3}, 3, Share(1, 4, 1)),
    ],
)
def test_trials_at_a_time(nodes: list[tuple[int, int]], settings: dict[str, float], at_once: int, share: Share) -> None:
    config = TuneConfig(shards="s", **settings)  # type: ignore[arg-type]
    assert trials._fitting(cluster(*nodes), config) == (at_once, share)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"cpus_per_trial": 5}, "a trial needs 5 CPUs; the largest node has 4"),
        ({"gpus_per_trial": 1}, "a trial needs 1 GPUs; the largest node has 0"),
        ({"workers_per_trial": 9}, "a trial needs 9 workers; this cluster has room for 8"),
    ],
)
def test_what_does_not_fit(settings: dict[str, float], error: str) -> None:
    with pytest.raises(ClusterError, match=error):
        trials._fitting(cluster((4, 0), (4, 0)), TuneConfig(shards="s", **settings))  # type: ignore[arg-type]
