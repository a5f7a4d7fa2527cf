"""Tables that are drawn with characters: Markdown's, and those that databases print."""

from __future__ import annotations

import re
from collections.abc import Sequence

_RULE = re.compile(
    r"[\s|+:=-]*[=-]{2}[\s|+:=-]*"
)  # between the names and the rows: |---|---|, ----+---- or +----+----+
_FOOT = re.compile(r"\s*\(\d+ rows?\)\s*")
_BAR = re.compile(r"(?<!\\)\|")


def is_drawn(lines: Sequence[str]) -> bool:
    """Whether the first lines of a text are a table with a line drawn below the names of its columns."""
    return any(_RULE.fullmatch(line) for line in lines[1:3]) and "," not in lines[0]


def cells(line: str) -> list[str]:
    """The cells of a line; none where it is a drawn line, or a count of rows at the end."""
    if _RULE.fullmatch(line) or _FOOT.fullmatch(line):
        return []
    if not _BAR.search(line):
        return line.split()
    parts = _BAR.split(line.strip().removeprefix("|"))
    if len(parts) > 1 and not parts[-1].strip() and line.rstrip().endswith("|"):
        parts.pop()
    return [part.strip().replace("\\|", "|") for part in parts]
