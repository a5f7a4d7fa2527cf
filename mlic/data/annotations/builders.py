"""What the readers of label files share: lines of text, names of images, and building the table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlic.data.label_join import Annotations, Builder
from mlic.errors import DataError

TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Columns:
    """Names of the columns (or JSON keys) that are not labels: the split and the group of an image."""

    split: str | None = None
    group: str | None = None

    def __bool__(self) -> bool:
        return bool(self.split or self.group)


NO_COLUMNS = Columns()


def build_named(builder: Builder, labels: Collection[str] | None, source: str, once: bool = True) -> Annotations:
    """Annotations from label names; the labels are those of `labels` in order, else all that occur, sorted."""
    vocabulary = tuple(dict.fromkeys(labels)) if labels is not None else tuple(sorted(builder.numbers))
    if not vocabulary:
        raise DataError(f"no label at all in {source}.", "give each image its labels.")
    return builder.build(vocabulary, f"{len(vocabulary)} labels from {source}", once=once)


def image_name(file: Path, line: int, cell: str) -> str:
    name = cell.strip()
    if not name:
        raise DataError(f"{file}:{line}: the image is not named.", "fix or delete that line.")
    return name


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 text file with their numbers. Raises DataError at a line that is not text."""
    try:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise DataError(f"{file}:{number}: not UTF-8 text.", "save the file as UTF-8.") from None
                if "\0" in line:
                    raise DataError(f"{file}:{number}: a NUL byte; this is not a text file.", "fix that line.")
                yield number, line
    except OSError as error:
        raise DataError(f"cannot read the labels {file}: {error.strerror}.", "check the file.") from None
