"""Predict images with a model: Ray actors predict parts, which are merged in the order of the keys.

`OUT.parts/`, beside the output, holds one Parquet file per part, and index.json. A stopped run keeps its parts: a part
gets its final name only when it is complete. The code uses plain actors instead of Ray Data. They give exact resume,
the order and a reason for every bad image without extra work, at half of the CPU time.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.batch_predict import prediction_files
from mlic.batch_predict.actor import Items, Predictor, Trail
from mlic.batch_predict.inference import INSTEAD
from mlic.batch_predict.merge import PredictReport, check_out, exists, merge, missing, part_at, parts_of, sha256
from mlic.cluster import pool, shared_folders
from mlic.cluster.connect import connect, is_embedded
from mlic.cluster.resources import Share, task_share
from mlic.config.predict import PredictConfig
from mlic.config.types import STDOUT, Backend, Location
from mlic.data import image_sources, storage
from mlic.data.image_listing import Listing
from mlic.data.shards import INDEX, Split, read_split
from mlic.errors import ClusterError, ConfigError, DataError, PartialError
from mlic.model import bundle, runtimes
from mlic.runs.files import fingerprint
from mlic.runs.progress import Progress
from mlic.runs.run import Run, read_state

logger = logging.getLogger(__name__)

_FEW = 1000  # with fewer images, preparing a faster backend takes longer than it saves
_HERE = 500  # images, at most, that are predicted in this process
_ATTEMPTS = 40  # at a part whose workers die during the work, before the part fails


def predict(config: PredictConfig) -> PredictReport:
    """Predict every image of a folder or of shards; one that cannot be decoded is listed with its reason.

    Every image found is a row of the output or a row of the errors, in the order of the keys. Raises DataError for a
    bad model or input or a name that the format cannot hold, ConfigError where the output belongs to something else
    and PartialError when it is interrupted or parts failed.
    """
    model = bundle.read(config.model)
    _check_engine(config, model)
    items = list_items(config.images, config.split)
    out = config.out or (STDOUT if _is_one_image(config.images) else Path("predictions.tsv").absolute())
    if out != STDOUT:
        return _predict_to(config, out, model, items).model_copy(update={"max_bad": config.max_bad})
    here = None if is_embedded(config.address) else Path.cwd()  # a folder that other nodes can see
    with tempfile.TemporaryDirectory(prefix=".mlic-predict-", dir=here) as scratch:
        file = Path(scratch) / "predictions.tsv"
        report = _predict_to(config, file, model, items)
        rows = file.read_text(encoding="utf-8")
    if report.bad == report.found:
        raise DataError(f"none of the images in {config.images} can be read: {report.first_bad}.", "give another file.")
    logger.info("found %d = %d predicted + %d bad", report.found, report.predicted, report.bad)
    return report.model_copy(update={"out": STDOUT, "errors": None, "rows": rows, "max_bad": config.max_bad})


def _is_one_image(images: Location) -> bool:
    return image_sources.is_image(images.name) and not storage.is_folder(images)


def _predict_to(config: PredictConfig, out: Location, model: bundle.Bundle, items: Items) -> PredictReport:
    """Predict the items into a file or a folder of files, with the folder of parts beside it."""
    if out.suffix.lower() == ".txt":
        prediction_files.check_plain(items.files)
    values = prediction_files.resolve_values(out.suffix.lower(), config.values)
    check_out(out, config.fresh)
    parts = parts_of(out)
    inputs = {
        "model": model.fingerprint,
        "images": items.source.fingerprint() if isinstance(items.source, Listing) else _of_split(items.source),
    }
    with Run.open(parts, "batch-predict", config, inputs, config.fresh) as run:
        if run.finished and exists(out):
            report = PredictReport(**run.report)
            if sha256(out) != report.sha256:
                logger.warning("%s has changed since it was written; writing it again", out)
            elif (report.values, report.top_k) == (values, config.top_k):
                return report
        if run.finished:
            run.reopen()
        count = -(-len(items) // config.chunk)
        todo = missing(parts, count)
        if todo:
            bundle.check_weights(config.model)
            _predict_parts(config, model, items, count, todo, run)
        report = merge(config, out, model, values, parts, count)
        run.finish(report)
    return report


def list_items(images: Location, name: str | None) -> Items:
    """The images to predict, sorted by key: those of a folder or archive, or the samples of shards or of one split.

    Where images would have the same key, such as a.jpg and a.png, their keys contain the extension.
    """
    if storage.size(images / INDEX) is not None:
        split = read_split(images, name)
        if not len(split):
            raise DataError(f"the split {name!r} of {images} is empty.", "name another --split.")
        order = pc.sort_indices(split.keys)
        columns = (column.take(order).cast(pa.binary()) for column in (split.keys, split.files))
        return Items(split, order.to_numpy(), *columns)
    if name is not None:
        raise ConfigError(f"--split is for shards, and {images} is a folder of images.", "leave --split out.")
    listing = image_sources.list_images(images)
    if listing.others:
        logger.info("skipped %d files in %s without an image extension", listing.others, images)
    keys = listing.with_distinct_keys().keys
    return Items(listing, np.arange(len(listing)), keys, listing.paths)


def _of_split(split: Split) -> str:
    return fingerprint(split.fingerprint, split.name)


def _check_engine(config: PredictConfig, model: bundle.Bundle) -> None:
    """Raise ConfigError for an engine or a precision that the model does not support."""
    if model.export is None:
        if config.precision == "bf16" and config.backend in ("onnx", "compile"):
            raise ConfigError(
                f"the backend {config.backend} computes in fp32.", "--backend torch or openvino for bf16."
            )
        if config.backend != "auto":
            runtimes.check(config.backend)
        return
    runtimes.check_runs(model.export.engine)
    alone = config.workers == "auto" and is_embedded(config.address)
    if not alone and importlib.util.find_spec("ray") is None:
        raise ClusterError("--workers and --address need Ray, which is not installed.", "leave them out.")
    if config.backend not in ("auto", model.export.engine):
        raise ConfigError(
            f"{config.model} is an export to {model.export.engine}, which {config.backend} does not run.",
            "leave --backend out, or name the run that it was made from.",
        )
    if config.precision != "fp32":
        raise ConfigError("the precision of an export was settled when it was made.", "mlic export --precision bf16.")


def _backend(config: PredictConfig, model: bundle.Bundle, count: int, run: Run[Location]) -> Backend:
    """The backend for `count` images. It is the same in every attempt, and has no effect for an export."""
    if config.backend != "auto" or model.export:
        return "torch" if config.backend == "auto" else config.backend
    noted: Backend | None = (read_state(run.folder) or {}).get("backend")
    best = runtimes.best()
    if config.precision == "bf16" and best == "onnx":
        best = "torch"
    backend = noted or ("torch" if count < _FEW else best)
    run.note(backend=backend)
    return backend


def _is_here(config: PredictConfig, model: bundle.Bundle, count: int) -> bool:
    """Whether this process predicts the images: if there are few, or with an export if Ray is not installed."""
    if config.workers != "auto" or not is_embedded(config.address):
        return False
    return count <= _HERE or (model.export is not None and importlib.util.find_spec("ray") is None)


def _predict_parts(
    config: PredictConfig, model: bundle.Bundle, items: Items, count: int, todo: Sequence[int], run: Run[Location]
) -> None:
    """Predict the missing parts. Few images are predicted in this process, which is faster than starting Ray."""
    parts, backend = run.folder, _backend(config, model, len(items), run)
    progress = Progress(logger, "predict", len(todo), "parts", "images")
    failed: dict[int, str] = {}
    warned: set[str] = set()
    try:
        if _is_here(config, model, len(items)):
            for rows, bad, used in _make_here(config, items, todo, parts, backend):
                warned.add(used)
                progress.add(rows, bad)
        else:
            with connect(config.address) as cluster:
                shared_folders.check_shared(cluster, parts, config.images, config.model)
                share = task_share(cluster, config.workers, use_gpus=True)
                for number, rows, bad, used, error in _map_parts(config, items, todo, parts, share, backend):
                    warned.add(used)
                    if error is not None:
                        failed[number] = error
                        logger.warning("part %d failed: %s", number, error)
                    progress.add(rows, bad)
    except KeyboardInterrupt:
        left = len(missing(parts, count))
        raise PartialError(
            f"stopped after {count - left:,} of {count:,} parts.",
            "run the same command again to resume.",
        ) from None
    warned.discard("")  # of a part that failed
    for used in sorted(warned - {"torch", model.export.engine if model.export else backend}):
        logger.log(logging.WARNING if INSTEAD in used else logging.INFO, "computed by %s", used)
    before = (read_state(parts) or {}).get("computed_by") or []
    run.note(computed_by=sorted({*before, *warned}))
    if failed:
        number, error = min(failed.items())
        raise PartialError(
            f"{len(failed)} of {count} parts failed; part {number}: {error}.",
            "run the same command again.",
        )


def _make_here(
    config: PredictConfig, items: Items, todo: Sequence[int], parts: Location, backend: Backend
) -> Iterator[tuple[int, int, str]]:
    """Predict parts in this process; yields (rows, bad rows, backend)."""
    predictor = Predictor(config, backend, here=True)
    for number in todo:
        part = items.part(number * config.chunk, (number + 1) * config.chunk)
        yield predictor.run(part, part_at(parts, number))


def _map_parts(
    config: PredictConfig,
    items: Items,
    todo: Sequence[int],
    parts: Location,
    share: Share,
    backend: Backend,
) -> Iterator[tuple[int, int, int, str, str | None]]:
    """Assign parts to idle actors until all are done; yields (part, rows, bad rows, backend, error).

    A part whose actor dies is predicted again, one image at a time. Raises ClusterError when actors die again and again
    before they have begun.
    """

    def task(number: int) -> tuple[Items, Location]:
        return items.part(number * config.chunk, (number + 1) * config.chunk), part_at(parts, number)

    def attempts(number: int) -> int:
        return Trail.attempts(part_at(parts, number))

    for number, result, why in pool.run_on_actors(Predictor, (config, backend), share, todo, task, attempts, _ATTEMPTS):
        rows, bad, used = result or (0, 0, "")
        yield number, rows, bad, used, why
