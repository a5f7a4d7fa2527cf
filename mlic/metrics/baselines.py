"""Trivial baselines, which need no image, and a warning about metrics that do not beat them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mlic.metrics import metrics

Array = np.ndarray[Any, Any]

_TOP_K = (1, 2, 3)
_SHUFFLED_ROWS = 100_000  # shuffles are averaged until they have about this many rows in total; more are not needed
_MOST_SHUFFLES = 20


def baselines(decisions: Array, targets: Array, scores: Array | None, seed: int) -> dict[str, dict[str, float]]:
    """Baseline -> metric -> value, with the label shares of these very targets (N, L).

    `all_negative` gives no label. `always_top_K` gives every image the K most frequent labels. `prevalence` gives each
    label at random, with its share as the probability. Its values are expectations; for a ratio, the ratio of the
    expected counts. If there are scores, those of `prevalence` are the shares, computed for at most 100,000 samples.
    `shuffled` assigns the given decisions and scores to the images at random. It shows what it is worth to know only
    how often a label is given.
    """
    num_labels = targets.shape[1]
    share = metrics.ratio((targets == 1).sum(axis=0), (targets >= 0).sum(axis=0))
    by_baseline: dict[str, dict[str, float]] = {}
    ranked = np.argsort(-share, kind="stable")
    for k in (0, *(k for k in _TOP_K if k < num_labels)):
        predicted = np.zeros(num_labels, dtype=bool)
        predicted[ranked[:k]] = True
        everywhere = np.broadcast_to(predicted, targets.shape)
        by_baseline["all_negative" if k == 0 else f"always_top_{k}"] = metrics.decision_metrics(everywhere, targets)
    by_baseline["prevalence"] = _prevalence(targets, share)
    if scores is not None:
        rows = np.random.default_rng([seed, 10]).permutation(len(targets))[:_SHUFFLED_ROWS]
        constant = np.broadcast_to(share.astype(np.float32), (len(rows), num_labels))
        by_baseline["prevalence"] |= metrics.score_metrics(constant, targets[rows]) | {"map": float(share.mean())}
    by_baseline["shuffled"] = _shuffled(decisions, targets, scores, seed)
    return by_baseline


def _prevalence(targets: Array, share: Array) -> dict[str, float]:
    known, positive = targets >= 0, targets == 1
    num_positive, num_known = positive.sum(axis=0), known.sum(axis=0)
    tp, fp, fn = num_positive * share, (num_known - num_positive) * share, num_positive * (1 - share)
    right = np.where(known, np.where(positive, share, 1 - share), 1.0)
    values = metrics.rates(tp[None], fp[None], fn[None])
    return {name: float(value[0]) for name, value in values.items()} | {
        "subset_accuracy": float(right.prod(axis=1).mean()),
        "hamming_accuracy": float(right[known].mean()) if known.any() else 0.0,
    }


def _shuffled(decisions: Array, targets: Array, scores: Array | None, seed: int) -> dict[str, float]:
    """The mean over as many shuffles as a stable mean needs."""
    rng = np.random.default_rng([seed, 8])
    shuffles = int(np.clip(_SHUFFLED_ROWS // max(1, len(targets)), 1, _MOST_SHUFFLES))
    drawn: dict[str, list[float]] = {}
    for _ in range(shuffles):
        order, rows = rng.permutation(len(targets))[:_SHUFFLED_ROWS], rng.permutation(len(targets))[:_SHUFFLED_ROWS]
        values = metrics.decision_metrics(decisions[order], targets[rows])
        if scores is not None:
            values |= metrics.score_metrics(scores[order], targets[rows])
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in drawn.items()}


def warnings(
    values: Mapping[str, float],
    limits: Mapping[str, tuple[float, float]],
    trivial: Mapping[str, Mapping[str, float]],
    shown: Collection[str] = metrics.HEADLINES,
) -> list[str]:
    """One sentence with the `shown` headlines that do not clearly beat their best baseline; none if all do."""
    names = [
        name
        for name in metrics.HEADLINES
        if name in shown and name in values and any(name in baseline for baseline in trivial.values())
    ]
    below, unsure = [], []
    for name in names:
        baseline, best = best_baseline(name, trivial)
        beside = f"{baseline.replace('_', '-')} {best:.4f}"
        if values[name] <= best:
            below.append(f"{name} {values[name]:.4f} ({beside})")
        elif limits[name][0] <= best:
            unsure.append(f"{name} {values[name]:.4f}, from {limits[name][0]:.4f} ({beside})")
    messages = []
    if below:
        messages.append(f"{len(below)} of {len(names)} metrics do not beat a trivial baseline: {', '.join(below)}")
    if unsure:
        some = f"{len(unsure)} more" if below else f"{len(unsure)} of {len(names)} metrics"
        what = "one" if below else "a trivial baseline"
        messages.append(f"{some} do not significantly beat {what}: {', '.join(unsure)}")
    return ["; ".join(messages) + "."] if messages else []


def best_baseline(metric: str, trivial: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """Name and value of the best baseline of a metric."""
    have = {name: values[metric] for name, values in trivial.items() if metric in values}
    sign = -1 if metric in metrics.LOWER_IS_BETTER else 1
    name = max(have, key=lambda key: sign * have[key])
    return name, have[name]
