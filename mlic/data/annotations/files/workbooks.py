"""Excel workbooks: the one sheet with labels, as rows, without hidden columns; merged cells all hold their value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlic.data.annotations.column_names import NAME_COLUMNS
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError

Rows = list[list[Any]]


def rows_of(file: Path, is_image: Callable[[str], bool]) -> tuple[list[tuple[int, dict[str, Any]]], tuple[str, ...]]:
    """The rows of a workbook's sheet of labels by column, each with its number, and notes. Blank cells are "".

    Raises DataError for a file that is no workbook, and for one in which several sheets may be meant.
    """
    read = _sheets(file)
    sheets = {name: rows for name, (rows, _) in read.items() if rows}
    if not sheets:
        raise DataError(f"{file} is empty.", "give a table with a line of column names.")
    with_images = [name for name, rows in sheets.items() if _names_images(rows, is_image)] or list(sheets)
    if len(with_images) > 1:
        raise DataError(
            f"{file} has {len(with_images)} sheets that may hold the labels: {', '.join(map(repr, with_images[:5]))}.",
            "save the one that is meant as CSV.",
        )
    rows = sheets[with_images[0]]
    notes: tuple[str, ...] = (f"the sheet {with_images[0]!r} of {len(sheets)}",) if len(sheets) > 1 else ()
    titles = _titles(rows)
    if titles:
        notes += (f"{titles} lines of title above the columns' names left out",)
    hidden = read[with_images[0]][1]
    if hidden:
        notes += (f"hidden columns left out: {', '.join(hidden)}",)
    header, *body = rows[titles:]
    if any(isinstance(cell, str) and (Path(cell).suffix.lower() in EXTENSIONS or is_image(cell)) for cell in header):
        raise DataError(f"{file}: the first line is about an image.", "write a line of column names above it.")
    filled = [i for i, cell in enumerate(header) if cell != "" or any(row[i] != "" for row in body)]
    names = [str(header[i]).strip() or (f"column {i + 1}" if i else "") for i in filled]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise DataError(
            f"{file}: the column {repeated!r} stands twice.",
            "give each column one name; of two lines of names, delete the first.",
        )
    numbered = [(line, [row[i] for i in filled]) for line, row in enumerate(body, start=titles + 2)]
    return [(n, dict(zip(names, row, strict=True))) for n, row in numbered if any(cell != "" for cell in row)], notes


def _sheets(file: Path) -> dict[str, tuple[Rows, list[str]]]:
    """The cells of each sheet that is shown, without blank ones at the end, and its hidden columns by letter."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{file} is an Excel workbook, which needs the package openpyxl.", "save it as CSV, or install openpyxl."
        ) from None
    try:
        book = openpyxl.load_workbook(file, data_only=True)  # of formulas their values
    except Exception as error:  # openpyxl raises many types for files that are no workbooks
        raise DataError(f"{file} is no Excel workbook ({error}).", "save it as CSV.") from None
    shown = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    formulas = openpyxl.load_workbook(file)
    for sheet in shown:
        cells = [cell.coordinate for row in formulas[sheet.title].iter_rows() for cell in row if cell.data_type == "f"]
        if cells and all(sheet[cell].value is None for cell in cells):  # of some the value may be no text
            raise DataError(
                f"{file}: the cell {cells[0]} of {sheet.title!r} is a formula without its value.",
                "open the workbook in a spreadsheet program and save it, or save it as CSV.",
            )
    return {sheet.title: _cells(sheet) for sheet in shown}


def _cells(sheet: Any) -> tuple[Rows, list[str]]:
    from openpyxl.utils import get_column_letter

    rows = [["" if cell is None else cell for cell in row] for row in sheet.values]
    for merged in sheet.merged_cells.ranges:
        value = rows[merged.min_row - 1][merged.min_col - 1]
        for row in rows[merged.min_row - 1 : merged.max_row]:
            row[merged.min_col - 1 : merged.max_col] = [value] * (merged.max_col - merged.min_col + 1)
    hidden = [i for i in range(len(rows[0]) if rows else 0) if _is_hidden(sheet, i)]
    rows = [[cell for i, cell in enumerate(row) if i not in hidden] for row in rows]
    width = max((i + 1 for row in rows for i, cell in enumerate(row) if cell != ""), default=0)
    while rows and all(cell == "" for cell in rows[-1]):
        rows.pop()
    return [row[:width] for row in rows], [get_column_letter(i + 1) for i in hidden]


def _is_hidden(sheet: Any, column: int) -> bool:
    """Whether a column, by its number from 0 on, is not shown; several columns may share one record of it."""
    return any(
        record.hidden and (record.min or 0) <= column + 1 <= (record.max or 0)
        for record in sheet.column_dimensions.values()
    )


def _titles(rows: Rows) -> int:
    """How many lines stand above the columns' names: each has one value, or one in merged cells, or none."""
    if not rows or len(rows[0]) < 2:
        return 0
    one_valued = (len({str(cell) for cell in row if cell != ""}) < 2 for row in rows)
    return next((i for i, is_title in enumerate(one_valued) if not is_title), 0)


def _names_images(rows: Rows, is_image: Callable[[str], bool]) -> bool:
    names = {str(cell).strip().lower() for row in rows[: _titles(rows) + 1] for cell in row}
    if names & set(NAME_COLUMNS) - {"id", "key", "name"}:
        return True
    texts = [cell.strip() for row in rows[:20] for cell in row if isinstance(cell, str)]
    return any(Path(text).suffix.lower() in EXTENSIONS or is_image(text) for text in texts)
