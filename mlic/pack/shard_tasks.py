"""Write planned shards by Ray tasks, one task per shard, and verify them."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster import pool
from mlic.cluster.resources import Share
from mlic.config.data import PackConfig
from mlic.config.types import Location
from mlic.data import shards, storage
from mlic.data.pixels import images
from mlic.data.sources.image_listing import Listing, Reader
from mlic.errors import ClusterError, DataError, PartialError
from mlic.pack import shard_plan, shard_writer
from mlic.runs.files import disk_errors, temporary, write_atomic
from mlic.runs.progress import Progress

logger = logging.getLogger(__name__)

_ALLOWED_BAD = 10  # up to this many unreadable images never stop pack, even in a small folder


@dataclass(frozen=True)
class _Settings:
    """What all tasks of one pack have in common."""

    out: Location
    labels: tuple[str, ...]
    max_pixels: int
    expansion: shard_plan.Expansion


def write_all(
    config: PackConfig,
    plan: Sequence[shard_plan.ShardPlan],
    samples: shard_plan.Samples,
    labels: tuple[str, ...],
    expansion: shard_plan.Expansion,
    share: Share,
    bad: Mapping[str, str],
) -> list[shard_plan.Written]:
    """Write the missing shards; returns the accounts of all shards in the order of the plan.

    `bad` are the images that are known to be bad already. Raises DataError when there are more of them than the
    settings allow and PartialError when it is interrupted.
    """
    done = {written.name: written for written in _already_written(config.out, plan)}
    todo = [shard for shard in plan if shard.name not in done]
    progress = Progress(logger, "pack", len(todo), "shards", "images")
    known = dict(bad)
    for written in done.values():
        known |= dict(written.bad)
    settings = _Settings(config.out, labels, config.max_pixels, expansion)
    total = len(samples) + len(bad)
    try:
        stop_at_too_many_bad(config, known, total)
        jobs = (_Job(shard, samples.take(shard.rows)) for shard in todo)
        for written in _written(jobs, settings, share.workers):
            done[written.name] = written
            known |= dict(written.bad)
            progress.add(written.samples, len(written.bad))
            stop_at_too_many_bad(config, known, total)
    except KeyboardInterrupt:
        raise PartialError(
            f"stopped after {len(done):,} of {len(plan):,} shards.", "run the same command again to resume."
        ) from None
    return [done[shard.name] for shard in plan]


def stop_at_too_many_bad(config: PackConfig, bad: Mapping[str, str], total: int) -> None:
    """Raise DataError when more of `total` images are bad, by name with the reason, than the settings allow."""
    if not bad:
        return
    file, reason = min(bad.items())
    hint = "fix or remove them, or allow more by --max-bad SHARE."
    if config.on_bad == "fail":
        raise DataError(f"{file} cannot be read: {reason}.", "fix or remove it, or give --on-bad quarantine.")
    if len(bad) > max(_ALLOWED_BAD, config.max_bad * total):
        raise DataError(
            f"{len(bad):,} images cannot be read, more than max_bad allows ({config.max_bad:.1%}); "
            f"the first is {file}: {reason}.",
            hint,
        )


@dataclass(frozen=True)
class _Job:
    """A shard to write and its samples; `skip` has the numbers of samples that are not to be opened, with reasons."""

    plan: shard_plan.ShardPlan
    samples: shard_plan.Samples
    skip: Mapping[int, str] = field(default_factory=dict)


def _written(jobs: Iterator[_Job], settings: _Settings, workers: int) -> Iterator[shard_plan.Written]:
    """Write shards by tasks and yield each when it is ready.

    If workers die at a shard, it is written again without the images that kill them.
    """
    lost: list[_Job] = []
    for job, written in pool.run(_write_shard, jobs, settings, workers, lambda job: [job], lambda *_: None):
        if written is None:
            lost.append(job)
        else:
            yield written
    for job in lost:
        rows = [(i, job.samples.listing.take(np.array([i]))) for i in range(len(job.samples))]
        skip: dict[int, str] = {}
        for some, reasons in pool.run(_try, iter([rows]), settings, workers, _halves, _deadly):
            skip |= {some[i][0]: reason for i, reason in reasons.items()}
        again = iter([_Job(job.plan, job.samples, skip)])
        for _, written in pool.run(_write_shard, again, settings, workers, lambda job: [job], _give_up):
            if written is not None:
                yield written


def _halves(rows: list[Any]) -> list[list[Any]]:
    half = len(rows) // 2
    return [rows[:half], rows[half:]] if half else [rows]


def _deadly(_: list[Any], reason: str) -> dict[int, str]:
    return {0: reason}


def _give_up(job: _Job, reason: str) -> None:
    raise ClusterError(
        f"the workers that write {job.plan.name} die one after another: {reason}.",
        "look at the memory that a worker has, or give a smaller --shard-mb with --fresh.",
    )


def _try(rows: list[tuple[int, Listing]], settings: _Settings) -> dict[int, str]:
    """A Ray task: open images as the writer does, to find out whether the process survives."""
    for _, listing in rows:
        with Reader(listing) as reader, contextlib.suppress(images.BadImage):
            data = reader.read(0)
            images.probe(data, settings.max_pixels)
            if settings.expansion.versions:
                images.decode(data, "rgb", settings.max_pixels)
    return {}


def _write_shard(job: _Job, settings: _Settings) -> shard_plan.Written | None:
    """A Ray task: write a shard and then its account. Each gets its final name only when it is complete."""
    plan = job.plan
    path = settings.out / plan.name
    with disk_errors(path):
        if isinstance(path, Path):
            with temporary(path) as part:
                written, table = _write_to(part, job, settings)
                part.replace(path)
        else:
            with tempfile.TemporaryDirectory(prefix="mlic-pack-") as folder:
                part = Path(folder) / plan.name
                written, table = _write_to(part, job, settings)
                storage.upload(part, path)
    write_atomic(_account(settings.out, plan.name), shard_writer.dump_account(written, table))
    return written


def _write_to(part: Path, job: _Job, settings: _Settings) -> tuple[shard_plan.Written, Any]:
    with part.open("wb") as file:
        return shard_writer.write(
            job.plan, job.samples, settings.labels, file, settings.max_pixels, settings.expansion, job.skip
        )


def _account(out: Location, name: str) -> Location:
    return out / f".{name}.parquet"


def _already_written(out: Location, plan: Sequence[shard_plan.ShardPlan]) -> Iterator[shard_plan.Written]:
    """Shards of an earlier attempt that are there with their account and in their full size."""
    there = set(storage.names(out))
    for shard in plan:
        account = _account(out, shard.name)
        if f".{shard.name}.parquet" not in there or shard.name not in there:
            continue
        try:
            written = shard_writer.parse_written(storage.read(account))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is written again: its summary cannot be read (%s)", shard.name, error)
            continue
        if storage.size(out / shard.name) == written.size:
            yield written


def tables(out: Location, names: Sequence[str]) -> Iterator[Any]:
    """The tables of written shards, one after the other."""
    for name in names:
        yield shard_writer.parse_account(storage.read(_account(out, name)))[1]


def remove_accounts(out: Location) -> None:
    """Remove the accounts of single shards, once the index and the table contain their content."""
    for name in storage.names(out):
        if name.startswith(".") and name.endswith(".tar.parquet"):
            storage.delete(out / name)


def verify_all(out: Location, index: Mapping[str, Any], max_pixels: int, share: Share) -> None:
    """Read every shard and compare it with the index. Raises DataError that names the first wrong one."""
    progress = Progress(logger, "verify", len(index["shards"]), "shards", "images")
    wrong: dict[str, str] = {}
    done = pool.run(
        _verify_shard,
        iter(index["shards"].items()),
        (out, max_pixels),
        share.workers,
        lambda shard: [shard],
        lambda shard, why: (shard[0], f"is not to be read: {why}"),
    )
    for _, (name, reason) in done:
        if reason is not None:
            wrong[name] = reason
        progress.add(index["shards"][name]["samples"], 0)
    if wrong:
        name, reason = min(wrong.items())
        raise DataError(
            f"{len(wrong):,} of {len(index['shards']):,} shards are not what was written; {name} {reason}.",
            f"remove {'it' if len(wrong) == 1 else 'them'} and run the same command again.",
        )


def _verify_shard(job: tuple[str, Mapping[str, Any]], settings: tuple[Location, int]) -> tuple[str, str | None]:
    """A Ray task: what is wrong with a shard, or None."""
    name, expected = job
    out, max_pixels = settings
    return name, shards.verify((out / name), expected, max_pixels)
