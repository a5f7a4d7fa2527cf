"""Tables whose labels are spread over several columns, as tables with one column of lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from mlic.data.annotations.cells import kind_of
from mlic.data.annotations.column_names import LABEL_COLUMNS, is_measure_name, plain_name
from mlic.data.annotations.files.table_files import Block, Table
from mlic.data.annotations.json_records import Answers
from mlic.data.annotations.options import LabelOptions
from mlic.errors import DataError

_COUNTED = re.compile(r"(.*?)[ _.-]?\d+")
_UNNAMED = re.compile(r"|unnamed: \d+|column \d+")
_VIA = ("filename", "file_attributes", "region_attributes")


def gathered(table: Table, options: LabelOptions) -> Table:
    """The table with its labels in one column, if columns such as label1, label2, label3 hold one label each.

    The CSV of VGG Image Annotator is such a table too: its attributes of images and regions are JSON. Raises DataError.
    """
    lower = [name.strip().lower() for name in table.columns]
    if "answers" in lower and _are_answers(table, lower.index("answers")):
        return _of_questions(table, lower.index("answers"), options)
    if set(_VIA) <= set(lower):
        return _via(table, *(lower.index(name) for name in _VIA))
    if options.label_column is not None:
        return table
    table = _with_bits(table)
    if options.label_columns:
        return table
    numbered = _several_columns(lower)
    if len(numbered) < 2 or not _hold_text(table, numbered):
        return table
    _refuse_scores(table, numbered, options)
    first, others = numbered[0], set(numbered[1:])
    names = ["labels" if i == first else name for i, name in enumerate(table.columns) if i not in others]

    def blocks() -> Iterator[Block]:
        for block in table.blocks():
            lists = [[*dict.fromkeys(filter(None, map(_text, cells)))] for cells in _cells(block, numbered)]
            columns = [lists if i == first else column for i, column in enumerate(block.columns) if i not in others]
            yield Block(block.lines, columns)

    note = f"labels from the columns {', '.join(table.columns[i] for i in numbered)}"
    return replace(table, columns=tuple(names), blocks=blocks, notes=(*table.notes, note))


def _several_columns(names: Sequence[str]) -> list[int]:
    """Columns that hold one label each, by their names: label1, label2; label, label.1; or labels and then no names."""
    numbered = [i for i, name in enumerate(names) if (match := _COUNTED.fullmatch(name)) and match[1] in LABEL_COLUMNS]
    bases = {_COUNTED.fullmatch(names[i])[1] for i in numbered}  # type: ignore[index]
    numbered = [i for i, name in enumerate(names) if i in numbered or name in bases]
    first = next((i for i, name in enumerate(names) if name in LABEL_COLUMNS), None)
    if numbered or first is None:
        return numbered
    last = first
    while last + 1 < len(names) and _UNNAMED.fullmatch(names[last + 1]):
        last += 1
    return list(range(first, last + 1))


def _refuse_scores(table: Table, numbered: Sequence[int], options: LabelOptions) -> None:
    """Raise DataError where the labels in numbered columns have scores in other ones, as label1,conf1,label2,conf2."""
    others = [name for i, name in enumerate(table.columns) if i not in numbered and name not in options.ignore_columns]
    scores = [name for name in others if re.search(r"\d$", name.strip()) and is_measure_name(plain_name(name))]
    if len(scores) > 1:
        raise DataError(
            f"{table.file}: the columns {scores[0]!r}, {scores[1]!r}, ... may say how sure the labels in "
            f"{table.columns[numbered[0]]!r}, {table.columns[numbered[1]]!r}, ... are.",
            "write a row for each label with the columns image, label and score, and give --positive-from; if all of "
            f"them count, --ignore-columns {','.join(scores)} says so.",
        )


def _are_answers(table: Table, column: int) -> bool:
    return any(isinstance(cell, Answers) for block in table.blocks() for cell in block.columns[column])


def _of_questions(table: Table, column: int, options: LabelOptions) -> Table:
    """The labels that answer the only question of an annotation tool, or the one that `label_column` names."""
    questions = dict.fromkeys(
        name for block in table.blocks() for cell in block.columns[column] if cell is not None for name in cell
    )
    if questions and options.label_column not in questions and (len(questions) > 1 or options.label_column is not None):
        raise DataError(
            f"{table.file}: labels are answers to {len(questions)} questions: {', '.join(questions)}.",
            f"say which by --label-column {next(iter(questions))}.",
        )
    question = options.label_column or next(iter(questions), "")
    name = options.label_column or "labels"

    def blocks() -> Iterator[Block]:
        for block in table.blocks():
            columns = list(block.columns)
            columns[column] = [
                None if cell is None else list(dict.fromkeys(cell.get(question, ()))) for cell in columns[column]
            ]
            yield Block(block.lines, columns)

    names = tuple(name if i == column else old for i, old in enumerate(table.columns))
    return replace(table, columns=names, blocks=blocks)


def _with_bits(table: Table) -> Table:
    """The table with 1 in the cells that repeat the name of their column, if a column holds nothing else."""
    repeated = [kind_of(name) == "text" for name in table.columns]
    is_filled = [False] * len(repeated)
    for block in table.blocks():
        for i, (name, cells) in enumerate(zip(table.columns, block.columns, strict=True)):
            if repeated[i]:
                texts = {_text(cell).lower() for cell in cells} if all(isinstance(c, str) for c in cells) else {"", "?"}
                repeated[i] = texts <= {"", name.strip().lower()}
                is_filled[i] = is_filled[i] or len(texts - {""}) > 0
        if not any(repeated):
            return table
    chosen = [i for i, name in enumerate(repeated) if name and is_filled[i]]
    if not chosen:
        return table

    def blocks() -> Iterator[Block]:
        for block in table.blocks():
            columns = [
                ["1" if _text(cell) else "0" for cell in column] if i in chosen else column
                for i, column in enumerate(block.columns)
            ]
            yield Block(block.lines, columns)

    note = f"cells that repeat the name of their column mean yes: {', '.join(table.columns[i] for i in chosen[:5])}"
    return replace(table, blocks=blocks, notes=(*table.notes, note))


def _cells(block: Block, columns: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    return zip(*(block.columns[i] for i in columns), strict=True)


def _text(cell: Any) -> str:
    return "" if kind_of(cell) in ("missing", "blank") or str(cell).strip() in ("0", "-") else str(cell).strip()


def _hold_text(table: Table, columns: Sequence[int]) -> bool:
    """Whether the first cells of each column are names, not 0 and 1, numbers or lists; 0 and - may mean none."""
    for block in islice(table.blocks(), 1):
        kinds = [{kind_of(cell) for cell in block.columns[i] if _text(cell)} for i in columns]
        return all(kind <= {"text"} for kind in kinds) and any(kinds)
    return False


def _via(table: Table, image: int, of_image: int, of_region: int) -> Table:
    """A row for each image. Its rows, one for each region, have the attributes of the image in all of them."""

    def blocks() -> Iterator[Block]:
        lines, labels = dict[str, int](), dict[str, dict[str, None]]()
        for block in table.blocks():
            for line, name, *texts in zip(
                block.lines, *(block.columns[i] for i in (image, of_image, of_region)), strict=True
            ):
                lines.setdefault(name, line)
                chosen = [label for text in texts for label in _chosen(text, f"{table.file}:{line}")]
                labels.setdefault(name, {}).update(dict.fromkeys(chosen))
        names = list(lines)
        yield Block(list(lines.values()), [names, [list(labels[name]) or None for name in names]])

    return replace(table, columns=("image", "labels"), blocks=blocks, notes=(*table.notes, "VGG Image Annotator's CSV"))


def _chosen(text: Any, where: str) -> list[str]:
    """The labels in attributes as JSON: of a checkbox all that are ticked, else the one value."""
    try:
        attributes = json.loads(text) if str(text).strip() else {}
        answers = [
            [name for name, ticked in value.items() if ticked is True] if isinstance(value, dict) else [value]
            for value in attributes.values()
        ]
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{where}: the attributes {str(text)[:60]!r} are not JSON.", "export the file again.") from None
    return [str(label).strip() for labels in answers for label in labels if str(label).strip()]
