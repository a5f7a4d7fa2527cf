"""The folder of one command: its lock, its settings and its state.

Every such folder holds `config.json` (settings, fit for --config), `run.json` (provenance and state) and, once the
stage is done, `report.json`. The same command on the same folder resumes or prints the report; another is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from filelock import BaseFileLock
from pydantic import BaseModel

from mlic.config.base import Settings, result_settings
from mlic.config.types import Location
from mlic.data import storage
from mlic.errors import ConfigError, MlicError, PartialError
from mlic.runs.files import disk_errors, write_json
from mlic.runs.lock import LEASE, LOCK, lock_folder
from mlic.runs.provenance import now, provenance

logger = logging.getLogger(__name__)

Folder = TypeVar("Folder", bound=Location)

_LOCK_ALONE = re.compile(r"\.lock|\.lease(\..*)?")
# The files that the stages write into their folders; nothing else is ever deleted.
_OWN = re.compile(
    r"\.lock|\.lease(\..*)?|\.ray|\.stop-\d+|\.failure\.json|\.scan\.npz|\..*\.tar\.(json|parquet)|\..*\.part|"
    r"(run|config|report|index|doctor|noise|search|population|explore|metrics)\.json|metrics\.jsonl|log\.txt|best\.yaml|left_out\.tsv|suspects\.tsv|"
    r"[a-z_0-9]+-\d{6}\.tar|(samples|trials|epochs|scores)\.parquet|part-\d{6,}\.(parquet|trail)|"
    r"checkpoints|model|ensemble|export-[a-z]+(-[a-z0-9]+)?|trials|confirm|folds|predictions|report|corpus|shards|runs|"
    r"evaluation|preds\.tsv(\.parts|\.errors\.tsv)?"
)
_TAKES_IN_NEW = {"batch-predict": "--update", "pack": "--append"}  # the flag by which a finished run grows
_CLEARED = "cleared"  # the status of a folder whose content was deleted and that has no new content yet
_RAY_JOB_FOLDER = "working_dir_files"


class Run(Generic[Folder]):
    """The folder of a run, locked while this object is open (on disks, not in object stores).

    `finished` says that an earlier run of the same command is done; `report` is then its report. `attempt` is the
    number of this start. By this number, a worker of an earlier attempt that is still alive sees that its attempt is no
    longer the current one.
    """

    def __init__(self, folder: Folder, lock: BaseFileLock | None, state: dict[str, Any]) -> None:
        self.folder = folder
        self._lock = lock
        self._state = state

    @classmethod
    def open(
        cls,
        folder: Folder,
        kind: str,
        config: BaseModel,
        inputs: Mapping[str, str],
        fresh: bool,
        may_change: Collection[str] = (),
    ) -> Self:
        """Lock the folder and compare what it holds with this command.

        If an input in `may_change` is another one than before, the run is `renewed`: it is not finished any more, and
        what it made of the other input stays in the folder.

        `inputs` are fingerprints of the data by name. Raises PartialError when another process works on the folder
        and ConfigError when the folder is another stage's, another command's, or not ours at all. An object store has
        no locks: what two runs write there at once is the same, since a stage's files are a function of its inputs.
        """
        if isinstance(folder, Path) and _RAY_JOB_FOLDER in folder.parts:
            raise ConfigError(
                f"{folder} is in the temporary folder of a Ray job, which Ray deletes after the job.",
                "give absolute paths on storage that all nodes share.",
            )
        lock = None
        with disk_errors(folder):
            if isinstance(folder, Path):
                folder.mkdir(parents=True, exist_ok=True)
                lock = lock_folder(folder)
        try:
            if isinstance(folder, Path):
                _remove_leftovers(folder)
            state = _last_state(folder, kind, config, inputs, fresh, may_change)
            if state.get("status") != "finished":
                state = provenance(state, kind, config, inputs)
                with disk_errors(folder):
                    settings = config.model_dump(mode="json", exclude=set(Settings.model_fields))
                    write_json((folder / "config.json"), settings)
                    write_json((folder / "run.json"), state)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(folder, lock, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is not None and not self.finished:
                status = "stopped" if issubclass(kind, KeyboardInterrupt | PartialError) else "failed"
                with contextlib.suppress(MlicError):  # the first error is the one to show
                    self._save(status=status, ended=now(), error=str(error))
        finally:
            if self._lock is not None:
                self._lock.release()

    @property
    def finished(self) -> bool:
        return self._state.get("status") == "finished"

    @property
    def renewed(self) -> bool:
        """Whether the folder holds what was made of other inputs, see `open`."""
        return bool(self._state.get("renewed"))

    @property
    def attempt(self) -> int:
        return int(self._state["attempt"])

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads(storage.read(self.folder / "report.json")))

    @contextlib.contextmanager
    def stopping_on_request(self) -> Iterator[None]:
        """In this context, SIGUSR1 does not stop this process, but asks its workers to stop: see `is_asked_to_stop`.

        SLURM sends this signal as a warning before the end of a job. This works only for folders on a disk.
        """
        if not isinstance(self.folder, Path) or threading.current_thread() is not threading.main_thread():
            yield
            return
        path = _request(self.folder, self.attempt)

        def ask(_number: int, _frame: Any) -> None:
            path.touch()

        before = signal.signal(signal.SIGUSR1, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    @property
    def is_asked_to_stop(self) -> bool:
        return isinstance(self.folder, Path) and is_asked_to_stop(self.folder, self.attempt)

    def reopen(self) -> None:
        """Mark a finished run as running again, because its output is no longer complete."""
        self._save(status="running", attempt=self.attempt + 1, started=now(), ended=None)

    def note(self, **values: Any) -> None:
        """Add facts to run.json."""
        self._save(**values)

    def finish(self, report: BaseModel) -> None:
        """Write report.json and mark the run as done; remove the temporary files of workers that were killed."""
        if isinstance(self.folder, Path):
            _remove_leftovers(self.folder)
        write_json((self.folder / "report.json"), report.model_dump(mode="json"))
        self._save(status="finished", ended=now(), error=None)

    def _save(self, **values: Any) -> None:
        self._state.update(values)
        write_json((self.folder / "run.json"), self._state)


def read_state(folder: Location) -> dict[str, Any] | None:
    """The content of run.json, or None when there is none. Raises ConfigError when it is not ours."""
    path = folder / "run.json"
    try:
        state = json.loads(storage.read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}.", "name another folder, or remove this one.") from None
    if not isinstance(state, dict) or state.get("format") != 1:
        raise ConfigError(f"{path} is not of format 1.", "name another folder.")
    return state


def is_current(folder: Location, attempt: int) -> bool:
    """Whether `attempt` is still the one that may write to the folder."""
    state = read_state(folder)
    return state is not None and state.get("attempt") == attempt


def is_asked_to_stop(folder: Path, attempt: int) -> bool:
    """Whether the workers of this attempt should write what they have and stop."""
    path = _request(folder, attempt)
    return path.name in os.listdir(folder)  # noqa: PTH208 - looks past what a network file system has cached


def _request(folder: Path, attempt: int) -> Path:
    return folder / f".stop-{attempt}"


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left under temporary names; at the start and the end of a run nobody else writes."""
    for path in [*folder.glob(".*.part"), *folder.glob("*/.*.part"), *folder.glob(".stop-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _refuse_foreign(folder: Location, ours: re.Pattern[str] = _LOCK_ALONE) -> None:
    """Raise ConfigError when the folder holds anything but what mlic writes to such folders."""
    foreign = [name for name in storage.names(folder) if not ours.fullmatch(name)]
    if foreign:
        raise ConfigError(
            f"{folder} holds files that mlic did not write ({foreign[0]!r}).", "move them, or name another folder."
        )


def _made_nothing(folder: Location, state: Mapping[str, Any]) -> bool:
    """Whether an earlier attempt failed before it wrote anything, so that its settings do not matter."""
    names = {name for name in storage.names(folder) if not name.startswith(LEASE)} - {LOCK, ".ray", ".failure.json"}
    return (
        state.get("status") == "failed"
        and names <= {"run.json", "config.json", "log.txt", "metrics.jsonl"}
        and not storage.size(folder / "metrics.jsonl")
    )


def _clear(folder: Location, kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what an earlier run left, except the number of its starts, which continues.

    So a worker of a deleted start, if it is still alive, is never mistaken for a worker of a later start. Returns what
    is kept.
    """
    remembered = {"format": 1, "kind": kind, "status": _CLEARED, "attempt": int(state.get("attempt", 0))}
    with disk_errors(folder):
        write_json((folder / "run.json"), remembered)
        for name in storage.names(folder):
            if name not in (LOCK, "run.json") and not name.startswith(LEASE):
                storage.delete(folder / name)
    return remembered


def _last_state(
    folder: Location,
    kind: str,
    config: BaseModel,
    inputs: Mapping[str, str],
    fresh: bool,
    may_change: Collection[str],
) -> dict[str, Any]:
    """What earlier attempts of this command have left in run.json. Raises ConfigError for another command's folder."""
    state = read_state(folder)
    if state is None:
        _refuse_foreign(folder)
        return {"attempt": 0}
    if fresh or _made_nothing(folder, state) or state.get("status") == _CLEARED:
        _refuse_foreign(folder, ours=_OWN)
        return _clear(folder, kind, state)
    changed = _compare(folder, state, kind, config, inputs, may_change)
    return {**state, "status": "running", "renewed": True} if changed else state


def _compare(
    folder: Location,
    state: Mapping[str, Any],
    kind: str,
    config: BaseModel,
    inputs: Mapping[str, str],
    may_change: Collection[str],
) -> list[str]:
    """Raise ConfigError if the folder is of another command; returns the inputs in `may_change` that have changed."""
    name = str(folder).partition("?")[0].rstrip("/").rpartition("/")[2]
    other = f"{_another(kind)}, or --fresh to delete what {name} holds."
    if state.get("kind") != kind:
        raise ConfigError(f"{folder} was made by mlic {state.get('kind')}, not by mlic {kind}.", f"give {other}")
    now = json.loads(json.dumps(result_settings(config)))
    # A setting that decides results no more, such as the number of the loader's threads, may differ.
    runtime = type(config).model_fields.keys() - now.keys()
    stored = {key: value for key, value in state.get("settings", {}).items() if key not in runtime}
    before = {**_in_effect(config, now), **stored}
    differ = [
        f"{key} (was {before.get(key)!r}, now {now.get(key)!r})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differ:
        raise ConfigError(f"{folder} was made with different settings: {'; '.join(differ)}.", f"give {other}")
    changed = [name for name, value in inputs.items() if state.get("inputs", {}).get(name) != value]
    if set(changed) - set(may_change):
        what = " and ".join(changed)
        update = f", or {_TAKES_IN_NEW[kind]} to take in what is new" if _is_grown(kind, state, changed) else ""
        raise ConfigError(
            f"{folder} was made from another {what}."
            if what == "model"
            else f"{folder} was made from different {what}.",
            f"give {other.removesuffix('.')}{update}.",
        )
    return changed


def _is_grown(kind: str, state: Mapping[str, Any], changed: Collection[str]) -> bool:
    """Whether the inputs of a command that can take in new ones may have grown since it was finished."""
    grows = kind == "batch-predict" or (kind == "pack" and state.get("status") == "finished")
    return grows and set(changed) <= {"images", "labels", "splits"} and "images" in changed


def _in_effect(config: BaseModel, now: Mapping[str, Any]) -> dict[str, Any]:
    """The effective value of each setting in versions that did not have it yet: its default of today.

    If today's default is not what earlier versions did, the setting must be listed here with the old behaviour.
    """
    fields = type(config).model_fields
    effective = {
        name: json.loads(json.dumps(fields[name].get_default(call_default_factory=True), default=str)) for name in now
    }
    if "interpolation" in effective and any(map(_is_of_a_library, _archs(now))):
        effective["interpolation"] = "bilinear"
    return effective


def _archs(settings: Mapping[str, Any]) -> list[str]:
    """The architectures of a run, or those that a search chooses from."""
    searched = settings.get("space", {}).get("arch", {})
    return [settings.get("arch", "small"), *(searched.get("choice") or searched.get("grid") or ())]


def _is_of_a_library(arch: str) -> bool:
    """Whether an architecture is torchvision's or timm's, whose published weights may ask for another interpolation."""
    return "/" in arch or ("-" not in arch and arch != "small")


def _another(kind: str) -> str:
    if kind in ("batch-predict", "embed"):
        return "--out with another file"
    return "--name with another name" if kind in ("train", "tune", "cross-validate") else "--out with another folder"
