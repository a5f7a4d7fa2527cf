"""What the README says of where a command runs: the tests run each row of that table as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from tests.golden import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ("--num-samples", "2", "--epochs", "1")  # behind a search of the README, for the time's sake


def commands(place: str, stands_for: Mapping[str, object] = {}) -> list[list[str]]:
    """The commands of a row, in words; what the README has in place of a name or an address is put in."""
    row = re.search(rf"^\| {place} \| (.*) \|$", TEXT, re.MULTILINE)
    assert row is not None, place
    found = [text for text in re.findall(r"`([^`]+)`", row[1]) if " " in text]
    for name, meant in stands_for.items():
        assert any(name in text for text in found), name
        found = [text.replace(name, str(meant)) for text in found]
    return [shlex.split(text) for text in found]
