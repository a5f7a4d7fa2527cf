"""The pack summary: what happened to every input, label counts per split, and index.json."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.base import Model, result_settings
from mlic.config.data import PackConfig
from mlic.config.types import AnyPath, Location
from mlic.data import shards
from mlic.data.sources.image_listing import Listing
from mlic.pack import shard_plan
from mlic.pack.splits import leakage
from mlic.runs.files import fingerprint, write_atomic, write_json

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

LEFT_OUT = "left_out.tsv"
_LISTED = 20  # the index names at most this many items of each kind of problem


class Account(Model):
    """What happened to everything that was found; `found` is the sum of the other counts."""

    found: int
    packed_labelled: int
    packed_unlabelled: int
    dropped: int
    missing: int
    unreadable: int
    duplicate: int
    not_annotated: int = 0

    def balances(self) -> bool:
        packed = self.packed_labelled + self.packed_unlabelled
        left_out = self.dropped + self.missing + self.unreadable + self.duplicate + self.not_annotated
        return self.found == packed + left_out


class PackReport(Model):
    """What `pack` wrote.

    `images` counts the packed images, and `samples` their versions. `label_counts` are the numbers of samples with each
    label, in order. `near_duplicates` counts the images that are kept in one split with others that are the same or
    nearly the same. `largest_deviation` says where a label is furthest from its share. `leakage` counts the groups that
    lie in more than one split. `corrected` counts the labels that --corrections has changed, and `appended` the images
    that --append has packed beside the others; it is None without --append.
    """

    out: AnyPath
    source: str
    images: int
    samples: int
    shards: int
    splits: dict[str, int]
    folds: int
    label_counts: dict[str, int]
    account: Account
    near_duplicates: int | None
    leakage: int | None
    largest_deviation: str
    trouble: dict[str, list[str]]
    corrected: int = 0
    appended: int | None = None

    def text(self) -> str:
        return self.told("packed", "into")

    def told(self, done: str, where: str) -> str:
        """The report in words: what was done with the samples, in or into the shards."""
        a = self.account
        versions = f" of {self.images:,} images" if self.images != self.samples else ""
        dropped = f" + {a.dropped:,} dropped" if a.dropped else ""
        groups = "near-duplicates not looked for"
        if self.near_duplicates is not None:
            groups = f"{self.near_duplicates:,} near-duplicates, leakage {self.leakage:,}"
        lines = [
            f"read {self.source}",
            *([] if self.appended is None else [f"appended {self.appended:,} new images; the shards are now:"]),
            f"{done} {self.samples:,} samples{versions} {where} {self.shards} shard{'s' * (self.shards != 1)} in "
            f"{self.out}: " + ", ".join(f"{name} {count:,}" for name, count in self.splits.items()),
            f"found {a.found:,} = {a.packed_labelled:,} labelled + {a.packed_unlabelled:,} unlabelled{dropped}"
            f" + {a.missing:,} missing + {a.unreadable:,} unreadable + {a.duplicate:,} duplicate"
            + (f" + {a.not_annotated:,} not annotated" if a.not_annotated else ""),
            *([f"corrected {self.corrected:,} labels that the label files have otherwise"] if self.corrected else []),
            f"splits  {self.largest_deviation}; {groups}",
            "labels  " + "  ".join(f"{label} {count:,}" for label, count in self.label_counts.items()),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Seen:
    """What was found before anything was written.

    `files` are the images that were to be packed, with `group` and `targets` as in shard_plan.Samples. The rest is not
    packed, as (name, reason): `duplicate`, `missing`, `bad`, `not_annotated`; `dropped` and `corrected` are numbers.
    `scanned` (N,) is what image_scan.Scan has of each file, if they were scanned. `is_dealt` says that the splits have
    the shares of the settings, and were not kept from before.
    """

    files: Listing
    targets: Array
    split: Array
    group: Array | None
    dropped: int
    duplicate: Sequence[tuple[str, str]] = ()
    missing: Sequence[tuple[str, str]] = ()
    bad: Mapping[str, str] = field(default_factory=dict)
    corrected: int = 0
    not_annotated: Sequence[tuple[str, str]] = ()
    scanned: Array | None = None
    is_dealt: bool = True

    @property
    def grouped(self) -> int | None:
        """How many images share their group with another."""
        if self.group is None:
            return None
        sizes = np.unique(self.group, return_counts=True)[1]
        return int(sizes[sizes > 1].sum())


def settle(seen: Seen, written: Sequence[shard_plan.Written]) -> tuple[Account, dict[str, list[tuple[str, str]]]]:
    """The account, and everything that was left out by kind. Raises AssertionError when it does not balance."""
    late = {file: reason for shard in written for file, reason in shard.bad}
    lost = np.zeros(len(seen.files), bool)
    if late:
        names = pa.array([os.fsencode(file) for file in late], pa.large_binary())
        lost = pc.is_in(seen.files.paths, value_set=names).to_numpy(zero_copy_only=False)
    unlabelled = ~(seen.targets == 1).any(axis=1)
    trouble = {
        "unreadable": sorted((dict(seen.bad) | late).items()),
        "missing": list(seen.missing),
        "duplicate": list(seen.duplicate),
        "not_annotated": list(seen.not_annotated),
    }
    account = Account(
        found=len(seen.files)
        + seen.dropped
        + len(seen.bad)
        + sum(len(items) for items in (seen.duplicate, seen.missing, seen.not_annotated)),
        packed_labelled=int((~lost & ~unlabelled).sum()),
        packed_unlabelled=int((~lost & unlabelled).sum()),
        dropped=seen.dropped,
        **{kind: len(items) for kind, items in trouble.items()},
    )
    if not account.balances():
        raise AssertionError(f"the pack summary does not add up: {account}")
    return account, trouble


def warn(trouble: Mapping[str, Sequence[tuple[str, str]]], counts: Mapping[str, int], leaking: int | None) -> None:
    """Say what needs a look: images left out, labels without a sample, groups in two splits."""
    for kind, items in trouble.items():
        for name, reason in items[:3]:
            logger.warning("%s: %s: %s", kind.replace("_", " "), name, reason)
        if len(items) > 3:
            logger.warning("%s: and %s more, all in %s", kind, f"{len(items) - 3:,}", LEFT_OUT)
    empty = [label for label, count in counts.items() if not count]
    if empty:
        logger.warning("no image has the label %s", ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else ""))
    if leaking:
        logger.warning("%d groups of identical or near-duplicate images are in more than one split", leaking)


def warn_of_depths(kinds: Sequence[str]) -> None:
    """Say how many images have pixels of more than 8 bits, and what they were scaled from, or other channels."""
    deep = Counter(kind.partition(" (")[2].rstrip(")") for kind in kinds if " (" in kind)
    if deep:
        logger.warning(
            "%s images have more than 8 bits a pixel and are scaled to 8 from %s; mlic train --bits 16 keeps them",
            f"{sum(deep.values()):,}",
            ", ".join(f"{said} ({count:,})" for said, count in deep.most_common()),
        )

    channels = Counter(kind for kind in kinds if kind.startswith("TIFF of "))
    if channels:
        logger.warning(
            "%s images have more channels than colours (%s), which mlic train --channels N keeps",
            f"{sum(channels.values()):,}",
            ", ".join(f"{kind} ({count:,})" for kind, count in channels.most_common()),
        )


def left_out(trouble: Mapping[str, Sequence[tuple[str, str]]]) -> bytes:
    """All that was left out as a table: kind, name, reason."""
    text = io.StringIO()
    rows = csv.writer(text, delimiter="\t", lineterminator="\n")
    rows.writerow(("kind", "name", "reason"))
    rows.writerows((kind, *item) for kind, items in trouble.items() for item in items)
    return text.getvalue().encode("utf-8", "backslashreplace")


def index(
    config: PackConfig,
    labels: tuple[str, ...],
    source: str,
    seen: Seen,
    account: Account,
    trouble: Mapping[str, Sequence[tuple[str, str]]],
    names: Sequence[str],
    written: Sequence[shard_plan.Written],
) -> dict[str, Any]:
    """index.json: everything about the shards but their samples."""
    total = sum(config.split.values())
    counts = _counts(labels, written)
    is_given = not seen.is_dealt or any(
        (config.split_column, config.split_files, config.keep_test)
    )  # then a split's size is its target
    images = (seen.targets == 1).sum(axis=0)  # of each label; versions of an image are not counted in shares
    splits: dict[str, Any] = {}
    for name in names:
        of_split = [shard for shard in written if shard.split == name]
        inside = seen.split == names.index(name)
        share = (seen.targets[inside] == 1).sum(axis=0) / np.maximum(1, images)
        splits[name] = {
            "samples": sum(shard.samples for shard in of_split),
            "images": int(inside.sum()),
            "target_share": float(inside.mean()) if is_given else config.split.get(name, 0.0) / total,
            "label_counts": _counts(labels, of_split),
            "label_shares": dict(zip(labels, share.tolist(), strict=True)),
        }
    return {
        "format": 1,
        "kind": "shards",
        "labels": list(labels),
        "samples": sum(shard.samples for shard in written),
        "label_counts": counts,
        "splits": splits,
        "folds": config.folds,
        "account": account.model_dump(),
        "corrected": seen.corrected,
        "near_duplicates": _groups(seen),
        "leakage": None if seen.group is None else leakage(seen.split, seen.group),
        "trouble": {kind: [f"{name}: {reason}" for name, reason in items[:_LISTED]] for kind, items in trouble.items()},
        "source": source,
        "settings": result_settings(config),
        "fingerprint": fingerprint(labels, [(shard.name, shard.sha256) for shard in written]),
        "shards": {
            shard.name: {"split": shard.split, "samples": shard.samples, "size": shard.size, "sha256": shard.sha256}
            for shard in written
        },
    }


def _counts(labels: Sequence[str], written: Sequence[shard_plan.Written]) -> dict[str, int]:
    totals = np.zeros(len(labels), np.int64)
    for shard in written:
        totals += np.array(shard.label_counts, np.int64)
    return dict(zip(labels, totals.tolist(), strict=True))


def _groups(seen: Seen) -> dict[str, Any] | None:
    """The groups of the same or nearly the same images: how many, how many images, and the first of them by name."""
    if seen.group is None:
        return None
    names, sizes = np.unique(seen.group, return_counts=True)
    repeated = names[sizes > 1]
    first = [[seen.files.path(int(i)) for i in np.flatnonzero(seen.group == name)[:10]] for name in repeated[:_LISTED]]
    return {"groups": len(repeated), "images": seen.grouped, "examples": first}


def largest_deviation(index: Mapping[str, Any]) -> str:
    """The label and split whose share of the label's samples is furthest from the split's share, in words."""
    worst, label, name = max(
        (
            (abs(share - split["target_share"]), label, name)
            for name, split in index["splits"].items()
            for label, share in split["label_shares"].items()
            if index["label_counts"][label]
        ),
        default=(0.0, "no label", "any split"),
    )
    return f"largest deviation of a label's share {worst:.1%} ({label} in {name})"


def report(config: PackConfig, index: Mapping[str, Any], images: int) -> PackReport:
    """The report, made from the index."""
    groups = index["near_duplicates"]
    return PackReport(
        out=config.out,
        source=index["source"],
        images=images,
        samples=index["samples"],
        shards=len(index["shards"]),
        splits={name: split["samples"] for name, split in index["splits"].items()},
        folds=config.folds,
        label_counts=index["label_counts"],
        account=Account(**index["account"]),
        near_duplicates=None if groups is None else groups["images"],
        leakage=index["leakage"],
        largest_deviation=largest_deviation(index),
        trouble={k: v[:3] for k, v in index["trouble"].items() if v},
        corrected=index["corrected"],
    )


def write_files(
    out: Location, trouble: Mapping[str, Sequence[tuple[str, str]]], table: bytes, index: Mapping[str, Any]
) -> None:
    """Write the table, the list of what was left out and, last, the index."""
    write_atomic((out / LEFT_OUT), left_out(trouble))
    write_atomic((out / shards.TABLE), table)
    write_json((out / shards.INDEX), index)
