"""A model and images to predictions: Ray actors, one part per work item, parts merged in the order of the keys.

Beside the output lies `OUT.parts/` with a Parquet file a part and index.json. A stopped run keeps its parts; each gets
its final name only when it is whole. Plain actors and not Ray Data: exact resume, order and a reason for
every bad image come for free, at half of the CPU time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import Run, disk_errors, fingerprint, read_state, temporary, write_atomic, write_json
from mlic.config import PredictConfig
from mlic.data import predictions, sources, storage
from mlic.data.shards import INDEX, Split, read_split
from mlic.data.sources import Listing
from mlic.errors import ClusterError, ConfigError, DataError, PartialError
from mlic.model import backends, bundle
from mlic.schema import Model
from mlic.score import thresholds
from mlic.score.calibration import Calibration
from mlic.stages.predictor import Items, Predictor, Trail
from mlic.stages.progress import Progress
from mlic.values import Backend

logger = logging.getLogger(__name__)

_FEW = 1000  # images for which a backend takes longer to be made than it saves
_HERE = 500  # images, at most, that are predicted in this process
_ATTEMPTS = 40  # at a part, with workers that die in the middle of it
_IN_VAIN = 6  # workers that die one after another without having begun


class PredictReport(Model):
    """What was predicted; `found` is `predicted` plus `bad`, and `errors` is the file that names the bad ones."""

    out: Path
    model: Path
    fingerprint: str
    sha256: str
    values: str
    top_k: int
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
    bad model or input or a name that the format cannot hold, ConfigError where the output belongs to something else
    and PartialError when it is interrupted or parts failed.
    """
    model = bundle.read(config.model)
    items = list_items(config)
    if config.out.suffix == ".txt":
        predictions.check_plain(items.files)
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
            if _sha256(config.out) != report.sha256:
                logger.warning("%s was changed since it was written; it is written again", config.out)
            elif (report.values, report.top_k) == (values, config.top_k):
                return report
        if run.finished:
            run.reopen()
        count = -(-len(items) // config.chunk)
        todo = [number for number in range(count) if not _part(parts, number).is_file()]
        if todo:
            bundle.check_weights(config.model)
            _predict_parts(config, items, count, todo, run)
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
        order = pc.sort_indices(split.keys)
        columns = (column.take(order).cast(pa.binary()) for column in (split.keys, split.files))
        return Items(split, order.to_numpy(), *columns)
    if config.split is not None:
        raise ConfigError(f"--split is for shards, and {config.images} is a folder of images.", "leave --split out.")
    listing = sources.list_images(config.images)
    if listing.others:
        logger.info("passed over %d files in %s that are no images by their name", listing.others, config.images)
    _, doubled, kept = listing.unique()
    full = np.zeros(len(listing), dtype=bool)
    full[doubled], full[kept] = True, True
    keys = pc.if_else(pa.array(full), listing.paths, listing.keys) if full.any() else listing.keys
    return Items(listing, np.arange(len(listing)), keys, listing.paths)


def _of_split(split: Split) -> str:
    return fingerprint(split.fingerprint, split.name)


def _backend(config: PredictConfig, count: int, run: Run[Path]) -> Backend:
    """The backend for so many images, the same in every attempt. Raises ConfigError when it is not installed."""
    noted = (read_state(run.folder) or {}).get("backend")
    if config.backend != "auto":
        backends.check(config.backend)
        return config.backend
    found: Backend = noted or ("torch" if count < _FEW else backends.best())
    run.note(backend=found)
    return found


def _predict_parts(config: PredictConfig, items: Items, count: int, todo: Sequence[int], run: Run[Path]) -> None:
    """Make the parts that are missing: here when there are few images, which are done before a Ray has started."""
    parts, backend = run.folder, _backend(config, len(items), run)
    progress = Progress(logger, "predict", len(todo), "parts", "images")
    failed: dict[int, str] = {}
    said: set[str] = set()
    try:
        if len(items) <= _HERE and config.workers == "auto" and cluster_ray.is_embedded(config.address):
            for rows, bad, used in _make_here(config, items, todo, parts, backend):
                said.add(used)
                progress.add(rows, bad)
        else:
            with cluster_ray.connect(config.address) as cluster:
                cluster_ray.check_shared(cluster, parts, config.images, config.model)
                share = cluster_ray.task_share(cluster, config.workers, use_gpus=True)
                for number, rows, bad, used, error in _map_parts(config, items, todo, parts, share, backend):
                    said.add(used)
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
    for used in sorted(said - {"", backend}):
        logger.warning("computed by %s", used)
    before = (read_state(parts) or {}).get("computed_by") or []
    run.note(computed_by=sorted({*before, *said} - {""}))
    if failed:
        number, error = min(failed.items())
        raise PartialError(
            f"{len(failed)} of {count} parts failed; part {number}: {error}.",
            "run the same command again.",
        )


def _make_here(
    config: PredictConfig, items: Items, todo: Sequence[int], parts: Path, backend: Backend
) -> Iterator[tuple[int, int, str]]:
    """Make parts in this process; yields (rows, bad rows, backend)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(config, backend, device)
    for number in todo:
        part = items.part(number * config.chunk, (number + 1) * config.chunk)
        yield predictor.run(part, _part(parts, number))


def _map_parts(
    config: PredictConfig,
    items: Items,
    todo: Sequence[int],
    parts: Path,
    share: cluster_ray.Share,
    backend: Backend,
) -> Iterator[tuple[int, int, int, str, str | None]]:
    """Give parts to idle actors until all are done; yields (part, rows, bad rows, backend, error).

    An actor that dies is replaced, and does its part again, with care. Raises ClusterError when actors die again and
    again before they have begun.
    """
    import ray

    actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0)(Predictor)
    idle: list[Any] = [actor.remote(config, backend) for _ in range(min(share.workers, len(todo)))]
    waiting = list(reversed(todo))
    running: dict[Any, tuple[int, Any]] = {}
    begun, in_vain = dict.fromkeys(todo, 0), 0
    while waiting or running:
        while waiting and idle:
            number, worker = waiting.pop(), idle.pop()
            part = items.part(number * config.chunk, (number + 1) * config.chunk)
            begun[number] = Trail.attempts(_part(parts, number))
            running[worker.run.remote(part, _part(parts, number))] = (number, worker)
        for reference in cluster_ray.done(running):
            number, worker = running.pop(reference)
            try:
                yield number, *ray.get(reference), None
                in_vain = 0
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError as error:
                why = " ".join(str(error).split())[:200]
                attempts = Trail.attempts(_part(parts, number))
                in_vain = 0 if attempts > begun[number] else in_vain + 1
                if in_vain >= _IN_VAIN:
                    raise ClusterError(
                        f"{in_vain} workers died before they began, one after another: {why}.",
                        "look at the memory that each worker has; -v shows Ray's own log.",
                    ) from None
                if attempts >= _ATTEMPTS:
                    yield number, 0, 0, "", why
                else:
                    logger.warning("a worker died at part %d, which is done again with care", number)
                    waiting.append(number)
                worker = actor.remote(config, backend)
            idle.append(worker)


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.parquet"


def _merge(
    config: PredictConfig, model: bundle.Bundle, values: predictions.Values, parts: Path, count: int
) -> PredictReport:
    """Write the output from the parts in their order, the errors beside it, and the index."""
    errors: list[tuple[str, str]] = []

    def good() -> Iterator[predictions.Predictions]:
        for number in range(count):
            part, bad = _read_part(_part(parts, number), model, config.top_k or model.top_k)
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
        top_k=config.top_k,
        found=predicted + len(errors), predicted=predicted, bad=len(errors), errors=named if errors else None,
    )  # fmt: skip
    index = {
        "format": 1, "kind": "predictions", "model": model.fingerprint, "labels": list(model.labels),
        "thresholds": dict(zip(model.labels, model.thresholds, strict=True)),
        "threshold_fit": model.threshold_fit, "calibration": model.calibration,
        "values": values, "top_k": config.top_k or model.top_k, "scores": "float32, in text six significant digits",
        "versions": (read_state(parts) or {}).get("versions"),
        "computed_by": (read_state(parts) or {}).get("computed_by"),
        "found": report.found, "predicted": predicted, "bad": len(errors), "parts": count,
    }  # fmt: skip
    write_json(parts / INDEX, index)
    return report


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_part(path: Path, model: bundle.Bundle, top_k: int) -> tuple[predictions.Predictions, list[tuple[str, str]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    keys, files, errors = (table.column(name).to_pylist() for name in ("key", "file", "error"))
    flat = table.column("scores").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    scores = flat.reshape(len(keys), len(model.labels))
    good = [i for i, error in enumerate(errors) if error is None]
    calibrated = Calibration.read(model.calibration).apply(scores[good])
    part = predictions.Predictions(
        model.labels, tuple(keys[i] for i in good), tuple(files[i] for i in good), calibrated,
        thresholds.decide(calibrated, np.array(model.thresholds), top_k),
    )  # fmt: skip
    return part, [(file, error) for file, error in zip(files, errors, strict=True) if error is not None]
