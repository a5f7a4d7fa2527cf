"""Recipes are valid configurations, and the entrypoints hand them and the caller's flags to the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from mlic import __version__
from mlic.cli.main import _STAGES
from mlic.config.jobs import STAGES
from mlic.config.load import build, read_file
from mlic.config.train import TrainConfig
from tests.golden import ROOT
from tests.readme import FEW, commands

JOBS = ROOT / "jobs"
Run = Callable[..., subprocess.CompletedProcess[str]]
# What a recipe leaves to the caller.
CALLERS = {
    "pack": {"images": "i", "labels": "l"},
    "train": {"shards": "s"},
    "tune": {"shards": "s"},
    "noise": {"shards": "s"},
    "batch-predict": {"model": "m", "images": "i", "out": "p.tsv"},
    "evaluate": {"predictions": "p"},
}


def model_of(recipe: Path) -> str:
    return recipe.stem.replace("_", "-")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_recipe_and_a_short_entrypoint(stage: str) -> None:
    name = stage.replace("-", "_")
    model: type[BaseModel] = _STAGES[stage][0]
    build(model, CALLERS[stage], read_file(JOBS / f"{name}.yaml"))
    lines = [line for line in (JOBS / f"{name}.py").read_text().splitlines() if line]
    assert len(lines) <= 8
    assert f"--working-dir jobs -- python {name}.py" in lines[0]


@pytest.mark.parametrize("name", ["backbones/frozen", "finetune"])
def test_recipes_for_published_weights(name: str) -> None:
    build(TrainConfig, {"shards": "s", "weights": "lite0.pth"}, read_file(JOBS / f"{name}.yaml"))


def test_an_entrypoint_passes_flags_and_exit_code_on(tmp_path: Path) -> None:
    for script, arguments, code, text in (
        ("train.py", ["nowhere"], 3, "nowhere does not exist"),
        ("train.py", ["nowhere", "--set", "epoch=1"], 2, "did you mean epochs?"),
        ("pack.py", ["--help"], 0, ""),
    ):
        command = [sys.executable, str(JOBS / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr


@dataclass(frozen=True)
class Standing:
    """A Ray cluster that was started by `ray start --head`, with a token."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def call(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def submit(self, *command: object) -> subprocess.CompletedProcess[str]:
        """By Ray's own program."""
        return self.call("ray", "job", "submit", "--working-dir", JOBS, "--", "python", *command)


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    place = {"RAY_TMPDIR": "/tmp/mlic-jobs-test", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}  # noqa: S108
    port, dashboard = 20_000 + os.getpid() % 9_000, 30_000 + os.getpid() % 9_000
    found = Standing(
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{dashboard}",
        {
            **os.environ,
            **place,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )
    found.environment.pop("RAY_ADDRESS", None)
    Path(place["RAY_TMPDIR"], "ray").mkdir(parents=True, exist_ok=True)
    head = ("--num-cpus", 2, "--port", port, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", port + 1)
    try:
        started = found.call(
            "ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", *head
        )
        assert started.returncode == 0, started.stderr
        yield found
    finally:
        subprocess.run(["pkill", "-KILL", "-f", f"{place['RAY_TMPDIR']}/ray/session"], check=False)


FIT = ("--epochs", 1, "--image-size", 64, "--set", "batch_size=32")


@pytest.mark.ray
@pytest.mark.slow
def test_the_readmes_searches(standing: Standing, shards: Path, tmp_path: Path) -> None:
    """From a node of the cluster, and from outside."""
    (tmp_path / "shards").symlink_to(shards)
    inside, outside = commands(
        "a Ray cluster",
        {
            "HOST:6379": standing.address,
            "shards/ ": f"{tmp_path}/shards ",
            "http://HOST:8265": standing.dashboard,
            "/shared/": f"{tmp_path}/",
        },
    )
    done = standing.call("env", *inside, *FEW, "--runs", tmp_path / "inside")
    assert done.returncode == 0, done.stderr
    assert "a Ray cluster of 1 node: 2 CPUs" in done.stderr
    assert (tmp_path / "inside" / "tune" / "best.yaml").is_file()
    done = standing.call(*outside, *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "tune" / "best.yaml").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_run_on_a_standing_cluster(standing: Standing, corpus: Path, shards: Path, tmp_path: Path) -> None:
    """Submitted by Ray's own program, as the README says."""
    done = standing.submit("train.py", shards, *FIT, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a Ray cluster of 1 node: 2 CPUs" in done.stdout
    done = standing.submit(
        "batch_predict.py", tmp_path / "runs" / "train", corpus / "unlabelled", "--out", tmp_path / "p.tsv"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 31
    done = standing.submit("train.py", shards)  # without an absolute path for its results
    assert done.returncode == 1
    assert "in the temporary folder of a Ray job" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_mlic_submits_and_brings_the_exit_code_back(standing: Standing, shards: Path, tmp_path: Path) -> None:
    own = tmp_path / "my train.yaml"
    own.write_text("epochs: 1\nimage_size: 64\nbatch_size: 32\n")
    given = ("mlic", "submit", own, "--stage", "train", "--address", standing.dashboard)
    runs = tmp_path / "it's mine"
    done = standing.call(*given, "--", shards, "--runs", runs, "--name", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a Ray cluster of 1 node: 2 CPUs" in done.stdout
    assert (runs / "run" / "model" / "model.json").is_file()
    done = standing.call(*given, "--json", "--", tmp_path / "nowhere", "--runs", runs, "--name", "none")
    assert done.returncode == 3, done.stdout + done.stderr
    assert json.loads(done.stdout)["exit_code"] == 3
    assert "nowhere does not exist" in done.stderr
    done = standing.call(*given, "--", shards, "--name", "run", "--epochs", "many")
    assert (done.returncode, "'many' is not a valid integer" in done.stderr) == (2, True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_of_a_name_is_begun_once_and_can_be_stopped(standing: Standing, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "long"
    given = ("mlic", "submit", JOBS / "train.yaml", "--address", standing.dashboard, "--name", "nightly")
    stage = ("--", shards, *FIT, "--epochs", 1000, "--runs", run.parent, "--name", run.name)
    done = standing.call(*given, "--no-wait", *stage)
    assert (done.returncode, done.stdout) == (0, "nightly\n"), done.stderr
    for _ in range(300):
        if (run / "metrics.jsonl").is_file():
            break
        time.sleep(0.2)
    again = standing.call(*given, "--no-wait", *stage)
    assert (again.returncode, "nightly is at work already" in again.stderr) == (0, True)
    with subprocess.Popen(
        [str(word) for word in (*given, *stage)], env=standing.environment, stdout=subprocess.PIPE, text=True
    ) as following:
        stopped = standing.call("ray", "job", "stop", "nightly")
        assert stopped.returncode == 0, stopped.stderr
        out, _ = following.communicate(timeout=120)
    assert following.returncode == 6, out
    assert "epoch" in out


@pytest.mark.ray
@pytest.mark.slow
def test_who_shows_no_token_cannot_submit(standing: Standing) -> None:
    given = ("mlic", "submit", JOBS / "train.yaml", "--", "/nowhere")
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "e" * 64}):
        done = standing.call(*given, **wrong)
        assert done.returncode == 4, done.stderr
        assert "refuses this client" in done.stderr
    done = standing.call(*given, RAY_API_SERVER_ADDRESS="http://127.0.0.1:9")
    assert done.returncode == 4, done.stderr
    assert "no Ray dashboard answers at http://127.0.0.1:9" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_checked(standing: Standing, tmp_path: Path) -> None:
    done = standing.call("mlic", "cluster", "check", tmp_path, "--address", standing.address, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (4 if report["problems"] else 0), done.stderr
    (node,) = report["nodes"]
    assert (node["cpus"], node["sees"], node["versions"]["mlic"]) == (2, True, __version__)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["mine.yaml"], "mine.yaml is named after no stage; give --stage, one of pack, train"),
        (["mine.yaml", "--stage", "training"], "'training' is not one of"),
        (["train.yaml", "--", "shards", "--epoch", "3"], "No such option"),
        (["train.yaml", "--", "shards", "--set", "epoch=3"], "did you mean epochs?"),
        (["train.yaml", "--", "shards", "--name", "it's mine"], 'not "it\'s mine"'),
        (["train.yaml"], "shards is not given"),
    ],
)
def test_what_cannot_be_submitted(mlic: Run, tmp_path: Path, given: list[str], said: str) -> None:
    for name in ("mine.yaml", "train.yaml"):
        (tmp_path / name).write_text("epochs: 1\n")
    done = mlic("submit", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
