"""What a run's folder holds that an experiment tracker shows."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlic.errors import DataError
from mlic.runs.files import write_atomic

IDENTITY = "tracked.json"
_KINDS = ("train", "tune", "distill")
_FILES = (
    "config.json",
    "run.json",
    "report.json",
    "log.txt",
    "metrics.jsonl",
    "trials.parquet",
    "best.yaml",
    "card.md",
)
_LESS_IS_BETTER = ("coverage", "ranking_loss")
_PAGES = (".html", ".png", ".svg")


@dataclass(frozen=True)
class Contents:
    """A run as its folder shows it now.

    `identity` is the same in all attempts of a run. `rows` are the metrics of its epochs, by number. `summary` are
    measurements, each with its interval and the best trivial baseline. `files` are by the folder they belong in.
    """

    folder: Path
    identity: str
    name: str
    kind: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    rows: dict[int, dict[str, float]]
    summary: dict[str, float]
    files: tuple[tuple[Path, str], ...]

    @property
    def has_ended(self) -> bool:
        """Whether no process works on it."""
        return self.status != "running"


def read(folder: Path) -> Contents:
    """What a run's folder holds. Raises DataError for a folder that is not a run's."""
    try:
        state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        kind, settings = state["kind"], state["settings"]
    except (OSError, ValueError, KeyError):
        raise DataError(f"{folder} is not a run.", "name a folder of mlic train or mlic tune.") from None
    if kind not in _KINDS:
        raise DataError(f"{folder} was made by mlic {kind}.", "name a run of mlic train or mlic tune.")
    return Contents(
        folder,
        _identity(folder),
        folder.name,
        kind,
        str(state["status"]),
        _flat(settings),
        _tags(state),
        _rows(folder / "metrics.jsonl"),
        dict(_summary(folder)),
        tuple(_files(folder)),
    )


def trials(search: Contents) -> Iterator[Contents]:
    """The trials of a search, as far as they have got."""
    for folder in sorted(search.folder.glob("trials/*/")):
        rows = _rows(folder / "metrics.jsonl")
        if rows:
            settings = _read_json(folder / "trial.json")
            tags = {**search.tags, "mlic.search": search.identity}
            name = f"{search.name} {folder.name}"
            identity = f"{search.identity}-{folder.name}"
            yield Contents(folder, identity, name, "trial", search.status, _flat(settings), tags, rows, {}, ())


def _identity(folder: Path) -> str:
    stored = _read_json(folder / IDENTITY).get("identity")
    if stored is None:
        stored = uuid.uuid4().hex
        write_atomic(folder / IDENTITY, json.dumps({"identity": stored}).encode())
    return str(stored)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat = dict[str, str]()
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        elif value not in (None, {}, []):
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _tags(state: Mapping[str, Any]) -> dict[str, str]:
    tags = {"mlic.kind": state["kind"], "mlic.command": " ".join(state.get("argv", ())), "mlic.host": state.get("host")}
    tags |= {"mlic.git_commit": state.get("git_commit"), "mlic.started": state.get("first_started")}
    tags |= {f"mlic.version.{name}": version for name, version in state.get("versions", {}).items()}
    tags |= {f"mlic.data.{name}": value for name, value in state.get("inputs", {}).items()}
    return {name: str(value) for name, value in tags.items() if value}


def _rows(path: Path) -> dict[int, dict[str, float]]:
    """The metrics of each epoch whose line is whole."""
    rows = dict[int, dict[str, float]]()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        numbers = {plain(name): float(value) for name, value in row.items() if isinstance(value, int | float)}
        rows[int(row["epoch"])] = numbers
    return rows


def plain(name: str) -> str:
    """A name of a metric with the characters alone that all trackers take."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _summary(folder: Path) -> Iterator[tuple[str, float]]:
    report = _read_json(folder / "report.json")
    yield from _measured("measured", report.get("measurement") or {})
    for path in sorted(folder.glob("predictions/*.eval/report.json")):
        split = path.parent.name.partition(".")[0]
        yield from _measured(split, _read_json(path).get("measurement") or {})


def _measured(prefix: str, measurement: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in (measurement.get("values") or {}).items():
        yield plain(f"{prefix}/{name}"), float(value)
        interval = (measurement.get("intervals") or {}).get(name)
        if interval:
            yield plain(f"{prefix}/{name}/low"), float(interval[0])
            yield plain(f"{prefix}/{name}/high"), float(interval[1])
        trivial = [base[name] for base in (measurement.get("baselines") or {}).values() if base.get(name) is not None]
        if trivial:
            best = min if name in _LESS_IS_BETTER else max
            yield plain(f"{prefix}/{name}/baseline"), float(best(trivial))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    for name in _FILES:
        if (folder / name).is_file():
            yield folder / name, ""
    for path in sorted((folder / "model").glob("*")):
        if path.is_file():
            yield path, "model"
    for base in (folder / "report", *sorted(folder.glob("predictions/*.eval"))):
        for path in sorted(base.rglob("*")):
            if path.is_file() and path.suffix in _PAGES:
                yield path, f"pages/{base.name}"
