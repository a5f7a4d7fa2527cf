"""Tar shards in the WebDataset layout, their index, and the table of their samples.

A folder of shards holds

    train-000000.tar ...   members KEY.jpg (the image file, byte for byte) and KEY.json (key, file, labels)
    samples.parquet        one row a sample: where its image lies and what its labels are
    index.json             labels in order, splits, counts, account, settings; written last, so its presence means whole

Shards are a pure function of the listing, the labels and the settings: every header field that a tar could take from
the machine or the clock is fixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlic.data import images
from mlic.errors import DataError

INDEX, TABLE = "index.json", "samples.parquet"
_BLOCK = 512
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
_PLAIN = re.compile(r"[A-Za-z0-9_\-/]+")


@dataclass(frozen=True)
class Source:
    """A sample to pack: its key, its file relative to the image folder, its size in bytes and its target (L,)."""

    key: str
    file: str
    size: int
    target: tuple[int, ...]


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split and its samples in order."""

    name: str
    split: str
    samples: tuple[Source, ...]


@dataclass(frozen=True)
class Packed:
    """A sample in a shard: `offset` and `size` say where the image's bytes lie in the tar."""

    key: str
    file: str
    shard: str
    split: str
    offset: int
    size: int
    width: int
    height: int
    sha256: str
    target: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What writing one shard came to. `bad` holds (file, reason) of the images that were left out."""

    name: str
    split: str
    size: int
    sha256: str
    samples: tuple[Packed, ...]
    bad: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Split:
    """The samples of one split, held in columns of equal length N; `fingerprint` is that of the shards.

    `targets` is int8 (N, L) with -1 for unknown; `shard` numbers into `shards`; `offsets` and `sizes` are int64 bytes.
    """

    name: str
    labels: tuple[str, ...]
    shards: tuple[Path, ...]
    keys: tuple[str, ...]
    files: tuple[str, ...]
    targets: np.ndarray[Any, Any]
    shard: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.keys)


def plan(splits: Mapping[str, Sequence[Source]], shard_mb: float, min_shards: int, seed: int) -> tuple[ShardPlan, ...]:
    """Deal the samples of each split out to shards of about `shard_mb` MB.

    Training samples are put in a seeded random order, so that a reader that takes shards in sequence meets a mixture;
    the others keep the order of their keys.
    """
    shards: list[ShardPlan] = []
    for split, samples in splits.items():
        ordered = sorted(samples, key=lambda sample: sample.key)
        if split == "train":
            order = np.random.default_rng([seed, 1]).permutation(len(ordered))
            ordered = [ordered[i] for i in order]
        total = sum(sample.size for sample in ordered)
        count = min(len(ordered), max(min_shards, round(total / (shard_mb * 1e6))))
        bounds = np.linspace(0, len(ordered), count + 1).round().astype(int)
        shards += [
            ShardPlan(f"{split}-{i:06d}.tar", split, tuple(ordered[a:b])) for i, (a, b) in enumerate(pairwise(bounds))
        ]
    return tuple(shards)


def write(plan: ShardPlan, labels: Sequence[str], folder: Path, out: IO[bytes], max_pixels: int) -> Written:
    """Write one shard to `out`, leaving out the images that cannot be read."""
    packed: list[Packed] = []
    bad: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    position = 0
    for sample in plan.samples:
        try:
            data = images.read_file(folder / sample.file)
            info = images.probe(data, max_pixels)
        except images.BadImage as error:
            bad.append((sample.file, str(error)))
            continue
        name, record = member_name(sample.key), _record(sample, labels)
        header = _header(name + Path(sample.file).suffix.lower(), len(data))
        parts = [header, data, bytes(-len(data) % _BLOCK)]
        parts += [_header(name + ".json", len(record)), record, bytes(-len(record) % _BLOCK)]
        blocks = b"".join(parts)
        out.write(blocks)
        digest.update(blocks)
        packed.append(
            Packed(
                sample.key, sample.file, plan.name, plan.split, position + len(header), len(data), info.width,
                info.height, hashlib.sha256(data).hexdigest(), sample.target,
            )
        )  # fmt: skip
        position += len(blocks)
    end = bytes(2 * _BLOCK + -(position + 2 * _BLOCK) % tarfile.RECORDSIZE)
    out.write(end)
    digest.update(end)
    return Written(plan.name, plan.split, position + len(end), digest.hexdigest(), tuple(packed), tuple(bad))


def _header(name: str, size: int) -> bytes:
    """The header of a member, byte for byte what tarfile writes in GNU format for mode 644 and a time and owner of 0.

    Written out here for the common case, since tarfile takes longer for a header than reading a small image takes.
    """
    if len(name) > _SHORT or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o644, 0
        return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
    block = bytearray(_TEMPLATE)
    block[: len(name)] = name.encode("ascii")
    block[124:135] = b"%011o" % size
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def _template() -> bytes:
    block = bytearray(_BLOCK)
    for start, field in {
        100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 124: b"00000000000\0", 136: b"00000000000\0",
        148: b"        ", 156: b"0", 257: b"ustar  \0",
    }.items():  # fmt: skip
        block[start : start + len(field)] = field
    return bytes(block)


_SHORT = 99  # characters of a name that fit into a header, with the NUL that ends it
_TEMPLATE = _template()


def member_name(key: str) -> str:
    """A sample's name in a tar: its key with every byte outside of `A-Za-z0-9_-/` as %XX.

    WebDataset takes a member's key to end at its first dot, so a dot within the key has to go; a leading `/` or `..`
    cannot come about either.
    """
    if _PLAIN.fullmatch(key):
        return key
    safe = (chr(b) if chr(b) in _SAFE else f"%{b:02X}" for b in key.encode("utf-8", "surrogateescape"))
    return "".join(safe)


def _record(sample: Source, labels: Sequence[str]) -> bytes:
    record: dict[str, Any] = {
        "key": sample.key,
        "file": sample.file,
        "labels": [label for label, value in zip(labels, sample.target, strict=True) if value == 1],
    }
    if -1 in sample.target:
        record["unknown"] = [label for label, value in zip(labels, sample.target, strict=True) if value == -1]
    return json.dumps(record, sort_keys=True).encode()


def dump_written(written: Written) -> bytes:
    """A written shard's account as JSON, kept beside the shard until the index is complete."""
    return json.dumps(asdict(written)).encode()


def parse_written(data: bytes) -> Written:
    """The inverse of `dump_written`. Raises ValueError, KeyError or TypeError on anything else."""
    plain = json.loads(data)
    samples = tuple(Packed(**{**sample, "target": tuple(sample["target"])}) for sample in plain["samples"])
    return Written(**{**plain, "samples": samples, "bad": tuple((file, reason) for file, reason in plain["bad"])})


def table_bytes(written: Sequence[Written]) -> bytes:
    """The rows of samples.parquet for these shards, in their order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [sample for shard in written for sample in shard.samples]
    columns: dict[str, Any] = {
        "key": pa.array([_utf8(row.key) for row in rows], pa.string()),
        "file": pa.array([_utf8(row.file) for row in rows], pa.string()),
        "split": pa.array([row.split for row in rows], pa.string()).dictionary_encode(),
        "shard": pa.array([row.shard for row in rows], pa.string()).dictionary_encode(),
        "offset": pa.array([row.offset for row in rows], pa.int64()),
        "size": pa.array([row.size for row in rows], pa.int64()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "sha256": pa.array([row.sha256 for row in rows], pa.string()),
        "target": pa.array([row.target for row in rows], pa.list_(pa.int8())),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _utf8(text: str) -> str:
    """File names that are no UTF-8 hold surrogates, which Parquet refuses; show their bytes instead."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_index(folder: Path) -> dict[str, Any]:
    """Read a shard folder's index. Raises DataError when there is none, or one of another kind."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "holds no index.json" if folder.is_dir() else "does not exist"
        raise DataError(
            f"the shard folder {folder} {what}.",
            f"mlic pack IMAGES --labels LABELS --out {folder} writes one.",
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}.", "run the same mlic pack command again with --fresh.") from None
    if not isinstance(index, dict) or index.get("format") != 1 or index.get("kind") != "shards":
        raise DataError(f"{path} is no index of shards of format 1.", "pack the images with this version of mlic.")
    return index


def check_splits(folder: Path, index: Mapping[str, Any], *names: str) -> None:
    """Raise DataError when the shards lack a split that has to be there, or have it without a sample."""
    for name in names:
        if not index["splits"].get(name, {}).get("samples"):
            what = "is empty" if name in index["splits"] else "is missing"
            shares = ",".join(f"{split}=..." for split in names)
            raise DataError(f"the split {name!r} of {folder} {what}.", f"pack with --split {shares},test=...")


def read_split(folder: Path, split: str | None) -> Split:
    """Read the table of one split, or of all. Raises DataError when a split or a shard is missing or cut off."""
    import pyarrow.parquet as pq

    index = read_index(folder)
    if split is not None and split not in index["splits"]:
        raise DataError(f"{folder} has no split {split!r}.", f"its splits are {', '.join(index['splits'])}.")
    for name, shard in index["shards"].items():
        if split in (None, shard["split"]):
            _check_size(folder / name, shard["size"])
    try:
        table = pq.read_table(folder / TABLE, filters=None if split is None else [("split", "=", split)])
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder / TABLE}: {error}.", "run mlic pack again with --fresh.") from None
    names = table.column("shard").to_pylist()
    shards = sorted(set(names))
    number = {name: i for i, name in enumerate(shards)}
    labels = tuple(index["labels"])
    flat = table.column("target").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Split(
        split or "all", labels, tuple(folder / name for name in shards),
        tuple(table.column("key").to_pylist()), tuple(table.column("file").to_pylist()),
        flat.astype(np.int8).reshape(-1, len(labels)), np.array([number[name] for name in names], dtype=np.int64),
        table.column("offset").to_numpy(), table.column("size").to_numpy(), index["fingerprint"],
    )  # fmt: skip


def _check_size(path: Path, expected: int) -> None:
    hint = "run the same mlic pack command again with --fresh."
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"the shard {path} is missing.", hint) from None
    if size != expected:
        raise DataError(f"the shard {path} has {size:,} bytes where index.json says {expected:,}.", hint)
