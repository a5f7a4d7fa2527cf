"""The error section of a report: label sets, kinds of images, causes and examples."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import groupby

from mlic.html import page
from mlic.metrics import error_causes
from mlic.report.content import Content, Example, Mistake
from mlic.report.images import Picture

_ROWS = 20


def sections(content: Content, swapped: str, images: Mapping[int, Picture], method: str) -> dict[str, tuple[str, str]]:
    """Sections by heading: a line of text, and HTML."""
    part = f" Colour and brightness are those of {content.looked_at:,} images drawn at random."
    seen = part if 0 < content.looked_at < content.measurement.samples else ""
    how = f" Warm colours are what in the image speaks for the label ({method})." if method else ""
    found = {
        "Sets of labels": (
            "How many labels images have and are given, and which label was missed where another was wrongly given.",
            _sets(content, swapped),
        ),
        "Kinds of images": (
            f"Where intervals lie apart, the model does better on images of one kind than of another.{seen}",
            _slices(content) if content.slices else "",
        ),
        "Causes": (
            "Every wrong label is put under the first of these rules that holds. They say where to look first, and are "
            "no verdict.",
            _causes(content),
        ),
        "Examples": (
            "Of each cause the images that are furthest from right, at most three for the same label. ✓ is given and "
            f"right, + is given and wrong, − is missed; the numbers are scores.{how}",
            _examples(content, images) if content.examples else "",
        ),
    }
    return {name: part for name, part in found.items() if part[1]}


def _sets(content: Content, figure: str) -> str:
    counts = content.cardinality
    total = max(1, content.measurement.samples)
    few = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if j < i)
    many = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if j > i)
    lines = [
        ["Too few labels", f"{few:,}", f"{few / total:.1%}"],
        ["As many as they have", f"{total - few - many:,}", f"{1 - (few + many) / total:.1%}"],
        ["Too many labels", f"{many:,}", f"{many / total:.1%}"],
    ]
    swaps = [
        [escape(swap.missed), f'<td class="text">{escape(swap.given)}</td>', f"{swap.images:,}"]
        for swap in content.swaps
    ]
    grid = [[f"{i} labels", *(f"{n:,}" if n else "" for n in row)] for i, row in enumerate(counts)]
    return "".join(
        [
            page.table(["Images that are given", "Images", "Share"], lines),
            page.details(
                "By number of labels: what images have (rows) and are given (columns)",
                page.table(["", *(str(i) for i in range(len(counts)))], grid),
            ),
            "<h3>One label for another</h3>",
            page.table(["Missed", "Wrongly given", "Images"], swaps) if swaps else "<p>None.</p>",
            figure,
        ]
    )


def _slices(content: Content) -> str:
    lines = []
    for by, rows in groupby(content.slices, key=lambda row: row.by):
        for number, row in enumerate(rows):
            name = f'<td class="text">{escape(row.name)}</td>'
            value = f'<td class="value">{row.f1_micro:.3f}</td>'
            lines.append(
                [
                    "" if number else f"<b>{escape(by.capitalize())}</b>",
                    name,
                    f"{row.samples:,}",
                    value,
                    f"{row.low:.3f}–{row.high:.3f}",
                    page.bar(row.f1_micro),
                    f"{row.subset_accuracy:.1%}",
                ]
            )
    return page.table(["By", "Kind", "Images", "Micro F1", "95% interval", "", "Whole set right"], lines)


def _causes(content: Content) -> str:
    total = max(1, sum(content.kinds.values()))
    tiles = "".join(
        f'<div class="tile">{escape(name.capitalize())}<b>{count:,}</b>{count / total:.1%} of the errors. '
        f"{escape(error_causes.KINDS[name])}</div>"
        for name, count in content.kinds.items()
    )
    order = sorted(content.labels, key=lambda row: -sum(row.kinds.values()))
    lines = [[escape(row.label), *(f"{n:,}" if n else "" for n in row.kinds.values())] for row in order]
    rules = f"<p>Rules between labels: {escape('; '.join(content.rules[:12]))}.</p>" if content.rules else ""
    return "".join(
        [
            f'<div class="tiles wide">{tiles}</div>',
            rules,
            page.details("By label", page.folded_table(["Label", *content.kinds], lines, _ROWS, "labels")),
        ]
    )


def _examples(content: Content, images: Mapping[int, Picture]) -> str:
    found = []
    for kind, some in groupby(content.examples, key=lambda example: example.kind):
        shown = list(some)
        cards = "".join(_card(example, images.get(example.row)) for example in shown)
        count = f"{len(shown)} images of {content.kinds[kind]:,} errors"
        found.append(
            f'<h3>{escape(kind.capitalize())} <span class="soft">· {count}</span></h3><div class="cards">{cards}</div>'
        )
    return "".join(found)


def _card(example: Example, picture: Picture | None) -> str:
    """An image with its right labels and its wrong ones."""
    strip = ""
    if picture is not None:
        shots = [(picture.thumbnail, ""), *((data, label) for label, data in picture.overlays.items())]
        strip = "".join(
            f"<figure>{page.picture(data, 'jpeg', f'{example.key} {label}'.strip())}"
            f"<figcaption>{escape(f'for {label}' if label else 'image')}</figcaption></figure>"
            for data, label in shots
        )
        strip = f'<div class="strip">{strip}</div>'
    chips = "".join(
        f'<span class="chip good" title="decided rightly">✓ {escape(label)}{_score(score)}</span> '
        for label, score in example.right.items()
    )
    return (
        f'<div class="card">{strip}<div class="key">{escape(example.key)}</div>'
        f"<div>{chips}{''.join(_mistake(item) for item in example.mistakes)}</div></div>"
    )


def _mistake(item: Mistake) -> str:
    sign, kind, word = ("−", "miss", "missed") if item.missed else ("+", "", "wrong")
    why = f" · {escape(item.why)}" if item.why else ""
    return (
        f'<div><span class="chip bad {kind}">{sign} {escape(item.label)}{_score(item.score)}</span> '
        f'<span class="soft">{word}{why}</span></div>'
    )


def _score(score: float | None) -> str:
    return "" if score is None else f" {score:.2f}"
