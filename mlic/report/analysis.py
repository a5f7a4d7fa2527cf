"""Compute all content of a report page from the evidence of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlic.data import label_stats
from mlic.errors import DataError
from mlic.metrics import bootstrap, confusion, curves, error_causes, metrics
from mlic.model import summary
from mlic.report.content import (
    Bins,
    Content,
    Example,
    LabelCurve,
    LabelErrors,
    LayerRow,
    Mistake,
    RunRow,
    SettingRow,
    SliceRow,
    Swap,
)
from mlic.report.evidence import Evidence, Training, settings_of
from mlic.report.images import Look
from mlic.train import setup

Array = np.ndarray[Any, Any]

_SUPPORT, _CONFIDENCE = 20, 0.95  # of a rule between labels
_LEARN_FROM = 200_000  # samples that rules are learnt from, at most
_SWAPS = 12
_PER_KIND, _PER_LABEL = 8, 3  # images shown of a kind of error, and images of a kind with the same worst label
_COMPARED = ("f1_micro", "f1_macro", "map", "precision_micro", "recall_micro", "subset_accuracy", "hamming_accuracy")
_RESAMPLES = 1000
_SIZES = (64, 128, 256, 512, 1024, 2048)
_MOST_LABELS = 4  # labels of an image that have a slice of their own


def analyse(evidence: Sequence[Evidence], look: Look | None, seed: int) -> Content:
    """The content of a page about the first, with the others beside it.

    Raises DataError when they are of other samples or labels.
    """
    first = evidence[0]
    causes, rules = _causes(first)
    known = first.labels
    scores = first.scores
    curve = (
        ()
        if scores is None
        else tuple(_curve(label, scores[:, i], first.targets[:, i]) for i, label in enumerate(known))
    )
    swapped = confusion.swapped(first.decisions, first.targets)
    training = first.training
    layers = [] if training is None else _layers(training)
    return Content(
        title=first.name if training is None else f"Run {first.name}",
        about=first.about,
        notes=first.notes,
        measurement=first.measurement,
        history=() if training is None else tuple(training.history),
        histories=_histories(evidence),
        best_epoch=None if training is None else training.best_epoch,
        runs=_compare(evidence, seed),
        settings=_settings(evidence),
        arch="" if training is None else training.config.arch,
        layers=tuple(layers),
        labels=_labels(first, causes),
        curves=curve,
        reliability=None if first.scores is None else _bins(first.scores, first.targets),
        swapped=tuple(tuple(row) for row in swapped.tolist()),
        swaps=_swaps(known, swapped),
        cardinality=tuple(tuple(row) for row in confusion.cardinality(first.decisions, first.targets).tolist()),
        slices=_slices(first, look, seed),
        looked_at=0 if look is None else look.seen,
        rules=tuple(f"{known[i]} ⇒ {known[j]}" for i, j in rules),
        kinds={name: int((causes.kind == number).sum()) for number, name in enumerate(error_causes.KINDS, 1)},
        examples=_examples(first, causes),
    )


def _causes(evidence: Evidence) -> tuple[error_causes.Causes, list[tuple[int, int]]]:
    basis = evidence.targets if evidence.train_targets is None else evidence.train_targets
    basis = basis[:: -(-len(basis) // _LEARN_FROM)] if len(basis) else basis
    rules = [(item.first, item.second) for item in label_stats.implications(basis, _SUPPORT, _CONFIDENCE)]
    causes = error_causes.assign(
        evidence.decisions, evidence.targets, evidence.scores, _train_positives(evidence), rules
    )
    return causes, rules


def _train_positives(evidence: Evidence) -> Array | None:
    return None if evidence.train_targets is None else (evidence.train_targets == 1).sum(axis=0)


def _labels(evidence: Evidence, causes: error_causes.Causes) -> tuple[LabelErrors, ...]:
    matrices = metrics.count(evidence.decisions, evidence.targets).matrices()
    absent, wrong, missed, right = matrices.reshape(-1, 4).T.tolist()
    positives = _train_positives(evidence)
    return tuple(
        LabelErrors(
            label=label,
            right=right[i],
            wrong=wrong[i],
            missed=missed[i],
            absent=absent[i],
            threshold=None if evidence.thresholds is None else float(evidence.thresholds[i]),
            train_positives=None if positives is None else int(positives[i]),
            kinds={name: int((causes.kind[:, i] == n).sum()) for n, name in enumerate(error_causes.KINDS, 1)},
        )
        for i, label in enumerate(evidence.labels)
    )


def _curve(label: str, scores: Array, targets: Array) -> LabelCurve:
    curve = curves.curve(scores, targets)
    parts = {name: _rounded(getattr(curve, name)) for name in ("thresholds", "precision", "recall", "f1")}
    return LabelCurve(label=label, positives=int((targets == 1).sum()), **parts)


def _rounded(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _bins(scores: Array, targets: Array) -> Bins:
    bins = curves.reliability(scores, targets)
    return Bins(
        counts=tuple(bins.counts.tolist()),
        scores=_rounded(bins.scores),
        shares=_rounded(bins.shares),
        error=bins.error,
    )


def _swaps(labels: Sequence[str], counts: Array) -> tuple[Swap, ...]:
    flat = np.argsort(-counts, axis=None, kind="stable")[:_SWAPS]
    places = [divmod(int(number), len(labels)) for number in flat]
    return tuple(
        Swap(missed=labels[i], given=labels[j], images=int(counts[i, j])) for i, j in places if counts[i, j] > 0
    )


def _slices(evidence: Evidence, look: Look | None, seed: int) -> tuple[SliceRow, ...]:
    label_counts = (evidence.targets == 1).sum(axis=1)
    names = [str(i) for i in range(_MOST_LABELS)] + [f"{_MOST_LABELS} or more"]
    kinds: dict[str, tuple[Sequence[str], Array]] = {
        "labels of the image": (names, np.minimum(label_counts, _MOST_LABELS))
    }
    if look is not None:
        kinds["colour"] = (("colour", "grey"), look.gray)
        level = np.where(np.isnan(look.brightness), -1, np.nan_to_num(look.brightness) // 64).astype(int)
        kinds["mean brightness"] = (("0–63", "64–127", "128–191", "192–255"), level)
    if evidence.sizes is not None:
        side = np.sqrt(evidence.sizes.astype(float).prod(axis=1))
        edges = [f"up to {_SIZES[0]} px"] + [f"up to {size} px" for size in _SIZES[1:]] + [f"above {_SIZES[-1]} px"]
        kinds["size (side of a square as large)"] = (edges, np.searchsorted(_SIZES, side))
    rows = []
    right = ~((evidence.decisions.astype(bool) != (evidence.targets == 1)) & (evidence.targets >= 0)).any(axis=1)
    for by, (groups, group) in kinds.items():
        measured = confusion.slices(groups, group, evidence.decisions, evidence.targets, _RESAMPLES, seed)
        rows += [
            SliceRow(
                by=by,
                name=item.name,
                samples=item.samples,
                f1_micro=item.f1_micro,
                low=item.low,
                high=item.high,
                subset_accuracy=float(right[group == groups.index(item.name)].mean()),
            )
            for item in measured
            if len(measured) > 1
        ]
    return tuple(rows)


def _examples(evidence: Evidence, causes: error_causes.Causes) -> tuple[Example, ...]:
    """The images with the largest errors of each kind, but only a few for the same label."""
    score = np.zeros(causes.kind.shape) if evidence.scores is None else evidence.scores
    loss = np.abs(score - (evidence.targets == 1))
    examples = []
    for number, name in enumerate(error_causes.KINDS, 1):
        rows, columns = np.nonzero(causes.kind == number)
        used: dict[int, int] = {}
        taken: set[int] = set()
        for rank in np.argsort(-loss[rows, columns], kind="stable"):
            row, column = int(rows[rank]), int(columns[rank])
            if row in taken or used.get(column, 0) >= _PER_LABEL:
                continue
            taken.add(row)
            used[column] = used.get(column, 0) + 1
            examples.append(_example(evidence, causes, row, number, name))
            if len(taken) == _PER_KIND:
                break
    return tuple(examples)


def _example(evidence: Evidence, causes: error_causes.Causes, row: int, number: int, kind: str) -> Example:
    def score(i: int) -> float | None:
        return None if evidence.scores is None else round(float(evidence.scores[row, i]), 4)

    wrong = [int(i) for i in np.flatnonzero(causes.kind[row])]
    wrong.sort(key=lambda i: (causes.kind[row, i] != number, -abs((score(i) or 0) - (evidence.targets[row, i] == 1))))
    right = np.flatnonzero((evidence.targets[row] == 1) & evidence.decisions[row])
    mistakes = [
        Mistake(
            label=evidence.labels[i],
            missed=bool(evidence.targets[row, i] == 1),
            score=score(i),
            why=_why(evidence, causes, row, i),
        )
        for i in wrong
    ]
    return Example(
        row=row,
        key=evidence.keys[row],
        kind=kind,
        right={evidence.labels[i]: score(i) for i in right.tolist()},
        mistakes=tuple(mistakes),
    )


def _why(evidence: Evidence, causes: error_causes.Causes, row: int, i: int) -> str:
    """Why this error is under its kind, in few words."""
    if causes.by_rule[row, i]:
        return "the labels given break a rule"
    if causes.misled[row, i] >= 0:
        other = evidence.labels[causes.misled[row, i]]
        return f"{other} in its place" if evidence.targets[row, i] == 1 else f"comes with {other}"
    positives = _train_positives(evidence)
    if causes.kind[row, i] == 2 and positives is not None:
        return f"{int(positives[i]):,} training positives"
    return "the model is sure" if causes.kind[row, i] == 1 else ""


def _layers(training: Training) -> list[LayerRow]:
    prep = setup.preprocessing(training.config)
    layers = summary.layers(training.net, prep.channels, prep.image_size)
    return [LayerRow(name=item.name, kind=item.kind, shape=item.shape, parameters=item.parameters) for item in layers]


def _histories(evidence: Sequence[Evidence]) -> dict[str, tuple[dict[str, float], ...]]:
    """The metrics by epoch of several runs, without those of single labels; empty for a single run."""
    if len(evidence) < 2:
        return {}
    return {
        item.name: tuple({k: v for k, v in row.items() if k.count("/") < 2} for row in item.training.history)
        for item in evidence
        if item.training is not None
    }


def _settings(evidence: Sequence[Evidence]) -> tuple[SettingRow, ...]:
    """The settings of all runs, those that differ first, then those that are not the default."""
    settings = [settings_of(item.training.config) for item in evidence if item.training is not None]
    rows = []
    for name, (_, default, meaning) in (settings[0] if settings else {}).items():
        values = [run[name][0] for run in settings]
        changed = any(value != default for value in values)
        differs = any(value != values[0] for value in values)
        text = tuple("–" if value is None or value == {} else str(value) for value in values)
        rows.append(SettingRow(name=name, meaning=meaning, values=text, differs=differs, changed=changed))
    return tuple(sorted(rows, key=lambda row: (not row.differs, not row.changed)))


def _compare(evidence: Sequence[Evidence], seed: int) -> tuple[RunRow, ...]:
    if len(evidence) < 2:
        return ()
    first, *others = evidence
    first_draws = bootstrap.draws(first.decisions, first.targets, first.scores, _RESAMPLES, seed)
    differences: list[dict[str, tuple[float, float, float]]] = [{}]
    for item in others:
        decisions, scores = _aligned(first, item)
        drawn = bootstrap.draws(decisions, first.targets, scores, _RESAMPLES, seed)
        limits, values = bootstrap.differences(drawn, first_draws), item.measurement.values
        differences.append(
            {
                name: (values[name] - first.measurement.values[name], *limits[name])
                for name in _COMPARED
                if name in limits
            }
        )
    return tuple(
        RunRow(
            name=item.name,
            arch="" if item.training is None else item.training.config.arch,
            epochs=0 if item.training is None else len(item.training.history),
            best_epoch=0 if item.training is None else item.training.best_epoch,
            parameters=0 if item.training is None else summary.parameters(item.training.net),
            values=dict(item.measurement.values),
            intervals=dict(item.measurement.intervals),
            differences=difference,
        )
        for item, difference in zip(evidence, differences, strict=True)
    )


def _aligned(first: Evidence, other: Evidence) -> tuple[Array, Array | None]:
    """The other's decisions and scores in the order of the first's samples and labels.

    Raises DataError when they do not fit.
    """
    hint = "compare runs over the same shards, split and fold."
    if set(first.labels) != set(other.labels):
        only = len(set(first.labels) ^ set(other.labels))
        raise DataError(f"{other.name} and {first.name} have different labels: {only} occur in only one of them.", hint)
    here, there = (item.images is not None for item in (first, other))
    if first.data != other.data and not (here and there):
        raise DataError(f"{other.name} and {first.name} are of other shards, which are gone.", hint)
    keys = {key: i for i, key in enumerate(other.keys)}
    if first.data == other.data:
        keys = {key: i for i, key in enumerate(first.keys)}
    shared = sum(key in keys for key in first.keys)
    if shared < max(len(first.keys), len(other.keys)):
        raise DataError(
            f"{other.name} has {len(other.keys):,} samples and {first.name} {len(first.keys):,}, of which only "
            f"{shared:,} are the same.",
            hint,
        )
    rows = np.array([keys[key] for key in first.keys], int)
    columns = [other.labels.index(label) for label in first.labels]
    differ = int((other.targets[rows][:, columns] != first.targets).sum())
    if differ:
        raise DataError(f"{differ:,} labels of the samples are others in {other.name} than in {first.name}.", hint)
    scores = None if other.scores is None else other.scores[rows][:, columns]
    return other.decisions[rows][:, columns], scores
