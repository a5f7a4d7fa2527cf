"""Images that kill the process which decodes them, for the tests of what outlives that."""

from __future__ import annotations

from pathlib import Path

import pytest

# Loaded by every Python process of a test: an image whose file ends in POISON kills the one that decodes it.
_HOOK = """
import os, signal, sys
from mlic.data.pixels import images
plain = images.decode
def decode(data, *arguments, **settings):
    if data.endswith(b"POISON"):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(data, *arguments, **settings)
images.decode = decode
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that this test starts die of poisoned images."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(_HOOK)
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'hook'}:{Path(__file__).parents[1]}")


def put(*images: Path) -> None:
    """Poison some images."""
    for path in images:
        path.write_bytes(path.read_bytes() + b"POISON")
