"""The README's commands run as they stand, and it speaks of every command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlic.cli.main import cli
from tests.golden import ROOT
from tests.readme import FEW, TEXT, commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.ray
@pytest.mark.slow
def test_the_quick_start(corpus: Path, tmp_path: Path) -> None:
    match = re.search(r"<!-- quick start.*?-->\n```sh\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    for name, source in {"photos": "images", "annotations": "annotations", "test-photos": "unlabelled"}.items():
        shutil.copytree(corpus / source, tmp_path / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in match[1].strip().splitlines():
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 31


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_here(shards: Path, tmp_path: Path) -> None:
    """The first row of the table of places; the others are in test_slurm_nodes.py and test_jobs.py."""
    ((program, *command),) = commands("here")
    assert program == "mlic"
    (tmp_path / "shards").symlink_to(shards)
    done = subprocess.run(
        [sys.executable, "-m", "mlic", *command, *FEW], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Ray inside this process" in done.stderr
    assert (tmp_path / "runs" / "tune" / "best.yaml").is_file()


def test_every_command_is_documented() -> None:
    reference = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    for name in cli.commands:
        assert f"`mlic {name}`" in TEXT or name == "train" or f"mlic {name} " in TEXT
        assert f"<code>mlic {name}</code>" in reference


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    """Files that a page names, and its links to other pages and their headings."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:jobs|slurm|cluster|tests|benchmarks)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlic", "demo", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"f1_micro"' in done.stdout
    for name in ("preds.tsv", "evaluation/report.html", "runs/tune/best.yaml", "shards/index.json"):
        assert (tmp_path / "mlic-demo" / name).is_file(), name
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
