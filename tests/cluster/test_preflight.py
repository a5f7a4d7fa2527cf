from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlic.cluster import preflight
from mlic.cluster.resources import Share
from mlic.config.tune import TuneConfig
from mlic.errors import ClusterError
from tests.cluster.test_connect import cluster


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
    assert preflight.trials_at_once(cluster(*nodes), config) == (at_once, share)


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
        preflight.trials_at_once(cluster((4, 0), (4, 0)), TuneConfig(shards="s", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("SHARDS", "--cpus-per-trial", "5000"), 4, "a trial needs 5000 CPUs; the largest node has"),
        (("EMPTY",), 3, "holds no index.json"),
        (("SHARDS", "--fold", "7"), 3, "fold 7 is asked for"),
        (("SHARDS", "--set", "space.optimiser={choice: [sgd]}"), 2, "did you mean optimizer?"),
    ],
)
def test_mistakes_are_refused_before_torch_and_ray_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: Path, arguments: tuple[str, ...], code: int, error: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = ["tune", *(each.replace("SHARDS", str(shards)).replace("EMPTY", str(tmp_path)) for each in arguments)]
    program = (
        "import sys\nfrom mlic.cli import main as cli\n"
        f"try:\n    cli.main({given!r})\n"
        "finally:\n    print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "[]\n")
    assert error in done.stderr
