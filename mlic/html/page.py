"""The parts of a self-contained HTML page: no network, no script, a style for light and dark screens and paper.

The HTML itself is in `templates/`. Jinja2 escapes every text on its way into a page; `Markup` is what is HTML already.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

_SCALE = 0.6  # of a drawing's pixels to those of the page: ten inches of a drawing fill it


class Cell(NamedTuple):
    """A cell of a table; `kind` is a class of the style: text, text long, value, bar, good, bad or soft."""

    content: str
    kind: str = ""


Row = Sequence[str | Cell]


class Tile(NamedTuple):
    """A number that is shown large, with text above it and lines of text below it."""

    big: str
    below: Sequence[str]
    above: str = ""


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mlic.html"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _part(name: str, *values: Any) -> Markup:
    """A part of the page, by the macro of this name."""
    macro = getattr(_templates().get_template("parts.html.jinja").module, name)
    return Markup(macro(*values))  # noqa: S704 - Jinja2 has escaped the values


def page(title: str, body: Markup) -> str:
    """The whole page as text."""
    templates = _templates()
    style = Markup(templates.get_template("style.css").render())  # noqa: S704 - a file of this package
    return templates.get_template("page.html.jinja").render(title=title, style=style, body=body)


def review(title: str, content: str) -> str:
    """The page of `mlic review` as text; `content` is its JSON. It is the only page that needs its script."""
    templates = _templates()
    inert = content.replace("<", "\\u003c")  # nothing in it can end the script element that holds it
    parts = {
        "style": templates.get_template("style.css").render(),
        "review_style": templates.get_template("review.css").render(),
        "script": templates.get_template("review.js").render(),
        "content": inert,
    }
    marked = {name: Markup(text) for name, text in parts.items()}  # noqa: S704 - files of this package, and inert JSON
    return templates.get_template("review.html.jinja").render(title=title, **marked)


def join(parts: Iterable[str]) -> Markup:
    """Parts of a page one after another; text among them is escaped."""
    return Markup("").join(parts)


def section(heading: str, text: str, body: str) -> Markup:
    """A part of the page under a heading, with a line of text and a body."""
    return _part("section", anchor(heading), heading, text, body)


def anchor(heading: str) -> str:
    """The name of a section in links."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def contents(headings: Sequence[str]) -> Markup:
    """Links to sections."""
    return _part("contents", [(anchor(heading), heading) for heading in headings])


def table(head: Sequence[str], rows: Sequence[Row]) -> Markup:
    """A table that scrolls by itself; columns whose first cell is text have a head to the left, too."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    kinds = ["text" if cells and cells[0][i].kind.startswith("text") else "" for i in range(len(head))]
    return _part("table", list(zip(head, kinds, strict=True)), cells)


def folded_table(head: Sequence[str], rows: Sequence[Row], most: int, what: str) -> Markup:
    """A table of the first `most` rows, and the others folded away under their number."""
    if len(rows) <= most + 3:
        return table(head, rows)
    rest = details(f"{len(rows) - most:,} more {what}", table(head, rows[most:]))
    return table(head, rows[:most]) + rest


def details(summary: str, body: str) -> Markup:
    """A body that is folded away under a line of text."""
    return _part("details", summary, body)


def bar(value: float, mark: float | None = None) -> Cell:
    """A cell with a bar from 0 to 1, and a mark on it."""
    return Cell(_part("bar", value, mark), "bar")


def tiles(items: Sequence[Tile], wide: bool = False) -> Markup:
    """Numbers that are shown large, side by side."""
    return _part("tiles", items, "tiles wide" if wide else "tiles")


def picture(data: bytes, kind: str, description: str) -> Markup:
    """An image within the page."""
    return _part("picture", kind, base64.b64encode(data).decode(), description)


def figure(data: bytes, description: str) -> Markup:
    """A drawing (a PNG file), which turns dark with the page and scrolls by itself where the screen is narrow."""
    width = round(int.from_bytes(data[16:20], "big") * _SCALE)
    return _part("figure", width, picture(data, "png", description))


def warning(text: str) -> Markup:
    """A line that is not to be overlooked."""
    return _part("warning", text)


def paragraph(text: str, kind: str = "") -> Markup:
    """A paragraph of text."""
    return _part("paragraph", text, kind)


def subheading(text: str, note: str = "") -> Markup:
    """A heading within a section, with a note beside it."""
    return _part("subheading", text, note)


def setting(name: str, is_marked: bool) -> Markup:
    """The name of a setting, with a mark where it differs."""
    return _part("setting", name, is_marked)


def cards(items: Sequence[Markup]) -> Markup:
    """Cards side by side."""
    return _part("cards", items)


def card(
    key: str, pictures: Sequence[tuple[Markup, str]], right: Sequence[str], mistakes: Sequence[Mapping[str, str]]
) -> Markup:
    """An image: its name, pictures with captions, its right labels, and its mistakes (`kind`, `text`, `why`)."""
    return _part("card", key, pictures, right, mistakes)
