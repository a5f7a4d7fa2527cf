"""Losses for labels of which some positives are missing, each beside plain cross-entropy.

Positives of the training split are removed at random; the validation and the test split keep all of theirs. A head on
frozen features is trained with each loss and measured on the test split, with other seeds for what is removed and for
the training.

    mlic train shards/ --config frozen --weights lite0.pth --name frozen
    mlic embed runs/frozen shards/ --out embeddings.parquet
    python -m benchmarks.partial shards/ embeddings.parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import stats
from torch import nn

from benchmarks.results import write_section
from mlic.config.types import Loss
from mlic.data.shards import read_split
from mlic.metrics import metrics, ranking, thresholds
from mlic.model import losses

Array = np.ndarray[Any, Any]
LOSSES: tuple[Loss, ...] = ("bce", "asymmetric", "weak-negative", "entropy", "hill", "splc")
KEPT = {
    "all positives": 1.0,
    "half of the positives": 0.5,
    "a tenth of the positives": 0.1,
    "one positive an image": 0.0,
}
EPOCHS, BATCH, HIDDEN, DROPOUT, LR, DECAY, EMA = 20, 64, 1024, 0.7, 2e-3, 0.05, 0.99


def removed(targets: Array, share: float, seed: int) -> Array:
    """Targets (N, L) in which that share of the positives is left, or, for 0, one of each image."""
    rng = np.random.default_rng([seed, 1])
    kept = (targets == 1) & (rng.random(targets.shape) < share)
    if share == 0:
        chosen = np.argmax(np.where(targets == 1, rng.random(targets.shape), -1.0), axis=1)
        kept = (targets == 1) & (np.arange(targets.shape[1]) == chosen[:, None])
    return kept.astype(np.int8)


def scores(name: Loss, features: Array, targets: Array, others: Array, seed: int) -> Array:
    """The scores (M, L) of `others` (M, F) by a head that was trained on features (N, F) with a loss."""
    torch.manual_seed(seed)
    inputs, labels = torch.from_numpy(features), torch.from_numpy(targets)
    count = targets.shape[1]
    head = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, count))
    positives = torch.from_numpy((targets == 1).sum(axis=0))
    ones = torch.ones(count)
    with torch.no_grad():
        head[3].bias.copy_(losses.head_bias(positives, len(targets) - positives, ones))
    steps = EPOCHS * (len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    shadow = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    for epoch in range(EPOCHS):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(inputs)))
        # Before it has learnt anything, a network cannot say which labels are missing: Zhang et al. begin with BCE.
        loss: Loss = "bce" if name == "splc" and epoch == 0 else name
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            value = losses.loss_sum(loss, head(inputs[rows]), labels[rows], ones) / (BATCH * count)
            value.backward()
            optimizer.step()
            schedule.step()
            for key, tensor in head.state_dict().items():
                shadow[key].lerp_(tensor, 1 - EMA)
    head.load_state_dict(shadow)
    with torch.no_grad():
        return torch.sigmoid(head.eval()(torch.from_numpy(others))).numpy()


def measured(found: Array, targets: Array, val: Array, val_targets: Array) -> tuple[float, float]:
    """mAP, and micro-F1 at thresholds of the validation split, whose labels are all there."""
    cuts = thresholds.thresholds("per-label", val, val_targets, 42)[0]
    decisions = thresholds.decide(found, cuts)
    areas = ranking.areas(found, targets)
    return metrics.score_metrics(found, targets, areas)["map"], metrics.decision_metrics(decisions, targets)["f1_micro"]


def interval(values: list[float]) -> str:
    """The mean and its 95% interval by Student's t."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = stats.t.ppf(0.975, len(values) - 1) * spread / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def features_of(shards: Path, embeddings: Path) -> dict[str, tuple[Array, Array]]:
    """The features (N, F) and the targets (N, L) of each split, from a file of mlic embed."""
    table = pq.read_table(embeddings)
    vectors = dict(zip(table.column("key").to_pylist(), table.column("embedding").to_numpy(), strict=True))
    splits = {name: read_split(shards, name) for name in ("train", "val", "test")}
    return {name: (np.stack([vectors[key] for key in s.keys.to_pylist()]), s.targets) for name, s in splits.items()}


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=3, show_default=True)
def main(shards: Path, embeddings: Path, seeds: int) -> None:
    data = features_of(shards, embeddings)
    rows = ["| training labels | loss | mAP | micro-F1 | mAP beside bce, paired |", "|---|---|---|---|---|"]
    others = np.concatenate([data["val"][0], data["test"][0]])
    border = len(data["val"][0])
    for what, share in KEPT.items():
        plain: list[float] = []
        for name in LOSSES:
            values = []
            for seed in range(seeds):
                found = scores(name, data["train"][0], removed(data["train"][1], share, seed), others, seed)
                values.append(measured(found[border:], data["test"][1], found[:border], data["val"][1]))
            maps, f1s = ([value[i] for value in values] for i in range(2))
            plain = maps if name == "bce" else plain
            gain = "" if name == "bce" else interval([a - b for a, b in zip(maps, plain, strict=True)])
            rows.append(f"| {what} | {name} | {interval(maps)} | {interval(f1s)} | {gain} |")
            print(rows[-1], flush=True)
    sizes = ", ".join(f"{name} {len(targets):,}" for name, (_, targets) in data.items())
    write_section(
        "Labels of which some positives are missing",
        f"Heads on frozen features ({sizes} images, {data['train'][1].shape[1]} labels); {seeds} seeds, "
        "95% intervals by Student's t.\n\n" + "\n".join(rows),
    )


if __name__ == "__main__":
    main()
