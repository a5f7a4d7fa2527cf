"""The HTML page of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mlic.config.space import Dimension, Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.html import page, plots
from mlic.tune.importance import Importance, code, importance
from mlic.tune.trial import Trial, short

if TYPE_CHECKING:
    from mlic.tune.result import TuneReport

Curves = Mapping[int, Sequence[float]]

_TOP = 3  # trials that system B laid beside each other to see what they share
_NAMED_WIDTH = 14
_ACROSS = 110  # characters side by side in a drawing


def render(report: TuneReport, config: TuneConfig, curves: Curves) -> tuple[str, dict[str, bytes]]:
    """The page as text and its figures (PNG) by name; `curves` has the values of each trial by epoch."""
    scored = [trial for trial in report.trials if trial.value is not None]
    weight = importance(config.space, [t.settings for t in scored], [t.value or 0.0 for t in scored], config.seed)
    drawn = {
        "history": _history(report),
        "curves": _curves(report, curves, config.epochs),
        "rungs": _rungs(report),
        "coordinates": _coordinates(scored, config.space),
    }
    if weight is not None and weight.explained > 0:
        drawn["importance"] = _importance(weight)
    parts = [
        _head(report),
        page.section("Winner", "What it was given, beside what mlic train does by itself.", _changes(report)),
        _confirmed(report),
        _averaged(report),
        page.section(
            "History",
            "Each trial's best value, and the best one so far.",
            page.figure(drawn["history"], "values of trials by number"),
        ),
        page.section(
            "Epochs",
            "Each trial by epoch; grey ones were stopped. Below, where the epochs went.",
            page.figure(drawn["curves"], "learning curves of all trials")
            + page.figure(drawn["rungs"], "trials by the epoch that they came to"),
        ),
        _exchanged(report),
        page.section(
            "Settings and values",
            "A line a trial, from its settings to its value; the best tenth in colour.",
            page.figure(drawn["coordinates"], "parallel coordinates of settings and values"),
        ),
        page.section(
            "What mattered",
            _said(weight, len(scored)),
            page.figure(drawn["importance"], "importance of each setting") if "importance" in drawn else "",
        ),
        page.section(
            "The three best",
            "What they share and the others do not is the trend to follow.",
            _trend(scored, config.space),
        ),
        page.section("Trials", "", _table(report)),
    ]
    return page.page(f"{report.run.name}: a search over {len(config.space)} settings", "".join(parts)), drawn


def _head(report: TuneReport) -> str:
    name = report.objective
    value = report.measurement.values[name]
    low, high = report.measurement.intervals[name]
    trivial = {each: row[name] for each, row in report.measurement.baselines.items() if name in row}
    best = max(trivial, key=lambda each: trivial[each])
    hours = report.seconds / 3600
    tiles = [
        (
            f"{value:.4f}",
            f"{name} of the winner on {report.split}, {low:.4f} to {high:.4f}; the best of "
            f"{len(report.trials)} looks better than it is",
        ),
        (f"{trivial[best]:.4f}", f"the best trivial baseline, {best.replace('_', ' ')}"),
        (f"{len(report.trials):,}", "trials"),
        (f"{report.epochs / report.possible:.0%}", f"of all {report.possible:,} epochs were trained"),
        (f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", "of search"),
    ]
    shown = "".join(f'<div class="tile"><b>{escape(big)}</b>{escape(small)}</div>' for big, small in tiles)
    return f'<div class="tiles">{shown}</div>'


def _changes(report: TuneReport) -> str:
    rows = []
    for name, value in report.trials[0].settings.items():
        head, _, part = name.partition(".")
        default = TrainConfig.model_fields[head].default
        plain = default.get(part) if isinstance(default, dict) and part else default
        same = "" if value == plain else '<td class="good">changed</td>'
        rows.append([escape(name), escape(short(value)), escape(short(plain)), same or "same"])
    return page.table(["Setting", "Winner", "Default", ""], rows)


def _confirmed(report: TuneReport) -> str:
    found = report.confirmation
    if found is None:
        text = "mlic tune --confirm 3 trains the winner, the runner-up and the default again and says which is better."
        return page.section("Confirmation", text, "")
    rows = []
    for name, values in found.values.items():
        lead = found.lead.get(name)
        shown = "" if lead is None else f"{lead[0]:+.4f} ({lead[1]:+.4f} to {lead[2]:+.4f})"
        rows.append([escape(name), f"{np.mean(values):.4f}", ", ".join(f"{each:.4f}" for each in values), shown])
    text = (
        f"Trained again from {found.seeds} other seeds, {found.objective} on the {found.split} split, "
        f"{found.samples:,} samples: " + "; ".join(found.verdict(name) for name in found.lead) + "."
    )
    return page.section(
        "Confirmation", text, page.table(["Settings", "Mean", "By seed", "The winner's lead, 95% interval"], rows)
    )


def _averaged(report: TuneReport) -> str:
    found = report.ensemble
    if found is None:
        said = report.no_ensemble
        return page.section("Average", f"{said[:1].upper()}{said[1:]}", "") if said else ""
    low, high = found.measurement.intervals[found.objective]
    numbers = ", ".join(str(number) for number in found.trials)
    rows = [
        [
            numbers,
            f"{found.measurement.values[found.objective]:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{found.lead[0]:+.4f} ({found.lead[1]:+.4f} to {found.lead[2]:+.4f})",
            found.verdict(),
        ]
    ]
    text = "One model whose scores are the means of theirs, on the same images, beside the winner alone."
    head = ["Average of trials", found.objective, "95% interval", "Lead over the winner", "It is"]
    return page.section("Average", text, page.table(head, rows))


def _exchanged(report: TuneReport) -> str:
    if not report.exchanges:
        return ""
    rows = []
    for each in report.exchanges:
        prefix = f"changes.{each.epoch}."
        now = {name.removeprefix(prefix): value for name, value in each.settings.items() if name.startswith(prefix)}
        given = ", ".join(f"{name} {short(value)}" for name, value in now.items())
        rows.append([f"{each.epoch}", f"{each.trial}", f"{each.value:.4f}", f"{each.source}", escape(given)])
    text = "Which trial continued as which better one, with its weights, and with what settings from then on."
    head = ["After epoch", "Trial", f"Its {report.objective}", "Went on as", "With"]
    return page.section("Exchanges", text, page.folded_table(head, rows, 20, "exchanges"))


def _said(found: Importance | None, count: int) -> str:
    if found is None:
        return f"{count} trials are too few to say; it takes ten with different values."
    if found.explained <= 0:
        return (
            "The settings do not explain the values: a forest predicts trials it has not seen no better than a guess."
        )
    return (
        f"How much worse a random forest predicts the values when a setting is shuffled. Of trials that a tree has not "
        f"seen, it explains {found.explained:.0%} of the variance; the rest is chance, or the settings together."
    )


def _trend(scored: Sequence[Trial], space: Mapping[str, Dimension]) -> str:
    top, rest = scored[:_TOP], scored[_TOP:]
    head = ["Setting", *(f"Trial {trial.number}" for trial in top), "The others"]
    rows = [["value", *(f"{trial.value:.4f}" for trial in top), _middle([trial.value for trial in rest])]]
    for name in space:
        others = [trial.settings[name] for trial in rest if name in trial.settings]
        rows.append(
            [escape(name), *(escape(short(trial.settings.get(name))) for trial in top), escape(_middle(others))]
        )
    return page.table(head, rows)


def _middle(values: Sequence[Value]) -> str:
    """What values have in the middle: the median of numbers, else the most frequent one with its share."""
    if not values:
        return "-"
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75])
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"
    names = [short(value) for value in values]
    most = max(sorted(set(names)), key=names.count)
    return f"{most} ({names.count(most) / len(names):.0%})"


def _table(report: TuneReport) -> str:
    names = list(dict.fromkeys(name for trial in report.trials for name in trial.drawn))
    rows = []
    for trial in report.trials:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        status = escape(trial.status if trial.error is None else f"{trial.status}: {trial.error}")
        given = [escape(short(trial.drawn.get(name))) for name in names]
        rows.append([f"{trial.number}", f'<td class="text">{status}</td>', f"{trial.epochs}", value, *given])
    return page.folded_table(["Trial", "Status", "Epochs", report.objective, *names], rows, 50, "trials")


def _history(report: TuneReport) -> bytes:
    figure, axes = plots.canvas(9, 3.2)
    trials = sorted((t for t in report.trials if t.value is not None), key=lambda t: t.number)
    for status, color in (("finished", plots.BAR), ("pruned", plots.SOFT), ("cut", plots.PARTS[1])):
        some = [t for t in trials if t.status == status]
        axes.scatter(
            [t.number for t in some], [t.value for t in some], s=16, color=color, label=f"{status} ({len(some)})"
        ) if some else None
    numbers = [t.number for t in trials]
    best = np.maximum.accumulate([t.value or 0.0 for t in trials])
    axes.step(numbers, best, where="post", color=plots.INK, linewidth=1.2, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(report.objective)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    return plots.drawn(figure)


def _curves(report: TuneReport, curves: Curves, epochs: int) -> bytes:
    figure, axes = plots.canvas(9, 3.2)
    winner = report.trials[0].number
    for trial in reversed(report.trials):
        values = curves.get(trial.number, ())
        going = trial.status == "finished"
        color = plots.PARTS[4] if trial.number == winner else plots.BAR if going else plots.SOFT
        mark = "o" if len(values) == 1 else None
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=color,
            marker=mark,
            markersize=3,
            linewidth=2 if trial.number == winner else 0.9,
            alpha=1 if going else 0.5,
        )
    axes.set_xlim(0.8, epochs + 0.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel(report.objective)
    return plots.drawn(figure)


def _rungs(report: TuneReport) -> bytes:
    """Trials that came to each rung, and the epochs that were trained on the way to it from the one before."""
    figure, axes = plots.canvas(9, 2.4)
    ends = sorted(report.rungs)
    begins = [0, *ends[:-1]]
    spent = [
        sum(min(trial.epochs, end) - min(trial.epochs, begin) for trial in report.trials)
        for begin, end in zip(begins, ends, strict=True)
    ]
    places = np.arange(len(ends))
    axes.bar(places, spent, color=plots.BAR, width=0.6)
    for place, end, count in zip(places, ends, spent, strict=True):
        axes.text(place, count, f"{report.rungs[end]} trials", ha="center", va="bottom", fontsize=8, color=plots.INK)
    axes.set_xticks(
        places,
        [
            f"epoch {end}" if end == begin + 1 else f"epochs {begin + 1} to {end}"
            for begin, end in zip(begins, ends, strict=True)
        ],
    )
    axes.set_ylabel("epochs trained")
    axes.margins(y=0.18)
    return plots.drawn(figure)


def _coordinates(scored: Sequence[Trial], space: Mapping[str, Dimension]) -> bytes:
    figure, axes = plots.canvas(9, 3.6)
    names = list(space)
    values = np.array([trial.value or 0.0 for trial in scored])
    low, high = float(values.min()), float(values.max())
    best = max(1, len(scored) // 10)
    for place in reversed(range(len(scored))):
        trial = scored[place]
        codes = [code(space[name], trial.settings.get(name)) for name in names]
        line = [each if each >= 0 else np.nan for each in codes]
        line.append((values[place] - low) / (high - low) if high > low else 0.5)
        top = place < best
        axes.plot(
            range(len(line)),
            line,
            color=plots.PARTS[4] if top else plots.SOFT,
            linewidth=1.6 if top else 0.6,
            alpha=1 if top else 0.4,
            marker="o",
            markersize=2,
        )
    shown = [*(name.rpartition(".")[2] for name in names), "value"]
    crowded = max(map(len, shown)) * len(shown) > _ACROSS
    axes.set_xticks(range(len(shown)), shown, fontsize=8, **({"rotation": 20, "ha": "right"} if crowded else {}))
    axes.set_yticks([])
    for place, name in enumerate(names):
        _ends(axes, place, *_limits(space[name]))
    _ends(axes, len(names), f"{low:.3f}", f"{high:.3f}")
    axes.set_ylim(-0.14, 1.14)
    return plots.drawn(figure)


def _limits(dimension: Dimension) -> tuple[str, str]:
    given = dimension.ends
    return short(given[0])[:_NAMED_WIDTH], short(given[-1])[:_NAMED_WIDTH] if len(given) > 1 else ""


def _ends(axes: Any, place: int, low: str, high: str) -> None:
    axes.axvline(place, color=plots.LINE, linewidth=0.8, zorder=0)
    axes.text(place, -0.05, low, ha="center", va="top", fontsize=7.5, color=plots.SOFT)
    axes.text(place, 1.05, high, ha="center", va="bottom", fontsize=7.5, color=plots.SOFT)


def _importance(found: Importance) -> bytes:
    shares = sorted(found.shares.items(), key=lambda item: item[1])
    figure, axes = plots.canvas(9, 0.5 + 0.32 * len(shares))
    places = np.arange(len(shares))
    axes.barh(places, [share for _, share in shares], color=plots.BAR, height=0.6)
    axes.set_yticks(places, [plots.short(name) for name, _ in shares])
    for place, (_, share) in zip(places, shares, strict=True):
        axes.text(share, place, f" {share:.0%}", va="center", fontsize=8, color=plots.INK)
    axes.set_xticks([])
    return plots.drawn(figure)
