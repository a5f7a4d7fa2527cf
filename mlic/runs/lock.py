"""The lock of a folder, with flock or, on file systems without it, with a lease."""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from mlic.errors import PartialError
from mlic.runs.provenance import now

logger = logging.getLogger(__name__)


_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # Lustre and others, as they are mounted
LOCK, LEASE = ".lock", ".lease"
_LEASE_S = 45.0  # seconds without a refresh after which the holder of a lease counts as dead


def lock_folder(folder: Path) -> BaseFileLock:
    """Lock a folder for this process. Raises PartialError when another one has it.

    If the file system has no flock, a lease is used: a file that its holder refreshes. If nobody has refreshed it for a
    while, its holder was killed, perhaps on another node, and another process may take the lease over.
    """
    path = folder / LOCK
    lock: BaseFileLock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now()}", encoding="utf-8")
    except Timeout:
        raise _in_use(folder, path) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        lock = SoftFileLease(folder / LEASE, lease_duration=_LEASE_S, timeout=1.5 * _LEASE_S)
        if lock.lock_file and Path(lock.lock_file).exists():
            logger.info("checking whether %s is in use by a running process", folder)
        try:
            lock.acquire()
        except Timeout:
            raise _in_use(folder, folder / LEASE) from None
    return lock


def _in_use(folder: Path, path: Path) -> PartialError:
    try:
        owner = " ".join(path.read_text(encoding="utf-8", errors="replace").split())[:200]
    except OSError:
        owner = ""
    return PartialError(
        f"{folder} is in use by {owner or 'another process'}.", "wait for it to end, or name another folder."
    )
