"""Thresholds fitted to one half of the images and measured on the other, and how long fitting takes.

    python -m benchmarks.thresholds RUN [RUN ...]

The runs are folds of one data set, trained by `mlic train --fold K`; their validation scores together are those of
images that no model was fitted to. Over 50 random halves: micro- and macro-F1 of each policy minus that of the global
threshold, on the half that was not fitted to, and the cross-fitted estimate made on the fitted half minus what the
other half gave. A half is worse for sure where the 95% interval of the difference to global, over its images, lies
below 0; one or two of 50 are by chance. Noise is twice the standard error of the mean over halves, as if they were
independent: they share images, so it is on the small side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.results import write_section
from mlic.metrics import bootstrap, thresholds
from mlic.metrics.metrics import decision_metrics
from mlic.train.checkpoints import read_best

POLICIES = ("fixed", "global", "per-label", "joint", "f-beta=1", "one-at-a-time", "cardinality")
Array = np.ndarray[Any, Any]


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--halves", default=50, show_default=True)
@click.option("--samples", default=1_000_000, show_default=True, help="Samples of the timing")
@click.option("--labels", default=100, show_default=True, help="Labels of the timing")
def main(runs: tuple[Path, ...], halves: int, samples: int, labels: int) -> None:
    if runs:
        found = [read_best(run) for run in runs]
        scores, targets = (np.concatenate([getattr(best, name) for best in found]) for name in ("scores", "targets"))
        rows = compare(scores, targets, halves)
        head = [
            "policy",
            "micro-F1",
            "minus global",
            "macro-F1",
            "minus global",
            "estimate minus other half, micro",
            "halves worse for sure, micro, macro",
        ]
        text = f"{len(scores):,} images, {targets.shape[1]} labels, {halves} random halves; mean and noise (2 SE)."
        write_section("Thresholds on the other half", f"{text}\n\n{markdown(head, rows)}")
    seconds = [[policy, f"{timed(policy, samples, labels):.0f}"] for policy in ("global", "per-label", "joint")]
    text = f"{samples:,} samples, {labels} labels; thresholds and cross-fitted decisions."
    write_section("Fitting thresholds", f"{text}\n\n{markdown(['policy', 'seconds'], seconds)}")


def compare(scores: Array, targets: Array, halves: int) -> list[list[str]]:
    """Rows of the table, a policy each."""
    names = ("f1_micro", "f1_macro")
    reached: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
    for seed in range(halves):
        order = np.random.default_rng(seed).permutation(len(scores))
        one, two = order[: len(order) // 2], order[len(order) // 2 :]
        alone = thresholds.decide(scores[two], thresholds.thresholds("global", scores[one], targets[one], seed)[0])
        for policy in POLICIES:
            fitted = thresholds.fit(policy, scores[one], targets[one], seed)
            estimate = decision_metrics(fitted.decisions, targets[one])
            given = thresholds.decide(scores[two], fitted.thresholds, thresholds.top_k(policy))
            actual = decision_metrics(given, targets[two])
            apart = bootstrap.differences(
                *(bootstrap.draws(each, targets[two], None, 400, seed) for each in (given, alone))
            )
            reached[policy].append(
                [
                    *(actual[n] for n in names),
                    *(estimate[n] - actual[n] for n in names),
                    *(apart[n][1] < 0 for n in names),
                ]
            )
    values = {policy: np.array(rows) for policy, rows in reached.items()}
    rows = []
    for policy, own in values.items():
        gain = own[:, :2] - values["global"][:, :2]
        rows.append(
            [
                policy,
                f"{own[:, 0].mean():.4f}",
                spread(gain[:, 0]),
                f"{own[:, 1].mean():.4f}",
                spread(gain[:, 1]),
                spread(own[:, 2]),
                f"{own[:, 4].sum():.0f}, {own[:, 5].sum():.0f}",
            ]
        )
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def spread(values: Array) -> str:
    return f"{values.mean():+.4f} ± {2 * values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def timed(policy: str, samples: int, labels: int) -> float:
    rng = np.random.default_rng(0)
    targets = (rng.random((samples, labels)) < np.geomspace(0.002, 0.3, labels)).astype(np.int8)
    scores = np.clip(0.25 * targets + 0.75 * rng.random(targets.shape, dtype=np.float32), 0, 1).astype(np.float32)
    start = time.perf_counter()
    thresholds.fit(policy, scores, targets, 0)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
