"""A folder of tar shards in the WebDataset layout: its index and its table of samples.

train-000000.tar ...   members KEY.jpg (the image file, byte for byte) and KEY.json (key, file, labels)
samples.parquet        one row a sample: where its image lies and what its labels are
index.json             labels in order, splits, counts, account, settings; written last, when all is complete
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlic.config.remote_path import RemotePath
from mlic.config.types import Location
from mlic.data import sample_columns, storage
from mlic.data.pixels import images
from mlic.data.sample_columns import Names, Rows
from mlic.errors import DataError

INDEX, TABLE = "index.json", "samples.parquet"
_NUMBERED = re.compile(r"^(.*?)(\d+)$", re.DOTALL)
_PACK = "mlic pack {} --labels {} writes ./shards."
_LABELS = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
_HOLDS_IMAGES = (".parquet", ".zip", ".tar")
_LOOKED_AT = 200  # entries of a folder, to see what is in it
_SPARSE = 10  # shards are not copied for a tenth of their bytes or less
_ALL = Rows()
_BLOCK, _RECORD = 512, 2048  # bytes: a block of a tar; the first read for a sample's record

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """The samples of one split, in columns of equal length N; `fingerprint` is that of the shards.

    `targets` is int8 (N, L) with -1 for unknown; `shard` numbers into `shards`; `offsets` and `sizes` are int64 bytes.
    `shard_sizes` are in bytes.
    These columns are read-only, and mapped from a file if the split is large. `names` are read when somebody asks.
    """

    name: str
    labels: tuple[str, ...]
    shards: tuple[Location, ...]
    shard_sizes: tuple[int, ...]
    names: Names
    targets: Array
    shard: Array
    offsets: Array
    sizes: Array
    fingerprint: str

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Array) -> Split:
        """The samples with these numbers, in this order, with the shards that hold them."""
        used, shard = np.unique(self.shard[rows], return_inverse=True)
        return replace(
            self,
            shards=tuple(self.shards[i] for i in used),
            shard_sizes=tuple(self.shard_sizes[i] for i in used),
            names=self.names.take(rows),
            targets=self.targets[rows],
            shard=shard.reshape(-1),
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
        )

    @property
    def keys(self) -> pa.Array:
        """The keys of the samples, a text column."""
        return self.names.keys

    @property
    def files(self) -> pa.Array:
        """The files that the samples were packed from, a text column."""
        return self.names.files

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        return str(self.keys[int(i)].as_py())

    def open_shard(self, number: int) -> storage.File:
        """Shard `number`; if it is in an object store, a copy on this node is read. Raises OSError."""
        return storage.opened_here(self.shards[number], self.fingerprint)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], bytes]]:
        """A function that reads the image of sample `i`, with the shards held open. It raises BadImage.

        Few samples of an object store are read where they lie; for more, this node gets a copy of the shards.
        """
        is_sparse = int(self.sizes.sum()) * _SPARSE < sum(self.shard_sizes)
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(storage.File(shard) if is_sparse else self.open_shard(number))
                for number, shard in enumerate(self.shards)
            ]

            def read(i: int) -> bytes:
                try:
                    return files[int(self.shard[i])].read_at(int(self.offsets[i]), int(self.sizes[i]))
                except OSError as error:
                    raise images.BadImage(error.strerror or "cannot be read") from None

            yield read


def with_unlabelled(split: Split, other: Split) -> Split:
    """The samples of a split and then those of another one, all of whose labels count as unknown."""
    unknown = np.full((len(other), len(split.labels)), -1, np.int8)
    return replace(
        split,
        name=f"{split.name} and unlabelled",
        shards=split.shards + other.shards,
        shard_sizes=split.shard_sizes + other.shard_sizes,
        names=Names(lambda: pa.table({"key": _both(split.keys, other.keys), "file": _both(split.files, other.files)})),
        targets=np.concatenate([split.targets, unknown]),
        shard=np.concatenate([split.shard, other.shard + len(split.shards)]),
        offsets=np.concatenate([split.offsets, other.offsets]),
        sizes=np.concatenate([split.sizes, other.sizes]),
        fingerprint=f"{split.fingerprint} {other.fingerprint}",
    )


def _both(one: pa.Array, other: pa.Array) -> pa.Array:
    return pa.concat_arrays([one.cast(pa.string()), other.cast(pa.string())])


def natural_order(keys: Sequence[str]) -> Array:
    """The order int64 (N,) of keys as a person sorts them: by name, and by number where names end in one."""
    parts = [_NUMBERED.match(key) for key in keys]
    named = [(match[1], int(match[2])) if match else (key, -1) for key, match in zip(keys, parts, strict=True)]
    return np.array(sorted(range(len(keys)), key=named.__getitem__), dtype=np.int64)


def read_index(folder: Location) -> dict[str, Any]:
    """Read a shard folder's index. Raises DataError when there is none, or one of another kind."""
    path = folder / INDEX
    try:
        index = json.loads(storage.read(path).decode("utf-8"))
    except FileNotFoundError:
        if is_foreign(folder):
            raise DataError(
                f"{folder} holds shards of another program, and no {INDEX}.",
                f"mlic train {folder} writes it; mlic pack {folder} --labels {folder} writes shards of its own.",
            ) from None
        what = "holds no index.json" if storage.is_folder(folder) else "does not exist"
        seen, command = _to_pack(folder) if isinstance(folder, Path) else ("", _PACK.format("IMAGES", "LABELS"))
        raise DataError(f"the shard folder {folder} {what}{seen}.", command) from None
    except NotADirectoryError:
        hint = "name the folder that mlic pack wrote."
        if folder.suffix.lower() in _HOLDS_IMAGES:
            hint = f"{_PACK.format(folder.name, 'LABELS')} mlic explore takes --labels too."
        raise DataError(f"{folder} is a file, not a folder of shards.", hint) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}.", "run the same mlic pack command again with --fresh.") from None
    if not isinstance(index, dict) or index.get("format") != 1 or index.get("kind") != "shards":
        raise DataError(f"{path} is not an index of shards of format 1.", "pack the images with this version of mlic.")
    return index


def is_foreign(folder: Location) -> bool:
    """Whether a folder holds shards of another program without an index, not what a stopped `mlic pack` has left."""
    try:
        names = set(storage.names(folder))
    except OSError:  # whoever reads the shards next says what is wrong
        return False
    return not names & {INDEX, "run.json"} and any(name.lower().endswith(".tar") for name in names)


def _to_pack(folder: Path) -> tuple[str, str]:
    """What a folder without shards holds instead, in words, and the command that packs it."""
    holds_images = _holds(folder, images.EXTENSIONS)
    beside = sorted(path for path in folder.parent.iterdir() if path != folder) if folder.parent.is_dir() else []
    beside = [path for path in beside if not path.name.startswith(".")][:_LOOKED_AT]
    pictures = folder if holds_images else next((p for p in beside if _holds(p, images.EXTENSIONS)), None)
    labels = next((p for p in beside if p.suffix in _LABELS or (p != pictures and _holds(p, _LABELS))), None)
    here = [
        f"{_short(path)} holds {what}"
        for path, what in ((pictures, "images"), (labels, "label files"))
        if path is not None
    ]
    folders = f"; {' and '.join(here)}" if here else ""
    names = ("IMAGES" if pictures is None else _short(pictures), "LABELS" if labels is None else _short(labels))
    return folders, _PACK.format(*names)


def _holds(folder: Path, endings: Collection[str]) -> bool:
    """Whether one of the first files of a folder has one of these endings."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in endings for entry in islice(entries, _LOOKED_AT))  # noqa: PTH122


def _short(path: Path) -> str:
    """A path as one would type it here."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}/" if path.is_dir() else str(path)


def check_splits(folder: Location, index: Mapping[str, Any], *names: str) -> None:
    """Raise DataError when the shards lack a split that has to be there, or have it without a sample."""
    for name in names:
        if not index["splits"].get(name, {}).get("samples"):
            what = "is empty" if name in index["splits"] else "is missing"
            shares = ",".join(f"{split}=..." for split in names)
            raise DataError(f"the split {name!r} of {folder} {what}.", f"pack with --split {shares},test=...")


def check_trainable(folder: Location, index: Mapping[str, Any], fold: int | None) -> None:
    """Raise DataError when the shards cannot be trained on: by their splits train and val, or by a fold."""
    if fold is None:
        check_splits(folder, index, "train", "val")
    else:
        check_fold(folder, index, fold)


def check_fold(folder: Location, index: Mapping[str, Any], fold: int) -> None:
    """Raise DataError when the shards have no such fold."""
    folds = int(index.get("folds") or 0)
    if fold >= folds:
        what = f"folds 0 to {folds - 1}" if folds else "no folds"
        raise DataError(f"{folder} has {what}, and fold {fold} is asked for.", f"pack with --folds {max(2, fold + 1)}.")


def read_split(folder: Location, split: str | None, fold: int | None = None, checked: bool = False) -> Split:
    """Read the table of one split, or of all.

    With a `fold`, the split train has all samples of the other folds. The split val has the samples of the fold,
    without augmented versions. The sizes of the shards are verified unless they are `checked` already: one process does
    this for all. Raises DataError when a split or a shard is missing or cut off.
    """
    index = read_index(folder)
    if fold is not None:
        check_fold(folder, index, fold)
    elif split is not None and split not in index["splits"]:
        raise DataError(f"{folder} has no split {split!r}.", f"its splits are {', '.join(index['splits'])}.")
    by_fold = fold is not None and split in ("train", "val")
    if not checked:
        check_sizes(folder, index, None if by_fold else split)
    if by_fold and fold is not None:
        rows = rows_of_fold(fold) if split == "val" else Rows((("fold", "!=", fold), ("fold", ">=", 0)))
    else:
        rows = Rows() if split is None else rows_of_split(split)
    labels = tuple(index["labels"])
    used = sorted(name for name, shard in index["shards"].items() if by_fold or split is None or holds(shard, split))
    name = f"{split}-fold{fold}" if by_fold else split or "all"
    with _table_errors(folder):
        columns = sample_columns.read(folder / TABLE, rows, used, len(labels), f"{index['fingerprint']} {name}")
    return Split(
        name,
        labels,
        tuple(folder / shard for shard in used),
        tuple(index["shards"][shard]["size"] for shard in used),
        Names(partial(read_table, folder, ["key", "file"], rows)),
        columns.targets,
        columns.shard,
        columns.offsets,
        columns.sizes,
        index["fingerprint"],
    )


def rows_of_split(split: str) -> Rows:
    """The rows of the samples of a split."""
    return Rows((("split", "==", split),))


def rows_of_fold(fold: int) -> Rows:
    """The rows of the samples of a fold, without augmented versions."""
    return Rows((("fold", "==", fold), ("version", "==", 0)))


def read_table(folder: Location, columns: Sequence[str] | None = None, rows: Rows = _ALL) -> pa.Table:
    """The table of the samples (pyarrow), or some of its columns and rows. Raises DataError."""
    with _table_errors(folder):
        return sample_columns.read_table(folder / TABLE, columns, rows)


@contextlib.contextmanager
def _table_errors(folder: Location) -> Iterator[None]:
    """Raise DataError for a table that cannot be read."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot read {folder / TABLE}: {error}.", "run the same mlic pack command again.") from None


def read_sample(shard: storage.File, offset: int, size: int) -> tuple[bytes, dict[str, Any] | None]:
    """An image's bytes and the record behind it in its shard.

    The record is empty if it cannot be parsed. It is None if its name is too long for a plain tar header: such headers
    are not read here.
    """
    padded = size + -size % _BLOCK
    data = shard.read_at(offset, padded + _BLOCK + _RECORD)
    header = data[padded : padded + _BLOCK]
    if header[156:157] == b"L":
        return data[:size], None
    try:
        length = int(header[124:135], 8)
        text = data[padded + _BLOCK :] if length <= _RECORD else shard.read_at(offset + padded + _BLOCK, length)
        record = json.loads(text[:length])
    except ValueError:
        return data[:size], {}
    return data[:size], record if isinstance(record, dict) else {}


def check_sizes(folder: Location, index: Mapping[str, Any], split: str | None) -> None:
    """Raise DataError when a shard of the split, or any with None, is missing or not of its size."""
    expected = {name: shard["size"] for name, shard in index["shards"].items() if split is None or holds(shard, split)}
    listed = None
    if isinstance(folder, RemotePath) and storage.has_listing(folder):
        listed = {name: size for name, size, _ in storage.walk(folder)}
    for name, size in expected.items():
        path = folder / name
        actual = storage.size(path) if listed is None else listed.get(name)
        hint = "run the same mlic pack command again."
        if not index.get("records", True):
            hint = f"bring it back, or delete {INDEX} there, and the shards are indexed again."
        if actual is None:
            raise DataError(f"the shard {path} is missing.", hint)
        if actual != size:
            raise DataError(f"the shard {path} has {actual:,} bytes where index.json says {size:,}.", hint)


def holds(shard: Mapping[str, Any], split: str) -> bool:
    """Whether a shard of the index has samples of a split."""
    return split in (shard["split"] if isinstance(shard["split"], list) else [shard["split"]])


def verify(path: Location, expected: Mapping[str, Any], max_pixels: int) -> str | None:
    """Read a whole shard and compare it with what the index says; returns what is wrong, or None.

    It checks the size, the sha256, the number of samples, that each sample has its record, and that every image has a
    readable header.
    """
    try:
        data = storage.read(path)
    except OSError as error:
        return f"cannot be read ({error})"
    if len(data) != expected["size"]:
        return f"has {len(data):,} bytes, not {expected['size']:,}"
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        return "has another sha256"
    pictures: list[str] = []
    records: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                name, _, extension = info.name.rpartition(".")
                (records if extension == "json" else pictures).append(name)
                if extension != "json":
                    images.header(data[info.offset_data : info.offset_data + info.size], max_pixels)
    except (tarfile.TarError, images.BadImage) as error:
        return f"does not read ({error})"
    if pictures != records or len(pictures) != expected["samples"]:
        return f"holds {len(pictures):,} images and {len(records):,} records, not {expected['samples']:,} of each"
    return None
