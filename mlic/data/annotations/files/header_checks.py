"""First lines of text tables that are no line of column names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mlic.data.annotations.cells import WORDS
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError


def refuse_images(file: Path, first: Sequence[str], is_image: Callable[[str], bool]) -> None:
    """Raise DataError for a table with a column for each image and a row for each label."""
    names = [cell.strip() for cell in first[1:]]
    images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS or is_image(name)]
    if len(images) > 1 and len(images) == len(names) and not is_image(first[0].strip()):
        raise DataError(
            f"{file}: the first line names images ({images[0]}, {images[1]}, ...), so the table has a column for each.",
            "write a row for each image instead; a spreadsheet calls this transpose.",
        )


def refuse_two_lines(file: Path, first: Sequence[str], second: Sequence[str]) -> None:
    """Raise DataError where names of columns repeat in the first line, and the second line has names too."""
    names = [cell.strip() for cell in first if cell.strip()]
    below = [cell.strip().lower() for cell in second if cell.strip()]
    if len(set(names)) == len(names) or len(below) < 2 or len(set(below)) < len(below):
        return
    if not any(cell in WORDS or re.fullmatch(r"[-+\d.,%]*", cell) or Path(cell).suffix in EXTENSIONS for cell in below):
        raise DataError(
            f"{file}:2: the first two lines both seem to name columns "
            f"({', '.join(names[:2])}; {', '.join(below[:3])}).",
            "keep one line of names.",
        )
