"""The blocks of docs/python.md run as they stand, one after another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import ROOT


@pytest.mark.ray
@pytest.mark.slow
def test_the_blocks_of_the_page(corpus: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for name, source in {"photos": "images", "annotations": "annotations", "test-photos": "unlabelled"}.items():
        shutil.copytree(corpus / source, tmp_path / name)
    checks = "assert len(table) == len(vectors) == len(predictions) == 30\nassert targets.shape == (6,)\n"
    (tmp_path / "page.py").write_text("\n".join(blocks) + checks)
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "f1_micro" in done.stdout
