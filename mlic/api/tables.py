"""Predictions and trials as tables of pandas."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mlic.batch_predict import prediction_files
from mlic.errors import DataError


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read a file of `mlic batch-predict` of any format: `key`, `file`, a bool column for each label, LABEL_score.

    What the file does not have, decisions or scores, has no columns. Raises DataError if it is no such file.
    """
    predictions = prediction_files.read(Path(path).expanduser())
    labels = predictions.labels or tuple(str(i) for i in range(predictions.columns))
    table = {"key": predictions.keys, "file": predictions.files}
    frame = pd.DataFrame(table)
    for values, ending in ((predictions.decisions, ""), (predictions.scores, "_score")):
        if values is not None:
            named = pd.DataFrame(values, columns=[f"{label}{ending}" for label in labels])
            frame = pd.concat([frame, named], axis=1)
    return frame


def read_trials(run: str | Path) -> pd.DataFrame:
    """Read the table of the trials of a search, a row for each, in the order of their numbers.

    Raises DataError if the folder is no search, or one that has not written its table yet.
    """
    file = Path(run).expanduser() / "trials.parquet"
    if not file.is_file():
        raise DataError(
            f"{run} has no table of trials.", "name the folder of a search by mlic tune, such as runs/tune."
        )
    return pd.read_parquet(file)
