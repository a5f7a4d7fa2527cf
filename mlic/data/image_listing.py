"""Where images come from: folders, lists of paths, tar and zip archives, object stores; nothing is ever unpacked.

A listing holds columns and no objects, so that one of ten million images fits into a few GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.types import Location
from mlic.data import images, storage
from mlic.data.images import EXTENSIONS, BadImage
from mlic.errors import DataError

Array = np.ndarray[Any, Any]

ARCHIVES = frozenset({".tar", ".zip"})
LISTS = frozenset({".txt", ".parquet"})
_CHUNK = 100_000
_RECORDS = (".json", ".cls", ".txt")  # what WebDataset shards have beside their images
_MEMBER = np.dtype([("container", "i4"), ("offset", "i8"), ("stored", "i8"), ("how", "u1")])
_PLAIN, _DEFLATED, _REFUSED = 0, 1, 2  # what `how` says of an archive's member
_ZIP_HEADER = 30  # bytes of a member's header in a zip before its name
_EXTENSION = r"(?i)\.(" + "|".join(sorted(extension[1:] for extension in EXTENSIONS)) + ")$"
_LEAD = r"^([A-Za-z0-9]+://|(\.{0,2}/)+)"


@dataclass(frozen=True)
class Listing:
    """N images in the order of their keys.

    `paths` is a binary column (N,): the name of each image within `root`. `sizes` (bytes) and `stamps` (time of the
    last change, ns; 0 in archives) are int64 (N,). `members` says for images in `archives` where their bytes lie; it is
    None for loose files. `others` counts the files that are no images by their name; `by_archive` says that paths begin
    with their archive's name, since their names alone do not tell them apart.
    """

    root: Location
    paths: pa.Array
    sizes: Array
    stamps: Array
    archives: tuple[Location, ...] = ()
    members: Array | None = None
    others: int = 0
    by_archive: bool = False

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, i: int) -> str:
        return _text(self.paths[i].as_py())

    def key(self, i: int) -> str:
        return _text(_keys(self.paths[i : i + 1])[0].as_py())

    @property
    def keys(self) -> pa.Array:
        """The samples' ids (N,), made anew at each call: the paths without their extensions, as bytes."""
        return _keys(self.paths)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], bytes]]:
        """A function that reads image `i`, with archives held open. It raises BadImage."""
        with Reader(self) as reader:
            yield reader.read

    def take(self, rows: Array) -> Listing:
        """The images with these numbers, in this order."""
        chosen = pa.array(rows, pa.int64())
        return replace(
            self, paths=self.paths.take(chosen), sizes=self.sizes[rows], stamps=self.stamps[rows],
            members=None if self.members is None else self.members[rows],
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Changes when an image is added, removed, resized or written again; the same wherever the folder lies."""
        digest = hashlib.sha256()
        for buffer in self.paths.buffers()[1:]:
            digest.update(buffer)
        for column in (self.sizes, self.stamps, self.members):
            digest.update(b"" if column is None else np.ascontiguousarray(column).data)
        return digest.hexdigest()[:32]

    def unique(self) -> tuple[Listing, Array, Array]:
        """Of images with the same key the first by path: that listing, and the numbers of the others and of the kept
        ones whose keys they have."""
        if len(self) < 2:
            return self, np.zeros(0, np.int64), np.zeros(0, np.int64)
        keys = self.keys
        same = np.concatenate([[False], pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)])
        first = np.flatnonzero(~same)[np.cumsum(~same) - 1]
        others = np.flatnonzero(same)
        return (self.take(np.flatnonzero(~same)) if len(others) else self), others, first[others]


def list_images(location: Location) -> Listing:
    """List the images of a folder, an archive, a folder of archives, or a file that lists paths; or a single one.

    Links to files are followed, links to folders are not. A dangling link and a listed path that does not exist have
    size 0, so that they are accounted for like any other unreadable file. Raises DataError when there is no image, or
    no such place.
    """
    try:
        kind = _kind(location)
        if kind == "list":
            return _list_of_paths(location)
        if kind == "archive":
            return _archives(location, (location,))
        return _one_image(location) if kind == "image" else _folder(location)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:300]
        raise DataError(f"cannot list the images in {location}: {reason}.", "check the path.") from None


def _kind(location: Location) -> str:
    if storage.is_folder(location):
        return "folder"
    extension = storage.suffix(location)
    if storage.size(location) is None:
        what = "exists, and is neither a folder nor a file" if _exists(location) else "does not exist"
        raise DataError(f"the image folder {location} {what}.", "check the path.")
    if extension in ARCHIVES or extension in LISTS:
        return "archive" if extension in ARCHIVES else "list"
    if extension in EXTENSIONS:
        return "image"
    if str(location).lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(f"{location} is a compressed tar, which can only be read from its start.", "decompress it.")
    raise DataError(
        f"{location} is not a folder of images.",
        f"give a folder, an archive ({' '.join(sorted(ARCHIVES))}) or a list of paths ({' '.join(sorted(LISTS))}).",
    )


def _one_image(location: Location) -> Listing:
    """A single image as a listing of its folder."""
    found = _Columns()
    stamp = location.stat().st_mtime_ns if isinstance(location, Path) else 0
    found.add(storage.name(location), storage.size(location) or 0, stamp)
    return found.listing(storage.parent(location))


def _exists(location: Location) -> bool:
    return isinstance(location, Path) and location.exists()


class _Columns:
    """Collects a listing in columns; names become bytes, so that those that are no UTF-8 stay what they are."""

    def __init__(self) -> None:
        self.chunks: list[pa.Array] = []
        self.names: list[bytes] = []
        self.rows: list[tuple[int, ...]] = []
        self.numbers: list[Array] = []
        self.others = 0

    def add(self, name: str, size: int, stamp: int, *member: int) -> None:
        self.names.append(os.fsencode(name))
        self.rows.append((size, stamp, *member))
        if len(self.names) == _CHUNK:
            self.flush()

    def flush(self) -> None:
        if self.names:
            self.chunks.append(pa.array(self.names, pa.large_binary()))
            self.numbers.append(np.array(self.rows, dtype=np.int64))
            self.names, self.rows = [], []

    def listing(self, root: Location, archives: Sequence[Location] = ()) -> Listing:
        """Sort by key and path, and make the listing. Raises DataError when there is nothing."""
        self.flush()
        if not self.chunks:
            raise DataError(
                f"{root} holds no images" + (f" (only {self.others:,} other files)." if self.others else "."),
                f"images are known by their extension: {' '.join(sorted(EXTENSIONS))}.",
            )
        paths = pa.concat_arrays(self.chunks)
        numbers = np.concatenate(self.numbers)
        self.chunks = []
        by_key = pa.table({"k": _keys(paths), "p": paths})
        order = pc.sort_indices(by_key, [("k", "ascending"), ("p", "ascending")])
        rows = order.to_numpy().astype(np.int64)
        members = None
        if archives:
            members = np.empty(len(rows), _MEMBER)
            for column, name in enumerate(("container", "offset", "stored", "how")):
                members[name] = numbers[rows, 2 + column]
        return Listing(
            root, paths.take(order), numbers[rows, 0].copy(), numbers[rows, 1].copy(), tuple(archives), members,
            self.others,
        )  # fmt: skip


def _keys(paths: pa.Array) -> pa.Array:
    """Paths without their extensions, and without what leads to them from elsewhere: a scheme, `/` and `../`."""
    keys = pc.replace_substring_regex(paths, _EXTENSION, "")
    if pc.any(pc.match_substring_regex(paths, _LEAD)).as_py():
        keys = pc.replace_substring_regex(keys, _LEAD, "")
    return keys


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - ten times as fast, and called for every file


def _folder(folder: Location) -> Listing:
    found = _Columns()
    archives: list[str] = []
    files = _walk(str(folder), "") if isinstance(folder, Path) else storage.walk(folder)
    for name, size, stamp in files:
        if is_image(name):
            found.add(name, size, stamp)
        else:
            found.others += 1
            if os.path.splitext(name)[1].lower() == ".tar":  # noqa: PTH122
                archives.append(name)
    if archives and not found.names and not found.chunks:
        return _archives(folder, tuple(storage.join(folder, name) for name in sorted(archives)))
    return found.listing(folder)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif not entry.is_dir():
                try:
                    stat = entry.stat()
                    yield prefix + entry.name, stat.st_size, stat.st_mtime_ns
                except FileNotFoundError:
                    yield prefix + entry.name, 0, 0


def _list_of_paths(file: Location) -> Listing:
    """Paths one a line, or in the column `path` of a Parquet table; relative ones start where the list lies."""
    found = _Columns()
    root = storage.parent(file)
    for name in _listed(file):
        size, stamp = 0, 0
        place = _place(root, name)
        if isinstance(place, Path):
            if place.is_file():
                stat = place.stat()
                size, stamp = stat.st_size, stat.st_mtime_ns
        else:
            size = storage.size(place) or 0
        found.add(name, size, stamp)
    return found.listing(root)


def _listed(file: Location) -> Iterator[str]:
    if storage.suffix(file) == ".parquet":
        import pyarrow.parquet as pq

        with pa.BufferReader(storage.read(file)) as data:
            table = pq.ParquetFile(data)
            column = next((name for name in ("path", "file", "image") if name in table.schema_arrow.names), None)
            if column is None:
                raise DataError(f"{file} has no column path.", "name the column with the images' paths `path`.")
            for batch in table.iter_batches(_CHUNK, columns=[column]):
                yield from (name for name in batch.column(0).to_pylist() if name)
        return
    for line in storage.read(file).removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.strip():
            yield os.fsdecode(line.strip())


def _place(root: Location, name: str) -> Location:
    """Where a path lies that a list names."""
    if "://" in name:
        return name
    return Path(name) if name.startswith("/") else storage.join(root, name)


def _archives(root: Location, archives: Sequence[Location]) -> Listing:
    found = _Columns()
    for number, archive in enumerate(archives):
        for name, size, *member in members(archive):
            if is_image(name):
                found.add(name, size, 0, number, *member)
            elif not name.endswith(_RECORDS):
                found.others += 1
    listing = found.listing(root, archives)
    if len(archives) > 1 and len(listing.unique()[1]):
        # Keys that are unique within their archive only: each is told apart by the archive's name.
        found = _Columns()
        for number, archive in enumerate(archives):
            for name, size, *member in members(archive):
                if is_image(name):
                    found.add(f"{stem(archive)}/{name}", size, 0, number, *member)
        listing = replace(found.listing(root, archives), by_archive=True)
    return listing


def stem(archive: Location) -> str:
    """An archive's name without its extension."""
    return Path(str(archive).partition("?")[0]).stem


def members(archive: Location) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, size, offset, stored size and `how` of each file in an archive. Raises DataError for a broken one."""
    try:
        with storage.stream(archive) as stream:
            if storage.suffix(archive) == ".zip":
                yield from _zip_members(stream)
                return
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    how = _PLAIN if info.isreg() and not info.sparse and _stays_inside(info.name) else _REFUSED
                    if not info.isdir() and not _is_hidden(info.name):
                        yield info.name.removeprefix("./"), info.size, info.offset_data, info.size, how
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} does not read as an archive: {error}.", "write it again.") from None


def _zip_members(stream: Any) -> Iterator[tuple[str, int, int, int, int]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            known = {zipfile.ZIP_STORED: _PLAIN, zipfile.ZIP_DEFLATED: _DEFLATED}
            how = known.get(info.compress_type, _REFUSED) if _stays_inside(info.filename) else _REFUSED
            if info.flag_bits & 1:
                how = _REFUSED
            if not info.is_dir() and not _is_hidden(info.filename):
                yield info.filename, info.file_size, info.header_offset, info.compress_size, how


def _is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that starts with a dot."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


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
                return self._remote(_place(listing.root, os.fsdecode(path)))
            return images.read_file(path if path.startswith(b"/") else self._prefix + path)
        except OSError as error:
            raise BadImage(error.strerror or " ".join(str(error).split()) or "cannot be read") from None

    def read_into(self, path: bytes, size: int, buffer: memoryview) -> bool:
        """Read the loose file at `path` straight into `buffer` when it still has `size` bytes; says whether it did.

        `buffer` has room for one byte more, by which a file that has grown is noticed.
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
        if how == _REFUSED:
            raise BadImage("no plain file of the archive (a link, a name outside of it, or packed in a way not read)")
        images.check_bytes(max(size, stored))
        archive = self.listing.archives[number]
        if number not in self._files:
            self._files[number] = storage.File(archive)
        file = self._files[number]
        if storage.suffix(archive) == ".zip":
            header = file.read_at(offset, _ZIP_HEADER)
            if len(header) < _ZIP_HEADER or header[:4] != b"PK\x03\x04":
                raise BadImage("the archive has no member there")
            offset += _ZIP_HEADER + sum(struct.unpack("<HH", header[26:30]))
        data = file.read_at(offset, stored)
        if how == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise BadImage(f"broken in its archive ({error})") from None
        if len(data) != size:
            raise BadImage("cut off in its archive")
        return data


def _text(name: bytes) -> str:
    return os.fsdecode(name)
