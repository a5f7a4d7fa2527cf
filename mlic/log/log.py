"""Send runs to experiment trackers: while they run, by a thread of the driver, or later.

A tracker gets what the run's own files hold. So workers do nothing, a tracker that is away stops nothing, and what it
missed is sent by the next look or by `mlic log`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mlic.config.base import Model
from mlic.config.log import LogConfig, Tracker
from mlic.errors import ConfigError, MlicError, PartialError
from mlic.log import contents
from mlic.log.contents import Contents
from mlic.log.mlflow_runs import MlflowRuns
from mlic.log.tensorboard_files import TensorboardFiles
from mlic.log.wandb_runs import WandbRuns

logger = logging.getLogger(__name__)

_LOOK_EVERY_S, _LAST_WORDS_S = 5.0, 60.0
_TOLD_BY = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_BASE_URL and WANDB_API_KEY", "tensorboard": "the disk"}
_PACKAGES = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboardX"}


class _Client(Protocol):
    where: str

    def send(self, run: Contents, parent: Contents | None = None) -> None: ...
    def close(self, run: Contents, files: bool) -> None: ...


class LogReport(Model):
    """How many epochs of which runs were sent where."""

    sent: dict[str, int]
    to: tuple[str, ...]

    def text(self) -> str:
        return "\n".join(f"sent {name}: {epochs} epochs to {', '.join(self.to)}" for name, epochs in self.sent.items())


def log(config: LogConfig) -> LogReport:
    """Send finished or stopped runs to trackers. Sent again, nothing is there twice.

    Raises DataError for a folder that is no run, ConfigError for a tracker that is not installed, and PartialError for
    one that does not take what it is sent.
    """
    check(config.to)
    sent, places = dict[str, int](), dict[str, None]()
    for folder in config.runs:
        for name in config.to:
            try:
                client = _client(name)
                _send_all(client, folder, config.files)
                places[client.where] = None
            except MlicError:
                raise
            except Exception as error:  # each tracker raises types of its own
                raise PartialError(
                    f"{name} did not take {folder.name}: {_line(error)}.",
                    f"check {_TOLD_BY[name]}, and run the same command again.",
                ) from error
        sent[folder.name] = len(contents.read(folder).rows)
    return LogReport(sent=sent, to=tuple(places))


def check(names: Sequence[Tracker]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"{name} needs {_PACKAGES[name]}.", f"pip install {_PACKAGES[name]}.")


@contextlib.contextmanager
def following(names: Sequence[Tracker], folder: Path) -> Iterator[None]:
    """Send what a run's folder holds while it is made, and the rest at the end."""
    if not names:
        yield
        return
    check(names)
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(names, folder, ended), name="trackers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_WORDS_S)
        if thread.is_alive():
            logger.warning("%s took too long; %s", " and ".join(names), _later(names[0], folder))


def _follow(names: Sequence[Tracker], folder: Path, ended: threading.Event) -> None:
    clients, failed = dict[Tracker, _Client](), set[Tracker]()
    while True:
        is_last = ended.wait(_LOOK_EVERY_S)
        for name in names:
            try:
                if name not in clients:
                    clients[name] = _client(name)
                run = contents.read(folder)
                clients[name].send(run)
                if is_last:
                    _send_rest(clients[name], run, files=True)
                failed.discard(name)
            except MlicError as error:  # the folder is not there yet, or never will be
                logger.debug("nothing to send: %s", error)
            except Exception as error:  # each tracker raises types of its own, and none may stop a run
                if name not in failed or is_last:
                    logger.warning("%s: %s; %s", name, _line(error), _later(name, folder))
                failed.add(name)
        if is_last:
            return


def _send_all(client: _Client, folder: Path, files: bool) -> None:
    run = contents.read(folder)
    client.send(run)
    _send_rest(client, run, files)


def _send_rest(client: _Client, run: Contents, files: bool) -> None:
    for trial in contents.trials(run):
        client.send(trial, run)
        client.close(trial, files=False)
    client.close(run, files)


def _client(name: Tracker) -> _Client:
    if name == "mlflow":
        return MlflowRuns()
    return WandbRuns() if name == "wandb" else TensorboardFiles()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _later(name: Tracker, folder: Path) -> str:
    return f"the run goes on, and mlic log {folder} --to {name} sends what is missing"
