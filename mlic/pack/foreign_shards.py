"""Index the shards of another program where they lie, so that they are trained on without a copy."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlic.cluster import shared_folders
from mlic.cluster.connect import connect
from mlic.cluster.resources import task_share
from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import shards, storage
from mlic.errors import ConfigError, DataError
from mlic.pack import summary as accounts
from mlic.pack.image_scan import forget
from mlic.pack.inputs import PackInputs, find
from mlic.pack.pack import arrange
from mlic.pack.shard_plan import Samples, Written
from mlic.pack.shard_tasks import stop_at_too_many_bad
from mlic.pack.shard_writer import table_bytes
from mlic.pack.summary import Seen

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_ROWS = 100_000  # of the table written at a time


def index_if_needed(folder: Location, address: str | None) -> None:
    """Write the index and the table of a folder of tar shards that has none; do nothing for any other folder.

    The images stay where they are. Splits are those that the shards are named after, else those that `mlic pack` makes
    by default. Raises DataError for shards whose labels cannot be read, and ConfigError for a folder that is read-only.
    """
    if not shards.is_foreign(folder):
        return
    if isinstance(folder, Path) and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{folder} has no {shards.INDEX}, and it is read-only.",
            f"mlic pack {folder} --labels {folder} writes shards of its own to ./shards.",
        )
    config = PackConfig(images=folder, labels=folder, out=folder)
    inputs = find(config)
    if inputs.listing.members is None:
        raise DataError(f"{folder} holds loose images beside its shards.", "move them to another folder.")
    logger.info("%s holds shards of another program; they are indexed first", folder)
    logger.info("%s", "\n".join(inputs.about.lines()))
    with connect(address) as cluster:
        shared_folders.check_shared(cluster, folder, folder)
        samples, seen = arrange(config, inputs, task_share(cluster, "auto", use_gpus=False))
    stop_at_too_many_bad(config, seen.bad, len(inputs.listing))
    if not len(samples):
        raise DataError(f"none of the {len(seen.bad):,} images in {folder} can be read.", "check the folder.")
    _write(config, inputs, samples, seen)
    forget(folder)


def _write(config: PackConfig, inputs: PackInputs, samples: Samples, seen: Seen) -> None:
    """Write the table, what was left out and the index."""
    folder, members, scanned = config.out, samples.listing.members, seen.scanned
    if members is None or scanned is None:
        raise AssertionError("images of archives have members, and are scanned to find near-duplicates")
    names = [_name(folder, archive) for archive in samples.listing.archives]
    shard = np.array(names, dtype=object)[members["container"]]
    rows = (np.arange(i, min(i + _ROWS, len(samples))) for i in range(0, len(samples), _ROWS))
    table = table_bytes(_table(inputs, samples.take(some), members[some], shard[some], scanned[some]) for some in rows)
    written = _by_split(inputs, samples, names, members, scanned["digest"])
    account, trouble = accounts.settle(seen, written)
    index = accounts.index(config, inputs.labels, inputs.source, seen, account, trouble, inputs.splits, written)
    index |= {"records": False, "shards": _shards(written, names, samples.listing.archives)}
    accounts.warn(trouble, index["label_counts"], index["leakage"])
    accounts.write_files(folder, trouble, table, index)
    accounts.warn_of_depths([kind.decode() for kind in scanned["kind"].tolist()])
    report = accounts.report(config, index, account.packed_labelled + account.packed_unlabelled)
    logger.info("%s", report.told("indexed", "in"))


def _name(folder: Location, archive: Location) -> str:
    """An archive's name within the folder."""
    above = str(folder).partition("?")[0].rstrip("/") + "/"
    return str(archive).partition("?")[0].removeprefix(above)


def _by_split(inputs: PackInputs, samples: Samples, names: list[str], members: Array, digests: Array) -> list[Written]:
    """What each shard holds of each split, with a digest of those images in place of that of the shard."""
    parts = []
    code = members["container"].astype(np.int64) * len(inputs.splits) + samples.split
    order = np.argsort(code, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
        number, split = divmod(int(code[rows[0]]), len(inputs.splits))
        targets = samples.targets[rows]
        digest = hashlib.sha256(digests[rows].tobytes() + targets.tobytes()).hexdigest()
        counts = tuple(int(count) for count in (targets == 1).sum(axis=0))
        unlabelled = int((~(targets == 1).any(axis=1)).sum())
        parts.append(Written(names[number], inputs.splits[split], 0, digest, len(rows), counts, unlabelled, ()))
    return parts


def _shards(written: list[Written], names: list[str], archives: Sequence[Location]) -> dict[str, dict[str, Any]]:
    """The shards as the index describes them, with all splits of each."""
    described: dict[str, dict[str, Any]] = {
        name: {"split": [], "samples": 0, "size": storage.size(archive)}
        for name, archive in zip(names, archives, strict=True)
    }
    for part in written:
        described[part.name]["split"].append(part.split)
        described[part.name]["samples"] += part.samples
    return described


def _table(inputs: PackInputs, samples: Samples, members: Array, shard: Array, scanned: Array) -> Any:
    """Rows of samples.parquet, with the columns that `mlic pack` writes."""
    count, width = samples.targets.shape
    columns = {
        "key": pa.array([_text(key) for key in samples.listing.keys.to_pylist()], pa.string()),
        "file": pa.array([_text(path) for path in samples.listing.paths.to_pylist()], pa.string()),
        "split": pa.array([inputs.splits[i] for i in samples.split.tolist()], pa.string()),
        "shard": pa.array(shard.tolist(), pa.string()),
        "offset": pa.array(members["offset"], pa.int64()),
        "size": pa.array(samples.listing.sizes, pa.int64()),
        "width": pa.array(scanned["width"], pa.int32()),
        "height": pa.array(scanned["height"], pa.int32()),
        "format": pa.array([kind.decode() for kind in scanned["kind"].tolist()], pa.string()),
        "sha256": pa.array([digest.tobytes().hex() for digest in scanned["digest"]], pa.string()),
        "group": pa.array(np.full(count, -1) if samples.group is None else samples.group, pa.int64()),
        "fold": pa.array(np.full(count, -1), pa.int16()),
        "version": pa.array(np.zeros(count), pa.int16()),
        "target": pa.ListArray.from_arrays(
            pa.array(np.arange(count + 1) * width, pa.int32()), pa.array(samples.targets.ravel(), pa.int8())
        ),
    }
    return pa.table(columns)


def _text(name: bytes) -> str:
    """A name as text; bytes that are no UTF-8 are shown, as in the table of `mlic pack`."""
    return name.decode("utf-8", "backslashreplace")
