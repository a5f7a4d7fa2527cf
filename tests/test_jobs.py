"""Recipes are valid configurations, and the entrypoints hand them and the caller's flags to the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from mlic.cli import _STAGES
from mlic.config import STAGES, TrainConfig
from mlic.settings import build, read_file
from tests.golden import ROOT

JOBS = ROOT / "jobs"
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


@pytest.mark.parametrize("name", ["frozen", "finetune"])
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


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_run_on_a_standing_cluster(corpus: Path, shards: Path, tmp_path: Path) -> None:
    """`ray start --head`, with a token, and the stages submitted to it as the README says."""
    place = {"RAY_TMPDIR": "/tmp/mlic-jobs-test", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}  # noqa: S108
    port, dashboard = 20_000 + os.getpid() % 9_000, 30_000 + os.getpid() % 9_000
    environment = {
        **os.environ, **place, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)

    def call(*command: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def submit(*command: object) -> subprocess.CompletedProcess[str]:
        return call("ray", "job", "submit", "--working-dir", JOBS, "--", "python", *command)

    Path(place["RAY_TMPDIR"], "ray").mkdir(parents=True, exist_ok=True)
    head = ("--num-cpus", 2, "--port", port, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", port + 1)
    started = call("ray", "start", "--head", "--dashboard-host", "127.0.0.1", *head)
    try:
        assert started.returncode == 0, started.stderr
        fit = ("--epochs", 1, "--image-size", 64, "--runs", tmp_path / "runs")
        done = submit("train.py", shards, *fit, "--set", "batch_size=32")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a Ray cluster of 1 node: 2 CPUs" in done.stdout
        done = submit(
            "batch_predict.py", tmp_path / "runs" / "train", corpus / "unlabelled", "--out", tmp_path / "p.tsv"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len((tmp_path / "p.tsv").read_text().splitlines()) == 31
        done = submit("train.py", shards)  # without an absolute path for its results
        assert done.returncode == 1
        assert "in the temporary folder of a Ray job" in done.stdout
    finally:
        subprocess.run(["pkill", "-KILL", "-f", f"{place['RAY_TMPDIR']}/ray/session"], check=False)
