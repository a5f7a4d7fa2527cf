"""What a person is asked: labels of images, from suspects of label errors, chosen images or predictions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.batch_predict.prediction_files import Predictions
from mlic.data.corrections import COLUMNS
from mlic.errors import DataError

_SELECTED = {"rank", "file", "suggested"}
_EVEN = 0.5


@dataclass(frozen=True)
class Question:
    """A label of an image: what it is `given` as (1, 0, -1, or "" for nothing), what is suggested, and why."""

    label: str
    given: str
    suggestion: str
    reason: str


@dataclass(frozen=True)
class Asked:
    """Questions about images, the most useful first. With `corrects`, answers go into a table of corrections.

    `rows` are all of that table, those that were decided before or are not asked about too, so that none is lost.
    """

    corrects: bool
    labels: tuple[str, ...]
    images: dict[str, list[Question]]
    rows: tuple[dict[str, str], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON, without the images."""
        return {
            "corrects": self.corrects,
            "columns": list(COLUMNS),
            "rows": list(self.rows),
            "labels": list(self.labels),
            "images": {file: [asdict(question) for question in asked] for file, asked in self.images.items()},
        }


def read(table: Path, count: int, below: float) -> Asked:
    """The questions of a table, about its first `count` images. Raises DataError for a table of another kind."""
    if not table.exists():
        raise DataError(f"{table} does not exist.", "name suspects.tsv of mlic noise, or a table of mlic select.")
    columns, rows = _rows(table) if table.suffix == ".tsv" else ([], [])
    if set(COLUMNS[:4]) <= set(columns):
        return _suspects(rows, count)
    if set(columns) >= _SELECTED:
        return _selected(table, rows, count)
    predictions = prediction_files.read(table)
    if predictions.scores is None:
        raise DataError(f"{table} has decisions and no scores.", "predict with --values both.")
    sure = np.maximum(predictions.scores, 1 - predictions.scores).min(axis=1)
    order = [int(number) for number in np.argsort(sure, kind="stable") if sure[number] < below][:count]
    return _of_images(predictions, order)


def _rows(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            return list(reader.fieldnames or ()), [
                {name: value or "" for name, value in row.items() if name is not None} for row in reader
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table: {error}.", "write it again.") from None


def _suspects(rows: Sequence[dict[str, str]], count: int) -> Asked:
    images = dict[str, list[Question]]()
    for row in rows:
        file = row["Filename"]
        if row["verdict"].strip() != "?" or (file not in images and len(images) == count):
            continue
        question = Question(row["label"], row["given"], row.get("suggestion", ""), row.get("reason", ""))
        images.setdefault(file, []).append(question)
    return Asked(True, tuple(sorted({q.label for asked in images.values() for q in asked})), images, tuple(rows))


def _selected(table: Path, rows: Sequence[dict[str, str]], count: int) -> Asked:
    beside = table.with_name(table.name + ".scores.parquet")
    if not beside.exists():
        raise DataError(f"{beside} is missing, the scores of {table.name}.", "run mlic select again.")
    predictions = prediction_files.read(beside)
    numbers = {file: number for number, file in enumerate(predictions.files)}
    missing = [row["file"] for row in rows if row["file"] not in numbers]
    if missing:
        raise DataError(f"{beside} has no scores of {missing[0]}.", "run mlic select again.")
    suggested = {row["file"]: set(row["suggested"].split("|")) for row in rows[:count]}
    asked = _of_images(predictions, [numbers[file] for file in suggested])
    images = {
        file: [Question(q.label, q.given, "1" if q.label in suggested[file] else "0", q.reason) for q in questions]
        for file, questions in asked.images.items()
    }
    return Asked(False, asked.labels, images)


def _of_images(predictions: Predictions, order: Sequence[int]) -> Asked:
    """All labels of some images, those that the scores are least sure of first."""
    scores, decisions = predictions.scores, predictions.decisions
    if scores is None:
        raise ValueError("predictions without scores")
    images = dict[str, list[Question]]()
    for number in order:
        yes = scores[number] >= _EVEN if decisions is None else decisions[number]
        images[predictions.files[number]] = [
            Question(predictions.labels[i], "", "1" if yes[i] else "0", f"score {scores[number, i]:.3f}")
            for i in np.argsort(np.abs(scores[number] - _EVEN), kind="stable").tolist()
        ]
    return Asked(False, predictions.labels, images)
