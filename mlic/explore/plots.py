"""The figures of `mlic explore`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlic.explore.result import ExploreReport
from mlic.html.plots import _MOST, BAR, INK, LINE, PARTS, SOFT, canvas, drawn, short


def figures_of(report: ExploreReport) -> dict[str, bytes]:
    """The figures of a data set by name."""
    counts = sorted(report.labels.items(), key=lambda item: -item[1])[:_MOST]
    figures = {
        "labels": _bars([name for name, _ in counts], [count for _, count in counts], "images"),
        "cardinality": _columns([str(i) for i in range(len(report.cardinality))], report.cardinality, "labels"),
        "together": _matrix(report),
    }
    if report.splits:
        figures["splits"] = _splits(report)
    if sum(report.brightness):
        edges = [str(8 * i) if i % 4 == 0 else "" for i in range(len(report.brightness))]
        figures["brightness"] = _columns(edges, report.brightness, "mean brightness, 0 to 255")
    return figures


def _bars(names: Sequence[str], values: Sequence[int], unit: str) -> bytes:
    figure, axes = canvas(8, 1 + 0.26 * len(names))
    places = np.arange(len(names))
    axes.barh(places, values, color=BAR, height=0.72)
    axes.set_yticks(places, [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(unit, color=SOFT)
    axes.grid(axis="x", color=LINE)
    for position, value in zip(places, values, strict=True):
        axes.annotate(f" {value:,}", (value, position), va="center", color=SOFT, fontsize=9)
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
        for position, value in zip(places, values, strict=True):
            axes.annotate(f"{value:,}", (position, value), ha="center", va="bottom", color=SOFT, fontsize=9)
    return drawn(figure)


def _matrix(report: ExploreReport) -> bytes:
    """The share of the images with the label of a row that also have the label of a column."""
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
    """Each label's samples by split, as shares; with good stratification, all labels' bars have the same edges."""
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
