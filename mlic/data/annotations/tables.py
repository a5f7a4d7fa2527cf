"""Tables to annotations: one column per label, lists of labels in a cell, or one label per row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlic.data import name_rules
from mlic.data.annotations.blank_cells import blank_rows, refuse_merged, what_blank_means
from mlic.data.annotations.cells import kind_of, number_of, target_of
from mlic.data.annotations.column_names import READER_COLUMNS
from mlic.data.annotations.columns import Plan, choose
from mlic.data.annotations.files.table_files import Block, Table
from mlic.data.annotations.label_lists import LabelLists
from mlic.data.annotations.options import LabelOptions, label_names
from mlic.data.annotations.other_columns import check_other_columns
from mlic.data.annotations.profiles import Profile, profiles_of
from mlic.data.annotations.spread_labels import gathered
from mlic.data.image_labels import Annotations, Builder
from mlic.errors import DataError

_CODES = frozenset({7.0, 8.0, 9.0, 77.0, 88.0, 99.0, 777.0, 888.0, 999.0, -9.0, -99.0, -999.0})  # for "not asked"
_ODD = 5  # cells that an error shows
_RECORDS = (".json", ".jsonl", ".ndjson", ".manifest")  # a record for every image, with a label or without


def read_table(table: Table, options: LabelOptions, layout: str | None = None) -> Annotations:
    """Read a table. `layout` is wide, delimited or long, or None: it is recognised. Raises DataError."""
    table = gathered(table, options)
    profiles = profiles_of(table)
    plan = choose(table, profiles, options, "listed" if layout in ("delimited", "long") else layout)  # type: ignore[arg-type]
    if plan.layout == "wide":
        read = _read_wide(table, profiles, plan, options)
    else:
        read = _read_listed(table, profiles, plan, options, layout)
    used = [
        *plan.folders,
        *plan.image,
        *plan.labels,
        *plan.extra.values(),
        *([] if plan.value is None else [plan.value]),
    ]
    return replace(
        read,
        positives_only=read.positives_only and not table.has_images,
        in_folders=bool(plan.folders),
        tool=plan.tool,
        used=tuple(table.columns[i] or f"column {i + 1}" for i in used),
        left_out=plan.left_out,
        notes=(*table.notes, *plan.notes, *read.notes),
        warnings=(*plan.warnings, *read.warnings),
    )


def image_name(file: Path, line: int, cell: Any) -> str:
    """The name of an image in a cell, as text. Raises DataError for a blank one, and for bytes without a name."""
    if isinstance(cell, dict):
        cell = cell.get("path") or cell.get("file_name")
        if not isinstance(cell, str):
            raise DataError(
                f"{file}:{line}: the image is stored as bytes without a name.",
                "write the images to files, and their names to a column.",
            )
    if isinstance(cell, bytes):
        raise DataError(f"{file}:{line}: the image is stored as bytes, not as a name.", "write the images to files.")
    if isinstance(cell, float) and math.isnan(cell):
        cell = None
    name = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell if cell is not None else "")
    name = name.strip()
    if not name:
        raise DataError(
            f"{file}:{line}: the image is not named.",
            "write its name there (merged cells leave it out), or delete the line.",
        )
    return name


def _names(table: Table, plan: Plan, block: Block) -> list[str]:
    if len(plan.image) == 2:
        subjects, studies = (block.columns[i] for i in plan.image)
        return [f"p{str(a).strip()}/s{str(b).strip()}" for a, b in zip(subjects, studies, strict=True)]
    cells: Sequence[Any] = block.columns[plan.image[0]]
    for i in plan.fallbacks:
        cells = [other if cell is None else cell for cell, other in zip(cells, block.columns[i], strict=True)]
    names = [image_name(table.file, line, cell) for line, cell in zip(block.lines, cells, strict=True)]
    for i in reversed(plan.folders):
        names = [f"{str(cell).strip()}/{name}" for cell, name in zip(block.columns[i], names, strict=True)]
    return names


def _extra(plan: Plan, block: Block) -> list[list[str]]:
    return [[str("" if cell is None else cell).strip() for cell in block.columns[i]] for i in plan.extra.values()]


# One column per label


def _read_wide(table: Table, profiles: Sequence[Profile], plan: Plan, options: LabelOptions) -> Annotations:
    labels = _wide_labels(table, plan, options)
    _check_crosses(table, profiles, plan)
    minus_one, notes = _minus_one(table, profiles, plan, options)
    builder = Builder(tuple(plan.extra))
    odd, blank = _OddCells(table.file), 0
    in_folder = _images_by_folder(options) if len(plan.image) == 2 else None
    for block in table.blocks():
        values = np.empty((len(block.lines), len(labels)), np.int8)
        for number, i in enumerate(plan.labels):
            values[:, number] = _targets(block, i, labels[number], minus_one, options, odd)
        blank += blank_rows(block, plan)
        names, lines, extra = _names(table, plan, block), block.lines, _extra(plan, block)
        if in_folder is not None:
            chosen = [(row, image) for row, name in enumerate(names) for image in in_folder.get(name, [name])]
            of_row = [row for row, _ in chosen]
            names, lines, values = [image for _, image in chosen], [lines[row] for row in of_row], values[of_row]
            extra = [[column[row] for row in of_row] for column in extra]
        builder.rows(names, str(table.file), lines, values, *extra)
    odd.refuse(0 in _values_in(profiles, plan, options))
    rows = len(builder)
    annotations = builder.build(
        labels, f"{len(labels)} labels from the columns of {table.file}", repeats=options.readers, format="wide table"
    )
    others = check_other_columns(table, profiles, plan, options, labels, is_long=False)
    blank_notes, blank_warnings = what_blank_means(profiles, plan, options, blank)
    if rows > len(annotations.names):
        notes += (f"{rows:,} rows are about {len(annotations.names):,} images (--readers {options.readers})",)
    warnings = (*_one_sided(profiles, plan, table, options), *others, *blank_warnings)
    return replace(annotations, notes=(*notes, *blank_notes), warnings=warnings)


def _check_crosses(table: Table, profiles: Sequence[Profile], plan: Plan) -> None:
    """Raise DataError for ticks beside the letter X, which says yes in one form and no in another."""
    cells = {str(cell).strip() for i in plan.labels for cell in profiles[i].distinct or ()}
    ticks, crosses = sorted(cells & {*"✓✔☑"}), sorted(cells & {*"xX"})
    if ticks and crosses:
        raise DataError(
            f"{table.file} has {ticks[0]} and {crosses[0]} as labels' cells, and {crosses[0]} may mean yes or no.",
            "write 1 for a label that is there, and 0 for one that is not.",
        )


def _images_by_folder(options: LabelOptions) -> dict[str, list[str]]:
    """The images of each study of MIMIC-CXR, whose folder is the patient's and the study's number: p10/s50."""
    images = dict[str, list[str]]()
    for path in [] if options.image_names is None else name_rules.as_text(options.image_names.paths).to_pylist():
        if path is not None and len(parts := path.split("/")) > 2:
            images.setdefault("/".join(parts[-3:-1]), []).append(path)
    return images


def _wide_labels(table: Table, plan: Plan, options: LabelOptions) -> tuple[str, ...]:
    names = label_names(options.label_names)
    columns = [table.columns[i].strip() for i in plan.labels]
    if names is not None and table.has_header and all(column.isdecimal() for column in columns):
        return tuple(names.of(column, str(table.file)) for column in columns)
    if names is not None and not table.has_header:
        if len(names.names) != len(columns):
            raise DataError(
                f"{table.file} has {len(columns)} columns of labels, and {names.source} has {len(names.names)} names.",
                "give one name per column, in their order.",
            )
        return names.in_order()
    if names is not None and names.by_id:
        return tuple(names.by_id.get(column, column) for column in columns)
    if not table.has_header:
        raise DataError(
            f"{table.file} has {len(columns)} columns of labels without names.",
            "name them in their order by --label-names cat,dog,... or --label-names FILE.",
        )
    return tuple(columns)


def _targets(block: Block, i: int, label: str, minus_one: int, options: LabelOptions, odd: _OddCells) -> list[int]:
    """The values of a label in a block; cells that are none are noted, and are 0."""
    cells = block.columns[i]
    meaning = dict[Any, int]()
    try:
        distinct = set(cells)
    except TypeError:
        raise DataError(
            f"{block.lines[0]}: the cells of {label!r} are lists, not 0 and 1.", f"give --label-column {label}."
        ) from None
    for cell in distinct:
        try:
            is_unknown = options.blank == "unknown" and kind_of(cell) == "blank"
            meaning[cell] = -1 if is_unknown else target_of(cell, minus_one, options.positive_from)
        except ValueError:
            meaning[cell] = 0
            odd.add(label, cell, block.lines[cells.index(cell)], cells.count(cell))
    return [meaning[cell] for cell in cells]


@dataclass
class _OddCells:
    """Cells of labels' columns that say neither yes nor no, for one message about all of them."""

    file: Path
    first: list[tuple[str, Any, int]] = field(default_factory=list)
    count: int = 0
    labels: set[str] = field(default_factory=set)
    values: set[float] = field(default_factory=set)

    def add(self, label: str, cell: Any, line: int, count: int) -> None:
        if kind_of(cell) == "number":
            self.values.add(number_of(cell))
        if len(self.first) < _ODD:
            self.first.append((label, cell, line))
        self.count += count
        self.labels.add(label)

    def refuse(self, has_zero: bool) -> None:
        """Raise DataError if there was one; `has_zero` says whether some other cell is 0 or blank."""
        if not self.first:
            return
        label, cell, line = self.first[0]
        if kind_of(cell) == "fraction":
            hint = "say by --positive-from 0.5 from which confidence a label is positive."
        elif kind_of(cell) == "number" and number_of(cell) > 1 and not has_zero:
            hint = "no cell is 0, so these may be codes, such as 1 for yes and 2 for no; write 1 and 0."
        elif {kind_of(other) for _, other, _ in self.first} == {"number"} and self.values <= _CODES:
            hint = f"if {cell} means that nobody has looked, write nan there; else 1 or 0."
        elif kind_of(cell) == "number" and number_of(cell) > 1:
            hint = "if they count something, --positive-from 1 takes one and more as positive; else write 1, 0 or nan."
        else:
            hint = (
                "cells may be 1, 0, -1, true, false, yes, no, x, nan or blank; fix them, or leave columns out by "
                f"--ignore-columns {min(self.labels)}."
            )
        more = f" ({self.count:,} such cells in {len(self.labels)} columns)" if self.count > 1 else ""
        raise DataError(f"{self.file}:{line}: {cell!r} for the label {label!r} is not 1, 0 or -1{more}.", hint)


def _minus_one(
    table: Table, profiles: Sequence[Profile], plan: Plan, options: LabelOptions
) -> tuple[int, tuple[str, ...]]:
    """What -1 means. Raises DataError where a table has 1 and -1 alone and nobody has said it."""
    values = _values_in(profiles, plan, options)
    if -1 not in values:
        return -1, ()
    if options.minus_one is not None:
        return (0 if options.minus_one == "negative" else -1), (f"-1 means {options.minus_one}",)
    if values <= {1, -1}:
        raise DataError(
            f"{table.file}: the cells of the labels are 1 and -1 alone, so -1 may mean that a label is absent or that "
            "it is unknown.",
            "say it by --minus-one negative or --minus-one unknown.",
        )
    return -1, ("-1 means unknown",)


def _values_in(profiles: Sequence[Profile], plan: Plan, options: LabelOptions) -> set[float]:
    values = set[float]()
    for i in plan.labels:
        profile = profiles[i]
        for cell in profile.distinct or profile.sample:
            if kind_of(cell) == "word":
                values.add(number_of(cell))
        if profile.kinds["blank"] and options.blank != "unknown":
            values.add(0)
    return values


def _one_sided(profiles: Sequence[Profile], plan: Plan, table: Table, options: LabelOptions) -> tuple[str, ...]:
    """A warning where no cell of a table says no: then nothing can be measured."""
    values = _values_in(profiles, plan, options)
    if 0 in values or (options.minus_one == "negative" and -1 in values) or options.positive_from is not None:
        return ()
    return (f"no cell of {table.file.name} says that a label is absent, so all labels are positive or unknown",)


# Labels in a cell, or one label per row


def _read_listed(
    table: Table, profiles: Sequence[Profile], plan: Plan, options: LabelOptions, layout: str | None
) -> Annotations:
    label = plan.labels[0]
    refuse_merged(table, profiles[label], label, options)
    lists = LabelLists(table, profiles, label, plan, options, layout)
    builder = Builder(tuple(plan.extra))
    not_annotated = 0
    for block in table.blocks():
        names, extra, cells = _names(table, plan, block), _extra(plan, block), block.columns[label]
        value = None if plan.value is None else block.columns[plan.value]
        unknown = None if plan.unknown is None else block.columns[plan.unknown]
        for n, (line, name) in enumerate(zip(block.lines, names, strict=True)):
            marks = lists.marks(cells[n], line)
            if marks is None or (options.blank == "unknown" and kind_of(cells[n]) == "blank"):
                not_annotated += 1
                continue
            builder.image(name, str(table.file), line, *(column[n] for column in extra))
            sure = 1 if value is None else _sure(table, plan, line, value[n], lists)
            for text, mark in marks:
                builder.mark(builder.label(text), mark if mark != 1 else sure)
            for text in (unknown[n] if unknown is not None else None) or ():
                builder.mark(builder.label(lists.named(text, line)), -1)
    lists.check_values()
    if not_annotated:
        lists.notes.append(f"{not_annotated:,} rows have no value in {table.columns[label]!r}: not annotated")
    return _listed_annotations(table, profiles, plan, options, builder, lists)


def _sure(table: Table, plan: Plan, line: int, cell: Any, lists: LabelLists) -> int:
    try:
        return lists.target(cell)
    except ValueError:
        column = table.columns[plan.value or 0]
        raise DataError(
            f"{table.file}:{line}: the {column} {str(cell)!r} is neither 0 nor 1.",
            "say by --positive-from 0.5 from which one a label is positive.",
        ) from None


def _listed_annotations(
    table: Table,
    profiles: Sequence[Profile],
    plan: Plan,
    options: LabelOptions,
    builder: Builder,
    lists: LabelLists,
) -> Annotations:
    rows, long = len(builder), lists.is_long(builder) and plan.tool != "Label Studio"
    has_values = plan.value is not None
    if long and not has_values and options.readers != "agree":
        raise DataError(
            f"{table.file} has one label per row, which does not say who has seen an image without it.",
            "write one row for each image and reader, with all labels of theirs, or leave --readers out.",
        )
    vocabulary = lists.vocabulary(builder)
    if not vocabulary:
        raise DataError(f"no label at all in {table.file}.", "give each image its labels.")
    lists.warnings += check_other_columns(table, profiles, plan, options, vocabulary, long and not has_values)
    source = f"one label per line in {table.file}" if long else f"the lists ({lists.how}) in {table.file}"
    annotations = builder.build(
        vocabulary,
        f"{len(vocabulary)} labels from {source}",
        repeats=(options.readers if has_values else "union") if long else options.readers,
        fill=-1 if has_values else 0,
        format="one label per row" if long else "labels in a cell",
        positives_only=not has_values
        and options.blank != "unknown"  # a row that says nothing is there for its image
        and not lists.is_complete
        and (long or table.file.suffix.lower() not in _RECORDS),
    )
    if rows > len(annotations.names) and not long:
        lists.notes.append(f"{rows:,} rows are about {len(annotations.names):,} images")
    _say_what_values_mean(table, plan, lists, long)
    return replace(annotations, notes=tuple(lists.notes), warnings=tuple(lists.warnings))


def _say_what_values_mean(table: Table, plan: Plan, lists: LabelLists, long: bool) -> None:
    """Note what a column of values means for labels, or what it means that there is none."""
    if plan.value is not None:
        column = table.columns[plan.value]
        lists.notes.append(f"labels that are not listed for an image are unknown ({column})")
        if lists.is_split:
            lists.warnings.append(
                f"the column {column!r} counts for all labels of its row; --ignore-columns takes it out"
            )
        return
    readers = next((name for name, _ in plan.left_out if name.strip().lower() in READER_COLUMNS), None)
    if long and readers is not None:
        lists.warnings.append(f"an image has each label that anyone in the column {readers!r} gave it")
