"""How many planted label errors are among the first suspects: mlic noise beside cleanlab, on the same scores.

    python -m benchmarks.noise IMAGES LABELS [--folds 5] [--epochs 6] [--image-size 64] [--work FOLDER]

Errors are planted in two ways. "like positives": 5% of each label's positives are taken away, and the same number of
its negatives become positives. "any entry": 5% of all labels of all images are turned over, most of which are of rare
labels. The models are trained on the labels with errors. cleanlab ranks by its label quality scores, a label at a time
with default settings, with and without what its filter lists first; mlic with and without the labels beside a label.
Errors that the label files had before count as wrong suspects for everybody.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.internal.multilabel_utils import onehot2int
from cleanlab.multilabel_classification import filter as cleanlab_filter
from cleanlab.multilabel_classification import rank as cleanlab_rank

from benchmarks.results import write_section
from mlic.cluster.connect import connect
from mlic.config.data import PackConfig
from mlic.config.train import NoiseConfig
from mlic.data import label_join
from mlic.data.annotations.read import read_annotations
from mlic.data.label_stats import implications
from mlic.data.shards import read_index
from mlic.data.sources import image_sources
from mlic.metrics import label_noise as score
from mlic.noise.noise import noise
from mlic.pack.pack import pack
from mlic.train.cross_validation import read_scores

Array = np.ndarray[Any, Any]

SHARE = 0.05
PLANTINGS = ("like positives", "any entry")


def planted(targets: Array, how: str, rng: np.random.Generator) -> Array:
    """Which labels (N, L) are turned over."""
    wrong = np.zeros(targets.shape, bool)
    if how == "any entry":
        wrong.flat[rng.choice(targets.size, round(SHARE * targets.size), replace=False)] = True
        return wrong
    for label in range(targets.shape[1]):
        positive, negative = (np.flatnonzero(targets[:, label] == value) for value in (1, 0))
        count = round(SHARE * len(positive))
        for rows in (positive, negative):
            wrong[rng.choice(rows, count, replace=False), label] = True
    return wrong


def write_labels(folder: Path, names: tuple[str, ...], files: list[str], targets: Array) -> None:
    folder.mkdir(exist_ok=True)
    for label, name in enumerate(names):
        listed = [files[row] for row in np.flatnonzero(targets[:, label] == 1)]
        (folder / f"{name}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")


def precision(evidence: Array, wrong: Array, counts: list[int]) -> list[float]:
    order = np.argsort(-evidence, axis=None, kind="stable")
    return [float(wrong.reshape(-1)[order[:count]].mean()) for count in counts]


def rankings(scores: Array, targets: Array, fold: Array) -> dict[str, Array]:
    """Each contender's evidence (N, L) against what is given."""
    given, own = onehot2int(targets), scores.astype(np.float64)
    quality = cleanlab_rank.get_label_quality_scores_per_class(given, own)
    listed = cleanlab_filter.find_multilabel_issues_per_class(given, own)
    found = {"cleanlab, label quality": -quality, "cleanlab, filter then quality": listed * 10.0 - quality}
    rules = [(rule.first, rule.second) for rule in implications(targets, 30, 0.9)]
    for name, context in (("mlic, scores alone", False), ("mlic noise", True)):
        ranked = score.suspects(scores, targets, fold, rules, context)
        found[name] = np.full(targets.shape, -np.inf)
        found[name][ranked.sample, ranked.label] = ranked.evidence
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--work", type=Path, help="where a stopped benchmark continues; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, connect(None):
        body = "".join(measured(given, given.work or Path(scratch), how) for how in PLANTINGS)
    write_section("Suspected label errors", body)


def measured(given: argparse.Namespace, work: Path, how: str) -> str:
    listing = image_sources.list_images(given.images).unique()[0]
    annotations = read_annotations(given.labels)
    clean = label_join.join(annotations, listing.paths).targets
    wrong = planted(clean, how, np.random.default_rng([42, PLANTINGS.index(how)]))
    files = [listing.path(row) for row in range(len(listing))]
    folder = work / how.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "labels", annotations.labels, files, np.where(wrong, 1 - clean, clean))
    shards = folder / "shards"
    pack(
        PackConfig(
            images=given.images,
            labels=folder / "labels",
            out=shards,
            folds=given.folds,
            split={"train": 0.9, "val": 0.1},
        )
    )
    report = noise(
        NoiseConfig(shards=shards, out=folder / "noise", epochs=given.epochs, image_size=given.image_size, doctor=False)
    )
    names = read_index(shards)["labels"]
    order = [annotations.labels.index(name) for name in names]
    found, scores, targets, fold = read_scores(report.scores, names)
    row = {file: i for i, file in enumerate(files)}
    truth = wrong[[row[file] for file in found]][:, order]
    total = int(truth.sum())
    counts = [100, total // 2, total]
    lines = [
        f"| {name} | " + " | ".join(f"{value:.3f}" for value in precision(evidence, truth, counts)) + " |\n"
        for name, evidence in rankings(scores, targets, fold).items()
    ]
    return (
        f"Planted {how}: {total:,} of {truth.size:,} labels wrong ({len(truth):,} images, {len(names)} labels), "
        f"{given.folds} folds, {given.epochs} epochs at {given.image_size} pixels; mlic estimates {report.errors:,.0f} "
        f"errors.\n\n| ranking | precision of the first 100 | of the first {counts[1]:,} | of the first {total:,} |\n"
        "|---|---|---|---|\n" + "".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
