"""The provenance of a run: versions, host, commit, command and times."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mlic.config.base import result_settings

_DECIDED = (
    "dtype",
    "arithmetic",
    "backend",
    "computed_by",
    "renewed",
    "appending",
)  # decided once for a run, whichever machine continues it
_PACKAGES = ("mlic", "ray", "torch", "torchvision", "numpy", "pillow", "simplejpeg")


def provenance(state: Mapping[str, Any], kind: str, config: BaseModel, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What `run.json` says of a new attempt; `state` is what it says of the attempts before it."""
    return {
        **{name: state[name] for name in _DECIDED if name in state},
        "format": 1,
        "kind": kind,
        "status": "running",
        "attempt": int(state["attempt"]) + 1,
        "started": now(),
        "first_started": state.get("first_started", now()),
        "ended": None,
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "jobs": {name: os.environ[name] for name in ("SLURM_JOB_ID", "RAY_JOB_ID") if name in os.environ},
        "inputs": dict(inputs),
        "settings": result_settings(config),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the working tree that the command runs in, when there is one."""
    try:
        completed = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
