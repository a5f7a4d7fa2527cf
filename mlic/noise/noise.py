"""Find suspected label errors in shards: labels that disagree with models trained on the other folds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.base import Model
from mlic.config.fit import FitSettings
from mlic.config.train import ModelSettings, NoiseConfig, TrainConfig
from mlic.data import corrections
from mlic.data.label_stats import Implication, implications
from mlic.data.shards import read_index
from mlic.errors import ConfigError
from mlic.metrics import label_noise as score
from mlic.metrics.measurement import aligned
from mlic.model import zoo
from mlic.runs.files import write_atomic, write_json
from mlic.runs.run import Run
from mlic.train import setup
from mlic.train.cross_validation import SCORES, check_folds, fit_folds, read_scores

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

TABLE, _SUMMARY = "suspects.tsv", "noise.json"
_OWN = ("address", "workers", "fresh", "doctor")  # settings that the folds' runs do not inherit unchanged


class LabelSuspects(Model):
    """A label's row: how many samples have it, and how many rows of the table suspect it to be extra or missing.

    `extra_rate` is the estimated share of the samples without the label that are given it. `missing_rate` is the
    estimated share of the samples with the label that are not given it. `confident` is the number of errors that
    cleanlab's filter lists for it.
    """

    label: str
    given: int
    extra: int
    missing: int
    extra_rate: float
    missing_rate: float
    confident: int


class Rule(Model):
    """`first` implies `second`, but for `exceptions` of the `support` samples that have the first label."""

    first: str
    second: str
    support: int
    exceptions: int


class NoiseReport(Model):
    """The report of `mlic noise`. `edited` says that a person has edited the table, so it was left unchanged."""

    out: Path
    table: Path
    scores: Path
    samples: int
    folds: int
    suspects: int
    errors: float
    labels: tuple[LabelSuspects, ...]
    rules: tuple[Rule, ...]
    edited: bool
    decided: int

    def text(self) -> str:
        rows = [["label", "given", "suspected extra", "suspected missing", "cleanlab lists"]]
        rows += [[r.label, f"{r.given:,}", f"{r.extra:,}", f"{r.missing:,}", f"{r.confident:,}"] for r in self.labels]
        rules = [
            f"{r.first} => {r.second}: {r.exceptions:,} exceptions among {r.support:,} samples" for r in self.rules
        ]
        state = f"{self.suspects:,} suspects, the most suspicious first"
        if self.edited:
            state = f"edited, {self.decided:,} verdicts, and left as it is"
        return "\n".join(
            [
                f"{self.samples:,} samples, {self.folds} folds; about {self.errors:,.0f} labels are wrong, by estimate",
                *aligned(rows),
                *rules,
                f"table   {self.table}  ({state})",
                "next    write 1, 0 or -1 for ? in its column verdict, then run mlic pack as before with another "
                f"--out and --corrections {self.table}",
            ]
        )


def noise(config: NoiseConfig) -> NoiseReport:
    """Train one model for each fold, on the other folds, and list the labels that are probably wrong; test is not used.

    Each fold is a run of `mlic train` in `OUT/folds/` and resumes like one. A table that a person has edited is never
    overwritten. Raises ConfigError without cleanlab, DataError for shards without folds, and what `train` does.
    """
    score.check_installed()
    index = read_index(config.shards)
    zoo.check(config.arch)
    folds = check_folds(config.shards, index)
    if config.fresh and _is_edited(config.out):
        raise ConfigError(
            f"{config.out / TABLE} holds verdicts, which --fresh would throw away.", "move it, or give another --out."
        )
    with Run.open(config.out, "noise", config, {"shards": index["fingerprint"]}, config.fresh) as run:
        if run.finished and not (config.out / SCORES).is_file():
            run.reopen()
        if not (config.out / SCORES).is_file():
            fit_folds(setup.with_statistics(_training(config)), config.out, folds)
        report = _report(config, folds, _labels_of_files(index))
        run.finish(report)
    return report


def _labels_of_files(index: dict[str, Any]) -> list[str]:
    """The labels without the one that is derived from the others, which is in no label file."""
    settings = index["settings"]
    derived = settings.get("unlabelled_label") if settings.get("unlabelled") == "as-label" else None
    return [label for label in index["labels"] if label != derived]


def _training(config: NoiseConfig) -> TrainConfig:
    """The settings of the folds' runs."""
    names = [name for name in FitSettings.model_fields | ModelSettings.model_fields if name not in _OWN]
    return TrainConfig(
        **{name: getattr(config, name) for name in names},
        shards=config.shards,
        address=config.address,
        workers=config.workers,
        doctor=config.doctor,
        fresh=config.fresh,
    )


def _report(config: NoiseConfig, folds: int, labels: list[str]) -> NoiseReport:
    """Rank, and write the table, unless a person has edited it, and the summary."""
    files, scores, targets, fold = read_scores(config.out / SCORES, labels)
    rules = implications(targets, config.rule_support, config.rule_confidence)
    suspects = score.suspects(scores, targets, fold, [(rule.first, rule.second) for rule in rules])
    confident = score.confident(scores, targets)
    rows = _chosen(suspects, config.max_suspects)
    table = corrections.table(
        _suspect(int(row), suspects, scores, targets, files, labels, rules, confident) for row in rows
    )
    edited = _is_edited(config.out, table)
    if not edited:
        write_atomic(config.out / TABLE, table)
    listed = np.zeros(targets.shape, bool)
    listed[suspects.sample[rows], suspects.label[rows]] = True
    report = NoiseReport(
        out=config.out,
        table=config.out / TABLE,
        scores=config.out / SCORES,
        samples=len(targets),
        folds=folds,
        suspects=len(rows),
        errors=suspects.errors,
        edited=edited,
        decided=int(corrections.read(config.out / TABLE).decided.sum()) if edited else 0,
        labels=tuple(
            LabelSuspects(
                label=name,
                given=int((targets[:, i] == 1).sum()),
                confident=int(confident[:, i].sum()),
                extra=int((listed[:, i] & (targets[:, i] == 1)).sum()),
                missing=int((listed[:, i] & (targets[:, i] == 0)).sum()),
                extra_rate=float(suspects.rates[i, 0]),
                missing_rate=float(suspects.rates[i, 1]),
            )
            for i, name in enumerate(labels)
        ),
        rules=tuple(
            Rule(first=labels[r.first], second=labels[r.second], support=r.support, exceptions=len(r.exceptions))
            for r in rules
        ),
    )
    summary = report.model_dump(mode="json", include={"samples", "folds", "suspects", "errors", "labels", "rules"})
    written = hashlib.sha256(table).hexdigest() if not edited else _written(config.out)
    write_json(config.out / _SUMMARY, {"format": 1, "kind": "noise", **summary, "table_sha256": written})
    return report


def _chosen(suspects: score.Suspects, most: int | None) -> Array:
    """The rows of the table: the first rows, as many as errors are expected, and then all exceptions to rules."""
    if most is None:
        return np.flatnonzero((np.arange(len(suspects.sample)) < round(suspects.errors)) | (suspects.rule >= 0))
    return np.arange(min(most, len(suspects.sample)))


def _suspect(
    row: int,
    suspects: score.Suspects,
    scores: Array,
    targets: Array,
    files: Sequence[str],
    labels: Sequence[str],
    rules: Sequence[Implication],
    confident: Array,
) -> corrections.Suspect:
    sample, label = int(suspects.sample[row]), int(suspects.label[row])
    label_given = int(targets[sample, label])
    reasons = [f"score {scores[sample, label]:.4f} for a label that is {'given' if label_given else 'not given'}"]
    if suspects.rule[row] >= 0:
        rule = rules[suspects.rule[row]]
        first, second = labels[rule.first], labels[rule.second]
        reasons.append(f"{first} is given and {second} is not: {rule.confidence:.1%} of {first} are {second}")
    elif suspects.beside[row] >= 0:
        other = int(suspects.beside[row])
        beside = f"{labels[other]} is {'given' if targets[sample, other] == 1 else 'not given'}"
        reasons.append(f"{beside}, and {labels[label]} is then {'rare' if label_given else 'usual'}")
    if confident[sample, label]:
        reasons.append("confident learning lists it")
    return corrections.Suspect(
        files[sample],
        labels[label],
        label_given,
        1 - label_given,
        float(scores[sample, label]),
        float(suspects.evidence[row]),
        "; ".join(reasons),
    )


def _written(out: Path) -> str | None:
    """The sha256 of the table as it was written last, None before that."""
    try:
        return str(json.loads((out / _SUMMARY).read_text(encoding="utf-8"))["table_sha256"])
    except (OSError, ValueError, KeyError):
        return None


def _is_edited(out: Path, again: bytes | None = None) -> bool:
    """Whether the table exists and differs from both the last written table and the one that would be written now."""
    try:
        content = (out / TABLE).read_bytes()
    except OSError:
        return False
    return content != again and hashlib.sha256(content).hexdigest() != _written(out)
