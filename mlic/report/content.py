"""The content of a report page without its pictures, as in report.json."""

from __future__ import annotations

from pydantic import Field

from mlic.config.base import Model
from mlic.metrics.measurement import Measurement

METRICS = {
    "f1_micro": "Micro F1",
    "precision_micro": "Micro precision",
    "recall_micro": "Micro recall",
    "f1_macro": "Macro F1",
    "precision_macro": "Macro precision",
    "recall_macro": "Macro recall",
    "map": "Mean average precision",
    "subset_accuracy": "Subset accuracy",
    "hamming_accuracy": "Hamming accuracy",
    "jaccard_samples": "Jaccard index, per image",
    "f1_weighted": "Weighted F1",
    "precision_weighted": "Weighted precision",
    "recall_weighted": "Weighted recall",
    "f1_samples": "F1, per image",
    "precision_samples": "Precision, per image",
    "recall_samples": "Recall, per image",
    "f0.5_micro": "Micro F0.5",
    "f2_micro": "Micro F2",
    "f0.5_macro": "Macro F0.5",
    "f2_macro": "Macro F2",
    "jaccard_micro": "Micro Jaccard index",
    "jaccard_macro": "Macro Jaccard index",
    "roc_auc": "ROC AUC",
    "map_micro": "Average precision, all labels at once",
    "roc_auc_micro": "ROC AUC, all labels at once",
    "lrap": "Label ranking average precision",
    "coverage": "Coverage, labels",
    "ranking_loss": "Ranking loss",
    "brier": "Brier",
    "calibration_error": "Cal. error",
}


def metric_name(metric: str) -> str:
    """A metric's name for people."""
    return METRICS.get(metric) or metric.replace("_", " ").capitalize()


class LabelErrors(Model):
    """One label's decisions against its truth, its threshold, and its errors by kind."""

    label: str
    right: int
    wrong: int
    missed: int
    absent: int
    threshold: float | None
    train_positives: int | None
    kinds: dict[str, int]


class LabelCurve(Model):
    """What each threshold of one label would give, at falling thresholds."""

    label: str
    positives: int
    thresholds: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]


class Bins(Model):
    """Scores in bins of equal width: how many, their mean, and the share that came true."""

    counts: tuple[int, ...]
    scores: tuple[float, ...]
    shares: tuple[float, ...]
    error: float


class Swap(Model):
    """The number of images in which one label was missed and another wrongly given."""

    missed: str
    given: str
    images: int


class SliceRow(Model):
    """The images of one kind."""

    by: str
    name: str
    samples: int
    f1_micro: float
    low: float
    high: float
    subset_accuracy: float


class Mistake(Model):
    """One label that an image was wrongly given, or that was missed."""

    label: str
    missed: bool
    score: float | None
    why: str


class Example(Model):
    """An image with errors of one kind; `right` are the labels decided rightly, with their scores."""

    row: int
    key: str
    kind: str
    right: dict[str, float | None]
    mistakes: tuple[Mistake, ...]


class RunRow(Model):
    """One run of several; `differences` from the first are value, low and high by metric."""

    name: str
    arch: str
    epochs: int
    best_epoch: int
    parameters: int
    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    differences: dict[str, tuple[float, float, float]]


class SettingRow(Model):
    """One setting with its value in each run; `changed` where any of them is not the default."""

    name: str
    meaning: str
    values: tuple[str, ...]
    differs: bool
    changed: bool


class LayerRow(Model):
    """One layer of the network."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


class Content(Model):
    """The page. Parts without content are empty or None, and `notes` says why."""

    title: str
    about: str
    notes: tuple[str, ...]
    measurement: Measurement
    history: tuple[dict[str, float], ...]
    histories: dict[str, tuple[dict[str, float], ...]] = Field(default_factory=dict)
    best_epoch: int | None
    runs: tuple[RunRow, ...]
    settings: tuple[SettingRow, ...]
    arch: str
    layers: tuple[LayerRow, ...]
    labels: tuple[LabelErrors, ...]
    curves: tuple[LabelCurve, ...]
    reliability: Bins | None
    swapped: tuple[tuple[int, ...], ...]
    swaps: tuple[Swap, ...]
    cardinality: tuple[tuple[int, ...], ...]
    slices: tuple[SliceRow, ...]
    looked_at: int
    rules: tuple[str, ...]
    kinds: dict[str, int]
    examples: tuple[Example, ...]
