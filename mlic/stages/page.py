"""The shell of a self-contained HTML page: no network, no script, and a style for light and dark screens and paper."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d9dee7; --bar: #2f6fde; --back: #fff;
  --warn: #8a4b00; --warn-back: #fff4e0; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #344054; --bar: #6ea0ff;
  --back: #12161e; --warn: #ffc670; --warn-back: #33260f; --mark: #ff9a62; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p { color: var(--soft); margin-top: 0; max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 7rem; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
td.value { font-weight: 650; } td.bar { min-width: 7rem; width: 16%; }
.track { position: relative; height: .7rem; background: var(--line); border-radius: .35rem; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: .35rem; }
.mark { position: absolute; top: -.25rem; bottom: -.25rem; width: 2px; background: var(--mark); }
.warn { background: var(--warn-back); color: var(--warn); border-left: 4px solid; padding: .6rem .9rem;
  margin: .6rem 0; }
"""


def page(title: str, body: str) -> str:
    """The whole page as text; `title` is escaped here, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def section(heading: str, text: str, body: str) -> str:
    """A part of the page under a heading, with a line of text (escaped) and a body of HTML."""
    return f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>{body}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself; a row's cells are HTML, those with a `<td` of their own as they are."""
    text = [bool(rows) and rows[0][i].startswith('<td class="text"') for i in range(len(head))]
    kinds = [' class="text"' if is_text else "" for is_text in text]
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def bar(value: float, mark: float | None = None) -> str:
    """A cell with a bar from 0 to 1, and a mark on it."""
    line = "" if mark is None else f'<div class="mark" style="left:{100 * mark:.1f}%"></div>'
    fill = f'<div class="fill" style="width:{100 * value:.1f}%"></div>'
    return f'<td class="bar"><div class="track">{fill}{line}</div></td>'


def picture(data: bytes, kind: str, description: str) -> str:
    """An image within the page."""
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(description, quote=True)}" src="data:image/{kind};base64,{code}">'


def warning(text: str) -> str:
    """A line that is not to be overlooked."""
    return f'<div class="warn">{escape(text)}</div>'
