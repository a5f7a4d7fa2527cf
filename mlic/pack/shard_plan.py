"""What goes into which shard, and the writing of one: the two halves of packing that know nothing of a cluster.

A plan is a pure function of the samples and the settings, and a shard one of its plan and its images: every header
field that a tar could take from the machine or the clock is fixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from json.encoder import encode_basestring_ascii as quote
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from mlic.config.types import Operation
from mlic.data import images
from mlic.data.image_listing import Listing, Reader
from mlic.pack.offline_augment import render

Array = np.ndarray[Any, Any]

_BLOCK = 512
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
_PLAIN = re.compile(r"[A-Za-z0-9_\-/]+")
_BUFFER = 2**20  # small enough to be hashed and written while it is in the processor's cache
_META = b"mlic"


@dataclass(frozen=True)
class Samples:
    """N samples in columns: their images, `targets` int8 (N, L), and for each (N,) the number of its `split`, that of
    its `group` of images that are the same or nearly, and its `fold`; and `digest` uint8 (N, 32), the sha256 of its
    file. The last three are None where they are not known."""

    listing: Listing
    targets: Array
    split: Array
    group: Array | None = None
    fold: Array | None = None
    digest: Array | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Array) -> Samples:
        """The samples with these numbers, in this order."""
        return replace(
            self, listing=self.listing.take(rows), targets=self.targets[rows], split=self.split[rows],
            group=_rows(self.group, rows), fold=_rows(self.fold, rows), digest=_rows(self.digest, rows),
        )  # fmt: skip


def _rows(column: Array | None, rows: Array) -> Array | None:
    return None if column is None else column[rows]


@dataclass(frozen=True)
class Expansion:
    """Versions of the training images: `versions` augmented ones of each beside the original, by `operations`; each
    version of an image whose labels are all among `thin_labels` is left out with the probability `thin`, but one."""

    versions: int = 0
    operations: tuple[Operation, ...] = ()
    thin: float = 0.0
    thin_labels: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split, and the samples in it by number (n,), each in a version (n,), where
    0 is the image itself."""

    name: str
    split: str
    rows: Array
    versions: Array


@dataclass(frozen=True)
class Written:
    """What writing one shard came to. `bad` holds (file, reason) of the images that were left out; `label_counts` are
    the samples with each label, `unlabelled` those without any."""

    name: str
    split: str
    size: int
    sha256: str
    samples: int
    label_counts: tuple[int, ...]
    unlabelled: int
    bad: tuple[tuple[str, str], ...]


def plan(
    samples: Samples, splits: Sequence[str], shard_mb: float, min_shards: int, seed: int,
    expansion: Expansion = Expansion(),
) -> tuple[ShardPlan, ...]:  # fmt: skip
    """Deal the samples of each split out to shards of about `shard_mb` MB.

    Training samples are put in a seeded random order, so that a reader that takes shards in sequence meets a mixture;
    the others keep the order of their keys.
    """
    shards: list[ShardPlan] = []
    for number, split in enumerate(splits):
        rows = np.flatnonzero(samples.split == number)
        versions = np.zeros(len(rows), np.int16)
        if split == "train":
            rows, versions = _versions(rows, samples.targets[rows], expansion)
            order = np.random.default_rng([seed, 1]).permutation(len(rows))
            rows, versions = rows[order], versions[order]
        total = int(samples.listing.sizes[rows].sum())
        count = min(len(rows), max(min_shards, round(total / (shard_mb * 1e6))))
        bounds = np.linspace(0, len(rows), count + 1).round().astype(int)
        shards += [
            ShardPlan(f"{split}-{i:06d}.tar", split, rows[a:b], versions[a:b])
            for i, (a, b) in enumerate(pairwise(bounds))
        ]
    return tuple(shards)


def _versions(rows: Array, targets: Array, expansion: Expansion) -> tuple[Array, Array]:
    """The versions of the training images that are packed, as rows and version numbers."""
    count = expansion.versions + 1
    kept = np.ones((len(rows), count), dtype=bool)
    if expansion.thin:
        rng = np.random.default_rng([expansion.seed, 9])
        others = np.setdiff1d(np.arange(targets.shape[1]), expansion.thin_labels)
        common = ~(targets[:, others] == 1).any(axis=1)
        kept = ~(common[:, None] & (rng.random(kept.shape) < expansion.thin))
        kept[np.arange(len(rows)), rng.integers(0, count, len(rows))] |= ~kept.any(axis=1)
    number, version = np.nonzero(kept)
    return rows[number], version.astype(np.int16)


class _Tar:
    """A tar that grows in one buffer, which is hashed and written as it fills."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._buffer = bytearray(_BUFFER)
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
        rest = -self.used % _BLOCK
        self.view[self.used : self.used + rest] = bytes(rest)
        self.used += rest

    def put(self, data: bytes) -> None:
        end = self.used + len(data)
        self.view[self.used : end] = data
        self.used = end

    def put_header(self, name: str, size: int) -> None:
        """A member's header, byte for byte what tarfile writes in GNU format for mode 644 and a time and owner of 0.

        Written out here for the common case, since tarfile takes longer for it than reading a small image takes.
        """
        if len(name) > _SHORT:
            self.put(_long_header(name, size))
            return
        view, at = self.view, self.used
        start, length = name.encode("ascii"), b"%011o" % size
        view[at : at + _BLOCK] = _TEMPLATE
        view[at : at + len(start)] = start
        view[at + 124 : at + 135] = length
        view[at + 148 : at + 155] = b"%06o\0" % (_TEMPLATE_SUM + sum(start) + sum(length))
        self.used = at + _BLOCK

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
        end = 2 * _BLOCK + -(self.position + 2 * _BLOCK) % tarfile.RECORDSIZE
        self.reserve(end)
        self.put(bytes(end))
        self.flush()
        return self._written, self._digest.hexdigest()


def write(
    plan: ShardPlan, samples: Samples, labels: Sequence[str], out: IO[bytes], max_pixels: int,
    expansion: Expansion = Expansion(), skip: Mapping[int, str] = MappingProxyType({}),
) -> tuple[Written, Any]:  # fmt: skip
    """Write one shard to `out`, leaving out the images that cannot be read.

    `samples` are those of the plan, in its order; those of `skip` are not opened, for the reason that it gives. Returns
    what it came to and the table of the samples (pyarrow).
    """
    tar, records = _Tar(out), _Records(labels)
    bad: list[tuple[str, str]] = []
    rows: list[tuple[Any, ...]] = []
    listing = samples.listing
    paths, keys = listing.paths.to_pylist(), listing.keys.to_pylist()
    with Reader(listing) as reader:
        for i, (path, key_bytes) in enumerate(zip(paths, keys, strict=True)):
            file, key = path.decode("utf-8", "surrogateescape"), key_bytes.decode("utf-8", "surrogateescape")
            version = int(plan.versions[i])
            if i in skip:
                bad.append((file, skip[i]))
                continue
            extension = file[file.rindex(".") :].lower()
            if version:
                key, extension = f"{key}~{version}", ".jpg"
            name = member_name(key)
            try:
                offset, size, info = _image(tar, reader, i, path, name + extension, version, expansion, max_pixels)
            except images.BadImage as error:
                bad.append((file, str(error)))
                continue
            record = records.record(key, file, samples.targets[i])
            if samples.digest is None or version:
                digest = hashlib.sha256(tar.view[tar.used : tar.used + size]).digest()
            else:
                digest = samples.digest[i].tobytes()
            tar.used += size
            tar.pad()
            tar.put_member(name + ".json", record)
            rows.append((i, key, file, offset, size, info.width, info.height, info.format, digest))
    size, sha256 = tar.close()
    kept = np.array([row[0] for row in rows], np.int64)
    targets = samples.targets[kept]
    counts = tuple(int(count) for count in (targets == 1).sum(axis=0))
    unlabelled = int((~(targets == 1).any(axis=1)).sum())
    written = Written(plan.name, plan.split, size, sha256, len(rows), counts, unlabelled, tuple(bad))
    return written, _table(plan, samples, kept, rows)


def _image(
    tar: _Tar, reader: Reader, i: int, path: bytes, name: str, version: int, expansion: Expansion, max_pixels: int
) -> tuple[int, int, images.ImageInfo]:
    """Put a member's header and its image behind it into the tar's buffer, and leave the position at the image.

    Returns the image's offset in the tar, its size and what its header says. Raises BadImage with nothing put.
    """
    size = int(reader.listing.sizes[i])
    header_size = _BLOCK if len(name) <= _SHORT else len(_long_header(name, 0))
    room = header_size + _record_room(name, path)
    tar.reserve(size + room)
    start = tar.used + header_size
    if version or not reader.read_into(path, size, tar.view[start : start + size + 1]):
        data = reader.read(i)
        if version:
            # The seed is made of the image's name, so that a version depends on nothing else.
            data = render(data, expansion.operations, [expansion.seed, zlib.crc32(path), version], max_pixels)
        size = len(data)
        tar.reserve(size + room)
        start = tar.used + header_size
        tar.view[start : start + size] = data
    info = images.probe(tar.view[start : start + size], max_pixels)
    tar.put_header(name, size)
    return tar.position, size, info


def _record_room(name: str, path: bytes) -> int:
    """Bytes enough for all that follows an image: padding, its record with its header, and a byte to spare."""
    return 16 * _BLOCK + 16 * (len(name) + len(path))


def _long_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def _template() -> bytes:
    block = bytearray(_BLOCK)
    for start, field in {
        100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 136: b"00000000000\0",
        148: b"        ", 156: b"0", 257: b"ustar  \0",
    }.items():  # fmt: skip
        block[start : start + len(field)] = field
    return bytes(block)


_SHORT = 99  # characters of a name that fit into a header, with the NUL that ends it
_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)  # of a header's bytes, its size and name left out


def member_name(key: str) -> str:
    """A sample's name in a tar: its key with every byte outside of `A-Za-z0-9_-/` as %XX.

    WebDataset takes a member's key to end at its first dot, so a dot within the key has to go; a leading `/` or `..`
    cannot come about either.
    """
    if _PLAIN.fullmatch(key):
        return key
    safe = (chr(b) if chr(b) in _SAFE else f"%{b:02X}" for b in key.encode("utf-8", "surrogateescape"))
    return "".join(safe)


class _Records:
    """Makes the JSON record of each sample; what depends on its labels alone is made once for each set of labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._known: dict[bytes, str] = {}

    def record(self, key: str, file: str, target: Array) -> bytes:
        code = target.tobytes()
        if code not in self._known:
            given: dict[str, Any] = {"labels": [self._labels[i] for i in np.flatnonzero(target == 1).tolist()]}
            if (target == -1).any():
                given["unknown"] = [self._labels[i] for i in np.flatnonzero(target == -1).tolist()]
            self._known[code] = json.dumps(given, sort_keys=True)[1:]
        return f'{{"file": {quote(file)}, "key": {quote(key)}, {self._known[code]}'.encode()


def _table(plan: ShardPlan, samples: Samples, kept: Array, rows: Sequence[tuple[Any, ...]]) -> Any:
    """The rows of samples.parquet for a shard."""
    import pyarrow as pa

    count = len(rows)
    group = np.full(count, -1) if samples.group is None else samples.group[kept]
    fold = np.full(count, -1) if samples.fold is None else samples.fold[kept]
    targets = samples.targets[kept]
    return pa.table({
        "key": pa.array([_utf8(row[1]) for row in rows], pa.string()),
        "file": pa.array([_utf8(row[2]) for row in rows], pa.string()),
        "split": pa.array([plan.split] * count, pa.string()),
        "shard": pa.array([plan.name] * count, pa.string()),
        "offset": pa.array([row[3] for row in rows], pa.int64()),
        "size": pa.array([row[4] for row in rows], pa.int64()),
        "width": pa.array([row[5] for row in rows], pa.int32()),
        "height": pa.array([row[6] for row in rows], pa.int32()),
        "format": pa.array([row[7] for row in rows], pa.string()),
        "sha256": pa.array([row[8].hex() for row in rows], pa.string()),
        "group": pa.array(group, pa.int64()),
        "fold": pa.array(fold, pa.int16()),
        "version": pa.array(plan.versions[kept], pa.int16()),
        "target": pa.ListArray.from_arrays(
            pa.array(np.arange(count + 1) * targets.shape[1], pa.int32()), pa.array(targets.ravel(), pa.int8())
        ),
    })  # fmt: skip


def _utf8(text: str) -> str:
    """File names that are no UTF-8 hold surrogates, which Parquet refuses; show their bytes instead."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def dump_account(written: Written, table: Any) -> bytes:
    """A written shard's account, a Parquet file that is kept beside the shard until the index is complete."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    named = table.replace_schema_metadata({_META: json.dumps(written.__dict__).encode()})
    pq.write_table(named, sink, compression="zstd")
    return sink.getvalue()


def parse_account(data: bytes) -> tuple[Written, Any]:
    """The inverse of `dump_account`. Raises ValueError, KeyError or TypeError on anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from None
    plain = json.loads((table.schema.metadata or {})[_META])
    bad = tuple((file, reason) for file, reason in plain.pop("bad"))
    written = Written(**{**plain, "label_counts": tuple(plain["label_counts"])}, bad=bad)
    return written, table.replace_schema_metadata(None)


def parse_written(data: bytes) -> Written:
    """What an account says of its shard, without its table. Raises ValueError, KeyError or TypeError."""
    return parse_account(data)[0]


def table_bytes(tables: Iterator[Any]) -> bytes:
    """samples.parquet: the tables of all shards in their order, one at a time in memory, each a row group."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    first = next(tables)
    with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()
