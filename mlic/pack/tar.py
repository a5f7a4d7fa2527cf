"""Write a tar archive from one buffer, with the same bytes as tarfile."""

from __future__ import annotations

import hashlib
import re
import tarfile
from typing import IO

BLOCK = 512
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
_PLAIN = re.compile(r"[A-Za-z0-9_\-/]+")
BUFFER = 2**20  # small enough to be hashed and written while it is in the processor's cache


class Tar:
    """A tar that grows in one buffer, which is hashed and written as it fills."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._buffer = bytearray(BUFFER)
        self.view = memoryview(self._buffer)
        self.used = 0
        self._written = 0
        self._digest = hashlib.sha256()

    @property
    def position(self) -> int:
        return self._written + self.used

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes in one piece."""
        if self.used + size > len(self._buffer):
            self.flush()
        if size > len(self._buffer):
            self.view.release()
            self._buffer = bytearray(size)
            self.view = memoryview(self._buffer)

    def pad(self) -> None:
        """Fill up to a whole block."""
        rest = -self.used % BLOCK
        self.view[self.used : self.used + rest] = bytes(rest)
        self.used += rest

    def put(self, data: bytes) -> None:
        end = self.used + len(data)
        self.view[self.used : end] = data
        self.used = end

    def put_header(self, name: str, size: int) -> None:
        """A member's header, byte for byte what tarfile writes in GNU format for mode 644 and a time and owner of 0.

        The common case is written here, because tarfile needs more time for a header than reading a small image takes.
        """
        if len(name) > SHORT:
            self.put(long_header(name, size))
            return
        view, at = self.view, self.used
        start, length = name.encode("ascii"), b"%011o" % size
        view[at : at + BLOCK] = _TEMPLATE
        view[at : at + len(start)] = start
        view[at + 124 : at + 135] = length
        view[at + 148 : at + 155] = b"%06o\0" % (_TEMPLATE_SUM + sum(start) + sum(length))
        self.used = at + BLOCK

    def put_member(self, name: str, data: bytes) -> None:
        """A whole small member."""
        self.put_header(name, len(data))
        self.put(data)
        self.pad()

    def flush(self) -> None:
        part = self.view[: self.used]
        self._digest.update(part)
        self._out.write(part)
        self._written += self.used
        self.used = 0

    def close(self) -> tuple[int, str]:
        """End the archive as tar does; returns its size and its sha256."""
        end = 2 * BLOCK + -(self.position + 2 * BLOCK) % tarfile.RECORDSIZE
        self.reserve(end)
        self.put(bytes(end))
        self.flush()
        return self._written, self._digest.hexdigest()


def record_room(name: str, path: bytes) -> int:
    """Bytes enough for all that follows an image: padding, its record with its header, and a byte to spare."""
    return 16 * BLOCK + 16 * (len(name) + len(path))


def long_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def _template() -> bytes:
    block = bytearray(BLOCK)
    for start, field in {
        100: b"0000644\0",
        108: b"0000000\0",
        116: b"0000000\0",
        136: b"00000000000\0",
        148: b"        ",
        156: b"0",
        257: b"ustar  \0",
    }.items():
        block[start : start + len(field)] = field
    return bytes(block)


SHORT = 99  # characters of a name that fit into a header, with the NUL that ends it
_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)  # of a header's bytes, its size and name left out


def member_name(key: str) -> str:
    """A sample's name in a tar: its key with every byte outside of `A-Za-z0-9_-/` as %XX.

    WebDataset takes a member's key to end at its first dot, so a dot within the key is escaped. A leading `/` or `..`
    cannot occur either.
    """
    if _PLAIN.fullmatch(key):
        return key
    safe = (chr(b) if chr(b) in _SAFE else f"%{b:02X}" for b in key.encode("utf-8", "surrogateescape"))
    return "".join(safe)
