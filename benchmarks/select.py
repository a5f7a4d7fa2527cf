"""How many labelled images a model needs when `mlic select` chooses them, beside images chosen at random.

The labels of the training split are hidden but for 200 images at random. In each round a head on frozen features is
fitted, the rule chooses the next images, and their labels are shown. Thresholds are those of the validation split, and
the test split measures.

    mlic train shards/ --config frozen --weights lite0.pth --name frozen
    mlic embed runs/frozen shards/ --out embeddings.parquet
    python -m benchmarks.select shards/ embeddings.parquet
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.partial import features_of, interval
from benchmarks.results import write_section
from mlic.metrics import metrics, thresholds
from mlic.select import rules

Array = np.ndarray[Any, Any]
RULES = ("random", "uncertain", "rare", "diverse", "mixture")
START, STEP, ROUNDS, GOAL, DUPLICATES = 200, 100, 50, 0.95, 0.95
STEPS, LR, DECAY = 60, 0.001, 0.3


def fitted(features: Array, targets: Array, others: Array, seed: int) -> Array:
    """The scores (M, L) of `others` (M, F) by a logistic regression on features (N, F)."""
    torch.manual_seed(seed)
    inputs, labels = torch.from_numpy(features), torch.from_numpy(targets).float()
    head = torch.nn.Linear(inputs.shape[1], labels.shape[1])
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), LR, weight_decay=DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(head(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return torch.sigmoid(head(torch.from_numpy(others))).numpy()


def quality(scores: Array, targets: Array, cuts: Array) -> tuple[float, float]:
    """Micro- and macro-F1."""
    found = metrics.decision_metrics(thresholds.decide(scores, cuts), targets)
    return found["f1_micro"], found["f1_macro"]


def curve(rule: str, data: dict[str, tuple[Array, Array]], seed: int) -> list[tuple[int, float, float]]:
    """Labelled images, micro-F1 and macro-F1 of each round."""
    (pool, truth), (val, val_truth), (test, test_truth) = (data[name] for name in ("train", "val", "test"))
    others, rng = np.concatenate([pool, val, test]), np.random.default_rng([seed, 7])
    chosen = rng.permutation(len(pool))[:START]
    rows = []
    for _ in range(ROUNDS):
        scores = fitted(pool[chosen], truth[chosen], others, seed)
        of_pool, of_val, of_test = np.split(scores, np.cumsum([len(pool), len(val)]))
        cuts = thresholds.thresholds("per-label", of_val, val_truth, 42)[0]
        rows.append((len(chosen), *quality(of_test, test_truth, cuts)))
        left = np.setdiff1d(np.arange(len(pool)), chosen)
        weights = rules.rarity((truth[chosen] == 1).sum(axis=0))
        even = np.ones(truth.shape[1])
        values = rules.uncertainty(of_pool[left], cuts, weights if rule in ("rare", "mixture") else even)
        if rule == "random":
            picked = rng.permutation(len(left))[:STEP]
        elif rule in ("uncertain", "rare"):
            picked = rules.best(values, STEP)
        else:
            worth = values if rule == "mixture" else np.ones(len(values))
            picked = rules.spread(worth, pool[left], STEP, DUPLICATES)
        chosen = np.concatenate([chosen, left[picked]])
    return rows


def needed(rows: list[tuple[int, float, float]], metric: int, goal: float) -> float:
    """The labelled images with which a metric (1 or 2) is at the goal, interpolated; else the last count."""
    for before, after in itertools.pairwise(rows):
        if after[metric] >= goal:
            low, high = min(before[metric], goal), after[metric]
            share = (goal - low) / (high - low) if high > low else 0
            return before[0] + share * (after[0] - before[0])
    return rows[-1][0]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=5, show_default=True)
def main(shards: Path, embeddings: Path, seeds: int) -> None:
    raw = features_of(shards, embeddings)
    mean, spread = raw["train"][0].mean(axis=0), raw["train"][0].std(axis=0) + 1e-6
    data = {name: ((features - mean) / spread, targets) for name, (features, targets) in raw.items()}
    pool, truth = data["train"]
    both = fitted(pool, truth, np.concatenate([data["val"][0], data["test"][0]]), 0)
    of_val, of_test = np.split(both, [len(data["val"][0])])
    cuts = thresholds.thresholds("per-label", of_val, data["val"][1], 42)[0]
    full = quality(of_test, data["test"][1], cuts)
    curves = {rule: [curve(rule, data, seed) for seed in range(seeds)] for rule in RULES}
    rows = [
        "| rule | images to 95% of micro-F1 | share of random's | images to 95% of macro-F1 | share of random's |",
        "|---|---|---|---|---|",
    ]
    base = {m: [needed(rows, m, GOAL * full[m - 1]) for rows in curves["random"]] for m in (1, 2)}
    for rule in RULES:
        cells = []
        for metric in (1, 2):
            counts = [needed(rows, metric, GOAL * full[metric - 1]) for rows in curves[rule]]
            shares = [count / other for count, other in zip(counts, base[metric], strict=True)]
            cells += [f"{np.mean(counts):,.0f}", "" if rule == "random" else interval(shares)]
        rows.append(f"| {rule} | {' | '.join(cells)} |")
    write_section(
        "Images that are chosen to be labelled",
        f"{len(pool):,} images with hidden labels; {START} are shown at first, {STEP} more a round; {seeds} seeds; "
        f"with all labels micro-F1 {full[0]:.3f} and macro-F1 {full[1]:.3f}. Intervals are 95%, by Student's t.\n\n"
        + "\n".join(rows)
        + "\n",
    )


if __name__ == "__main__":
    main()
