"""A trained model in a program: `mlic.load("runs/small").predict("photo.jpg")`."""

from __future__ import annotations

import contextlib
import functools
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlic.api.inputs import named_readers
from mlic.batch_predict.actor import Predictor
from mlic.batch_predict.predict import list_items
from mlic.config.predict import EmbedConfig, PredictConfig
from mlic.config.types import location
from mlic.data import storage
from mlic.data.sources.image_sources import is_image
from mlic.errors import ConfigError, DataError
from mlic.metrics import thresholds
from mlic.metrics.calibration import Calibration
from mlic.model import bundle

Array = np.ndarray[Any, Any]


def load(path: str | Path, tta: Literal["none", "mirror"] = "none") -> Model:
    """Load a trained model: a run of `mlic train` or `mlic tune`, its bundle, an average or an export.

    Raises DataError if there is no whole model, and ConfigError without the engine of an export.
    """
    return Model(path, tta)


class Model:
    """A trained model with its labels, preprocessing, calibration and thresholds.

    `labels` are in order, `thresholds` hold one number for each label: it is given where the calibrated score reaches
    it. It computes on a GPU if there is one. Scores are those of `mlic batch-predict`, to the last bit on CPUs.
    """

    def __init__(self, path: str | Path, tta: Literal["none", "mirror"] = "none") -> None:
        where = getattr(path, "run", path)  # of the report of a training too
        if not isinstance(where, str | Path):
            raise ConfigError(f"{path!r} is no path.", "give the folder of a run, such as runs/small.")
        if tta not in ("none", "mirror"):
            raise ConfigError(f"tta is {tta!r}.", "give none or mirror.")
        self.path = Path(where).expanduser().absolute()
        self._tta = tta
        self._bundle = bundle.read(self.path)
        self.labels = self._bundle.labels
        self.thresholds = dict(zip(self.labels, self._bundle.thresholds, strict=True))
        self._predictor = Predictor(self._settings(), "torch", here=True)

    def _settings(self) -> PredictConfig:
        return PredictConfig(model=self.path, images=self.path, tta=self._tta)

    @functools.cached_property
    def _embedder(self) -> Predictor:
        if self._bundle.export is not None or self._bundle.members:
            what = "an export" if self._bundle.export is not None else "an average"
            raise DataError(f"{self.path} is {what}, which has no embedding.", "load one of the runs it was made of.")
        return Predictor(EmbedConfig(model=self.path, images=self.path, tta=self._tta), "torch", here=True)

    def predict(self, images: Any, bad: Literal["raise", "keep"] = "raise") -> pd.DataFrame:
        """Predict images; returns a row for each: `key`, a bool column for each label, and LABEL_score (float32).

        `images` is a path, a folder, an archive, shards, a URL of an object store, bytes, a Pillow image, an array
        (H, W, C) or a batch of them, a tensor (C, H, W) or a batch, uint8 or float from 0 to 1, or a sequence of these.
        The key is the name of a file without its ending, or the position. Raises DataError for an image that cannot be
        decoded; with bad="keep" it has no label, NaN scores, and the reason in the column `error`.
        """
        if bad not in ("raise", "keep"):
            raise ConfigError(f"bad is {bad!r}.", "give raise or keep.")
        keys, scores, reasons = self._computed(self._predictor, images)
        _check(keys, reasons, bad)
        good = np.array([row not in reasons for row in range(len(keys))], bool)
        calibrated = np.full(scores.shape, np.nan, np.float32)
        calibrated[good] = Calibration.read(self._bundle.calibration).apply(scores[good])
        decisions = np.zeros(scores.shape, bool)
        decisions[good] = thresholds.decide(calibrated[good], np.array(self._bundle.thresholds), self._bundle.top_k)
        columns: dict[str, Any] = {"key": keys}
        columns |= {label: decisions[:, i] for i, label in enumerate(self.labels)}
        columns |= {f"{label}_score": calibrated[:, i] for i, label in enumerate(self.labels)}
        if bad == "keep":
            columns["error"] = [reasons.get(row) for row in range(len(keys))]
        return pd.DataFrame(columns)

    def embed(self, images: Any) -> Array:
        """The features float32 (N, F) that the model's head gets of each image; `images` as for `predict`.

        Raises DataError for an image that cannot be decoded, an average and an export.
        """
        keys, features, reasons = self._computed(self._embedder, images)
        _check(keys, reasons, "raise")
        return features

    def _computed(self, predictor: Predictor, inputs: Any) -> tuple[list[str], Array, dict[int, str]]:
        """The keys, what the predictor computes (N, L), and the reasons of bad images by row."""
        with _opened(inputs) as (keys, readers):
            if not keys:
                raise DataError("there is no image.", "give one at least.")
            return keys, *predictor.of_files(readers)

    def __repr__(self) -> str:
        prep = self._bundle.preprocessing
        return (
            f"mlic.Model({str(self.path)!r}: {self._bundle.arch}, {len(self.labels)} labels, {prep.image_size} px, "
            f"thresholds {self._bundle.threshold_fit.get('policy', '')})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(label)}</td><td>{value:.3f}</td></tr>" for label, value in self.thresholds.items()
        )
        return (
            f"<p><code>{html.escape(repr(self))}</code></p>"
            f"<table><tr><th>label</th><th>threshold</th></tr>{rows}</table>"
        )


def _check(keys: Sequence[str], reasons: dict[int, str], bad: str) -> None:
    if reasons and bad != "keep":
        row, reason = min(reasons.items())
        raise DataError(
            f"{len(reasons):,} of {len(keys):,} images cannot be decoded; {keys[row]}: {reason}.",
            'leave them out, or give bad="keep".',
        )


@contextlib.contextmanager
def _opened(inputs: Any) -> Iterator[tuple[list[str], list[Callable[[], bytes]]]]:
    """Keys and readers of images, those of a folder, an archive or shards with their files held open."""
    if isinstance(inputs, str | Path):
        if not str(inputs):
            raise DataError("the path of the images is empty.", "give a file, a folder or shards.")
        where = location(inputs)
        if not isinstance(where, Path) or storage.is_folder(where) or not is_image(where.name):
            items = list_items(where, None)
            with items.source.opened() as read:
                numbers = items.rows.tolist()
                yield [str(key) for key in _texts(items.keys)], [functools.partial(read, i) for i in numbers]
            return
    named = named_readers(inputs)
    yield [key for key, _ in named], [reader for _, reader in named]


def _texts(keys: Any) -> list[str]:
    return [key.decode("utf-8", "backslashreplace") for key in keys.to_pylist()]
