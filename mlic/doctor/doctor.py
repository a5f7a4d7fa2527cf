"""Check shards before training. Above all: do the labels belong to the images?"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlic.cluster import pool
from mlic.cluster.connect import connect_unless_few
from mlic.cluster.resources import Cluster, task_share
from mlic.config.base import Model
from mlic.config.data import DoctorConfig
from mlic.config.types import AnyPath, Location
from mlic.data import storage
from mlic.data.pixels import images
from mlic.data.shards import Split, check_sizes, holds, natural_order, read_index, read_sample, read_split, read_table
from mlic.doctor import features as features_of
from mlic.doctor.alignment import Alignment, Stretch, doubtful, probe, stretches
from mlic.errors import DataError, MlicError
from mlic.metrics.measurement import aligned
from mlic.runs.files import fingerprint, write_json

logger = logging.getLogger(__name__)

_CHUNK = 500
_FEW_FILES = 4096
_LITTLE_DISK, _LITTLE_SHM = 2 * 2**30, 64 * 2**20
_CONSTANT_SHARE = 0.01
_LISTED = 5
_MISSING_SHARE = 0.005
_KEPT = "doctor.json"


class Check(Model):
    """The result of one check."""

    name: str
    status: Literal["ok", "note", "warning", "error"]
    text: str


class DoctorReport(Model):
    """The results of all checks. None of them is an error, because the stage would have raised it."""

    shards: AnyPath
    checks: tuple[Check, ...]

    def text(self) -> str:
        return "\n".join(aligned([["check", "", ""], *([c.name, c.status, c.text] for c in self.checks)], left=3))


def doctor(config: DoctorConfig) -> DoctorReport:
    """Examine shards. The result is stored beside them and reused as long as they are the same.

    Raises DataError when the labels do not belong to the images, as far as images can tell.
    """
    index = read_index(config.shards)
    known = fingerprint(index["fingerprint"], config.max_samples, config.seed)
    check_sizes(config.shards, index, None)  # the kept answer is for whole shards
    stored = None if config.fresh else _read_kept(config.shards, known)
    if stored is None:
        count = min(config.max_samples, index["samples"])
        with connect_unless_few(config.address, config.workers, count) as cluster:
            stored = _look(config, index, cluster)
        with contextlib.suppress(MlicError):  # a read-only folder keeps no result; the next call checks again
            write_json(
                (config.shards / _KEPT),
                {
                    "format": 1,
                    "kind": "doctor",
                    "fingerprint": known,
                    "checks": [check.model_dump() for check in stored],
                },
            )
    checks = [
        *stored,
        _labels(index),
        _account(index),
        _leakage(config.shards),
        _readers(index, config.ranks),
        *_machine(config.shards),
    ]
    for check in checks:
        if check.status == "warning":
            logger.warning("%s: %s", check.name, check.text)
    errors = [check for check in checks if check.status == "error"]
    if errors:
        raise DataError(
            f"{config.shards}: {errors[0].text}",
            "look at some images beside their labels, fix the join and pack again; --no-doctor trains all the same.",
        )
    return DoctorReport(shards=config.shards, checks=tuple(checks))


def _read_kept(shards: Location, known: str) -> list[Check] | None:
    try:
        document = json.loads(storage.read(shards / _KEPT))
    except (OSError, ValueError):
        return None
    return [Check(**check) for check in document["checks"]] if document.get("fingerprint") == known else None


def _look(config: DoctorConfig, index: dict[str, Any], cluster: Cluster) -> list[Check]:
    """The checks that need the images themselves."""
    split = read_split(config.shards, "train" if index["splits"].get("train", {}).get("samples") else None)
    chosen = np.random.default_rng([config.seed, 8]).permutation(len(split))[: config.max_samples]
    chosen = chosen[natural_order([split.key(i) for i in chosen])]
    split = split.take(chosen)
    extracted, differ = _features(split, cluster, config)
    bad = np.isnan(extracted[:, 0])
    features, targets = extracted[~bad], split.targets[~bad]
    keys = [split.key(i) for i in np.flatnonzero(~bad).tolist()]
    checks = [_alignment(probe(features, targets, config.seed))]
    if checks[0].status == "ok":
        checks.append(_stretches(stretches(features, targets, config.seed), keys))
        worst = [keys[i] for i in doubtful(features, targets, config.seed, _LISTED).tolist()]
        text = f"labels that agree least with their images: {', '.join(worst)}"
        checks.append(Check(name="doubtful", status="note", text=text))
    if index.get("records", True):  # shards of another program hold records of its own
        checks.append(_records(differ, split))
    return [*checks, _pixels(features, bad)]


def _features(split: Split, cluster: Cluster, config: DoctorConfig) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Features (N, F) of the samples, NaN where one cannot be decoded, and samples whose record has other labels."""
    share = task_share(cluster, config.workers, use_gpus=False)
    extracted, differ = np.full((len(split), features_of.NUM_FEATURES), np.nan, dtype=np.float32), list[int]()
    starts = range(0, len(split), _CHUNK)
    numbers = (np.arange(start, min(start + _CHUNK, len(split))) for start in starts)
    pieces = ((some, split.take(some)) for some in numbers)
    for (some, _), (features, rows) in pool.run(_extract, pieces, None, share.workers, _halves, _deadly):
        extracted[some] = features
        differ += [int(some[row]) for row in rows]
    return extracted, sorted(differ)


_Piece = tuple[np.ndarray[Any, Any], Split]  # numbers of samples, and the samples


def _halves(piece: _Piece) -> list[_Piece]:
    numbers, split = piece
    parts = [part for part in np.array_split(np.arange(len(numbers)), 2) if len(part)]
    return [(numbers[part], split.take(part)) for part in parts]


def _deadly(_piece: _Piece, _reason: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The result for a sample that kills every process that opens it: that of a sample that cannot be decoded."""
    return np.full((1, features_of.NUM_FEATURES), np.nan, dtype=np.float32), []


def _extract(piece: _Piece, _shared: None) -> tuple[np.ndarray[Any, Any], list[int]]:
    """A Ray task: features (n, F) of images in shards, with a row of NaN for an image that cannot be decoded.

    Also returns the numbers of the samples whose record in the shard has another key or other labels than the table.
    """
    _, split = piece
    features = np.full((len(split), features_of.NUM_FEATURES), np.nan, dtype=np.float32)
    differ = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(split.open_shard(number)) for number in range(len(split.shards))]
        for row in range(len(split)):
            data, record = read_sample(files[split.shard[row]], int(split.offsets[row]), int(split.sizes[row]))
            if record is not None and not _says_the_same(record, split, row):
                differ.append(row)
            with contextlib.suppress(images.BadImage):
                features[row] = features_of.extract(data, images.MAX_PIXELS)
    return features, differ


def _says_the_same(record: dict[str, Any], split: Split, row: int) -> bool:
    target = split.targets[row]
    return (
        record.get("key") == split.key(row)
        and set(record.get("labels", [])) == {split.labels[i] for i in np.flatnonzero(target == 1)}
        and set(record.get("unknown", [])) == {split.labels[i] for i in np.flatnonzero(target == -1)}
    )


def _records(differ: Sequence[int], split: Split) -> Check:
    if not differ:
        return Check(name="label order", status="ok", text="the records in the shards name the labels of the table")
    text = (
        f"the labels do not belong to the images: of {len(split):,} records in the shards {len(differ):,} name other "
        f"labels than the table by the order of index.json (the first is {split.key(differ[0])!r})."
    )
    return Check(name="label order", status="error", text=text)


def _stretches(lost: Sequence[Stretch], keys: Sequence[str]) -> Check:
    if not lost:
        return Check(name="stretches", status="ok", text="the labels belong to the images from the first to the last")
    first = lost[0]
    text = (
        f"the labels do not belong to the images from about {keys[first.start]!r} to about {keys[first.end - 1]!r}"
        + (f", and in {len(lost) - 1} more places." if len(lost) > 1 else ".")
    )
    return Check(name="stretches", status="error", text=text)


def _alignment(answer: Alignment) -> Check:
    numbers = (
        f"AUC {answer.auc:.3f} of {answer.labels} labels over {answer.samples:,} samples from crude image features; "
        f"shuffled labels give {answer.chance:.3f} +- {answer.spread:.3f}"
    )
    if answer.verdict == "not aligned":
        text = f"the labels do not belong to the images: they are predicted no better than shuffled ones ({numbers})."
        return Check(name="alignment", status="error", text=text)
    if answer.verdict == "unsure":
        return Check(name="alignment", status="note", text=f"too few samples or too rare labels to tell ({numbers})")
    return Check(name="alignment", status="ok", text=numbers)


def _pixels(found: np.ndarray[Any, Any], bad: np.ndarray[Any, Any]) -> Check:
    contrast = found[:, 48:96].max(axis=1) if len(found) else np.zeros(0)
    constant = int((contrast < 1e-3).sum())
    text = f"{constant:,} of {len(found):,} images are of one colour, {int(bad.sum()):,} cannot be decoded"
    wrong = constant > _CONSTANT_SHARE * max(1, len(found)) or bad.any()
    return Check(name="pixels", status="warning" if wrong else "ok", text=text)


def _labels(index: dict[str, Any]) -> Check:
    """If a split has no positive sample of a label, the label cannot be learnt, thresholded or measured there."""
    lacking = [
        f"{label} in {split}"
        for split, counts in index["splits"].items()
        if counts["samples"] or split in ("train", "val")  # a split without any sample is not used
        for label, count in counts["label_counts"].items()
        if not count
    ]
    if lacking:
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        return Check(
            name="labels", status="warning", text=f"no positive sample of {', '.join(lacking[:_LISTED])}{more}"
        )
    fewest = min((count, label) for label, count in index["label_counts"].items())
    text = f"{len(index['labels'])} labels, each in every split; the rarest is {fewest[1]} with {fewest[0]:,}"
    return Check(name="labels", status="ok", text=text)


def _account(index: dict[str, Any]) -> Check:
    """If a name in the label files matches no image, its labels are lost."""
    account = index["account"]
    share = account["missing"] / max(1, account["packed_labelled"] + account["missing"])
    text = f"{account['missing']:,} annotated names are no image ({share:.1%}), {account['unreadable']:,} unreadable"
    return Check(name="account", status="warning" if share > _MISSING_SHARE else "ok", text=text)


def _leakage(shards: Location) -> Check:
    """Duplicates and near-duplicates in two splits are learnt in one and measured in the other; so are versions."""
    table = read_table(shards, ["key", "split", "sha256", "group", "version"]).to_pandas()
    originals = table[table["version"] == 0]
    kinds = [("byte for byte", originals, "sha256"), ("nearly", table[table["group"] >= 0], "group")]
    for how, rows, column in kinds:
        crossing = rows.groupby(column)["split"].transform("nunique") > 1
        if crossing.any():
            first = rows[crossing].sort_values(column)["key"].tolist()[:2]
            text = f"{int(crossing.sum()):,} images are {how} in more than one split ({' and '.join(first)})"
            return Check(name="leakage", status="warning", text=text)
    if (table.loc[table["version"] > 0, "split"] != "train").any():
        return Check(name="leakage", status="warning", text="augmented versions are outside of the training split")
    known = "no image is the same or nearly the same in two splits"
    if (table["group"] < 0).all():
        known = "no image is byte for byte in two splits; near-duplicates were not looked for"
    return Check(name="leakage", status="ok", text=known)


def _readers(index: dict[str, Any], ranks: int) -> Check:
    """Are there enough samples and shards for the ranks?

    mlic reads samples by offset, so each rank gets its own samples, however few shards there are. Programs that stream
    whole shards need one shard for each rank.
    """
    name = "train" if "train" in index["splits"] else next(iter(index["splits"]))
    samples = index["splits"][name]["samples"]
    count = sum(holds(shard, name) for shard in index["shards"].values())
    text = f"{samples:,} samples of {name} in {count:,} shards for {ranks:,} rank{'s' * (ranks > 1)}"
    if samples < 2 * ranks:
        return Check(name="shards", status="warning", text=f"{text}: a rank needs two samples")
    if count < ranks:
        text += f"; other programs that stream shards need --min-shards {ranks}"
        return Check(name="shards", status="note", text=text)
    return Check(name="shards", status="ok", text=text)


def _machine(shards: Location) -> list[Check]:
    folder = shards if isinstance(shards, Path) else Path(tempfile.gettempdir())
    disk, files = shutil.disk_usage(folder).free, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    rows = [("disk", disk < _LITTLE_DISK, f"{disk / 2**30:,.1f} GB free in {folder}")]
    if Path("/dev/shm").is_dir():  # noqa: S108 - macOS has none
        shm = shutil.disk_usage("/dev/shm").free  # noqa: S108
        rows.append(("shared memory", shm < _LITTLE_SHM, f"{shm / 2**30:,.1f} GB free in /dev/shm"))
    rows += [
        ("open files", files < _FEW_FILES, f"a process may open {files:,} files (ulimit -n)"),
    ]
    return [Check(name=name, status="warning" if little else "ok", text=text) for name, little, text in rows]
