"""A measurement as one self-contained HTML page: no network, no script, every name from data escaped."""

from __future__ import annotations

from html import escape

from mlic.score.metrics import best_baseline
from mlic.stages.measure import BASELINES, Measurement

_NAMES = {
    "f1_micro": "Micro F1", "precision_micro": "Micro precision", "recall_micro": "Micro recall",
    "f1_macro": "Macro F1", "precision_macro": "Macro precision", "recall_macro": "Macro recall",
    "map": "Mean average precision", "subset_accuracy": "Subset accuracy",
    "hamming_accuracy": "Hamming accuracy", "jaccard_samples": "Jaccard index, per image",
}  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d9dee7; --bar: #2f6fde; --back: #fff;
  --warn: #8a4b00; --warn-back: #fff4e0; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #344054; --bar: #6ea0ff;
  --back: #12161e; --warn: #ffc670; --warn-back: #33260f; --mark: #ff9a62; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { color: var(--soft); margin-top: 0; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 7rem; }
td.value { font-weight: 650; } td.bar { min-width: 7rem; width: 16%; }
.track { position: relative; height: .7rem; background: var(--line); border-radius: .35rem; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: .35rem; }
.mark { position: absolute; top: -.25rem; bottom: -.25rem; width: 2px; background: var(--mark); }
.warn { background: var(--warn-back); color: var(--warn); border-left: 4px solid; padding: .6rem .9rem;
  margin: .6rem 0; }
"""


def render(title: str, measurement: Measurement) -> str:
    """The page as text."""
    warnings = "".join(f'<div class="warn">{escape(text)}</div>' for text in measurement.warnings)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{measurement.samples:,} images, {len(measurement.labels)} labels.</p>"
        f"{warnings}{_headlines(measurement)}{_labels(measurement)}</body></html>\n"
    )


def _headlines(measurement: Measurement) -> str:
    baselines = [name for name in BASELINES if name in measurement.baselines]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in baselines)
    rows = []
    for metric, name in _NAMES.items():
        if metric not in measurement.values:
            continue
        value, (low, high) = measurement.values[metric], measurement.intervals[metric]
        best = best_baseline(metric, measurement.baselines)[1]
        others = [measurement.baselines[b].get(metric) for b in baselines]
        cells = "".join(f"<td>{'–' if other is None else f'{other:.4f}'}</td>" for other in others)
        rows.append(
            f'<tr><td>{name}</td><td class="value">{value:.4f}</td><td>{low:.4f}–{high:.4f}</td>'
            f'<td class="bar">{_bar(value, best)}</td>{cells}</tr>'
        )
    return (
        "<h2>Headlines</h2><p>Each number stands beside its 95% bootstrap interval over images and beside what "
        "needs no image at all. The mark on each bar is the best of these baselines. Subset accuracy: the whole set is "
        "right. Hamming accuracy: single labels are right. Jaccard index: an empty set predicted right counts 0.</p>"
        f'<div class="scroll"><table><thead><tr><th>Metric</th><th>Value</th><th>95% interval</th><th></th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _labels(measurement: Measurement) -> str:
    rows = []
    for row in sorted(measurement.labels, key=lambda row: -row.support):
        numbers = "".join(f"<td>{value:.4f}</td>" for value in (row.precision, row.recall))
        ap = "–" if row.ap is None else f"{row.ap:.4f}"
        always = 2 * row.share / (1 + row.share)
        rows.append(
            f"<tr><td>{escape(row.label)}</td><td>{row.support:,}</td><td>{row.share:.1%}</td>{numbers}"
            f'<td class="value">{row.f1:.4f}</td><td class="bar">{_bar(row.f1, always)}</td><td>{ap}</td></tr>'
        )
    return (
        "<h2>Labels</h2><p>Most frequent first. The mark is the F1 of giving the label to every image.</p>"
        '<div class="scroll"><table><thead><tr><th>Label</th><th>Images</th><th>Share</th><th>Precision</th>'
        "<th>Recall</th><th>F1</th><th></th><th>AP</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(value: float, mark: float) -> str:
    return (
        f'<div class="track"><div class="fill" style="width:{100 * value:.1f}%"></div>'
        f'<div class="mark" style="left:{100 * mark:.1f}%"></div></div>'
    )
