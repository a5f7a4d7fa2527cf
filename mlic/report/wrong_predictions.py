"""The error section of a report: label sets, kinds of images, causes and examples."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from markupsafe import Markup

from mlic.html import page
from mlic.metrics import error_causes
from mlic.report.content import Content, Example, Mistake
from mlic.report.images import Picture

_ROWS = 20


def sections(
    content: Content, swapped: Markup, images: Mapping[int, Picture], method: str
) -> dict[str, tuple[str, Markup]]:
    """Sections by heading: a line of text, and a body."""
    part = f" Colour and brightness are those of {content.looked_at:,} images drawn at random."
    seen = part if 0 < content.looked_at < content.measurement.samples else ""
    how = f" Warm colours are what in the image speaks for the label ({method})." if method else ""
    parts = {
        "Sets of labels": (
            "How many labels images have and are given, and which label was missed where another was wrongly given.",
            _sets(content, swapped),
        ),
        "Kinds of images": (
            f"Where intervals lie apart, the model does better on images of one kind than of another.{seen}",
            _slices(content) if content.slices else Markup(""),
        ),
        "Causes": (
            "Every wrong label is put under the first of these rules that holds. They say where to look first, and are "
            "no verdict.",
            _causes(content),
        ),
        "Examples": (
            "Of each cause the images that are furthest from right, at most three for the same label. ✓ is given and "
            f"right, + is given and wrong, − is missed; the numbers are scores.{how}",
            _examples(content, images) if content.examples else Markup(""),
        ),
    }
    return {name: part for name, part in parts.items() if part[1]}


def _sets(content: Content, figure: Markup) -> Markup:
    counts = content.cardinality
    total = max(1, content.measurement.samples)
    few = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if j < i)
    too_many = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if j > i)
    lines = [
        ["Too few labels", f"{few:,}", f"{few / total:.1%}"],
        ["As many as they have", f"{total - few - too_many:,}", f"{1 - (few + too_many) / total:.1%}"],
        ["Too many labels", f"{too_many:,}", f"{too_many / total:.1%}"],
    ]
    swaps: list[page.Row] = [[swap.missed, page.Cell(swap.given, "text"), f"{swap.images:,}"] for swap in content.swaps]
    grid = [[f"{i} labels", *(f"{n:,}" if n else "" for n in row)] for i, row in enumerate(counts)]
    return page.join(
        [
            page.table(["Images that are given", "Images", "Share"], lines),
            page.details(
                "By number of labels: what images have (rows) and are given (columns)",
                page.table(["", *(str(i) for i in range(len(counts)))], grid),
            ),
            page.subheading("One label for another"),
            page.table(["Missed", "Wrongly given", "Images"], swaps) if swaps else page.paragraph("None."),
            figure,
        ]
    )


def _slices(content: Content) -> Markup:
    lines = list[page.Row]()
    for by, rows in groupby(content.slices, key=lambda row: row.by):
        for number, row in enumerate(rows):
            lines.append(
                [
                    page.Cell("" if number else by.capitalize(), "value"),
                    page.Cell(row.name, "text"),
                    f"{row.samples:,}",
                    page.Cell(f"{row.f1_micro:.3f}", "value"),
                    f"{row.low:.3f}–{row.high:.3f}",
                    page.bar(row.f1_micro),
                    f"{row.subset_accuracy:.1%}",
                ]
            )
    return page.table(["By", "Kind", "Images", "Micro F1", "95% interval", "", "Whole set right"], lines)


def _causes(content: Content) -> Markup:
    total = max(1, sum(content.kinds.values()))
    tiles = [
        page.Tile(f"{count:,}", [f"{count / total:.1%} of the errors. {error_causes.KINDS[name]}"], name.capitalize())
        for name, count in content.kinds.items()
    ]
    order = sorted(content.labels, key=lambda row: -sum(row.kinds.values()))
    lines = [[row.label, *(f"{n:,}" if n else "" for n in row.kinds.values())] for row in order]
    rules = page.paragraph(f"Rules between labels: {'; '.join(content.rules[:12])}.") if content.rules else ""
    return page.join(
        [
            page.tiles(tiles, wide=True),
            rules,
            page.details("By label", page.folded_table(["Label", *content.kinds], lines, _ROWS, "labels")),
        ]
    )


def _examples(content: Content, images: Mapping[int, Picture]) -> Markup:
    parts = list[Markup]()
    for kind, of_kind in groupby(content.examples, key=lambda example: example.kind):
        shown = list(of_kind)
        count = f"{len(shown)} images of {content.kinds[kind]:,} errors"
        cards = page.cards([_card(example, images.get(example.row)) for example in shown])
        parts += [page.subheading(kind.capitalize(), count), cards]
    return page.join(parts)


def _card(example: Example, picture: Picture | None) -> Markup:
    """An image with its right labels and its wrong ones."""
    shots = list[tuple[Markup, str]]()
    if picture is not None:
        shots.append((page.picture(picture.thumbnail, "jpeg", example.key), "image"))
        for label, data in picture.overlays.items():
            shots.append((page.picture(data, "jpeg", f"{example.key} {label}"), f"for {label}"))
    right = [f"{label}{_score(score)}" for label, score in example.right.items()]
    return page.card(example.key, shots, right, [_mistake(item) for item in example.mistakes])


def _mistake(item: Mistake) -> dict[str, str]:
    sign, kind, word = ("−", "miss", "missed") if item.missed else ("+", "", "wrong")
    why = f"{word} · {item.why}" if item.why else word
    return {"kind": kind, "text": f"{sign} {item.label}{_score(item.score)}", "why": why}


def _score(score: float | None) -> str:
    return "" if score is None else f" {score:.2f}"
