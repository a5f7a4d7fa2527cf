"""Write one shard: its tar, the rows of its samples, and its summary."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from mlic.data.duplicates import HASH_BYTES
from mlic.data.pixels import images
from mlic.data.sources.image_listing import Reader
from mlic.pack.offline_augment import render
from mlic.pack.shard_plan import NO_EXPANSION, Array, Expansion, Samples, ShardPlan, Written
from mlic.pack.tar import BLOCK, SHORT, Tar, long_header, member_name, record_room

_META = b"mlic"


def write(
    plan: ShardPlan,
    samples: Samples,
    labels: Sequence[str],
    out: IO[bytes],
    max_pixels: int,
    expansion: Expansion = NO_EXPANSION,
    skip: Mapping[int, str] = MappingProxyType({}),
) -> tuple[Written, Any]:
    """Write one shard to `out`, leaving out the images that cannot be read.

    `samples` are those of the plan, in its order. The samples in `skip` are not opened; `skip` gives the reason.
    Returns the result and the table of the samples (pyarrow).
    """
    tar, records = Tar(out), _Records(labels)
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
            key, extension = (f"{key}~{version}", ".jpg") if version else (key, _extension(file))
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
            rows.append((i, key, file, offset, size, info.width, info.height, info.kind, digest))
    size, sha256 = tar.close()
    row_numbers = np.array([row[0] for row in rows], np.int64)
    is_positive = samples.targets[row_numbers] == 1
    counts = tuple(int(count) for count in is_positive.sum(axis=0))
    unlabelled = int((~is_positive.any(axis=1)).sum())
    written = Written(plan.name, plan.split, size, sha256, len(rows), counts, unlabelled, tuple(bad))
    return written, _table(plan, samples, row_numbers, rows)


def _extension(file: str) -> str:
    extension = os.path.splitext(file)[1].lower()  # noqa: PTH122 - called for every image
    return extension if extension in images.EXTENSIONS else ".jpg"


def _image(
    tar: Tar, reader: Reader, i: int, path: bytes, name: str, version: int, expansion: Expansion, max_pixels: int
) -> tuple[int, int, images.ImageInfo]:
    """Put a member's header, followed by its image, into the tar's buffer; the position is then at the image.

    Returns the image's offset in the tar, its size and what its header says. Raises BadImage with nothing put.
    """
    size = int(reader.listing.sizes[i])
    header_size = BLOCK if len(name) <= SHORT else len(long_header(name, 0))
    room = header_size + record_room(name, path)
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


class _Records:
    """Makes the JSON record of each sample; what depends on its labels alone is made once for each set of labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._known: dict[bytes, str] = {}

    def record(self, key: str, file: str, target: Array) -> bytes:
        code = target.tobytes()
        if code not in self._known:
            record: dict[str, Any] = {"labels": [self._labels[i] for i in np.flatnonzero(target == 1).tolist()]}
            if (target == -1).any():
                record["unknown"] = [self._labels[i] for i in np.flatnonzero(target == -1).tolist()]
            self._known[code] = json.dumps(record, sort_keys=True)[1:]
        return f'{{"file": {quote(file)}, "key": {quote(key)}, {self._known[code]}'.encode()


def _table(plan: ShardPlan, samples: Samples, row_numbers: Array, rows: Sequence[tuple[Any, ...]]) -> Any:
    """The rows of samples.parquet for a shard."""
    import pyarrow as pa

    count = len(rows)
    group = np.full(count, -1) if samples.group is None else samples.group[row_numbers]
    fold = np.full(count, -1) if samples.fold is None else samples.fold[row_numbers]
    targets = samples.targets[row_numbers]
    return pa.table(
        {
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
            "hash": _hashes(samples, row_numbers),
            "group": pa.array(group, pa.int64()),
            "fold": pa.array(fold, pa.int16()),
            "version": pa.array(plan.versions[row_numbers], pa.int16()),
            "target": pa.ListArray.from_arrays(
                pa.array(np.arange(count + 1) * targets.shape[1], pa.int32()), pa.array(targets.ravel(), pa.int8())
            ),
        }
    )


def _hashes(samples: Samples, row_numbers: Array) -> Any:
    """The perceptual hashes as a column, null where they are not known."""
    import pyarrow as pa

    if samples.hash is None:
        return pa.nulls(len(row_numbers), pa.binary(HASH_BYTES))
    data = np.ascontiguousarray(samples.hash[row_numbers]).tobytes()
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(HASH_BYTES), len(row_numbers), [None, pa.py_buffer(data)])


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
    document = json.loads((table.schema.metadata or {})[_META])
    bad = tuple((file, reason) for file, reason in document.pop("bad"))
    written = Written(**{**document, "label_counts": tuple(document["label_counts"])}, bad=bad)
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
