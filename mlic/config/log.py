"""Settings of `mlic log`, and of the commands that log while they run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from mlic.config.base import Model, setting
from mlic.config.types import Paths, as_names

Tracker = Literal["mlflow", "wandb", "tensorboard"]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(as_names)]


class LogConfig(Model):
    """Send runs to an experiment tracker: settings, metrics of each epoch, measurements, pages and the model."""

    runs: Paths = setting(
        ..., "Runs of mlic train or mlic tune, finished or not", cli="argument", min_length=1, runtime=True
    )
    to: Trackers = setting(
        ...,
        "mlflow, wandb or tensorboard, or several; they are told by their own variables where to write, such as "
        "MLFLOW_TRACKING_URI, WANDB_PROJECT",
        cli="flag",
        min_length=1,
        runtime=True,
    )
    files: bool = setting(True, "Send the model, the pages and the tables too", cli="flag", runtime=True)
