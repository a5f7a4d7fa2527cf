"""Write files atomically: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import storage
from mlic.errors import ClusterError, ConfigError, MlicError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def disk_errors(path: Location) -> Iterator[None]:
    """Turn an OSError of writing below `path` into an error that a user can act on."""
    try:
        yield
    except OSError as error:
        raise _as_mlic_error(error, path) from None


def _as_mlic_error(error: OSError, path: Location) -> MlicError:
    why = error.strerror or " ".join(str(error).split())[:300]
    if error.errno in _FULL:
        return ClusterError(f"cannot write to {path}: {why}.", "free some space and run the same command again.")
    return ConfigError(f"cannot write to {path}: {why}.", "name a folder that you may write to.")


def write_atomic(path: Location, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the whole file or none."""
    if isinstance(path, RemotePath):
        with disk_errors(path):
            storage.put(path, data)
        return
    with disk_errors(path), temporary(path) as part:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it is removed at the end if it still exists.

    The caller renames it to `path` when it is complete. Each writer gets its own name. So two attempts at the same file
    never write into the same temporary file, even if one of them was thought to be dead.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def write_json(path: Location, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented, keys as given."""
    write_atomic(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def fingerprint(*parts: object) -> str:
    """A short sha256 over the text of its arguments; the same for the same values on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()[:32]
