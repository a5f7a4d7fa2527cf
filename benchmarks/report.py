"""The page of `mlic report` for many samples and labels, beside scikit-learn's metrics of the same scores.

    python -m benchmarks.report [--samples 100000] [--labels 100]

Two models' generated scores. `mlic report` measures both, resamples them 1,000 times, alone and as a pair, looks for
causes of mistakes and draws the figures; scikit-learn computes six of the metrics of both, without an interval. A loop
over resamples with scikit-learn, which gives intervals of those six alone, is timed for a few and multiplied.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.results import write_section

RESAMPLES = 1000
_TIMED = 2  # resamples
Array = np.ndarray[Any, Any]


@click.command()
@click.option("--samples", default=100_000, show_default=True)
@click.option("--labels", default=100, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--part", type=click.Choice(["page", "metrics", "resamples"]), help="One turn of one program, in JSON.")
def main(samples: int, labels: int, rounds: int, part: str | None) -> None:
    if part is not None:
        print(json.dumps({"page": page, "metrics": metrics, "resamples": resampled}[part](samples, labels)))
        return
    found: dict[str, list[dict[str, float]]] = {"page": [], "metrics": [], "resamples": []}
    for _ in range(rounds):
        for name, turns in found.items():
            turns.append(turn(name, samples, labels))
    middle = {name: float(np.median([one["seconds"] for one in turns])) for name, turns in found.items()}
    memory = {name: max(one["memory"] for one in turns) for name, turns in found.items()}
    rows = (
        ("mlic report: the page of two models, compared", "page"),
        ("scikit-learn: six metrics of both", "metrics"),
        (f"scikit-learn: six metrics of both, {RESAMPLES:,} resamples (of {_TIMED})", "resamples"),
    )
    lines = ["| | seconds | mlic report takes | peak memory, GB |", "|---|---|---|---|"]
    lines += [
        f"| {words} | {middle[name]:,.0f} | {middle['page'] / middle[name]:.3g} x | {memory[name]:.1f} |"
        for words, name in rows
    ]
    size = found["page"][0]["bytes"]
    text = f"{samples:,} samples, {labels} labels; medians of {rounds} turns; the page has {size / 1e6:.1f} MB."
    write_section("Reporting", "\n".join([text, "", *lines]) + "\n")


def turn(part: str, samples: int, labels: int) -> dict[str, float]:
    """One turn of one program in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.report", "--part", part]
    command += ["--samples", str(samples), "--labels", str(labels)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def generated(samples: int, labels: int, seed: int) -> tuple[Array, Array]:
    """Scores float32 (N, L) of a model that knows something, and targets int8 (N, L), which no seed changes."""
    targets = (np.random.default_rng(0).random((samples, labels)) < 0.3).astype(np.int8)
    scores = 0.3 * targets + 0.7 * np.random.default_rng([1, seed]).random(targets.shape)
    return scores.astype(np.float32), targets


def page(samples: int, labels: int) -> dict[str, float]:
    from mlic.metrics.measurement import measure
    from mlic.report.evidence import Evidence
    from mlic.report.report import PAGE, write

    names, keys = (tuple(f"{what}{i}" for i in range(count)) for what, count in (("label", labels), ("im", samples)))
    models = [generated(samples, labels, seed) for seed in (0, 1)]
    cuts = np.full(labels, 0.5, np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        evidence = [
            Evidence(
                name=f"model{i}",
                about="",
                data="generated",
                labels=names,
                keys=keys,
                targets=targets,
                decisions=scores >= cuts,
                scores=scores,
                thresholds=cuts,
                measurement=measure(names, scores >= cuts, targets, scores, RESAMPLES, 0),
            )
            for i, (scores, targets) in enumerate(models)
        ]
        write(Path(scratch), evidence, 0)
        took = time.perf_counter() - started
        return {"seconds": took, "memory": peak(), "bytes": (Path(scratch) / PAGE).stat().st_size}


def metrics(samples: int, labels: int) -> dict[str, float]:
    models = [generated(samples, labels, seed) for seed in (0, 1)]
    started = time.perf_counter()
    for scores, targets in models:
        six(scores, targets)
    return {"seconds": time.perf_counter() - started, "memory": peak()}


def resampled(samples: int, labels: int) -> dict[str, float]:
    """Seconds that all resamples would take, from a few."""
    models = [generated(samples, labels, seed) for seed in (0, 1)]
    started = time.perf_counter()
    for rng in np.random.default_rng(0).spawn(_TIMED):
        rows = rng.integers(0, samples, samples)
        for scores, targets in models:
            six(scores[rows], targets[rows])
    return {"seconds": (time.perf_counter() - started) * RESAMPLES / _TIMED, "memory": peak()}


def six(scores: Array, targets: Array) -> list[float]:
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    decided = scores >= 0.5
    return [
        function(targets, given, average=average)
        for function, given in ((f1_score, decided), (average_precision_score, scores), (roc_auc_score, scores))
        for average in ("micro", "macro")
    ]


def peak() -> float:
    """The most memory that this process has had, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


if __name__ == "__main__":
    main()
