"""Listed images: their names, and their bytes from files, tar and zip archives, Parquet or object stores.

A listing holds columns and no objects, so that ten million images fit into a few GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.pixels import images
from mlic.data.pixels.images import EXTENSIONS, BadImage
from mlic.data.sources import parquet_images

Array = np.ndarray[Any, Any]

MEMBER = np.dtype([("container", "i4"), ("offset", "i8"), ("stored", "i8"), ("how", "u1")])
_AT_ONCE = 1_000_000  # keys that are compared
PLAIN, DEFLATED, REFUSED = 0, 1, 2  # what `how` says of an archive's member
_EXTENSION = r"(?i)\.(" + "|".join(sorted(extension[1:] for extension in EXTENSIONS)) + ")$"
_LEAD = r"^([A-Za-z0-9]+://|(\.{0,2}/)+)"


@dataclass(frozen=True)
class Listing:
    """N images in the order of their keys.

    `paths` is a binary column (N,): the name of each image within `root`. `sizes` (bytes) and `stamps` (time of the
    last change, ns; 0 in archives) are int64 (N,). `members` is the position of the bytes of images in `archives`;
    it is None for loose files. `others` counts the files that are no images by their names and contents.
    `by_archive` says that paths begin with their archive's name, because their names alone are not unique.
    `by_path` bool (N,) marks images whose key is their whole path, because several have the same stem. `stored_keys`
    are the paths without their extensions, where these are kept.
    """

    root: Location
    paths: pa.Array
    sizes: Array
    stamps: Array
    archives: tuple[Location, ...] = ()
    members: Array | None = None
    others: int = 0
    by_archive: bool = False
    by_path: Array | None = None
    stored_keys: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, i: int) -> str:
        return _text(self.paths[i].as_py())

    def key(self, i: int) -> str:
        return _text(self.take(np.array([i])).keys[0].as_py())

    @property
    def keys(self) -> pa.Array:
        """The samples' ids (N,): the paths without their extensions, as bytes. They are made anew unless stored."""
        keys = sample_keys(self.paths) if self.stored_keys is None else self.stored_keys
        return keys if self.by_path is None else pc.if_else(pa.array(self.by_path), without_lead(self.paths), keys)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], bytes]]:
        """A function that reads image `i`, with archives held open. It raises BadImage."""
        with Reader(self) as reader:
            yield reader.read

    def take(self, rows: Array) -> Listing:
        """The images with these numbers, in this order."""
        chosen = pa.array(rows, pa.int64())
        return replace(
            self,
            paths=self.paths.take(chosen),
            sizes=self.sizes[rows],
            stamps=self.stamps[rows],
            members=None if self.members is None else self.members[rows],
            by_path=None if self.by_path is None else self.by_path[rows],
            stored_keys=None if self.stored_keys is None else self.stored_keys.take(chosen),
        )

    def fingerprint(self) -> str:
        """Changes when an image is added, removed, resized or written again; the same wherever the folder lies."""
        digest = hashlib.sha256()
        for buffer in self.paths.buffers()[1:]:
            digest.update(buffer)
        for column in (self.sizes, self.stamps, self.members):
            digest.update(b"" if column is None else np.ascontiguousarray(column).data)
        return digest.hexdigest()[:32]

    def with_distinct_keys(self) -> Listing:
        """The same images, whose keys contain the extension where several have the same stem."""
        keys = self.keys
        pairs = ((keys[i + 1 : i + 1 + _AT_ONCE], keys[i : i + _AT_ONCE]) for i in range(0, len(self) - 1, _AT_ONCE))
        if not any(pc.any(pc.equal(one, two[: len(one)])).as_py() for one, two in pairs):
            return self
        same = _same_as_before(keys)
        return replace(self, by_path=same | np.append(same[1:], False))

    def unique(self) -> tuple[Listing, Array, Array]:
        """Give images of one stem, such as a.jpg and a.png, keys with the extension, and keep the first of each key.

        Returns that listing, the numbers of the images that have the key of another one all the same, and for each of
        them the number of the kept image with that key.
        """
        listing = self.with_distinct_keys()
        if listing.by_path is None:
            return self, np.zeros(0, np.int64), np.zeros(0, np.int64)
        same = _same_as_before(listing.keys)
        first = np.flatnonzero(~same)[np.cumsum(~same) - 1]
        others = np.flatnonzero(same)
        return (listing.take(np.flatnonzero(~same)) if len(others) else listing), others, first[others]


def sample_keys(paths: pa.Array) -> pa.Array:
    """Paths without their extensions, and without a scheme, `/` or `../` at their start."""
    return without_lead(pc.replace_substring_regex(paths, _EXTENSION, ""))


def without_lead(paths: pa.Array) -> pa.Array:
    """Paths without a scheme, `/` or `../` at their start."""
    if pc.any(pc.match_substring_regex(paths, _LEAD)).as_py():
        return pc.replace_substring_regex(paths, _LEAD, "")
    return paths


def _same_as_before(keys: pa.Array) -> Array:
    """Whether each key (N,) of a sorted column is that of the row before."""
    same: Array = np.concatenate([[False], pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)])
    return same


def as_text(names: pa.Array) -> pa.Array:
    """Names (bytes) as text for Parquet; bytes that are not UTF-8 are shown as \\xNN."""
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([name.decode("utf-8", "backslashreplace") for name in names.to_pylist()], pa.string())


def resolve(root: Location, name: str) -> Location:
    """The location of a path from a list of paths."""
    if "://" in name:
        return RemotePath(name)
    return Path(name) if name.startswith("/") else (root / name)


def _text(name: bytes) -> str:
    return os.fsdecode(name)


_ZIP_HEADER = 30  # bytes of a member's header in a zip before its name


class Reader:
    """Reads the bytes of a listing's images; keeps archives open. One for each thread."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self._files: dict[int, storage.File] = {}
        root = listing.root
        self._prefix = os.fsencode(root) + b"/" if isinstance(root, Path) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, i: int) -> bytes:
        """The whole file of image `i`. Raises BadImage."""
        listing = self.listing
        try:
            if listing.members is not None:
                return self._member(listing.members[i], int(listing.sizes[i]))
            path = listing.paths[i].as_py()
            if self._prefix is None or b"://" in path:
                return self._remote(resolve(listing.root, os.fsdecode(path)))
            return images.read_file(path if path.startswith(b"/") else self._prefix + path)
        except OSError as error:
            raise BadImage(error.strerror or " ".join(str(error).split()) or "cannot be read") from None

    def read_into(self, path: bytes, size: int, buffer: memoryview) -> bool:
        """Read the loose file at `path` straight into `buffer` if it still has `size` bytes; returns whether it did.

        `buffer` has room for one more byte, so that a file that has grown is detected.
        """
        if self._prefix is None or self.listing.members is not None or b"://" in path or not size:
            return False
        try:
            file = os.open(path if path.startswith(b"/") else self._prefix + path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.readv(file, [buffer[: size + 1]]) == size
            finally:
                os.close(file)
        except OSError:
            return False  # the way through `read` says what is wrong

    def _remote(self, place: Location) -> bytes:
        with storage.File(place) as file:
            images.check_bytes(file.size)
            return file.read_at(0, file.size)

    def _member(self, member: Any, size: int) -> bytes:
        number, offset, stored, how = (int(value) for value in member)
        if how == REFUSED:
            raise BadImage("no plain file of the archive (a link, a name outside of it, or packed in a way not read)")
        images.check_bytes(max(size, stored))
        archive = self.listing.archives[number]
        if number not in self._files:
            in_cells = archive.suffix.lower() == ".parquet"
            self._files[number] = parquet_images.opened(archive) if in_cells else storage.File(archive)
        file = self._files[number]
        if archive.suffix.lower() == ".zip":
            header = file.read_at(offset, _ZIP_HEADER)
            if len(header) < _ZIP_HEADER or header[:4] != b"PK\x03\x04":
                raise BadImage("the archive has no member there")
            offset += _ZIP_HEADER + sum(struct.unpack("<HH", header[26:30]))
        data = file.read_at(offset, stored)
        if how == DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise BadImage(f"broken in its archive ({error})") from None
        if len(data) != size:
            raise BadImage("cut off in its archive")
        return data
