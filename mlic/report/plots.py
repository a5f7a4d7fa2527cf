"""The figures of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlic.html.plots import BAR, INK, LINE, PARTS, SOFT, canvas, drawn, sheet, short, styled
from mlic.report.content import Content, metric_name

MOST = 24  # labels in a figure with a panel each
_MATRIX = 30
_ACROSS = 4
_PRF = {"precision": PARTS[1], "recall": PARTS[2], "f1": PARTS[0]}
_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1"}


NAMES = (
    "comparison",
    "runs",
    "history",
    "history-labels",
    "distribution",
    "cardinality",
    "confusion",
    "thresholds",
    "precision-recall",
    "reliability",
    "swapped",
)


def of_report(content: Content) -> dict[str, bytes]:
    """The figures that there is something for, by name."""
    figures: dict[str, bytes | None] = {
        "comparison": _comparison(content) if len(content.runs) > 1 else None,
        "runs": _runs(content) if len(content.histories) > 1 else None,
        "history": _history(content) if content.history else None,
        "history-labels": _history_of_labels(content) if len(content.history) > 1 else None,
        "distribution": _distribution(content),
        "cardinality": _cardinality(content),
        "confusion": _confusion(content),
        "thresholds": _thresholds(content) if content.curves else None,
        "precision-recall": _precision_recall(content) if content.curves else None,
        "reliability": _reliability(content) if content.reliability else None,
        "swapped": _swapped(content) if content.swaps else None,
    }
    return {name: picture for name, picture in figures.items() if picture is not None}


def by_frequency(content: Content) -> list[int]:
    """The numbers of the labels, the most frequent first."""
    return sorted(range(len(content.labels)), key=lambda i: -(content.labels[i].right + content.labels[i].missed))


def _panels(names: Sequence[str], draw: Callable[[Any, int], None], height: float = 1.75) -> bytes:
    """A small panel a name, `draw` called with its axes and its number."""
    rows = math.ceil(len(names) / _ACROSS)
    figure = sheet(10, height * rows + 0.5)
    grid = figure.subplots(rows, _ACROSS, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.set_visible(False)
            continue
        styled(axes)
        axes.set_title(short(names[number]), fontsize=10, color=INK, loc="left")
        axes.tick_params(labelsize=8)
        draw(axes, number)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9)
    return drawn(figure)


def _history(content: Content) -> bytes:
    """Loss, accuracies, and micro and macro precision, recall and F1, by epoch."""
    figure = sheet(10, 6)
    epochs = [row["epoch"] for row in content.history]
    panels: dict[str, dict[str, str]] = {
        "Loss": {"train/loss": "training", "val/loss": "validation"},
        "Accuracy": {
            "val/subset_accuracy": "subset",
            "val/hamming_accuracy": "Hamming",
            "val/jaccard_samples": "Jaccard",
        },
        "Micro averages": {f"val/{name}_micro": text for name, text in _NAMES.items()},
        "Macro averages": {f"val/{name}_macro": text for name, text in _NAMES.items()} | {"val/map": "mean AP"},
    }
    for axes, (title, lines) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        styled(axes)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        for number, (key, text) in enumerate(lines.items()):
            values = [row.get(key, math.nan) for row in content.history]
            name = key.removeprefix("val/").partition("_")[0]
            color = _PRF.get(name, PARTS[(3, 4, 5)[number % 3]]) if "averages" in title else PARTS[number]
            axes.plot(epochs, values, color=color, label=text, marker="o" if len(epochs) < 30 else None, markersize=3.5)
            trained = [row.get(key.replace("val/", "train/"), math.nan) for row in content.history]
            if title != "Loss" and not all(math.isnan(value) for value in trained):
                axes.plot(epochs, trained, color=color, linewidth=1, linestyle="--", alpha=0.7)
        _mark_best(axes, content)
        _epochs_below(axes, epochs)
        if title != "Loss":
            axes.set_ylim(bottom=0)
            axes.margins(y=0.1)
        axes.legend(
            frameon=False,
            fontsize=8.5,
            loc="lower right",
            bbox_to_anchor=(1.02, 0.98),
            ncols=4,
            columnspacing=1,
            handlelength=1.4,
        )
    return drawn(figure)


def _epochs_below(axes: Any, epochs: Sequence[float]) -> None:
    """An axis of whole epochs, of a single one too."""
    axes.set_xlabel("epoch", color=SOFT, fontsize=9)
    axes.grid(axis="y", color=LINE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        axes.set_xticks(list(epochs))


def _runs(content: Content) -> bytes:
    """Loss, micro-F1 and both accuracies of the validation split, by epoch, a line a run."""
    figure = sheet(10, 6)
    panels = {
        "val/loss": "Validation loss",
        "val/f1_micro": "Micro-F1",
        "val/subset_accuracy": "Subset accuracy",
        "val/hamming_accuracy": "Hamming accuracy",
    }
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        styled(axes)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        longest: list[float] = []
        for number, (name, history) in enumerate(content.histories.items()):
            epochs = [row["epoch"] for row in history]
            longest = max(longest, epochs, key=len)
            values = [row.get(key, math.nan) for row in history]
            axes.plot(epochs, values, color=PARTS[number % len(PARTS)], label=short(name), marker="o", markersize=3)
        _epochs_below(axes, longest)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    return drawn(figure)


def _mark_best(axes: Any, content: Content) -> None:
    if content.best_epoch is not None:
        axes.axvline(content.best_epoch, color=SOFT, linewidth=1, linestyle=":")


def _history_of_labels(content: Content) -> bytes | None:
    chosen = by_frequency(content)[:MOST]
    names = [content.labels[i].label for i in chosen]
    if f"val/f1/{names[0]}" not in content.history[-1]:
        return None
    epochs = [row["epoch"] for row in content.history]

    def draw(axes: Any, number: int) -> None:
        for metric, color in _PRF.items():
            values = [row.get(f"val/{metric}/{names[number]}", math.nan) for row in content.history]
            axes.plot(epochs, values, color=color, linewidth=1.3, label=_NAMES[metric])
        right = [row.get(f"val/accuracy/{names[number]}", math.nan) for row in content.history]
        axes.plot(epochs, right, color=SOFT, linewidth=1, linestyle="--", label="accuracy")
        _mark_best(axes, content)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.grid(axis="y", color=LINE)

    return _panels(names, draw)


def _distribution(content: Content) -> bytes:
    """How many images have a label, and how many are given it."""
    chosen = by_frequency(content)[: 2 * MOST]
    true = [content.labels[i].right + content.labels[i].missed for i in chosen]
    predicted = [content.labels[i].right + content.labels[i].wrong for i in chosen]
    figure, axes = canvas(8, 1.2 + 0.34 * len(chosen))
    places = np.arange(len(chosen))
    axes.barh(places - 0.19, true, color=INK, height=0.36, label="have the label")
    axes.barh(places + 0.19, predicted, color=BAR, height=0.36, label="are given it")
    axes.set_yticks(places, [short(content.labels[i].label) for i in chosen])
    axes.invert_yaxis()
    axes.set_xlabel("images", color=SOFT)
    axes.grid(axis="x", color=LINE)
    axes.margins(y=0.01)
    axes.legend(frameon=False, loc="lower right")
    return drawn(figure)


def _cardinality(content: Content) -> bytes:
    counts = np.array(content.cardinality)
    figure, axes = canvas(8, 2.8)
    places = np.arange(len(counts))
    axes.bar(places - 0.2, counts.sum(axis=1), color=INK, width=0.4, label="labels that they have")
    axes.bar(places + 0.2, counts.sum(axis=0), color=BAR, width=0.4, label="labels that they are given")
    axes.set_xticks(places, [f"{i}{'+' if i == 10 else ''}" for i in places])
    axes.set_xlabel("labels of an image", color=SOFT)
    axes.set_ylabel("images", color=SOFT)
    axes.grid(axis="y", color=LINE)
    axes.legend(frameon=False)
    return drawn(figure)


def _confusion(content: Content) -> bytes:
    """Four counts a label, each shaded by its share of the row: of the images with the label, and of those without."""
    chosen = [content.labels[i] for i in by_frequency(content)[:MOST]]

    def draw(axes: Any, number: int) -> None:
        row = chosen[number]
        counts = np.array([[row.right, row.missed], [row.wrong, row.absent]])
        share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(2, 2):
            ink = "white" if share[i, j] > 0.55 else INK
            text = f"{counts[i, j]:,}\n{100 * share[i, j]:.0f}%"
            axes.annotate(text, (j, i), ha="center", va="center", fontsize=9, color=ink)
        axes.set_xticks([0, 1], ["given", "not given"])
        axes.set_yticks([0, 1], ["has it", "has not"])
        axes.spines[:].set_visible(False)

    return _panels([row.label for row in chosen], draw, 1.6)


def _thresholds(content: Content) -> bytes:
    chosen = by_frequency(content)[:MOST]

    def draw(axes: Any, number: int) -> None:
        curve, label = content.curves[chosen[number]], content.labels[chosen[number]]
        for metric, color in _PRF.items():
            axes.plot(curve.thresholds, getattr(curve, metric), color=color, linewidth=1.3, label=_NAMES[metric])
        if label.threshold is not None:
            axes.axvline(label.threshold, color=INK, linewidth=1, linestyle="--", label="threshold")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.grid(color=LINE)

    return _panels([content.labels[i].label for i in chosen], draw)


def _precision_recall(content: Content) -> bytes:
    chosen = by_frequency(content)[:MOST]
    average = {row.label: row.ap for row in content.measurement.labels}
    names = [content.labels[i].label for i in chosen]

    def draw(axes: Any, number: int) -> None:
        curve, label = content.curves[chosen[number]], content.labels[chosen[number]]
        axes.step(curve.recall, curve.precision, color=BAR, linewidth=1.4, where="pre")
        have, predicted = label.right + label.missed, label.right + label.wrong
        axes.axhline(have / max(1, have + label.wrong + label.absent), color=SOFT, linewidth=0.9, linestyle=":")
        if have and predicted:
            axes.plot([label.right / have], [label.right / predicted], "o", color=PARTS[4], markersize=5)
        area = average.get(names[number])
        if area is not None:
            axes.annotate(f"AP {area:.2f}", (0.97, 0.9), xycoords="axes fraction", ha="right", fontsize=8.5, color=SOFT)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.grid(color=LINE)

    return _panels(names, draw)


def _reliability(content: Content) -> bytes | None:
    bins = content.reliability
    if bins is None:
        return None
    figure = sheet(8, 4.6)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    some = [i for i, count in enumerate(bins.counts) if count]
    styled(above).plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", label="perfect")
    above.plot([bins.scores[i] for i in some], [bins.shares[i] for i in some], "o-", color=BAR, label="this model")
    above.set_ylabel("came true", color=SOFT)
    above.grid(color=LINE)
    above.legend(frameon=False, loc="upper left")
    width = 1 / len(bins.counts)
    styled(below).bar((np.arange(len(bins.counts)) + 0.5) * width, bins.counts, width=0.9 * width, color=BAR)
    below.set_yscale("log")
    below.set_ylabel("scores", color=SOFT)
    below.set_xlabel("score", color=SOFT)
    below.set_xlim(0, 1)
    return drawn(figure)


def _swapped(content: Content) -> bytes:
    """Missed labels by rows, and what was wrongly given in the same images by columns."""
    counts = np.array(content.swapped)
    order = np.array(by_frequency(content))
    rows, columns = (order[counts.sum(axis=axis)[order] > 0][:_MATRIX] for axis in (1, 0))
    shown = counts[np.ix_(rows, columns)]
    figure, axes = canvas(2.2 + 0.46 * len(columns), 1.6 + 0.34 * len(rows))
    axes.imshow(np.sqrt(shown), cmap="Oranges", vmin=0, vmax=max(1.0, float(np.sqrt(shown.max()))), aspect="auto")
    axes.set_xticks(np.arange(len(columns)), [short(content.labels[i].label) for i in columns], rotation=90)
    axes.set_yticks(np.arange(len(rows)), [short(content.labels[i].label) for i in rows])
    axes.set_xlabel("wrongly given", color=SOFT)
    axes.set_ylabel("missed", color=SOFT)
    for i, j in np.argwhere(shown > 0):
        ink = "white" if shown[i, j] > 0.5 * shown.max() else INK
        axes.annotate(str(shown[i, j]), (j, i), ha="center", va="center", color=ink, fontsize=8)
    return drawn(figure)


def _comparison(content: Content) -> bytes:
    """Differences from the first run with their intervals."""
    others = content.runs[1:]
    metrics = list(others[0].differences)
    figure, axes = canvas(8, 1.1 + 0.3 * len(metrics) * len(others))
    for number, run in enumerate(others):
        places = np.arange(len(metrics)) * len(others) + number * 0.8
        differences = np.array([run.differences[name] for name in metrics])
        color = PARTS[number % len(PARTS)]
        axes.hlines(places, differences[:, 1], differences[:, 2], color=color, linewidth=2)
        axes.plot(differences[:, 0], places, "o", color=color, markersize=5.5, label=short(run.name))
    axes.axvline(0, color=INK, linewidth=1)
    centres = np.arange(len(metrics)) * len(others) + 0.4 * (len(others) - 1)
    axes.set_yticks(centres, [metric_name(name) for name in metrics])
    axes.invert_yaxis()
    axes.set_xlabel(f"difference from {short(content.runs[0].name)}, with its 95% interval", color=SOFT)
    axes.grid(axis="x", color=LINE)
    if len(others) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(4, len(others)))
    return drawn(figure)
