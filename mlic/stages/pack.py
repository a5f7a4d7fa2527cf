"""Images and label files to shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import Run, disk_errors, fingerprint, temporary, write_atomic, write_json
from mlic.config import Model, PackConfig, result_settings
from mlic.data import images, labels, shards
from mlic.data.annotations import read_annotations
from mlic.data.splits import random_split, stratified_split
from mlic.errors import DataError, PartialError
from mlic.stages.progress import Progress
from mlic.stages.scan import forget, scan

logger = logging.getLogger(__name__)

_ALLOWED_BAD = 10  # so many unreadable images never stop pack, whatever their share of a small folder is
_LISTED = 20  # of each kind of trouble, the first so many are named in the index


class Account(Model):
    """Where everything that was found went; `found` is the sum of the others."""

    found: int
    packed_labelled: int
    packed_unlabelled: int
    missing: int
    unreadable: int
    duplicate: int

    def balances(self) -> bool:
        kept = self.packed_labelled + self.packed_unlabelled
        return self.found == kept + self.missing + self.unreadable + self.duplicate


class PackReport(Model):
    """What `pack` wrote.

    `label_counts` are the packed images with the label, by label in order; `near_duplicates` the images that are kept
    in one split with others that are the same or nearly; `largest_deviation` says where a label is furthest from its
    share.
    """

    out: Path
    source: str
    samples: int
    shards: int
    splits: dict[str, int]
    label_counts: dict[str, int]
    account: Account
    near_duplicates: int
    largest_deviation: str
    trouble: dict[str, list[str]]

    def text(self) -> str:
        a = self.account
        lines = [
            f"read {self.source}",
            f"packed {self.samples:,} samples into {self.shards} shards in {self.out}: "
            + ", ".join(f"{name} {count:,}" for name, count in self.splits.items()),
            f"found {a.found:,} = {a.packed_labelled:,} labelled + {a.packed_unlabelled:,} unlabelled"
            f" + {a.missing:,} missing + {a.unreadable:,} unreadable + {a.duplicate:,} duplicate",
            f"splits  {self.largest_deviation}; {self.near_duplicates:,} near-duplicates kept together",
            "labels  " + "  ".join(f"{label} {count:,}" for label, count in self.label_counts.items()),
        ]
        return "\n".join(lines)


def pack(config: PackConfig) -> PackReport:
    """Pack images and labels into shards, one Ray task a shard; shards that are whole already are kept.

    The shards are a pure function of the listing, the labels and the settings: the same bytes for any number of
    workers and however often the command was stopped on the way. Raises DataError for folders, label files or more
    unreadable images than `max_bad` allows, and PartialError when it is interrupted.
    """
    listing, others = images.list_images(config.images)
    annotations = read_annotations(config.labels, config.format)
    unique, duplicates = _unique(listing)
    labels.check_names(annotations.labels)
    joined = labels.join(annotations, [file.path for file in unique])
    if others:
        logger.info("passed over %d files in %s that are no images by their name", others, config.images)
    inputs = {
        "images": fingerprint([(file.path, file.size, file.mtime_ns) for file in listing]),
        "labels": fingerprint(annotations.labels, sorted((n, sorted(m.items())) for n, m in annotations.marks.items())),
    }
    with Run.open(config.out, "pack", config, inputs, config.fresh) as run:
        if run.finished and _whole(config.out):
            return PackReport(**run.report)
        if run.finished:
            logger.warning("%s has lost shards since it was packed; they are written again", config.out)
            (config.out / shards.INDEX).unlink(missing_ok=True)
            run.reopen()
        with cluster_ray.connect(config.address) as cluster:
            cluster_ray.check_shared(cluster, config.out, config.images)
            share = cluster_ray.task_share(cluster, config.workers, use_gpus=False)
            known = fingerprint(sorted(inputs.items()), config.max_pixels)
            groups, bad = _groups(config, unique, share, known)
            seen = _Seen(unique, joined, duplicates, [(unique[i].path, why) for i, why in bad.items()], groups)
            plan = _plan(config, unique, joined, groups, bad)
            written = _write_all(config, plan, annotations.labels, share, seen.bad)
        report = _finish(config, annotations, seen, written)
        run.finish(report)
        _remove_accounts(config.out)
        forget(config.out)
    return report


@dataclass(frozen=True)
class _Seen:
    """What was found before anything was written; `groups` (N,) numbers the groups of `files` that stay together."""

    files: Sequence[images.ImageFile]
    joined: labels.Joined
    duplicates: Sequence[str]
    bad: Sequence[tuple[str, str]]
    groups: np.ndarray[Any, Any] | None

    @property
    def grouped(self) -> int:
        """How many images share their group with another."""
        if self.groups is None:
            return 0
        sizes = np.bincount(self.groups)
        return int(sizes[sizes > 1].sum())


def _unique(listing: Sequence[images.ImageFile]) -> tuple[list[images.ImageFile], list[str]]:
    """Of files with the same key keep the first by name; the others are duplicates."""
    first: dict[str, images.ImageFile] = {}
    duplicates = []
    for file in listing:
        kept = first.setdefault(file.key, file)
        if kept is not file:
            duplicates.append(f"{file.path} has the key of {kept.path}")
    return list(first.values()), duplicates


def _groups(
    config: PackConfig, files: Sequence[images.ImageFile], share: cluster_ray.Share, known: str
) -> tuple[np.ndarray[Any, Any] | None, dict[int, str]]:
    """The groups (N,) that a split must not cut, where it looks at them, and the files that cannot be read."""
    if config.split_by == "random" or config.group_by == "none":
        return None, {}
    found = scan(files, config.images, config.out, config.max_pixels, share, known)
    return found.groups(config.group_by), found.bad


def _plan(
    config: PackConfig, files: Sequence[images.ImageFile], joined: labels.Joined, groups: np.ndarray[Any, Any] | None,
    bad: Mapping[int, str],
) -> tuple[shards.ShardPlan, ...]:  # fmt: skip
    usable = np.array([i for i in range(len(files)) if i not in bad], dtype=np.int64)
    if config.split_by == "random":
        parts = random_split(len(usable), config.split, config.seed)
    else:
        within = None if groups is None else groups[usable]
        parts = stratified_split(joined.targets[usable], within, config.split, config.seed)
    sources = {
        split: [
            shards.Source(files[i].key, files[i].path, files[i].size, tuple(joined.targets[i].tolist()))
            for i in usable[part]
        ]
        for split, part in zip(config.split, parts, strict=True)
    }
    return shards.plan(sources, config.shard_mb, config.min_shards, config.seed)


def _write_all(
    config: PackConfig, plan: Sequence[shards.ShardPlan], names: Sequence[str], share: cluster_ray.Share,
    bad_before: Sequence[tuple[str, str]],
) -> list[shards.Written]:  # fmt: skip
    """Write the shards that are not there yet; `bad_before` are the images that are known to be bad already."""
    done = {written.name: written for written in _already_written(config.out, plan)}
    todo = [shard for shard in plan if shard.name not in done]
    progress = Progress(logger, "pack", len(todo), "shards", "images")
    bad = [*bad_before, *(item for written in done.values() for item in written.bad)]
    limit = max(_ALLOWED_BAD, config.max_bad * (len(bad_before) + sum(len(shard.samples) for shard in plan)))
    try:
        _stop_at_too_many_bad(config, bad, limit)
        for written in _map_shards(config, todo, names, share.workers):
            done[written.name] = written
            bad += written.bad
            progress.add(len(written.samples), len(written.bad))
            _stop_at_too_many_bad(config, bad, limit)
    except KeyboardInterrupt:
        raise PartialError(
            f"stopped after {len(done):,} of {len(plan):,} shards.", "run the same command again to go on."
        ) from None
    return [done[shard.name] for shard in plan]


def _stop_at_too_many_bad(config: PackConfig, bad: Sequence[tuple[str, str]], limit: float) -> None:
    if len(bad) > limit:
        file, reason = bad[0]
        raise DataError(
            f"{len(bad):,} images cannot be read, more than max_bad allows ({config.max_bad:.1%}); "
            f"the first is {file}: {reason}.",
            "mend or remove them, or allow more by --max-bad SHARE.",
        )


def _map_shards(
    config: PackConfig, todo: Sequence[shards.ShardPlan], names: Sequence[str], workers: int
) -> Iterator[shards.Written]:
    """Write shards by Ray tasks, as many at a time as there are workers, and yield them as they come."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(_write_shard)
    settings = ray.put((tuple(names), config.images, config.out, config.max_pixels))
    waiting = list(reversed(todo))
    running: set[Any] = set()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.add(task.remote(waiting.pop(), settings))
            ready, rest = ray.wait(list(running), num_returns=1)
            running = set(rest)
            for reference in ready:
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
    finally:  # after an error nothing goes on writing behind the back of the next attempt
        for reference in running:
            ray.cancel(reference, force=True)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=10)


def _write_shard(plan: shards.ShardPlan, settings: tuple[tuple[str, ...], Path, Path, int]) -> shards.Written:
    """One Ray task: write a shard and, after it, its account, each under its final name only when it is whole."""
    names, folder, out, max_pixels = settings
    path = out / plan.name
    with disk_errors(path), temporary(path) as part:
        with part.open("wb", buffering=2**20) as file:
            written = shards.write(plan, names, folder, file, max_pixels)
        part.replace(path)
    write_atomic(_account_path(out, plan.name), shards.dump_written(written))
    return written


def _account_path(out: Path, name: str) -> Path:
    return out / f".{name}.json"


def _already_written(out: Path, plan: Sequence[shards.ShardPlan]) -> Iterator[shards.Written]:
    """Shards of an earlier attempt that are there with their account and in their full size."""
    for shard in plan:
        account = _account_path(out, shard.name)
        if not account.is_file() or not (out / shard.name).is_file():
            continue
        try:
            written = shards.parse_written(account.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is written again: its account does not read (%s)", shard.name, error)
            continue
        if (out / shard.name).stat().st_size == written.size:
            yield written


def _whole(out: Path) -> bool:
    """Whether everything that the index names is there in its full size."""
    try:
        shards.read_split(out, None)
    except DataError as error:
        logger.debug("%s", error)
        return False
    return True


def _finish(
    config: PackConfig, annotations: labels.Annotations, seen: _Seen, written: Sequence[shards.Written]
) -> PackReport:
    """Add everything up, see that it balances, and write the table and, last, the index."""
    samples = [sample for shard in written for sample in shard.samples]
    bad = sorted([*seen.bad, *(item for shard in written for item in shard.bad)])
    unlabelled = sum(1 not in sample.target for sample in samples)
    account = Account(
        found=len(seen.files) + len(seen.duplicates) + len(seen.joined.missing),
        packed_labelled=len(samples) - unlabelled, packed_unlabelled=unlabelled,
        missing=len(seen.joined.missing), unreadable=len(bad), duplicate=len(seen.duplicates),
    )  # fmt: skip
    if not account.balances():
        raise AssertionError(f"the account does not balance: {account}")
    if not samples:
        raise DataError(f"none of the {len(bad):,} images in {config.images} can be read.", "check the folder.")
    trouble = {
        "unreadable": [f"{file}: {reason}" for file, reason in bad],
        "missing": [f"{name} ({annotations.where[name]}) names no image" for name in seen.joined.missing],
        "duplicate": list(seen.duplicates),
    }
    for kind, items in trouble.items():
        for item in items[:3]:
            logger.warning("%s: %s", kind, item)
        if len(items) > 3:
            logger.warning("%s: and %s more; index.json lists the first %d", kind, f"{len(items) - 3:,}", _LISTED)
    counts = _label_counts(annotations.labels, samples)
    index = _index(config, annotations, account, {k: v[:_LISTED] for k, v in trouble.items()}, seen, written)
    write_atomic(config.out / shards.TABLE, shards.table_bytes(written))
    write_json(config.out / shards.INDEX, index)
    return PackReport(
        out=config.out, source=annotations.source, samples=len(samples), shards=len(written),
        splits={name: split["samples"] for name, split in index["splits"].items()}, label_counts=counts,
        account=account, near_duplicates=seen.grouped, largest_deviation=_largest_deviation(config, index),
        trouble={k: v[:3] for k, v in trouble.items() if v},
    )  # fmt: skip


def _largest_deviation(config: PackConfig, index: Mapping[str, Any]) -> str:
    """The label and split whose share of the label's samples is furthest from the split's share, in words."""
    total = sum(config.split.values())
    found = [
        (abs(split["label_counts"][label] / count - config.split[name] / total), label, name)
        for name, split in index["splits"].items()
        for label, count in index["label_counts"].items()
        if count
    ]
    worst, label, name = max(found, default=(0.0, "no label", next(iter(config.split))))
    return f"largest deviation of a label's share {worst:.1%} ({label} in {name})"


def _label_counts(names: Sequence[str], samples: Sequence[shards.Packed]) -> dict[str, int]:
    counts = [0] * len(names)
    for sample in samples:
        for label, value in enumerate(sample.target):
            counts[label] += value == 1
    return dict(zip(names, counts, strict=True))


def _index(
    config: PackConfig, annotations: labels.Annotations, account: Account, trouble: Mapping[str, Any],
    seen: _Seen, written: Sequence[shards.Written],
) -> dict[str, Any]:  # fmt: skip
    splits: dict[str, Any] = {}
    for split in config.split:
        samples = [sample for shard in written if shard.split == split for sample in shard.samples]
        splits[split] = {"samples": len(samples), "label_counts": _label_counts(annotations.labels, samples)}
    everything = [sample for shard in written for sample in shard.samples]
    return {
        "format": 1,
        "kind": "shards",
        "labels": list(annotations.labels),
        "samples": len(everything),
        "label_counts": _label_counts(annotations.labels, everything),
        "splits": splits,
        "account": account.model_dump(),
        "near_duplicates": seen.grouped,
        "trouble": trouble,
        "settings": result_settings(config),
        "fingerprint": fingerprint(annotations.labels, [(shard.name, shard.sha256) for shard in written]),
        "shards": {
            shard.name: {
                "split": shard.split, "samples": len(shard.samples), "size": shard.size, "sha256": shard.sha256,
            }
            for shard in written
        },
    }  # fmt: skip


def _remove_accounts(out: Path) -> None:
    """The index holds what the shards' own accounts held."""
    for path in out.glob(".*.tar.json"):
        path.unlink()
