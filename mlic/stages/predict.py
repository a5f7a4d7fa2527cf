"""A model and images to predictions: Ray actors, one part per work item, parts merged in the order of the keys.

Beside the output lies `OUT.parts/` with a Parquet file a part and index.json. A stopped run keeps its parts; each gets
its final name only when it is whole. Plain actors and not Ray Data: exact resume, order and a reason for
every bad image come for free, at half of the CPU time.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import Run, disk_errors, fingerprint, temporary, write_atomic, write_json
from mlic.config import PredictConfig
from mlic.data import predictions, sources, storage
from mlic.data.shards import INDEX, Split, read_split
from mlic.data.sources import Listing
from mlic.errors import ConfigError, DataError, PartialError
from mlic.model import bundle, losses
from mlic.schema import Model
from mlic.score import thresholds
from mlic.score.calibration import Calibration
from mlic.stages.progress import Progress

logger = logging.getLogger(__name__)

_RETRIES = 3


@dataclass(frozen=True)
class Items:
    """N images to predict in the order of their keys: a listing of images, or the samples of shards.

    `keys` and `files` are text, made to fit a file; `rows` numbers them in `source`.
    """

    source: Listing | Split
    rows: np.ndarray[Any, Any]
    keys: Sequence[str]
    files: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, end: int) -> Items:
        """Those from `start` to `end`, fit to be sent to another process."""
        rows = self.rows[start:end]
        source = self.source.take(rows)
        return Items(source, np.arange(len(rows)), self.keys[start:end], self.files[start:end])


class PredictReport(Model):
    """What was predicted; `found` is `predicted` plus `bad`, and `errors` is the file that names the bad ones."""

    out: Path
    model: Path
    fingerprint: str
    sha256: str
    values: str
    found: int
    predicted: int
    bad: int
    errors: Path | None

    def text(self) -> str:
        lines = [
            f"found {self.found:,} = {self.predicted:,} predicted + {self.bad:,} bad",
            f"predictions  {self.out}",
        ]
        if self.errors is not None:
            lines.append(f"bad images   {self.errors}")
        return "\n".join(lines)


def predict(config: PredictConfig) -> PredictReport:
    """Predict every image of a folder or of shards; one that does not decode is listed with its reason.

    Every image found is a row of the output or a row of the errors, in the order of the keys. Raises DataError for a
    bad model or input, ConfigError where the output belongs to something else and PartialError when it is interrupted
    or parts failed.
    """
    model = bundle.read(config.model)
    items = list_items(config)
    values = predictions.resolve_values(config.out.suffix, config.values)
    if config.out.is_dir():
        raise ConfigError(f"the output {config.out} is a folder.", "name a file.")
    parts = config.out.with_name(config.out.name + ".parts")
    if config.out.exists() and not parts.exists() and not config.fresh:
        raise ConfigError(
            f"{config.out} exists and was not made by this command.", "name another file, or use --fresh."
        )
    inputs = {
        "model": model.fingerprint,
        "images": items.source.fingerprint() if isinstance(items.source, Listing) else _of_split(items.source),
    }
    with Run.open(parts, "batch-predict", config, inputs, config.fresh) as run:
        if run.finished and config.out.is_file():
            report = PredictReport(**run.report)
            if _sha256(config.out) == report.sha256:
                return report
            logger.warning("%s was changed since it was written; it is written again", config.out)
        if run.finished:
            run.reopen()
        count = -(-len(items) // config.chunk)
        todo = [number for number in range(count) if not _part(parts, number).is_file()]
        if todo:
            bundle.check_weights(config.model)
            _predict_parts(config, items, count, todo, parts)
        report = _merge(config, model, values, parts, count)
        run.finish(report)
    return report


def list_items(config: PredictConfig) -> Items:
    """The images to predict, sorted by key: those of a folder or archive, or the samples of shards.

    Images that would have the same key, a.jpg beside a.png, have their extension in it.
    """
    if storage.size(storage.join(config.images, INDEX)) is not None:
        split = read_split(config.images, config.split)
        if not len(split):
            raise DataError(f"the split {config.split!r} of {config.images} is empty.", "name another --split.")
        keys, files = split.keys.to_pylist(), split.files.to_pylist()
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return Items(split, np.array(order), [keys[i] for i in order], [files[i] for i in order])
    if config.split is not None:
        raise ConfigError(f"--split is for shards, and {config.images} is a folder of images.", "leave --split out.")
    listing = sources.list_images(config.images)
    if listing.others:
        logger.info("passed over %d files in %s that are no images by their name", listing.others, config.images)
    _, doubled, kept = listing.unique()
    full = {*doubled.tolist(), *kept.tolist()}
    files = [listing.path(i) for i in range(len(listing))]
    keys = [files[i] if i in full else listing.key(i) for i in range(len(listing))]
    return Items(listing, np.arange(len(listing)), keys, files)


def _of_split(split: Split) -> str:
    return fingerprint(split.fingerprint, split.name)


def _predict_parts(config: PredictConfig, items: Items, count: int, todo: Sequence[int], parts: Path) -> None:
    progress = Progress(logger, "predict", len(todo), "parts", "images")
    with cluster_ray.connect(config.address) as cluster:
        cluster_ray.check_shared(cluster, parts, config.images, config.model)
        share = cluster_ray.task_share(cluster, config.workers, use_gpus=True)
        failed: dict[int, str] = {}
        try:
            for number, rows, bad, error in _map_parts(config, items, todo, parts, share):
                if error is not None:
                    failed[number] = error
                    logger.warning("part %d failed: %s", number, error)
                progress.add(rows, bad)
        except KeyboardInterrupt:
            left = sum(not _part(parts, number).is_file() for number in range(count))
            raise PartialError(
                f"stopped after {count - left:,} of {count:,} parts.",
                "run the same command again to go on.",
            ) from None
    if failed:
        number, error = min(failed.items())
        raise PartialError(
            f"{len(failed)} of {count} parts failed; part {number}: {error}.",
            "run the same command again.",
        )


def _map_parts(
    config: PredictConfig,
    items: Items,
    todo: Sequence[int],
    parts: Path,
    share: cluster_ray.Share,
) -> Iterator[tuple[int, int, int, str | None]]:
    """Give parts to idle actors until all are done; yields (part, rows, bad rows, error)."""
    import ray

    actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=_RETRIES, max_task_retries=_RETRIES)(
        _Predictor
    )
    settings = (config.model, config.batch_size, config.max_pixels)
    idle: list[Any] = [actor.remote(*settings) for _ in range(min(share.workers, len(todo)))]
    waiting = list(reversed(todo))
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and idle:
            number, worker = waiting.pop(), idle.pop()
            part = items.part(number * config.chunk, (number + 1) * config.chunk)
            running[worker.run.remote(part, _part(parts, number))] = (number, worker)
        for reference in cluster_ray.done(running):
            number, worker = running.pop(reference)
            try:
                rows, bad = ray.get(reference)
                yield number, rows, bad, None
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError as error:
                yield number, 0, 0, " ".join(str(error).split())[:200]
                worker = actor.remote(*settings)
            idle.append(worker)


class _Predictor:
    """A Ray actor that holds the model and turns one work item after another into a part."""

    def __init__(self, path: Path, batch_size: int, max_pixels: int) -> None:
        import torch

        from mlic.data.augment import Normalizer

        self._torch = torch
        device = torch.device(cluster_ray.assigned_device())
        self._bundle, net = bundle.load_model(path)
        self._net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        prep = self._bundle.preprocessing
        self._normalize = Normalizer(prep.mean, prep.std, device)
        self._batch_size, self._max_pixels = batch_size, max_pixels

    def run(self, items: Items, out: Path) -> tuple[int, int]:
        """Predict the items and write their part; returns the numbers of rows and of bad ones."""
        from mlic.data.loader import ahead, decode_batch

        batches = [range(i, min(i + self._batch_size, len(items))) for i in range(0, len(items), self._batch_size)]
        scores, errors = [], []
        with items.source.opened() as read:

            def decode(batch: range) -> Any:
                readers = [functools.partial(read, i) for i in batch]
                return decode_batch(readers, self._bundle.preprocessing, self._max_pixels)

            for batch, (pixels, bad) in zip(batches, ahead(decode, batches, 1), strict=True):
                with self._torch.inference_mode():
                    logits = self._net(self._normalize(pixels))
                    scores.append(losses.scores(self._bundle.activation, logits).cpu().numpy())
                errors += [bad.get(position) for position in range(len(batch))]
        _write_part(out, items, np.concatenate(scores), errors)
        return len(items), sum(error is not None for error in errors)


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.parquet"


def _write_part(path: Path, items: Items, scores: np.ndarray[Any, Any], errors: Sequence[str | None]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(scores.astype(np.float32).ravel(), pa.float32())
    table = pa.table(
        {
            "key": pa.array([_text(key) for key in items.keys], pa.string()),
            "file": pa.array([_text(file) for file in items.files], pa.string()),
            "error": pa.array(errors, pa.string()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, scores.shape[1]),
        }
    )
    with disk_errors(path), temporary(path) as part:
        pq.write_table(table, part)
        os.replace(part, path)  # noqa: PTH105 - the counterpart of the write above


def _text(name: str) -> str:
    """A name as text that Parquet takes; bytes that are no UTF-8 are shown as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _merge(
    config: PredictConfig, model: bundle.Bundle, values: predictions.Values, parts: Path, count: int
) -> PredictReport:
    """Write the output from the parts in their order, the errors beside it, and the index."""
    errors: list[tuple[str, str]] = []

    def good() -> Iterator[predictions.Predictions]:
        for number in range(count):
            part, bad = _read_part(_part(parts, number), model)
            errors.extend(bad)
            yield part

    with disk_errors(config.out), temporary(config.out) as part:
        predicted = predictions.write(part, config.out.suffix, model.labels, values, good())
        os.replace(part, config.out)  # noqa: PTH105 - the counterpart of the write above
    named = config.out.with_name(config.out.name + ".errors.tsv")
    if errors:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerows([("Filename", "reason"), *errors])
        write_atomic(named, text.getvalue().encode("utf-8", "backslashreplace"))
        for file, reason in errors[:3]:
            logger.warning("%s: %s", file, reason)
        if len(errors) > 3:
            logger.warning("and %s more bad images, all in %s", f"{len(errors) - 3:,}", named)
    else:
        named.unlink(missing_ok=True)
    report = PredictReport(
        out=config.out, model=config.model, fingerprint=model.fingerprint, sha256=_sha256(config.out), values=values,
        found=predicted + len(errors), predicted=predicted, bad=len(errors), errors=named if errors else None,
    )  # fmt: skip
    index = {
        "format": 1, "kind": "predictions", "model": model.fingerprint, "labels": list(model.labels),
        "thresholds": dict(zip(model.labels, model.thresholds, strict=True)),
        "threshold_fit": model.threshold_fit, "calibration": model.calibration,
        "values": values, "found": report.found, "predicted": predicted, "bad": len(errors), "parts": count,
    }  # fmt: skip
    write_json(parts / INDEX, index)
    return report


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_part(path: Path, model: bundle.Bundle) -> tuple[predictions.Predictions, list[tuple[str, str]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    keys, files, errors = (table.column(name).to_pylist() for name in ("key", "file", "error"))
    flat = table.column("scores").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    scores = flat.reshape(len(keys), len(model.labels))
    good = [i for i, error in enumerate(errors) if error is None]
    calibrated = Calibration.read(model.calibration).apply(scores[good])
    part = predictions.Predictions(
        model.labels, tuple(keys[i] for i in good), tuple(files[i] for i in good), calibrated,
        thresholds.decide(calibrated, np.array(model.thresholds), model.top_k),
    )  # fmt: skip
    return part, [(file, error) for file, error in zip(files, errors, strict=True) if error is not None]
