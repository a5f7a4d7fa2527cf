"""What the blank cells of labels mean: no, unknown, or what a spreadsheet leaves of merged cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mlic.data.annotations.cells import kind_of, number_of
from mlic.data.annotations.columns import Plan
from mlic.data.annotations.files.table_files import Block, Table
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile
from mlic.errors import DataError

_MERGED = 6  # rows of a table that is looked at for merged cells


def blank_rows(block: Block, plan: Plan) -> int:
    """How many rows have nothing in any label's column."""
    cells = zip(*(block.columns[i] for i in plan.labels), strict=True)
    return sum(all(isinstance(cell, str) and not cell.strip() for cell in row) for row in cells)


def what_blank_means(
    profiles: Sequence[Profile], plan: Plan, options: LabelOptions, blank: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings about a table with one column per label, in which `blank` rows have blank cells alone.

    Where all that is not blank says yes, a blank cell is a box that is not ticked. Where others say no in words, as 0,
    a blank one may be a question that nobody has answered.
    """
    cells = sum(profiles[i].kinds["blank"] for i in plan.labels)
    if not cells:
        return (), ()
    if options.blank is not None:
        return (f"{cells:,} blank cells of labels mean {options.blank}",), ()
    if not _says_no(profiles, plan):
        return (), ()
    notes, warnings = list[str](), list[str]()
    if plan.tool:
        notes.append(f"{cells:,} blank cells of labels mean negative, as is the custom for {plan.tool}")
    else:
        warnings.append(
            f"{cells:,} cells of labels are blank and read as negative, and others say no in words; if nobody has "
            "looked there, give --blank unknown"
        )
    if blank:
        warnings.append(
            f"{blank:,} rows have blank cells alone, and others say no in words: these images may not be annotated"
        )
    return tuple(notes), tuple(warnings)


def _says_no(profiles: Sequence[Profile], plan: Plan) -> bool:
    """Whether a cell of a label says no in words, and not by being blank."""
    cells = (cell for i in plan.labels for cell in profiles[i].distinct or profiles[i].sample)
    return any(kind_of(cell) == "word" and number_of(cell) == 0 for cell in cells)


def refuse_merged(table: Table, profile: Profile, label: int, options: LabelOptions) -> None:
    """Raise DataError where each label stands once, above blank cells, as merged cells of a spreadsheet are saved."""
    blank = profile.kinds["blank"]
    texts = {str(cell).strip() for cell in profile.distinct or ()} - {""}
    if options.blank is not None or profile.rows < _MERGED or len(texts) != profile.filled or len(texts) < 2:
        return
    if blank < len(texts) or profile.kinds["missing"]:
        return
    is_blank = [kind_of(cell) == "blank" for block in table.blocks() for cell in block.columns[label]]
    is_above = [not cell and below for cell, below in itertools.pairwise(is_blank)]
    if not is_blank[0] and sum(is_above) == len(texts):
        raise DataError(
            f"{table.file}: each label in {profile.name!r} stands once, above {blank:,} blank cells in all, as a "
            "spreadsheet saves merged cells.",
            "write the label in each of its rows; if blank means that an image has no label, give --blank negative.",
        )
