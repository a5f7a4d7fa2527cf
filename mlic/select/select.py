"""Choose the images without labels whose labels would teach a model most."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.batch_predict.prediction_files import Predictions
from mlic.config.base import Model
from mlic.config.predict import EmbedConfig, PredictConfig
from mlic.config.select import SelectConfig
from mlic.data.shards import read_split
from mlic.embed.embed import embed
from mlic.errors import DataError
from mlic.evaluate.evaluate import shards_of
from mlic.metrics.measurement import aligned
from mlic.model import bundle
from mlic.runs.files import write_atomic
from mlic.select import rules
from mlic.train.setup import label_counts

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
_SHOWN = 5


class SelectReport(Model):
    """The table of `chosen` of `found` images; `rows` are the first of them: file, uncertainty, the label in doubt.

    `alike` more were asked for, and all that are left are near-duplicates of chosen ones.
    """

    out: Path
    by: str
    found: int
    chosen: int
    alike: int
    rarity_from: str
    rows: tuple[tuple[str, float, str], ...]

    def text(self) -> str:
        first = [
            ["image", "uncertainty", "most in doubt"],
            *([name, f"{u:.3f}", label] for name, u, label in self.rows),
        ]
        alike = f"; {self.alike:,} more would be near-duplicates" if self.alike else ""
        return "\n".join(
            [
                f"chose {self.chosen:,} of {self.found:,} images by {self.by}{self.rarity_from}{alike}",
                *aligned(first, left=1),
                f"table  {self.out}",
                "next   label them, and pack them with the others: mlic pack --append",
            ]
        )


def select(config: SelectConfig) -> SelectReport:
    """Write the table of images to label, the most useful first. Scores and features are kept beside it.

    Raises DataError for a bad model or input, and where no image can be decoded.
    """
    model = bundle.read(config.model)
    predictions = _scores(config)
    if predictions.scores is None or not len(predictions.keys):
        raise DataError(f"{config.images} has no image that can be decoded.", "see the list of bad images above.")
    cuts = np.array(model.thresholds)
    weights, source = _weights(config, predictions.scores, len(model.labels))
    values = rules.uncertainty(predictions.scores, cuts, weights)
    chosen = _chosen(config, values, predictions)
    near = rules.closeness(predictions.scores, cuts)
    write_atomic(config.out, _table(chosen, predictions, model, values, near).encode())
    doubt = [model.labels[int(near[number].argmax())] for number in chosen[:_SHOWN]]
    return SelectReport(
        out=config.out,
        by=config.by,
        found=len(predictions.keys),
        chosen=len(chosen),
        alike=min(config.count, len(values)) - len(chosen),
        rarity_from=source,
        rows=tuple(
            (predictions.files[number], float(values[number]), label)
            for number, label in zip(chosen[:_SHOWN], doubt, strict=True)
        ),
    )


def _scores(config: SelectConfig) -> Predictions:
    out = config.out.with_name(config.out.name + ".scores.parquet")
    predict(
        PredictConfig(
            model=config.model,
            images=config.images,
            out=out,
            values="scores",
            address=config.address,
            workers=config.workers,
            fresh=config.fresh,
        )
    )
    return prediction_files.read(out)


def _weights(config: SelectConfig, scores: Array, labels: int) -> tuple[Array, str]:
    """The weights (L,) of labels, and where their frequencies come from."""
    if config.by not in ("rare", "mixture"):
        return np.ones(labels), ""
    try:
        train = read_split(shards_of(bundle.find(config.model).parent), "train", checked=True)
    except DataError:
        return rules.rarity(scores.sum(axis=0)), ", with frequencies of labels by the scores of these images"
    positives, _ = label_counts(train)
    return rules.rarity(np.asarray(positives, float)), ", with frequencies of labels in the training split"


def _chosen(config: SelectConfig, values: Array, predictions: Predictions) -> Array:
    count = min(config.count, len(values))
    if config.by == "random":
        return np.random.default_rng(config.seed).permutation(len(values))[:count]
    if config.by in ("uncertain", "rare"):
        return rules.best(values, count)
    worth = values if config.by == "mixture" else np.ones(len(values))
    return rules.spread(worth, _features(config, predictions.keys), count, config.duplicates)


def _features(config: SelectConfig, keys: Sequence[str]) -> Array:
    """The features (N, F) of the images, in the order of `keys`."""
    import pyarrow.parquet as pq

    out = config.out.with_name(config.out.name + ".features.parquet")
    embed(
        EmbedConfig(
            model=config.features or config.model,
            images=config.images,
            out=out,
            address=config.address,
            workers=config.workers,
            fresh=config.fresh,
        )
    )
    table = pq.read_table(out, columns=["key", "embedding"])
    if tuple(table.column("key").to_pylist()) != tuple(keys):
        raise DataError(f"{out} has other images than the scores.", "start again with --fresh.")
    column = table.column("embedding").combine_chunks()
    return np.asarray(column.values.to_numpy().reshape(len(table), -1))


def _table(chosen: Array, predictions: Predictions, model: bundle.Bundle, values: Array, near: Array) -> str:
    """The table: rank, image, uncertainty, the labels that the model gives, and the label most in doubt."""
    scores, cuts = predictions.scores, np.array(model.thresholds)
    if scores is None:
        raise ValueError("predictions without scores")
    text = io.StringIO()
    rows = csv.writer(text, delimiter="\t", lineterminator="\n")
    rows.writerow(["rank", "key", "file", "uncertainty", "suggested", "in_doubt", "score", "threshold"])
    for rank, number in enumerate(chosen.tolist(), start=1):
        doubt = int(near[number].argmax())
        given = [label for label, yes in zip(model.labels, scores[number] >= cuts, strict=True) if yes]
        rows.writerow(
            [
                rank,
                predictions.keys[number],
                predictions.files[number],
                f"{values[number]:.4f}",
                "|".join(given),
                model.labels[doubt],
                f"{scores[number, doubt]:.4f}",
                f"{cuts[doubt]:.4f}",
            ]
        )
    return text.getvalue()
