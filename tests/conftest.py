"""Fixtures: a toy corpus, its shards, and one Ray for all tests that need one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mlic.cluster.connect import connect
from mlic.config.data import PackConfig
from mlic.data import toy

# How long an example takes says what else the machine does, and nothing about the code.
# The same examples at each run; `make soak` looks for new ones.
settings.register_profile("mlic", deadline=None, derandomize="MLIC_EXAMPLES" not in os.environ)
settings.load_profile("mlic")

# Some machines set a thread count or a Ray of their own; tests run on neither.
for name in ("RAY_ADDRESS", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
    os.environ.pop(name, None)


# A shell without job control starts what it puts into the background deaf to Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_LONGEST = ("test_slurm_nodes.py", "test_kill.py", "test_recipes.py", "test_kill_nodes.py", "test_tune.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: processes take files in turns, and some idle while another one ends the last."""
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def decoded_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep their decoded images to themselves."""
    os.environ["MLIC_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/`, `annotations/` and `unlabelled/` of 240 and 30 generated images of 64 pixels."""
    folder = tmp_path_factory.mktemp("corpus")
    toy.generate(folder, num_samples=240, num_unlabelled=30, seed=7)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray with two CPUs, shared by the tests of the `ray` mark."""
    with connect(None):
        yield


@pytest.fixture(scope="session")
def shards(corpus: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus packed with the default splits."""
    from mlic.pack.pack import pack

    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(PackConfig(images=corpus / "images", labels=corpus / "annotations", out=out, workers=2))
    return out


@pytest.fixture(scope="session")
def trained_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the toy shards, for tests that only need some model. They do not change it."""
    from mlic.config.train import TrainConfig
    from mlic.train.train import train
    from tests.end_to_end.test_pipeline import FIT, NET

    runs = tmp_path_factory.mktemp("runs")
    return train(TrainConfig(shards=shards, runs=runs, name="run", workers=1, **(FIT | NET | {"epochs": 1}))).run


@pytest.fixture
def mlic(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, in an empty folder."""

    def run(*arguments: object, cwd: Path = tmp_path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlic", *(str(argument) for argument in arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)

    return run
