"""A measurement as one self-contained HTML page: no network, no script, every name from data escaped."""

from __future__ import annotations

from html import escape

from mlic.score.baselines import best_baseline
from mlic.stages import page
from mlic.stages.measure import BASELINES, Measurement

_NAMES = {
    "f1_micro": "Micro F1", "precision_micro": "Micro precision", "recall_micro": "Micro recall",
    "f1_macro": "Macro F1", "precision_macro": "Macro precision", "recall_macro": "Macro recall",
    "map": "Mean average precision", "subset_accuracy": "Subset accuracy",
    "hamming_accuracy": "Hamming accuracy", "jaccard_samples": "Jaccard index, per image",
}  # fmt: skip


def render(title: str, measurement: Measurement) -> str:
    """The page as text."""
    warnings = "".join(page.warning(text) for text in measurement.warnings)
    counts = f"<p>{measurement.samples:,} images, {len(measurement.labels)} labels.</p>"
    return page.page(title, counts + warnings + _headlines(measurement) + _labels(measurement))


def _headlines(measurement: Measurement) -> str:
    baselines = [name for name in BASELINES if name in measurement.baselines]
    rows = []
    for metric, name in _NAMES.items():
        if metric not in measurement.values:
            continue
        value, (low, high) = measurement.values[metric], measurement.intervals[metric]
        best = best_baseline(metric, measurement.baselines)[1]
        others = [measurement.baselines[b].get(metric) for b in baselines]
        cells = ["–" if other is None else f"{other:.4f}" for other in others]
        number = f'<td class="value">{value:.4f}</td>'
        rows.append([name, number, f"{low:.4f}–{high:.4f}", page.bar(value, best), *cells])
    text = (
        "Each number stands beside its 95% bootstrap interval over images and beside what needs no image at all. The "
        "mark on each bar is the best of these baselines. Subset accuracy: the whole set is right. Hamming accuracy: "
        "single labels are right. Jaccard index: an empty set predicted right counts 0."
    )
    head = ["Metric", "Value", "95% interval", "", *(name.replace("_", " ") for name in baselines)]
    return page.section("Headlines", text, page.table(head, rows))


def _labels(measurement: Measurement) -> str:
    rows = []
    for row in sorted(measurement.labels, key=lambda row: -row.support):
        ap = "–" if row.ap is None else f"{row.ap:.4f}"
        always = 2 * row.share / (1 + row.share)
        rows.append(
            [
                escape(row.label), f"{row.support:,}", f"{row.share:.1%}", f"{row.precision:.4f}", f"{row.recall:.4f}",
                f'<td class="value">{row.f1:.4f}</td>', page.bar(row.f1, always), ap,
            ]
        )  # fmt: skip
    text = "Most frequent first. The mark is the F1 of giving the label to every image."
    head = ["Label", "Images", "Share", "Precision", "Recall", "F1", "", "AP"]
    return page.section("Labels", text, page.table(head, rows))
