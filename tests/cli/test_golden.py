"""Help texts and sbatch files are compared whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import ROOT, expected


@pytest.mark.parametrize("path", expected(), ids=lambda path: str(path.relative_to(ROOT)))
def test_golden(path: Path) -> None:
    assert path.is_file(), f"{path} is missing: make golden"
    assert path.read_text(encoding="utf-8") == expected()[path], "accept the change by: make golden"
