"""What is published: a wheel that works in an empty environment, without the clone."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from mlic.data import toy
from tests.golden import ROOT


def done(folder: Path, *command: Any) -> str:
    words = list(map(str, command))
    completed = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, (words, completed.stdout, completed.stderr)
    return completed.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    done(ROOT, sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ".")
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    done(ROOT, sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    venv.create(tmp_path / "empty", with_pip=True)
    programs = tmp_path / "empty" / "bin"
    done(tmp_path, programs / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    toy.generate(tmp_path, num_samples=120, num_unlabelled=10, seed=1)
    mlic = programs / "mlic"
    assert "lite-quick" in done(tmp_path, mlic, "recipes")
    assert "--epochs" in done(tmp_path, mlic, "train", "--config", "frozen", "--help")
    done(tmp_path, mlic, "pack", "images", "--labels", "annotations")
    done(tmp_path, mlic, "train", "--epochs", "1", "--image-size", "64")
    done(tmp_path, mlic, "batch-predict", "runs/small", "unlabelled")
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 11
    assert "f1_micro" in done(tmp_path, mlic, "evaluate", "runs/small")
