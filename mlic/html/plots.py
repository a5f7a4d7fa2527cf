"""Figures as PNG files. matplotlib is imported when the first is drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mlic.stages.explore_report import ExploreReport

INK, SOFT, BAR, LINE = "#1c2330", "#667085", "#2f6fde", "#d9dee7"
PARTS = ("#2f6fde", "#e08a1e", "#2a9d6f", "#9a5bd6", "#c2410c", "#52606d")
_MOST = 60  # labels in a figure; of more the most frequent are drawn
_ACROSS, _CELL = 6, 132


def of_data(report: ExploreReport) -> dict[str, bytes]:
    """The figures of a data set by name."""
    counts = sorted(report.labels.items(), key=lambda item: -item[1])[:_MOST]
    found = {
        "labels": _bars([name for name, _ in counts], [count for _, count in counts], "images"),
        "cardinality": _columns([str(i) for i in range(len(report.cardinality))], report.cardinality, "labels"),
        "together": _matrix(report),
    }
    if report.splits:
        found["splits"] = _splits(report)
    if sum(report.brightness):
        edges = [str(8 * i) if i % 4 == 0 else "" for i in range(len(report.brightness))]
        found["brightness"] = _columns(edges, report.brightness, "mean brightness, 0 to 255")
    return found


def grid(thumbnails: Sequence[bytes]) -> Image.Image | None:
    """Thumbnails (JPEG files) side by side on white, or None when there are none."""
    if not thumbnails:
        return None
    rows = -(-len(thumbnails) // _ACROSS)
    sheet = Image.new("RGB", (_ACROSS * _CELL, rows * _CELL), "white")
    for number, data in enumerate(thumbnails):
        with Image.open(io.BytesIO(data)) as image:
            x, y = number % _ACROSS * _CELL, number // _ACROSS * _CELL
            sheet.paste(image, (x + (_CELL - image.width) // 2, y + (_CELL - image.height) // 2))
    return sheet


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes."""
    figure = sheet(width, height)
    return figure, styled(figure.add_subplot())


def sheet(width: float, height: float) -> Any:
    """A figure of so many inches without axes, drawn at twice the pixels of the screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=180, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def styled(axes: Any) -> Any:
    """Axes with as little ink as will do."""
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.set_axisbelow(True)
    return axes


def drawn(figure: Any) -> bytes:
    """The figure as a PNG file of few colours, a third of the size of one of all."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn; the tables have the name
        figure.savefig(out, format="png", metadata={"Software": None})
    with Image.open(out) as image:
        return png(image.convert("RGB").quantize(128, dither=Image.Dither.NONE))


def _bars(names: Sequence[str], values: Sequence[int], unit: str) -> bytes:
    figure, axes = canvas(8, 1 + 0.26 * len(names))
    places = np.arange(len(names))
    axes.barh(places, values, color=BAR, height=0.72)
    axes.set_yticks(places, [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(unit, color=SOFT)
    axes.grid(axis="x", color=LINE)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f" {value:,}", (value, place), va="center", color=SOFT, fontsize=9)
    axes.margins(x=0.1, y=0.01)
    return drawn(figure)


def _columns(names: Sequence[str], values: Sequence[int], unit: str) -> bytes:
    figure, axes = canvas(8, 3.2)
    places = np.arange(len(names))
    axes.bar(places, values, color=BAR, width=0.86)
    axes.set_xticks(places, names)
    axes.set_xlabel(unit, color=SOFT)
    axes.set_ylabel("images", color=SOFT)
    axes.grid(axis="y", color=LINE)
    if len(values) <= 16:
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:,}", (place, value), ha="center", va="bottom", color=SOFT, fontsize=9)
    return drawn(figure)


def _matrix(report: ExploreReport) -> bytes:
    """Of the images with the label of a row, the share that has the label of a column."""
    counts = np.array(list(report.labels.values()))
    order = np.argsort(-counts, kind="stable")[:_MOST]
    both = np.array(report.together, dtype=float)[np.ix_(order, order)]
    share = both / np.maximum(1, counts[order])[:, None]
    names = [short(list(report.labels)[i]) for i in order]
    side = 3 + 0.36 * len(names)
    figure, axes = canvas(side + 1, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(np.arange(len(names)), names, rotation=90)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_xlabel("also have", color=SOFT)
    axes.set_ylabel("images with", color=SOFT)
    if len(names) <= 30:
        for i, row in enumerate(share):
            for j, value in enumerate(row):
                if i != j and value >= 0.005:
                    ink = "white" if value > 0.55 else INK
                    axes.annotate(f"{100 * value:.0f}", (j, i), ha="center", va="center", color=ink, fontsize=7)
    return drawn(figure)


def _splits(report: ExploreReport) -> bytes:
    """Each label's samples by split, as shares; a label that is stratified well has the edges of all others."""
    names = sorted(report.labels, key=lambda name: -report.labels[name])[:_MOST]
    figure, axes = canvas(8, 1.3 + 0.26 * len(names))
    places, left = np.arange(len(names)), np.zeros(len(names))
    for number, (split, counts) in enumerate(report.splits.items()):
        share = np.array([counts[name] / max(1, report.labels[name]) for name in names])
        axes.barh(places, share, left=left, color=PARTS[number % len(PARTS)], height=0.72, label=split)
        left += share
    axes.set_yticks(places, [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("share of the label's samples", color=SOFT)
    axes.set_xlim(0, 1)
    axes.margins(y=0.01)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(report.splits), frameon=False)
    return drawn(figure)


def short(name: str) -> str:
    """A label's name that leaves room for the figure; matplotlib would take a $ for mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
