"""The HTML page of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from mlic.html import page
from mlic.metrics.measurement import BASELINES, LabelRow, Measurement
from mlic.report import wrong_predictions
from mlic.report.content import METRICS, Content, SettingRow, metric_name
from mlic.report.images import Picture
from mlic.report.plots import MOST, by_frequency

_LESS_IS_BETTER = {
    "hamming_loss",
    "ranking_loss",
    "one_error",
    "coverage_error",
    "coverage",
    "brier",
    "ece",
    "log_loss",
}
_SHOWN = ("label", "support", "share", "precision", "recall", "f1", "ap")  # columns of a LabelRow that are placed first
_TILES = ("f1_micro", "f1_macro", "map", "subset_accuracy")
Sections = dict[str, tuple[str, Markup]]  # heading -> a line of text, and a body
_METRIC_ROWS = 10  # the everyday ones
_ROWS = 30  # rows of a table that are shown before the rest is collapsed
_LAYERS = 45
_NOTHING = Markup("")


def render(content: Content, figures: Mapping[str, bytes], images: Mapping[int, Picture], method: str) -> str:
    """The page as text: `figures` are PNG files by name, `images` pictures by row of the data, `method` how their
    overlays were made."""
    drawn = {name: page.figure(data, name.replace("-", " ")) for name, data in figures.items()}
    more = len(content.labels) - MOST
    cut = f" The {MOST} most frequent labels; {more:,} more are in the tables and in report.json." if more > 0 else ""
    sections: Sections = _numbers(content, drawn) | _how(content, drawn, cut) | _decisions(content, drawn, cut)
    sections |= wrong_predictions.sections(content, drawn.get("swapped", _NOTHING), images, method)
    head = [
        page.paragraph(
            f"{content.about} {content.measurement.samples:,} images, {len(content.labels):,} labels.", "about"
        ),
        *(page.paragraph(note, "about") for note in content.notes),
        *(page.warning(_in_words(text)) for text in content.measurement.warnings),
        _tiles(content.measurement),
        page.contents(list(sections)),
    ]
    body = [page.section(heading, text, part) for heading, (text, part) in sections.items()]
    return page.page(content.title, page.join([*head, *body]))


def _numbers(content: Content, figures: Mapping[str, Markup]) -> Sections:
    sections = {
        "Headlines": (
            "Each number stands beside its 95% bootstrap interval over images and beside the best of what needs no "
            "image at all, which is the mark on its bar. Subset accuracy: the whole set of labels is right. Hamming "
            "accuracy: single labels are right. Jaccard index: an empty set predicted right counts 0.",
            _headlines(content.measurement),
        ),
        "Comparison": (
            "Differences from the first run over the same images, resampled together. If the interval does not contain "
            "0, the difference is significant for these images.",
            _comparison(content, figures["comparison"]) if content.runs else _NOTHING,
        ),
        "Epochs of the runs": (
            "Metrics of each epoch of each run on its validation split.",
            figures.get("runs", _NOTHING),
        ),
        "Labels": (
            "Most frequent first. The mark is the F1 of giving the label to every image. AP is the average precision "
            "over all thresholds.",
            _labels(content),
        ),
    }
    return {name: part for name, part in sections.items() if part[1]}


def _how(content: Content, figures: Mapping[str, Markup], cut: str) -> Sections:
    """How the model was trained."""
    of_labels = figures.get("history-labels", _NOTHING)
    differ = " Those marked differ between the runs." if content.runs else ""
    parameters = sum(row.parameters for row in content.layers)
    sections = {
        "Training": (
            "Metrics of each epoch on the validation split and, dashed, on the training images after augmentation. The "
            "dotted line is the epoch that was kept." + (cut if of_labels else ""),
            figures.get("history", _NOTHING) + of_labels,
        ),
        "Settings": (f"The settings of the run.{differ}", _settings(content) if content.settings else _NOTHING),
        "Architecture": (
            f"{content.arch}: {parameters:,} parameters in {len(content.layers):,} layers, in the order in which an "
            "image passes them.",
            _layers(content) if content.layers else _NOTHING,
        ),
    }
    return {name: part for name, part in sections.items() if part[1]}


def _decisions(content: Content, figures: Mapping[str, Markup], cut: str) -> Sections:
    decided = any(label.threshold is not None for label in content.labels)
    stored = " The dashed line is the threshold that is stored with the model." if decided else ""
    error = 0.0 if content.reliability is None else content.reliability.error
    sections = {
        "Distributions": (
            "How often labels are predicted, and how often images have them.",
            figures["distribution"] + figures["cardinality"],
        ),
        "Confusion": (
            "Each label separately. The upper row is the images that have it, the lower row the others; "
            f"shares are of the row.{cut}",
            figures["confusion"],
        ),
        "Thresholds": (
            f"A label's precision, recall and F1 at every threshold, on these images.{stored}{cut}",
            figures.get("thresholds", _NOTHING),
        ),
        "Precision and recall": (
            "The dot is where the decisions stand, the dotted line the precision of giving the label to every image.",
            figures.get("precision-recall", _NOTHING),
        ),
        "Reliability": (
            "Of the scores near 0.8, eight in ten should come true; points below the line are scores that promise too "
            f"much. The distance from the line is {error:.3f} on average, over the scores of all labels together.",
            figures.get("reliability", _NOTHING),
        ),
    }
    return {name: part for name, part in sections.items() if part[1]}


def _in_words(text: str) -> str:
    """A warning with the names of metrics for people."""
    for key in sorted(METRICS, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(key)}\b", metric_name(key), text)
    return text


def _best(measurement: Measurement, metric: str) -> tuple[str, float] | None:
    """Name and value of the best baseline of a metric."""
    have = {name: values[metric] for name, values in measurement.baselines.items() if values.get(metric) is not None}
    if not have:
        return None
    pick = min if metric in _LESS_IS_BETTER else max
    name = pick(have, key=lambda key: have[key])
    return name.replace("_", " "), have[name]


def _order(measurement: Measurement) -> list[str]:
    """Metrics in the order of the names above, then all others."""
    return [
        *(name for name in METRICS if name in measurement.values),
        *(name for name in measurement.values if name not in METRICS),
    ]


def _interval(limits: Mapping[str, tuple[float, float]], metric: str) -> str:
    interval = limits.get(metric)
    return "–" if interval is None else f"{interval[0]:.4f}–{interval[1]:.4f}"


def _tiles(measurement: Measurement) -> Markup:
    tiles = []
    for metric in _TILES:
        value = measurement.values.get(metric)
        if value is None:
            continue
        best = _best(measurement, metric)
        limits = measurement.intervals.get(metric)
        within = "" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"
        below = [within, *([] if best is None else [f"{best[0]}: {best[1]:.3f}"])]
        tiles.append(page.Tile(f"{value:.3f}", below, metric_name(metric)))
    return page.tiles(tiles)


def _headlines(measurement: Measurement) -> Markup:
    rows, all_rows = list[page.Row](), list[list[str]]()
    baselines = [
        *(name for name in BASELINES if name in measurement.baselines),
        *(name for name in measurement.baselines if name not in BASELINES),
    ]
    for metric in _order(measurement):
        value, best = measurement.values[metric], _best(measurement, metric)
        if value is None:
            continue
        bar = page.bar(value, None if best is None else best[1]) if 0 <= value <= 1 else page.Cell("")
        beside = ["–", "–"] if best is None else [f"{best[1]:.4f}", best[0]]
        number = page.Cell(f"{value:.4f}", "value")
        rows.append([metric_name(metric), number, _interval(measurement.intervals, metric), bar, *beside])
        others = [measurement.baselines[name].get(metric) for name in baselines]
        cells = ["–" if other is None else f"{other:.4f}" for other in others]
        all_rows.append([metric_name(metric), f"{value:.4f}", *cells])
    names = [name.replace("_", " ") for name in baselines]
    head = ["Metric", "Value", "95% interval", "", "Best baseline", "which is"]
    return page.folded_table(head, rows, _METRIC_ROWS, "metrics") + page.details(
        "All baselines", page.table(["Metric", "Value", *names], all_rows)
    )


def _labels(content: Content) -> Markup:
    by_label = {row.label: row for row in content.measurement.labels}
    trained = any(label.train_positives is not None for label in content.labels)
    decided = any(label.threshold is not None for label in content.labels)
    others = [name for name in LabelRow.model_fields if name not in _SHOWN]
    rows = list[page.Row]()
    for errors in (content.labels[i] for i in by_frequency(content)):
        row = by_label[errors.label]
        rows.append(
            [
                row.label,
                f"{row.support:,}",
                f"{row.share:.1%}",
                *([_cell(errors.train_positives)] if trained else []),
                _cell(row.precision),
                _cell(row.recall),
                page.Cell(_cell(row.f1), "value"),
                page.bar(row.f1 or 0, 2 * row.share / (1 + row.share)),
                _cell(row.ap),
                *(_cell(getattr(row, name)) for name in others),
                f"{errors.missed:,}",
                f"{errors.wrong:,}",
                *([_cell(errors.threshold)] if decided else []),
            ]
        )
    head = [
        "Label",
        "Images",
        "Share",
        *(["In training"] if trained else []),
        "Precision",
        "Recall",
        "F1",
        "",
        "AP",
        *(metric_name(name) for name in others),
        "Missed",
        "Wrong",
        *(["Threshold"] if decided else []),
    ]
    return page.folded_table(head, rows, _ROWS, "labels, less frequent ones")


def _cell(value: Any) -> str:
    """A number, an interval of two, or nothing, as text."""
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return "–".join(_cell(part) for part in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else str(value)


def _comparison(content: Content, figure: Markup) -> Markup:
    rows = [
        [
            run.name,
            run.arch,
            f"{run.parameters:,}",
            f"{run.best_epoch} of {run.epochs}",
            *("–" if run.values.get(m) is None else f"{run.values[m]:.4f}" for m in _TILES),
        ]
        for run in content.runs
    ]
    head = ["Run", "Architecture", "Parameters", "Epoch", *(metric_name(m) for m in _TILES)]
    parts = [page.table(head, rows), figure]
    if len(content.runs) > 1:
        others = content.runs[1:]
        lines: list[page.Row] = [
            [metric_name(metric), *(_difference(run.differences[metric]) for run in others)]
            for metric in others[0].differences
        ]
        parts.append(page.table([f"Difference from {content.runs[0].name}", *(run.name for run in others)], lines))
    return page.join(parts)


def _difference(difference: tuple[float, float, float]) -> page.Cell:
    value, low, high = difference
    kind = "good" if low > 0 else "bad" if high < 0 else "soft"
    word = {"good": "better", "bad": "worse", "soft": "not clear"}[kind]
    return page.Cell(f"{value:+.4f} ({low:+.4f} to {high:+.4f}), {word}", kind)


def _settings(content: Content) -> Markup:
    several = len(content.runs) > 1
    head = ["Setting", *([run.name for run in content.runs] if several else ["Value"]), "Meaning"]

    def line(row: SettingRow) -> list[str | page.Cell]:
        return [page.setting(row.name, row.differs), *row.values, page.Cell(row.meaning, "text long")]

    shown = [row for row in content.settings if row.differs or row.changed]
    rest = [row for row in content.settings if not (row.differs or row.changed)]
    return page.table(head, [line(row) for row in shown]) + page.details(
        f"{len(rest)} settings at their defaults", page.table(head, [line(row) for row in rest])
    )


def _layers(content: Content) -> Markup:
    rows: list[page.Row] = [
        [
            row.name,
            page.Cell(row.kind, "text"),
            " × ".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "–",
        ]
        for row in content.layers
    ]
    return page.folded_table(["Layer", "Kind", "Output", "Parameters"], rows, _LAYERS, "layers")
