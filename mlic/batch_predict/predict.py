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
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlic.batch_predict import prediction_files, update
from mlic.batch_predict.actor import Items, Predictor, Trail
from mlic.batch_predict.inference import INSTEAD
from mlic.batch_predict.merge import (
    PredictReport,
    check_out,
    exists,
    merge,
    part_at,
    part_numbers,
    parts_of,
    read_part,
    sha256,
)
from mlic.cluster import pool, shared_folders
from mlic.cluster.connect import FEW, connect, is_embedded
from mlic.cluster.resources import Share, task_share
from mlic.config.predict import EmbedConfig, PredictConfig
from mlic.config.types import STDOUT, Backend, Location
from mlic.data import storage
from mlic.data.shards import INDEX, read_split
from mlic.data.sources import image_sources
from mlic.data.sources.image_listing import Listing
from mlic.errors import ClusterError, ConfigError, DataError, PartialError
from mlic.model import bundle, runtimes
from mlic.runs.files import fingerprint
from mlic.runs.progress import Progress
from mlic.runs.run import Run, read_state

logger = logging.getLogger(__name__)

_QUICK = 1500  # with fewer images, preparing a faster backend takes longer than it saves
_PARTS_OF_GPU = 2  # that are in progress at once: while the GPU computes one, the CPUs decode the next
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
    if out == STDOUT and config.update:
        raise ConfigError(
            "--update is for an output in a file, and one image is printed.", "give --out, or no --update."
        )
    if out != STDOUT:
        return _predict_to(config, out, model, items).model_copy(update={"max_bad": config.max_bad})
    here = None if is_embedded(config.address) else Path.cwd()  # a folder that other nodes can see
    with tempfile.TemporaryDirectory(prefix=".mlic-predict-", dir=here) as scratch:
        file = Path(scratch) / "predictions.tsv"
        report = _predict_to(config.model_copy(update={"out": STDOUT}), file, model, items)
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
        "images": source_fingerprint(items),
    }
    if config.update:
        update.check(config, items)
    may_change = ("images",) if config.update else ()
    with Run.open(parts, "batch-predict", config, inputs, config.fresh, may_change) as run:
        if run.finished and exists(out):
            report = PredictReport(**run.report)
            if sha256(out) != report.sha256:
                logger.warning("%s has changed since it was written; writing it again", out)
            elif (report.values, report.top_k) == (values, config.top_k) and _is_as_asked(config, run):
                return report
        if run.finished:
            run.reopen()
        if run.renewed:
            rows = _update_parts(config, model, items, run)
            report = merge(config, out, model, values, parts, update.tables(parts, rows, config.chunk))
            update.delete_unused(parts, rows)
        else:
            count = -(-len(items) // config.chunk)
            there = set(part_numbers(parts))
            todo = Todo(items, config.chunk, [number for number in range(count) if number not in there])
            predict_parts(config, model, todo, len(items), run)
            report = merge(config, out, model, values, parts, (read_part(parts, number) for number in range(count)))
        run.finish(report)
    return report


def _is_as_asked(config: PredictConfig, run: Run[Location]) -> bool:
    """Whether the last update did with the rows of images that are gone what this command asks for, if it does."""
    return not run.renewed or config.gone in ("fail", (read_state(run.folder) or {}).get("gone"))


@dataclass(frozen=True)
class Todo:
    """Parts to predict: `numbers`, of which the part `first` begins with the first of the items."""

    items: Items
    chunk: int
    numbers: Sequence[int]
    first: int = 0

    def part(self, number: int) -> Items:
        """The items of a part."""
        start = (number - self.first) * self.chunk
        return self.items.part(start, start + self.chunk)


def _update_parts(config: PredictConfig, model: bundle.Bundle, items: Items, run: Run[Location]) -> update.Rows:
    """Predict the images that are new or have changed, into new parts; returns where the rows of the output are."""
    parts = run.folder
    noted = (read_state(parts) or {}).get("backend")
    if noted is not None and noted != _best_backend(config, model, len(items)):
        logger.info("so many images are computed by another engine than %s: all are predicted again", noted)
        for number in part_numbers(parts):
            storage.delete(part_at(parts, number))
        run.note(backend=None)
    known = update.read_known(parts)
    comparison = update.compare(items, known)
    update.check_gone(config, known, comparison)
    update.say(items, comparison, config.gone)
    run.note(gone=config.gone)
    if len(comparison.todo):
        first = update.begin(parts)
        count = -(-len(comparison.todo) // config.chunk)
        todo = Todo(items.take(comparison.todo), config.chunk, range(first, first + count), first)
        predict_parts(config, model, todo, len(items), run)
        known = update.read_known(parts)
        comparison = update.compare(items, known)
    return update.output_rows(config, items, known, comparison)


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
    return Items(listing, None, keys, listing.paths)


def source_fingerprint(items: Items) -> str:
    """A fingerprint of the images: their names, sizes and times, or the shards and the split."""
    source = items.source
    return source.fingerprint() if isinstance(source, Listing) else fingerprint(source.fingerprint, source.name)


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


def _backend(config: PredictConfig | EmbedConfig, model: bundle.Bundle, count: int, run: Run[Location]) -> Backend:
    """The backend for `count` images. It is the same in every attempt, and has no effect for an export."""
    if config.backend != "auto" or model.export:
        return "torch" if config.backend == "auto" else config.backend
    noted: Backend | None = (read_state(run.folder) or {}).get("backend")
    backend = noted or _best_backend(config, model, count)
    run.note(backend=backend)
    return backend


def _best_backend(config: PredictConfig | EmbedConfig, model: bundle.Bundle, count: int) -> Backend:
    """The fastest backend for `count` images, or the one that is asked for."""
    if config.backend != "auto" or model.export:
        return "torch" if config.backend == "auto" else config.backend
    best = runtimes.best()
    if config.precision == "bf16" and best == "onnx":
        best = "torch"
    return "torch" if count < _QUICK else best


def _is_here(config: PredictConfig | EmbedConfig, model: bundle.Bundle, count: int) -> bool:
    """Whether this process predicts the images: if there are few, or with an export if Ray is not installed."""
    if config.workers != "auto" or not is_embedded(config.address):
        return False
    return count <= FEW or (model.export is not None and importlib.util.find_spec("ray") is None)


def predict_parts(
    config: PredictConfig | EmbedConfig, model: bundle.Bundle, todo: Todo, total: int, run: Run[Location]
) -> None:
    """Predict parts of `total` images. Few images are predicted in this process, which is faster than starting Ray."""
    if not todo.numbers:
        return
    bundle.check_weights(config.model)
    parts, backend = run.folder, _backend(config, model, total, run)
    progress = Progress(logger, "predict", len(todo.numbers), "parts", "images")
    failed: dict[int, str] = {}
    warned: set[str] = set()
    try:
        if _is_here(config, model, len(todo.items)):
            for rows, bad, used in _make_here(config, todo, parts, backend):
                warned.add(used)
                progress.add(rows, bad)
        else:
            with connect(config.address) as cluster:
                shared_folders.check_shared(cluster, parts, config.images, config.model)
                share = task_share(cluster, config.workers, True, config.workers_per_gpu)
                for number, rows, bad, used, error in _map_parts(config, todo, parts, share, backend):
                    warned.add(used)
                    if error is not None:
                        failed[number] = error
                        logger.warning("part %d failed: %s", number, error)
                    progress.add(rows, bad)
    except KeyboardInterrupt:
        done = len(set(part_numbers(parts)) & set(todo.numbers))
        raise PartialError(
            f"stopped after {done:,} of {len(todo.numbers):,} parts.",
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
            f"{len(failed)} of {len(todo.numbers)} parts failed; part {number}: {error}.",
            "run the same command again.",
        )


def _make_here(
    config: PredictConfig | EmbedConfig, todo: Todo, parts: Location, backend: Backend
) -> Iterator[tuple[int, int, str]]:
    """Predict parts in this process; yields (rows, bad rows, backend)."""
    predictor = Predictor(config, backend, here=True)
    for number in todo.numbers:
        yield predictor.run(todo.part(number), part_at(parts, number))


def _map_parts(
    config: PredictConfig | EmbedConfig,
    todo: Todo,
    parts: Location,
    share: Share,
    backend: Backend,
) -> Iterator[tuple[int, int, int, str, str | None]]:
    """Assign parts to idle actors until all are done; yields (part, rows, bad rows, backend, error).

    A part whose actor dies is predicted again, one image at a time. Raises ClusterError when actors die again and again
    before they have begun.
    """

    def task(number: int) -> tuple[Items, Location]:
        return todo.part(number), part_at(parts, number)

    def attempts(number: int) -> int:
        return Trail.attempts(part_at(parts, number))

    at_once = _PARTS_OF_GPU if share.gpus else 1
    outcomes = pool.run_on_actors(Predictor, (config, backend), share, todo.numbers, task, attempts, _ATTEMPTS, at_once)
    for number, result, why in outcomes:
        rows, bad, used = result or (0, 0, "")
        yield number, rows, bad, used, why
