"""RESULTS.md: one section a benchmark, replaced when it is run again."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = "# Measurements\n\nWritten by `make bench`; ratios of medians, measured in turns in one run.\n"


def write_section(title: str, body: str) -> None:
    """Print a section and put it into RESULTS.md, in the place of the last one of this title."""
    section = f"## {title} ({datetime.date.today()}, {os.cpu_count()} cores)\n\n{body}"
    print(section)
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEAD
    kept = re.sub(rf"\n## {re.escape(title)} \(.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    RESULTS.write_text(kept.rstrip("\n") + "\n\n" + section, encoding="utf-8")
