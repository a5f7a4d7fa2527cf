"""The HTML page of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from mlic.config.space import Dimension, Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.html import page, plots
from mlic.tune.importance import Importance, code, importance
from mlic.tune.trial import Trial, short

if TYPE_CHECKING:
    from mlic.tune.result import TuneReport

Curves = Mapping[int, Sequence[float]]

_TOP = 3  # trials that system B compared to find what they have in common
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
        page.section("Winner", "Its settings beside the defaults of mlic train.", _changes(report)),
        _confirmed(report),
        _averaged(report),
        page.section(
            "History",
            "Each trial's best value, and the best one so far.",
            page.figure(drawn["history"], "values of trials by number"),
        ),
        page.section(
            "Epochs",
            "Each trial by epoch; grey ones were stopped early. Below: how many epochs were trained.",
            page.figure(drawn["curves"], "learning curves of all trials")
            + page.figure(drawn["rungs"], "trials by the epoch that they reached"),
        ),
        _exploits(report),
        page.section(
            "Settings and values",
            "One line per trial, from its settings to its value; the best tenth is coloured.",
            page.figure(drawn["coordinates"], "parallel coordinates of settings and values"),
        ),
        page.section(
            "What mattered",
            _said(weight, len(scored)),
            page.figure(drawn["importance"], "importance of each setting") if "importance" in drawn else "",
        ),
        page.section(
            "The three best",
            "Settings that they share, and that the others do not have, show a trend.",
            _trend(scored, config.space),
        ),
        page.section("Trials", "", _table(report)),
    ]
    return page.page(
        f"{report.run.name}: a search over {counted(len(config.space), 'setting')}", page.join(parts)
    ), drawn


def counted(number: int, noun: str) -> str:
    """A number and its noun, such as 1 trial and 2 trials."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _head(report: TuneReport) -> Markup:
    name = report.objective
    value = report.measurement.values[name]
    low, high = report.measurement.intervals[name]
    trivial = {baseline: row[name] for baseline, row in report.measurement.baselines.items() if name in row}
    best = max(trivial, key=lambda baseline: trivial[baseline])
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
    return page.tiles([page.Tile(big, [small]) for big, small in tiles])


def _changes(report: TuneReport) -> Markup:
    rows = list[page.Row]()
    for name, value in report.trials[0].settings.items():
        head, _, part = name.partition(".")
        default = TrainConfig.model_fields[head].default
        plain = default.get(part) if isinstance(default, dict) and part else default
        comparison = "same" if value == plain else page.Cell("changed", "good")
        rows.append([name, short(value), short(plain), comparison])
    return page.table(["Setting", "Winner", "Default", ""], rows)


def _confirmed(report: TuneReport) -> Markup:
    confirmation = report.confirmation
    if confirmation is None:
        text = "mlic tune --confirm 3 trains the winner, the runner-up and the defaults again and tests the difference."
        return page.section("Confirmation", text, "")
    rows = []
    for name, values in confirmation.values.items():
        lead = confirmation.lead.get(name)
        shown = "" if lead is None else f"{lead[0]:+.4f} ({lead[1]:+.4f} to {lead[2]:+.4f})"
        rows.append([name, f"{np.mean(values):.4f}", ", ".join(f"{value:.4f}" for value in values), shown])
    text = (
        f"Trained again with {confirmation.seeds} other seeds, "
        f"{confirmation.objective} on the {confirmation.split} split, "
        f"{confirmation.samples:,} samples: "
        + "; ".join(confirmation.verdict(name) for name in confirmation.lead)
        + "."
    )
    return page.section(
        "Confirmation", text, page.table(["Settings", "Mean", "By seed", "The winner's lead, 95% interval"], rows)
    )


def _averaged(report: TuneReport) -> Markup:
    ensemble = report.ensemble
    if ensemble is None:
        sentence = report.no_ensemble
        return page.section("Average", f"{sentence[:1].upper()}{sentence[1:]}", "") if sentence else Markup("")
    low, high = ensemble.measurement.intervals[ensemble.objective]
    numbers = ", ".join(str(number) for number in ensemble.trials)
    rows = [
        [
            numbers,
            f"{ensemble.measurement.values[ensemble.objective]:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{ensemble.lead[0]:+.4f} ({ensemble.lead[1]:+.4f} to {ensemble.lead[2]:+.4f})",
            ensemble.verdict(),
        ]
    ]
    text = "One model with the mean scores of these trials, on the same images, compared with the winner alone."
    head = ["Average of trials", ensemble.objective, "95% interval", "Lead over the winner", "It is"]
    return page.section("Average", text, page.table(head, rows))


def _exploits(report: TuneReport) -> Markup:
    if not report.exploits:
        return Markup("")
    rows = []
    for copy in report.exploits:
        prefix = f"changes.{copy.epoch}."
        now = {name.removeprefix(prefix): value for name, value in copy.settings.items() if name.startswith(prefix)}
        changed = ", ".join(f"{name} {short(value)}" for name, value in now.items())
        rows.append([f"{copy.epoch}", f"{copy.trial}", f"{copy.value:.4f}", f"{copy.source}", changed])
    text = "Which trial copied the weights of which better one, and the settings that changed."
    head = ["Epoch", "Trial", f"Its {report.objective}", "Copied", "New settings"]
    return page.section("Copies", text, page.folded_table(head, rows, 20, "copies"))


def _said(importance: Importance | None, count: int) -> str:
    if importance is None:
        return f"{count} trials are too few to say; it takes ten with different values."
    if importance.explained <= 0:
        return (
            "The settings do not explain the values: a forest predicts trials it has not seen no better than a guess."
        )
    return (
        f"How much worse a random forest predicts the values when a setting is shuffled. Of trials that a tree has not "
        f"seen, it explains {importance.explained:.0%} of the variance; the rest is chance, or the settings together."
    )


def _trend(scored: Sequence[Trial], space: Mapping[str, Dimension]) -> Markup:
    top, rest = scored[:_TOP], scored[_TOP:]
    head = ["Setting", *(f"Trial {trial.number}" for trial in top), "The others"]
    rows = [["value", *(f"{trial.value:.4f}" for trial in top), _middle([trial.value for trial in rest])]]
    for name in space:
        others = [trial.settings[name] for trial in rest if name in trial.settings]
        rows.append([name, *(short(trial.settings.get(name)) for trial in top), _middle(others)])
    return page.table(head, rows)


def _middle(values: Sequence[Value]) -> str:
    """A typical value: the median of numbers, else the most frequent value with its share."""
    if not values:
        return "-"
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        low, median, high = np.quantile(numbers, [0.25, 0.5, 0.75])
        return f"{median:.4g} ({low:.4g} to {high:.4g})"
    names = [short(value) for value in values]
    most = max(sorted(set(names)), key=names.count)
    return f"{most} ({names.count(most) / len(names):.0%})"


def _table(report: TuneReport) -> Markup:
    names = list(dict.fromkeys(name for trial in report.trials for name in trial.drawn))
    rows = list[page.Row]()
    for trial in report.trials:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        status = trial.status if trial.error is None else f"{trial.status}: {trial.error}"
        cells = [short(trial.drawn.get(name)) for name in names]
        rows.append([f"{trial.number}", page.Cell(status, "text"), f"{trial.epochs}", value, *cells])
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
    """Trials that reached each rung, and the epochs that were trained between the previous rung and this one."""
    figure, axes = plots.canvas(9, 2.4)
    ends = sorted(report.rungs)
    begins = [0, *ends[:-1]]
    spent = [
        sum(min(trial.epochs, end) - min(trial.epochs, begin) for trial in report.trials)
        for begin, end in zip(begins, ends, strict=True)
    ]
    places = np.arange(len(ends))
    axes.bar(places, spent, color=plots.BAR, width=0.6)
    for position, end, count in zip(places, ends, spent, strict=True):
        axes.text(
            position, count, counted(report.rungs[end], "trial"), ha="center", va="bottom", fontsize=8, color=plots.INK
        )
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
    for position in reversed(range(len(scored))):
        trial = scored[position]
        codes = [code(space[name], trial.settings.get(name)) for name in names]
        line = [column if column >= 0 else np.nan for column in codes]
        line.append((values[position] - low) / (high - low) if high > low else 0.5)
        top = position < best
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
    for position, name in enumerate(names):
        _ends(axes, position, *_limits(space[name]))
    _ends(axes, len(names), f"{low:.3f}", f"{high:.3f}")
    axes.set_ylim(-0.14, 1.14)
    return plots.drawn(figure)


def _limits(dimension: Dimension) -> tuple[str, str]:
    ends = dimension.ends
    return short(ends[0])[:_NAMED_WIDTH], short(ends[-1])[:_NAMED_WIDTH] if len(ends) > 1 else ""


def _ends(axes: Any, position: int, low: str, high: str) -> None:
    axes.axvline(position, color=plots.LINE, linewidth=0.8, zorder=0)
    axes.text(position, -0.05, low, ha="center", va="top", fontsize=7.5, color=plots.SOFT)
    axes.text(position, 1.05, high, ha="center", va="bottom", fontsize=7.5, color=plots.SOFT)


def _importance(importance: Importance) -> bytes:
    shares = sorted(importance.shares.items(), key=lambda item: item[1])
    figure, axes = plots.canvas(9, 0.5 + 0.32 * len(shares))
    places = np.arange(len(shares))
    axes.barh(places, [share for _, share in shares], color=plots.BAR, height=0.6)
    axes.set_yticks(places, [plots.short(name) for name, _ in shares])
    for position, (_, share) in zip(places, shares, strict=True):
        axes.text(share, position, f" {share:.0%}", va="center", fontsize=8, color=plots.INK)
    axes.set_xticks([])
    return plots.drawn(figure)
