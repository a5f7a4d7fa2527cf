"""Files on disk and in object stores. A location is a Path, or a RemotePath such as s3://bucket/folder.

An object store has no rename and no lock. But a file appears there complete or not at all, and mlic needs no more.
Credentials come from where the store's own tools have them: AWS's for `s3://bucket/folder`, Google's for `gs://`,
AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY for `az://container/folder`. Another server is named by AWS_ENDPOINT_URL,
CLOUD_STORAGE_EMULATOR_ENDPOINT or in the URL: `s3://bucket/folder?endpoint_override=localhost:9000&scheme=http`.
Shards at `https://` are read through fsspec.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qsl, urlsplit

from filelock import FileLock

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location

KEEP_FREE = 2**30  # bytes of a node's disk that are left to others
_CHUNK = 8 * 2**20
_STORES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}  # those that pyarrow reads
_RETRY = datetime.timedelta(minutes=1)  # Google's client tries for a quarter of an hour by itself
_TRIES = 5  # attempts to open a copy that other processes keep removing


def is_remote(location: Location) -> bool:
    """Whether the location is in an object store."""
    return isinstance(location, RemotePath)


@contextlib.contextmanager
def network_errors(location: Location) -> Iterator[None]:
    """Raise OSError for what the clients of object stores raise, which are errors of their own packages, too."""
    try:
        yield
    except FileNotFoundError as error:  # which fsspec raises for any answer of a web server that is an error
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (404, 410):
            raise
        raise OSError(f"the web server does not give the file: {cause}") from error
    except OSError:
        raise
    except Exception as error:
        if not isinstance(location, RemotePath):
            raise
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def read(location: Location) -> bytes:
    """A whole file. Raises OSError."""
    if isinstance(location, Path):
        return location.read_bytes()
    with network_errors(location):
        files, path = _store(location)
        with files.open_input_stream(path) as stream:
            return bytes(stream.read())


class File:
    """A file that is read at any offset, by several threads if need be."""

    def __init__(self, location: Location) -> None:
        """Open a file. Raises OSError."""
        self._remote: Any = None
        if isinstance(location, Path):
            self._local = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._local).st_size
        else:
            self._location = location
            with network_errors(location):
                files, path = _store(location)
                self._remote = files.open_input_file(path)
                self.size = int(self._remote.size())

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the file's end. Raises OSError."""
        if self._remote is None:
            return os.pread(self._local, size, offset)
        with network_errors(self._location):
            return bytes(self._remote.read_at(size, offset))

    def close(self) -> None:
        if self._remote is None:
            os.close(self._local)
        else:
            self._remote.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def node_folder() -> Path:
    """The node's folder for files that can be made or fetched again.

    It is MLIC_CACHE_DIR, else a folder of this user in the directory for temporary files.
    """
    folder = os.environ.get("MLIC_CACHE_DIR")
    return Path(folder) if folder else Path(tempfile.gettempdir()) / f"mlic-cache-{os.getuid()}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this node; `path` is made for it."""
    with FileLock(path):
        yield


def here(location: Location, version: str) -> Location:
    """This node's copy of a file of an object store, fetched once for all its processes; a local file as it is.

    Without a copy, every read of a sample would be a request to the object store. `version` distinguishes files that
    were at the same location at different times. If the node has no room for the copy, the location in the object store
    is returned. Raises OSError.
    """
    if isinstance(location, Path):
        return location

    return made_here(f"{location} {version}", size(location) or 0, partial(download, location)) or location


def made_here(known_by: str, needed: int, write: Callable[[BinaryIO], object]) -> Path | None:
    """This node's file that `known_by` identifies, written once for all its processes.

    The longest unused of these files are removed if the disk has no room for `needed` bytes. Returns None if it has
    none even so. Raises OSError.
    """
    folder = node_folder() / "fetched"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / hashlib.sha256(known_by.encode()).hexdigest()[:24]
    with locked(file.with_suffix(".lock")):
        if not file.is_file():
            for old in longest_unused(folder.glob("[0-9a-f]" * 24)):
                if shutil.disk_usage(folder).free >= needed + KEEP_FREE:
                    break
                old.unlink(missing_ok=True)
            if shutil.disk_usage(folder).free < needed + KEEP_FREE:
                return None
            part = file.with_suffix(f".{os.getpid()}.part")
            try:
                with part.open("wb") as sink:
                    write(sink)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        os.utime(file)
    return file


def longest_unused(paths: Iterable[Path]) -> list[Path]:
    """Files, the longest unused first. Those that another process removes meanwhile are left out."""
    used = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            used[path] = path.stat().st_mtime
    return sorted(used, key=used.__getitem__)


def opened_here(location: Location, version: str) -> File:
    """Open a file from its copy on this node (see `here`). It stays readable if the copy is removed to make room.

    Raises OSError.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # another process has made room between the two calls
            return File(here(location, version))
    return File(location)


def stream(location: Location) -> Any:
    """A file object for reading from the start on; the caller closes it. Raises OSError."""
    if isinstance(location, Path):
        return location.open("rb")
    with network_errors(location):
        files, path = _store(location)
        return files.open_input_file(path)


def download(location: RemotePath, sink: BinaryIO) -> None:
    """Write a file of an object store to `sink`, in one pass. Raises OSError."""
    with network_errors(location):
        files, path = _store(location)
        with files.open_input_stream(path) as source:
            shutil.copyfileobj(source, sink, _CHUNK)


def upload(source: Path, target: RemotePath) -> None:
    """Copy a local file to an object store, where it appears when it is whole. Raises OSError."""
    with network_errors(target):
        files, path = _store(target)
        sink = files.open_output_stream(path)
    try:
        with source.open("rb") as data:
            shutil.copyfileobj(data, sink, _CHUNK)
    except BaseException:
        sink.close()  # this makes a file of the data written so far
        files.delete_file(path)
        raise
    sink.close()


def copy(source: Path, target: Location) -> None:
    """Copy a local file to another place, where it appears when it is whole. Raises OSError."""
    if isinstance(target, RemotePath):
        upload(source, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def put(target: RemotePath, data: bytes) -> None:
    """Write a file to an object store. Raises OSError."""
    with network_errors(target):
        files, path = _store(target)
        with files.open_output_stream(path) as sink:
            sink.write(data)


def size(location: Location) -> int | None:
    """The size of a file in bytes, or None when there is no such file. Raises OSError for other trouble."""
    if isinstance(location, Path):
        try:
            return location.stat().st_size if location.is_file() else None
        except FileNotFoundError:
            return None
    from pyarrow import fs

    with network_errors(location):
        files, path = _store(location)
        info = files.get_file_info(path)
        return int(info.size) if info.type == fs.FileType.File else None


def changed_ns(location: Location) -> int:
    """When a file was written, in nanoseconds since 1970; 0 where its store does not say. Raises OSError."""
    if isinstance(location, Path):
        return location.stat().st_mtime_ns
    files, path = _store(location)
    return int(files.get_file_info(path).mtime_ns or 0)


def is_folder(location: Location) -> bool:
    """Whether the location is a folder; in an object store, whether anything lies below it. Raises OSError."""
    if isinstance(location, Path):
        return location.is_dir()
    from pyarrow import fs

    with network_errors(location):
        files, path = _store(location)
        return bool(files.get_file_info(path).type == fs.FileType.Directory)


def names(location: Location) -> list[str]:
    """The names of what lies directly in a folder, sorted; none when there is no such folder. Raises OSError."""
    if isinstance(location, Path):
        return sorted(path.name for path in location.iterdir()) if location.is_dir() else []
    from pyarrow import fs

    with network_errors(location):
        files, path = _store(location)
        infos = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos)


def has_listing(location: Location) -> bool:
    """Whether the files of a folder can be listed; a web server lists none."""
    return not (isinstance(location, RemotePath) and str(location).startswith(("http://", "https://")))


def walk(location: RemotePath) -> Iterator[tuple[str, int, int]]:
    """Every file below a folder of an object store: its relative path, size in bytes and mtime in ns. Raises OSError.

    Names that start with a dot, and what is in folders of such names, are left out, as in local folders.
    """
    from pyarrow import fs

    with network_errors(location):
        files, path = _store(location)
        infos = files.get_file_info(fs.FileSelector(path, recursive=True))
    for info in infos:
        relative = info.path.removeprefix(path.rstrip("/") + "/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in relative.split("/")):
            yield relative, int(info.size), int(info.mtime_ns or 0)


def delete(location: Location) -> None:
    """Remove a file or a folder with all that is in it. Raises OSError."""
    if isinstance(location, Path):
        if location.is_dir() and not location.is_symlink():
            shutil.rmtree(location)
        else:
            location.unlink(missing_ok=True)
        return
    from pyarrow import fs

    files, path = _store(location)
    kind = files.get_file_info(path).type
    if kind == fs.FileType.Directory:
        with contextlib.suppress(FileNotFoundError):  # in Google's store, of an empty object that stands for the folder
            files.delete_dir(path)
    elif kind == fs.FileType.File:
        files.delete_file(path)


def _store(location: RemotePath) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    parts = urlsplit(str(location))
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    if parts.scheme in ("http", "https"):
        return _web(), str(location)
    if parts.scheme not in _STORES:
        raise OSError(f"no way to read {parts.scheme}:// locations")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "@" in parts.netloc:  # abfss://container@account.dfs.core.windows.net/folder
        container, host = parts.netloc.split("@", 1)
        options, path = options | {"account_name": host.split(".")[0]}, f"{container}{parts.path}".rstrip("/")
    store = _STORES[parts.scheme]
    return _file_system(store, tuple(_OPTIONS[store](options).items())), path


@cache
def _file_system(store: str, options: tuple[tuple[str, Any], ...]) -> Any:
    from pyarrow import fs

    makers = {"s3": "S3FileSystem", "gs": "GcsFileSystem", "az": "AzureFileSystem"}
    return getattr(fs, makers[store])(**dict(options))


def _s3(options: dict[str, Any]) -> dict[str, Any]:
    endpoint = options.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL")
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options.setdefault("region", region)
    return options | _endpoint(endpoint, options)


def _gs(options: dict[str, Any]) -> dict[str, Any]:
    endpoint = options.pop("endpoint_override", None) or os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    options["anonymous"] = options.get("anonymous", str(bool(endpoint))).lower() == "true"
    return options | {"retry_time_limit": _RETRY} | _endpoint(endpoint, options)


def _az(options: dict[str, Any]) -> dict[str, Any]:
    options.setdefault("account_name", os.environ.get("AZURE_STORAGE_ACCOUNT", ""))
    if key := os.environ.get("AZURE_STORAGE_KEY"):
        options.setdefault("account_key", key)
    return options


_OPTIONS = {"s3": _s3, "gs": _gs, "az": _az}  # the arguments of pyarrow's file system, from a URL and the environment


def _endpoint(endpoint: str | None, options: Mapping[str, str]) -> dict[str, str]:
    """The server of an object store as pyarrow's options, from host:port or a URL."""
    if not endpoint:
        return {}
    parts = urlsplit(endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}")
    return {"endpoint_override": parts.netloc, "scheme": parts.scheme}


@cache
def _web() -> Any:
    """Web servers, by fsspec, to read from."""
    import fsspec
    import pyarrow as pa
    from pyarrow import fs

    class Handler(fs.FSSpecHandler):  # type: ignore[misc]
        """FSSpecHandler asks first whether a file is there, and hides why it cannot be read."""

        def open_input_stream(self, path: str) -> Any:
            """In one pass, so that a server need not know ranges."""
            return pa.PythonFile(self.fs.open(path, mode="rb", block_size=0), mode="r")

        def open_input_file(self, path: str) -> Any:
            return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    return fs.PyFileSystem(Handler(fsspec.filesystem("https")))
