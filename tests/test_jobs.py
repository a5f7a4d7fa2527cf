"""Recipes are valid configurations, and the entrypoints hand them and the caller's flags to the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from mlic.cli import _STAGES
from mlic.config import STAGES, build, read_file
from tests.golden import ROOT

JOBS = ROOT / "jobs"
# What a recipe leaves to the caller.
CALLERS = {
    "pack": {"images": "i", "labels": "l"},
    "train": {"shards": "s"},
    "tune": {"shards": "s"},
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
    assert f"python jobs/{name}.py" in lines[0]


def test_an_entrypoint_passes_flags_and_exit_code_on(tmp_path: Path) -> None:
    for script, arguments, code, text in (
        ("train.py", ["nowhere"], 3, "nowhere does not exist"),
        ("train.py", ["nowhere", "--set", "epoch=1"], 2, "did you mean epochs?"),
        ("pack.py", ["--help"], 0, ""),
    ):
        command = [sys.executable, str(JOBS / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
