"""The frame of a self-contained HTML page: no network, no script, a style for light and dark screens and paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6678; --line: #dde2ea; --bar: #2f6fde; --back: #fff;
  --card: #f6f8fb; --warn: #8a4b00; --warn-back: #fff4e0; --mark: #c2410c; --good: #1c7a4d; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa5b5; --line: #313b4b; --bar: #6ea0ff;
  --back: #12161e; --card: #1a2029; --warn: #ffc670; --warn-back: #33260f; --mark: #ff9a62; --good: #62cf9b;
  --bad: #ff8f86; }
  .figure img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: lighten; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--back); max-width: 70rem; margin: 2rem auto 5rem; padding: 0 1.1rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.7rem 0 .4rem; overflow-wrap: anywhere; }
section { margin-top: 2.4rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
p, .about { color: var(--soft); margin: 0 0 .9rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--bar); text-decoration: none; } a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; margin: 1.2rem 0 0; font-size: .95rem; }
img { max-width: 100%; height: auto; }
.figure { overflow-x: auto; margin: .6rem 0 1.2rem; } .figure img { display: block; width: 100%; background: #fff; }
@media (max-width: 42rem) { .figure img { width: 38rem; max-width: none; }
  h1 { font-size: 1.4rem; } body { margin-top: 1rem; } }
.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { text-align: right; padding: .34rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .84rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem;
  max-width: 18rem; position: sticky; left: 0; background: var(--back); padding-left: 0; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; } td.long { min-width: 15rem; }
td.value { font-weight: 650; } td.bar { min-width: 7rem; width: 16%; }
td.good, .good { color: var(--good); } td.bad, .bad { color: var(--bad); } .soft { color: var(--soft); }
.track { position: relative; height: .6rem; background: var(--line); border-radius: .3rem; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: .3rem; }
.mark { position: absolute; top: -.25rem; bottom: -.25rem; width: 2px; background: var(--mark); }
.warn { background: var(--warn-back); color: var(--warn); border-left: 4px solid; padding: .6rem .9rem;
  margin: .6rem 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tiles.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.tile { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; font-size: .86rem; color: var(--soft); }
.tile b { display: block; font-size: 1.7rem; line-height: 1.3; color: var(--ink); font-variant-numeric: tabular-nums; }
details { margin: .4rem 0 .9rem; } summary { cursor: pointer; color: var(--bar); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .9rem; }
.card { background: var(--card); border-radius: .6rem; padding: .8rem; font-size: .88rem; min-width: 0; }
.card .key { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; margin: .3rem 0; }
.strip { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .4rem; }
.strip figure { margin: 0; min-width: 0; }
.strip img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .35rem; }
.strip figcaption { font-size: .74rem; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.chip { display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .55rem; margin: .12rem 0;
  max-width: 100%; overflow-wrap: anywhere; }
.chip.miss { border-style: dashed; }
@media print { nav { display: none; } section { break-inside: avoid-page; } body { max-width: none; } }
"""


_SCALE = 0.6  # of a drawing's pixels to those of the page: ten inches of a drawing fill it


def page(title: str, body: str) -> str:
    """The whole page as text; `title` is escaped here, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def section(heading: str, text: str, body: str) -> str:
    """A part of the page under a heading, with a line of text (escaped) and a body of HTML."""
    about = f"<p>{escape(text)}</p>" if text else ""
    return f'<section id="{anchor(heading)}"><h2>{escape(heading)}</h2>{about}{body}</section>'


def anchor(heading: str) -> str:
    """The name of a section in links."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def contents(headings: Sequence[str]) -> str:
    """Links to sections."""
    links = "".join(f'<a href="#{anchor(heading)}">{escape(heading)}</a>' for heading in headings)
    return f'<nav aria-label="Contents">{links}</nav>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself; a row's cells are HTML, those with a `<td` of their own as they are."""
    text = [bool(rows) and rows[0][i].startswith('<td class="text') for i in range(len(head))]
    kinds = [' class="text"' if is_text else "" for is_text in text]
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def folded_table(head: Sequence[str], rows: Sequence[Sequence[str]], most: int, what: str) -> str:
    """A table of the first `most` rows, and the others folded away under their number."""
    if len(rows) <= most + 3:
        return table(head, rows)
    rest = details(f"{len(rows) - most:,} more {what}", table(head, rows[most:]))
    return table(head, rows[:most]) + rest


def details(summary: str, body: str) -> str:
    """HTML that is folded away under a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def bar(value: float, mark: float | None = None) -> str:
    """A cell with a bar from 0 to 1, and a mark on it."""
    line = "" if mark is None else f'<div class="mark" style="left:{100 * mark:.1f}%"></div>'
    fill = f'<div class="fill" style="width:{100 * value:.1f}%"></div>'
    return f'<td class="bar"><div class="track">{fill}{line}</div></td>'


def picture(data: bytes, kind: str, description: str) -> str:
    """An image within the page."""
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(description, quote=True)}" src="data:image/{kind};base64,{code}">'


def figure(data: bytes, description: str) -> str:
    """A drawing (a PNG file), which turns dark with the page and scrolls by itself where the screen is narrow."""
    width = round(int.from_bytes(data[16:20], "big") * _SCALE)
    return f'<div class="figure" style="max-width:{width}px">{picture(data, "png", description)}</div>'


def warning(text: str) -> str:
    """A line that is not to be overlooked."""
    return f'<div class="warn">{escape(text)}</div>'
