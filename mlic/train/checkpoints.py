"""Checkpoints of a run: its last state, its best epoch and its history.

An epoch leaves `checkpoints/last.pt` and, where it was the best so far, `checkpoints/best.pt`; within an epoch
`last.pt` is written every so many minutes. Files are whole or not there, and `last.pt` comes after the others, so that
it never points past them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
import torch

from mlic.config.types import Location
from mlic.data import storage
from mlic.errors import ClusterError, ConfigError, RunError
from mlic.runs.files import disk_errors, temporary, write_atomic
from mlic.train.rank import RankContext

_LAST, _BEST, _HISTORY = "checkpoints/last.pt", "checkpoints/best.pt", "metrics.jsonl"
FILES = (_BEST, _HISTORY, _LAST)  # in the order in which they are written
_SEEN_WITHIN_S, _LOOK_AGAIN_S = 120.0, 1.0  # for a rank to see rank 0's checkpoint, if its node caches storage
_BEST_ARRAYS = ("thresholds", "scores", "targets", "decisions")


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by the objective.

    `scores` float32 (N, L) and `targets` int8 (N, L) are those of the validation split, `decisions` bool (N, L) are
    cross-fitted.
    """

    epoch: int
    metrics: dict[str, float]
    state: dict[str, torch.Tensor]
    thresholds: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    decisions: np.ndarray[Any, Any]


def read_best(folder: Path) -> Best:
    """Read the best epoch of a run's folder. Raises RunError when no epoch was finished."""
    path = folder / _BEST
    if not path.is_file():
        raise RunError(f"{folder} has no finished epoch.", "run the same command again.")
    best = torch.load(path, map_location="cpu", weights_only=True)
    return Best(best["epoch"], best["metrics"], best["state"], *(best[name].numpy() for name in _BEST_ARRAYS))


def write_best(folder: Path, best: Best) -> None:
    """Write what `read_best` reads."""
    arrays = {name: torch.from_numpy(getattr(best, name)) for name in _BEST_ARRAYS}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    _save(folder / _BEST, {"epoch": best.epoch, "metrics": best.metrics, "state": best.state, **arrays})


def read_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of the finished epochs of a run's folder, in their order; without a line that is being written."""
    path = folder / _HISTORY
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Checkpoints:
    """Writes the files of a run in a thread of its own, from copies, while training continues; rank 0 alone writes.

    `copy` is a folder, possibly in an object store, that gets a copy of each file after it is written here. `known_by`
    identifies the run of a copy, so that no other run resumes from it. An error in the thread is raised by the next
    call, and the previous file is still there. With `keep_scores` the scores of each epoch are kept too, for
    `read_scores`.
    """

    def __init__(self, context: RankContext, copy: Location | None, known_by: str, keep_scores: bool = False) -> None:
        self._context, self._copy, self._known_by, self._keep_scores = context, copy, known_by, keep_scores
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()

    def read_last(self) -> dict[str, Any] | None:
        """The last checkpoint, fetched from the copy if this folder has none; None if there is none at all.

        All ranks resume from the checkpoint that rank 0 has, whatever their nodes have cached of the folder. Raises
        ConfigError when the copy is that of another run, and ClusterError when a rank does not come to see what rank 0
        has.
        """
        self._fetch()
        context, last, wanted = self._context, None, None
        if context.rank == 0:
            last = self._load()
            wanted = None if last is None else _position(last)
        wanted = context.gather(wanted)[0]
        if wanted is None:
            return None
        patience = time.monotonic() + _SEEN_WITHIN_S
        while (last is None or _position(last) != wanted) and time.monotonic() < patience:
            time.sleep(_LOOK_AGAIN_S if context.rank else 0)
            last = self._load()
        seen = context.gather(last is not None and _position(last) == wanted)
        if not all(seen):
            raise ClusterError(
                f"rank {seen.index(False)} does not see the checkpoint that rank 0 has in {context.folder}.",
                "use a folder on storage that all nodes share; mlic cluster check tries one.",
            )
        return last

    def _load(self) -> dict[str, Any] | None:
        path = self._context.folder / _LAST
        try:
            os.listdir(path.parent)  # noqa: PTH208 - looks past what a network file system has cached
            last: dict[str, Any] = torch.load(path, map_location=self._context.device, weights_only=True)
        except FileNotFoundError:
            return None
        return last

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write the history again with exactly these epochs: an interrupted run may have left one more row."""
        if self._context.rank == 0:
            self._context.check_current()
            lines = "".join(json.dumps(row) + "\n" for row in history)
            write_atomic(self._context.folder / _HISTORY, lines.encode())

    def write(
        self,
        last: Mapping[str, Any],
        best: Mapping[str, Any] | None = None,
        row: Mapping[str, float] | None = None,
        scores: np.ndarray[Any, Any] | None = None,
    ) -> None:
        """Begin to write the `scores`, `best` and the `row` of an epoch, if they are given, and then `last`."""
        if self._context.rank != 0:
            return
        self.wait()
        self._context.check_current()
        self._pending = self._thread.submit(self._write, _copied(last), _copied(best), row, scores)

    def wait(self) -> None:
        """Wait until all is written. Raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(
        self, last: Any, best: Any, row: Mapping[str, float] | None, scores: np.ndarray[Any, Any] | None
    ) -> None:
        folder = self._context.folder
        with disk_errors(folder):
            (folder / "checkpoints").mkdir(exist_ok=True)
            if row is not None and scores is not None and self._keep_scores:
                _save(_scores_of(folder, int(row["epoch"])), {"scores": torch.from_numpy(scores)})
            if best is not None:
                _save(folder / _BEST, best)
            if row is not None:
                with (folder / _HISTORY).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            _save(folder / _LAST, last | {"known_by": self._known_by})
        if self._copy is not None:
            self._upload(
                self._copy, ([_BEST] if best is not None else []) + ([_HISTORY] if row is not None else []) + [_LAST]
            )

    def _upload(self, copy: Location, names: list[str]) -> None:
        """Copy files to the copy folder. A failure is logged, and the next call copies a newer version."""
        for name in names:
            try:
                storage.copy(self._context.folder / name, (copy / name))
            except OSError as error:
                self._context.say(f"Warning: no copy of {name} in {copy}: {error}")
                return

    def _fetch(self) -> None:
        """Fetch the files from the copy if this folder has none; rank 0 does this for all ranks."""
        context = self._context
        if self._copy is None:
            return
        problem = ""
        if context.rank == 0 and not (context.folder / _LAST).is_file():
            problem = self._fetch_files(self._copy)
        problem = context.gather(problem)[0]
        if problem:
            raise ConfigError(problem, "give another --set checkpoint_copy, or --fresh to write over it.")

    def _fetch_files(self, copy: Location) -> str:
        """Fetch the files that exist; returns what is wrong with them, or an empty text."""
        folder = self._context.folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        try:
            there = [name for name in FILES if storage.size(copy / name) is not None]
            if _LAST not in there:
                return ""
            with temporary(folder / _LAST) as part:
                part.write_bytes(storage.read(copy / _LAST))
                if torch.load(part, map_location="cpu", weights_only=True).get("known_by") != self._known_by:
                    return f"the checkpoints in {copy} are of a run with other settings or data."
                for name in there[:-1]:
                    write_atomic(folder / name, storage.read(copy / name))
                part.replace(folder / _LAST)
        except OSError as error:
            return f"the checkpoints in {copy} cannot be read: {error}."
        self._context.say(f"resumes from the checkpoints in {copy}")
        return ""


def forget_copy(copy: Location, folder: Path, owner: Path) -> None:
    """Remove what a run that is thrown away has copied. Raises ConfigError when that fails."""
    where = copy_of(copy, folder, owner)
    try:
        for name in reversed(FILES):
            storage.delete(where / name)
    except OSError as error:
        raise ConfigError(f"cannot remove the checkpoints in {where}: {error}.", "check checkpoint_copy.") from None


def copy_of(copy: Location, folder: Path, owner: Path) -> Location:
    """Where in `copy` the files of a run's folder belong."""
    return copy / str(folder.relative_to(owner.parent))


def read_scores(folder: Path, epoch: int) -> np.ndarray[Any, Any]:
    """The scores float32 (N, L) of the validation split after an epoch, of a run that keeps them. Raises RunError."""
    try:
        scores: np.ndarray[Any, Any] = torch.load(_scores_of(folder, epoch), weights_only=True)["scores"].numpy()
    except FileNotFoundError:
        best = read_best(folder)
        if best.epoch != epoch:
            what = f"{folder} was trained by a version that did not keep the scores of epoch {epoch}."
            raise RunError(what, "train it again with --fresh.") from None
        scores = best.scores
    return scores


def _scores_of(folder: Path, epoch: int) -> Path:
    return folder / "checkpoints" / f"scores-{epoch:05d}.pt"


def _position(last: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where in a run a checkpoint is: epochs, steps of all, and steps of the epoch."""
    return len(last["history"]), int(last["step"]), int(last["done"])


class _Sink:
    """A file that remembers the error of a failed write, because PyTorch raises another error instead."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(path: Path, value: dict[str, Any]) -> None:
    """Write values whole or not at all. Raises OSError, that of a full disk too."""
    with temporary(path) as part, part.open("wb") as file:
        sink = _Sink(file)
        try:
            torch.save(value, cast("BinaryIO", sink))
        except Exception:
            if sink.error is not None:
                raise sink.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
        part.replace(path)


def _copied(value: Any) -> Any:
    """Nested values with all tensors copied to the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
