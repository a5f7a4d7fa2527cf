"""List images of a folder, a list of paths, archives or one file, on disk or in an object store."""

from __future__ import annotations

import logging
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.types import Location
from mlic.data import storage
from mlic.data.pixels import images
from mlic.data.pixels.images import EXTENSIONS
from mlic.data.sources import parquet_images
from mlic.data.sources.image_listing import DEFLATED, MEMBER, PLAIN, REFUSED, Array, Listing, resolve, sample_keys
from mlic.data.sources.sorted_names import SortedNames
from mlic.errors import DataError

logger = logging.getLogger(__name__)

ARCHIVES = frozenset({".tar", ".zip"})
LISTS = frozenset({".txt", ".parquet"})
_CHUNK = 100_000
_RUN = 500_000  # names that are sorted in memory
_SKIPPED = frozenset({"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "Thumbs.db", "System Volume Information"})
_OTHER_ENDINGS = frozenset({".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".parquet", ".manifest", ".geojson"})
_LONGEST_ENDING = 5  # `.webp`; what is longer, as in `photo.of_a_cat`, is no ending
_RECORDS = (".json", ".cls", ".txt", ".npy")  # what WebDataset shards have beside their images


def list_images(location: Location) -> Listing:
    """List the images of a folder, an archive, a folder of archives, or a file that lists paths; or a single one.

    Links are followed, and a folder that several lead to is listed once. A file whose ending says nothing is an image
    by its first bytes. A dangling link and a listed path that does not exist have
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
    extension = location.suffix.lower()
    if storage.size(location) is None:
        what = "exists, and is neither a folder nor a file" if _exists(location) else "does not exist"
        raise DataError(f"the image folder {location} {what}.", "check the path.")
    if extension == ".parquet" and parquet_images.column_of_images(location) is not None:
        return "archive"
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
    columns = _Columns()
    stamp = location.stat().st_mtime_ns if isinstance(location, Path) else 0
    columns.add(location.name, storage.size(location) or 0, stamp)
    return columns.listing(location.parent)


def _exists(location: Location) -> bool:
    return isinstance(location, Path) and location.exists()


class _Columns:
    """Collects a listing in columns; names are stored as bytes, so that names that are not UTF-8 stay unchanged.

    Of half a million names or more the columns are files of this node that are mapped.
    """

    def __init__(self) -> None:
        self.runs: SortedNames | None = None
        self.first = ""
        self.chunks: list[pa.Array] = []
        self.names: list[bytes] = []
        self.rows: list[tuple[int, ...]] = []
        self.numbers: list[Array] = []
        self.others = 0

    def add(self, name: str, size: int, stamp: int, *member: int) -> None:
        self.first = self.first or name
        self.names.append(os.fsencode(name))
        self.rows.append((size, stamp, *member))
        if len(self.names) == _CHUNK:
            self.flush()

    def flush(self) -> None:
        if self.names:
            self.chunks.append(pa.array(self.names, pa.large_binary()))
            self.numbers.append(np.array(self.rows, dtype=np.int64))
            self.names, self.rows = [], []
        if len(self.chunks) * _CHUNK >= _RUN:
            self.write()

    def write(self) -> None:
        """Write what is in memory as a run."""
        if not self.chunks:
            return
        paths, numbers = pa.concat_arrays(self.chunks), np.concatenate(self.numbers)
        self.chunks, self.numbers = [], []
        columns = [numbers[:, 0], numbers[:, 1]]
        if numbers.shape[1] > 2:
            columns.append(_as_members(numbers[:, 2:]))
        if self.runs is None:
            folder = storage.node_folder()
            folder.mkdir(parents=True, exist_ok=True)
            self.runs = SortedNames(folder, [column.dtype for column in columns])
        self.runs.add(sample_keys(paths), paths, columns)

    @property
    def is_empty(self) -> bool:
        return not (self.names or self.chunks or self.runs)

    def listing(self, root: Location, archives: Sequence[Location] = ()) -> Listing:
        """Sort by key and path, and make the listing. Raises DataError when there is nothing."""
        self.flush()
        if self.is_empty:
            raise DataError(
                f"{root} holds no images" + (f" (only {self.others:,} other files)." if self.others else "."),
                f"images are known by their extension: {' '.join(sorted(EXTENSIONS))}.",
            )
        if self.runs is not None:
            return self._mapped(self.runs, root, archives)
        paths = pa.concat_arrays(self.chunks)
        numbers = np.concatenate(self.numbers)
        self.chunks = []
        by_key = pa.table({"k": sample_keys(paths), "p": paths})
        order = pc.sort_indices(by_key, [("k", "ascending"), ("p", "ascending")])
        rows = order.to_numpy().astype(np.int64)
        members = _as_members(numbers[rows, 2:]) if archives else None
        return Listing(
            root,
            paths.take(order),
            numbers[rows, 0].copy(),
            numbers[rows, 1].copy(),
            tuple(archives),
            members,
            self.others,
        )

    def _mapped(self, runs: SortedNames, root: Location, archives: Sequence[Location]) -> Listing:
        self.write()
        names = runs.mapped(_RUN)
        sizes, stamps, *members = names.numbers
        return Listing(
            root,
            names.paths,
            sizes,
            stamps,
            tuple(archives),
            members[0] if archives else None,
            self.others,
            stored_keys=names.keys,
        )


def _as_members(numbers: Array) -> Array:
    """Rows (N, 4) of container, offset, stored size and `how` as an array of MEMBER."""
    members = np.empty(len(numbers), MEMBER)
    for column, name in enumerate(("container", "offset", "stored", "how")):
        members[name] = numbers[:, column]
    return members


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - ten times as fast, and called for every file


def _folder(folder: Location) -> Listing:
    columns = _Columns()
    archives: list[str] = []
    files = _walk(str(folder)) if isinstance(folder, Path) else storage.walk(folder)
    for name, size, stamp in files:
        if is_image(name) or (isinstance(folder, Path) and _holds_image(folder / name)):
            columns.add(name, size, stamp)
        else:
            columns.others += 1
            if os.path.splitext(name)[1].lower() in (".tar", ".parquet"):  # noqa: PTH122
                archives.append(name)
    archives = [name for name in archives if _holds_images(folder / name)]
    if archives and columns.is_empty:
        return _archives(folder, tuple((folder / name) for name in sorted(archives)))
    if archives:
        logger.warning(
            "%s holds loose images, such as %s: its %s archives, such as %s, are left out; move one or the other",
            folder,
            columns.first,
            f"{len(archives):,}",
            min(archives),
        )
    return columns.listing(folder)


def parquet_with_images(location: Location) -> list[Location]:
    """The Parquet files with images that a folder holds, or that a location is, as `list_images` finds them.

    Raises DataError for a file that is not Parquet, and OSError.
    """
    if not storage.is_folder(location):
        is_one = location.suffix.lower() == ".parquet" and storage.size(location) is not None
        return [location] if is_one and _holds_images(location) else []
    files = _walk(str(location)) if isinstance(location, Path) else storage.walk(location)
    names = sorted(name for name, _, _ in files if name.lower().endswith(".parquet"))
    return [file for file in (location / name for name in names) if _holds_images(file)]


def _holds_images(archive: Location) -> bool:
    """Whether a file may be an archive of images: any tar, and Parquet with a column of images."""
    return archive.suffix.lower() != ".parquet" or parquet_images.column_of_images(archive) is not None


def _holds_image(file: Path) -> bool:
    """Whether a file without a known ending is an image by its first bytes."""
    ending = file.suffix.lower()
    if ending in _OTHER_ENDINGS or (ending and not ending[1:].isdigit() and len(ending) <= _LONGEST_ENDING):
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for ever
        try:
            return images.looks_like_image(os.read(descriptor, 32))
        finally:
            os.close(descriptor)
    except OSError:
        return False


def _walk(folder: str) -> Iterator[tuple[str, int, int]]:
    """The files below a folder, with links to folders followed: each folder once, under its own name if it has one."""
    seen = set[tuple[int, int]]()
    open_ = [("", folder)]
    while open_:
        links = list[tuple[str, str]]()
        for prefix, path in sorted(open_):
            if _identity(path) not in seen:
                yield from _walk_tree(path, prefix, seen, links)
        open_ = links


def _identity(folder: str) -> tuple[int, int]:
    stat = Path(folder).stat()
    return stat.st_dev, stat.st_ino


def _walk_tree(
    folder: str, prefix: str, seen: set[tuple[int, int]], links: list[tuple[str, str]]
) -> Iterator[tuple[str, int, int]]:
    """The files below a folder without following links, which are added to `links`; `seen` are all folders so far."""
    seen.add(_identity(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk_tree(entry.path, f"{prefix}{entry.name}/", seen, links)
            elif entry.is_dir():
                links.append((f"{prefix}{entry.name}/", entry.path))
            else:
                try:
                    stat = entry.stat()
                    yield prefix + entry.name, stat.st_size, stat.st_mtime_ns
                except FileNotFoundError:
                    yield prefix + entry.name, 0, 0


def _list_of_paths(file: Location) -> Listing:
    """Paths one a line, or in the column `path` of a Parquet table; relative ones start where the list lies."""
    columns = _Columns()
    root = file.parent
    for name in _listed(file):
        size, stamp = 0, 0
        location = resolve(root, name)
        if isinstance(location, Path):
            if location.is_file():
                stat = location.stat()
                size, stamp = stat.st_size, stat.st_mtime_ns
        else:
            size = storage.size(location) or 0
        columns.add(name, size, stamp)
    return columns.listing(root)


def _listed(file: Location) -> Iterator[str]:
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with pa.BufferReader(storage.read(file)) as data:
            table = pq.ParquetFile(data)
            column = next((name for name in ("path", "file", "image") if name in table.schema_arrow.names), None)
            if column is None:
                raise DataError(f"{file} has no column path.", "name the column with the images' paths `path`.")
            kind = table.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"the column {column!r} of {file} holds {kind}, not paths.", "give a column of paths.")
            for batch in table.iter_batches(_CHUNK, columns=[column]):
                yield from (name for name in batch.column(0).to_pylist() if name)
        return
    for line in storage.read(file).removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.strip():
            yield os.fsdecode(line.strip())


def _archives(root: Location, archives: Sequence[Location]) -> Listing:
    if all(archive.suffix.lower() == ".parquet" for archive in archives):
        return _in_cells(root, archives)
    archives = [archive for archive in archives if archive.suffix.lower() != ".parquet"]
    columns = _Columns()
    for number, archive in enumerate(archives):
        for name, size, *member in members(archive):
            if is_image(name):
                columns.add(name, size, 0, number, *member)
            elif not name.lower().endswith(_RECORDS):
                columns.others += 1
    listing = columns.listing(root, archives)
    if len(archives) > 1 and len(listing.unique()[1]):
        # Keys are unique only within their archive, so the archive's name is put before each path.
        columns = _Columns()
        for number, archive in enumerate(archives):
            for name, size, *member in members(archive):
                if is_image(name):
                    columns.add(f"{parquet_images.stem(root, archive)}/{name}", size, 0, number, *member)
        listing = replace(columns.listing(root, archives), by_archive=True)
    return listing


def _in_cells(root: Location, files: Sequence[Location]) -> Listing:
    """The images in the cells of Parquet files."""
    columns = _Columns()
    for number, (file, names) in enumerate(zip(files, parquet_images.names(root, files), strict=True)):
        stamp = storage.changed_ns(file)
        for name, (size, offset) in zip(names, parquet_images.members(file), strict=True):
            columns.add(name, size, stamp, number, offset, size, PLAIN)
    return columns.listing(root, files)


def members(archive: Location) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, size, offset, stored size and `how` of each file in an archive. Raises DataError for a broken one."""
    try:
        with storage.stream(archive) as stream:
            if archive.suffix.lower() == ".zip":
                yield from _zip_members(stream)
                return
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in _until_cut(archive, tar):
                    how = PLAIN if info.isreg() and not info.sparse and _stays_inside(info.name) else REFUSED
                    if not info.isdir() and not _is_hidden(info.name):
                        yield info.name.removeprefix("./"), info.size, info.offset_data, info.size, how
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} does not read as an archive: {error}.", "write it again.") from None


def _until_cut(archive: Location, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar; of one that is cut off, those before the cut, with a warning."""
    count = 0
    try:
        for info in tar:
            count += 1
            yield info
    except tarfile.ReadError as error:
        if not count:
            raise
        logger.warning("%s is cut off after %d members (%s); the rest is lost", archive, count, error)


def _zip_members(stream: Any) -> Iterator[tuple[str, int, int, int, int]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            known = {zipfile.ZIP_STORED: PLAIN, zipfile.ZIP_DEFLATED: DEFLATED}
            how = known.get(info.compress_type, REFUSED) if _stays_inside(_zip_name(info)) else REFUSED
            if info.flag_bits & 1:
                how = REFUSED
            name = _zip_name(info)
            if not info.is_dir() and not _is_hidden(name):
                yield name, info.file_size, info.header_offset, info.compress_size, how


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 where it decodes, though not marked as such (macOS), and `/` for Windows's backslash."""
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/")


def _is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that starts with a dot."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")
