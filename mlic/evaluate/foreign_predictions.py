"""Predictions that another program wrote: tables with other columns, or with a list of labels per image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlic.batch_predict import prediction_files
from mlic.batch_predict.prediction_files import Predictions
from mlic.data.annotations.cells import number_of
from mlic.data.annotations.columns import choose
from mlic.data.annotations.files.table_files import is_table, open_table
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile, profiles_of
from mlic.data.annotations.tables import image_name, read_table
from mlic.errors import DataError

logger = logging.getLogger(__name__)


def read(path: Path, logits: bool, options: LabelOptions) -> Predictions:
    """Read predictions of mlic or of another program. Raises DataError, which says what is expected.

    A table of another program may have an index column, its images in any column, and one column of scores or
    decisions per label, or a single column that lists the labels of each image.
    """
    try:
        return prediction_files.read(path, logits)
    except DataError as error:
        is_other = path.is_file() and (is_table(path) or path.suffix == ".jsonl")
        if not is_other or "logits" in error.message:
            raise
        try:
            return _foreign(path, logits, options)
        except DataError as second:
            raise DataError(
                f"{path} cannot be read as predictions: {second.message}",
                "give a column of image names, and one column of 0 and 1 or of scores per label, or a list of labels.",
            ) from None


def _foreign(path: Path, logits: bool, options: LabelOptions) -> Predictions:
    table = open_table(path, options.is_image)
    profiles = profiles_of(table)
    if options.image_column is not None and options.image_column not in table.columns:
        options = replace(options, image_column=None)  # it names the column of the label file
    numeric = tuple(table.columns[i] for i, profile in enumerate(profiles) if _is_numeric(profile))
    if not numeric:
        _refuse_missing(path, profiles)
        return _lists(path, options)
    plan = choose(table, profiles, LabelOptions(label_columns=numeric, image_column=options.image_column), None)
    labels = [i for i in plan.labels if i not in plan.image]
    files = list[str]()
    columns: list[list[float]] = [[] for _ in labels]
    for block in table.blocks():
        names = block.columns[plan.image[0]]
        files += [image_name(path, line, cell) for line, cell in zip(block.lines, names, strict=True)]
        for values, i in zip(columns, labels, strict=True):
            values += [number_of(cell) for cell in block.columns[i]]
    named = {table.columns[i].strip(): np.array(values, np.float32) for i, values in zip(labels, columns, strict=True)}
    try:
        return prediction_files.from_columns(prediction_files.keys_of(files), tuple(files), named, logits)
    except ValueError as error:
        raise DataError(f"{error}.") from None


def _is_numeric(profile: Profile) -> bool:
    """Whether a column holds a number per row, and is no index."""
    numbers = profile.kinds["word"] + profile.kinds["fraction"] + profile.kinds["number"]
    is_index = profile.counted and profile.name.strip().lower() in ("", "index", "unnamed: 0")
    return numbers == profile.rows and not is_index


def _refuse_missing(path: Path, profiles: Sequence[Profile]) -> None:
    """Raise DataError for columns of numbers with blank cells: nothing was predicted there, which is not `absent`."""
    for profile in profiles:
        numbers = profile.kinds["word"] + profile.kinds["fraction"] + profile.kinds["number"]
        missing = profile.kinds["blank"] + profile.kinds["missing"]
        if numbers and missing and numbers + missing == profile.rows:
            raise DataError(
                f"{path}: {missing:,} cells of {profile.name!r} hold no prediction.", "predict these images again."
            )


def _lists(path: Path, options: LabelOptions) -> Predictions:
    """Predictions as a list of labels per image; labels that are not listed are predicted absent."""
    found = read_table(open_table(path, options.is_image), options)
    for warning in found.warnings:
        logger.warning("%s: %s", path, warning)
    decisions = np.zeros((len(found.names), len(found.labels)), bool)
    decisions[found.image[found.value == 1], found.label[found.value == 1]] = True
    files = tuple(found.names.to_pylist())
    return Predictions(found.labels, prediction_files.keys_of(files), files, None, decisions, is_lists=True)
