"""Embed images with a model, in parts as `mlic batch-predict` does it, and list the images nearest to one."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlic.batch_predict.actor import Predictor
from mlic.batch_predict.merge import (
    check_out,
    exists,
    is_too_bad,
    part_numbers,
    parts_of,
    read_part,
    sha256,
    write_errors,
)
from mlic.batch_predict.predict import Todo, list_items, predict_parts, source_fingerprint
from mlic.config.base import Model
from mlic.config.predict import EmbedConfig
from mlic.config.types import AnyPath, Location
from mlic.data import storage
from mlic.errors import DataError
from mlic.metrics.measurement import aligned
from mlic.model import bundle
from mlic.runs.files import disk_errors, fingerprint, temporary
from mlic.runs.run import Run

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_ROWS = 4096  # of the output that are compared at once


class EmbedReport(Model):
    """The report of embed: `found` is `embedded` plus `bad`, each vector has `width` numbers.

    `nearest` are the images nearest to `near`, as (cosine, file), the nearest first.
    """

    out: AnyPath
    model: Path
    sha256: str
    width: int
    found: int
    embedded: int
    bad: int
    errors: AnyPath | None
    max_bad: float = 1.0
    near: Path | None = None
    nearest: tuple[tuple[float, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or the exit code of DataError if too many images are bad."""
        return DataError.exit_code if is_too_bad(self.bad, self.found, self.max_bad) else 0

    def text(self) -> str:
        lines = [
            f"found {self.found:,} = {self.embedded:,} embedded + {self.bad:,} bad",
            f"embeddings  {self.out}: {self.width:,} numbers for each image",
        ]
        if self.errors is not None:
            lines.append(f"bad images  {self.errors}")
        if self.near is not None:
            rows = [["cosine", f"nearest to {self.near}"], *([f"{value:.4f}", file] for value, file in self.nearest)]
            lines += ["", *aligned(rows, left=2)]
        if self.exit_code:
            lines.append(f"no success: {self.bad:,} of {self.found:,} images are bad, more than --max-bad allows")
        return "\n".join(lines)


def embed(config: EmbedConfig) -> EmbedReport:
    """Write the embedding of every image: a Parquet file of `key`, `file` and `embedding` in the order of the keys.

    An embedding is the input float32 (F,) of the model's head, the mean over places before a decoder. It depends on the
    weights and the preprocessing alone, not on labels or thresholds. An image that cannot be decoded is listed beside
    the file with its reason. Raises DataError for a bad model or input, ConfigError where the output belongs to
    something else and PartialError when it is interrupted.
    """
    model = bundle.read(config.model)
    _check_model(config, model)
    out = config.file
    if config.near is not None:
        count = len(list_items(config.near, None))  # what is missing is said before the images are embedded
        if count != 1:
            raise DataError(f"{config.near} is {count:,} images, not one.", "name one image.")
    items = list_items(config.images, config.split)
    check_out(out, config.fresh)
    parts = parts_of(out)
    weights = fingerprint(
        model.arch, sorted(model.arch_options.items()), model.preprocessing.model_dump_json(), model.weights_sha256
    )
    with Run.open(parts, "embed", config, {"model": weights, "images": source_fingerprint(items)}, config.fresh) as run:
        report = EmbedReport(**run.report) if run.finished and exists(out) else None
        if report is None or report.sha256 != sha256(out):
            if run.finished:
                logger.warning("%s has changed since it was written; writing it again", out)
                run.reopen()
            count = -(-len(items) // config.chunk)
            there = set(part_numbers(parts))
            todo = Todo(items, config.chunk, [number for number in range(count) if number not in there])
            predict_parts(config, model, todo, len(items), run)
            report = _merge(config, out, parts, count)
            run.finish(report)
    report = report.model_copy(update={"max_bad": config.max_bad})
    if config.near is None:
        return report
    return report.model_copy(update={"near": config.near, "nearest": nearest(config, out)})


def _check_model(config: EmbedConfig, model: bundle.Bundle) -> None:
    """Raise DataError for a model without one place where its features are."""
    if model.export is not None:
        raise DataError(
            f"{config.model} is an export to {model.export.engine}, which gives scores alone.",
            "name the run that it was made from.",
        )
    if model.members:
        raise DataError(
            f"{config.model} is an average of {len(model.members)} networks, each of which has features of its own.",
            "name one of the runs that it was made of.",
        )


def _merge(config: EmbedConfig, out: Location, parts: Location, count: int) -> EmbedReport:
    """Write the output from its parts, and the names of bad images beside it."""
    import pyarrow.parquet as pq

    errors, embedded, width = list[tuple[str, str]](), 0, 0
    with disk_errors(out), tempfile.TemporaryDirectory() as scratch:
        beside = out if isinstance(out, Path) else Path(scratch) / "embeddings.parquet"
        with temporary(beside) as part:
            writer = None
            for number in range(count):
                table = read_part(parts, number, ["key", "file", "error", "scores"])
                bad = table.filter(table.column("error").is_valid())
                errors += zip(bad.column("file").to_pylist(), bad.column("error").to_pylist(), strict=True)
                rows = table.filter(table.column("error").is_null()).select(["key", "file", "scores"])
                rows = rows.rename_columns(["key", "file", "embedding"])
                writer = writer or pq.ParquetWriter(part, rows.schema)
                writer.write_table(rows)
                embedded, width = embedded + len(rows), rows.schema.field("embedding").type.list_size
            if writer is not None:
                writer.close()
            if isinstance(out, Path):
                os.replace(part, out)  # noqa: PTH105 - the counterpart of the write above
            else:
                storage.upload(part, out)
    return EmbedReport(
        out=out,
        model=config.model,
        sha256=sha256(out),
        width=width,
        found=embedded + len(errors),
        embedded=embedded,
        bad=len(errors),
        errors=write_errors(out, errors),
    )


def nearest(config: EmbedConfig, out: Location) -> tuple[tuple[float, str], ...]:
    """The embedded images nearest to one, as (cosine, file), the nearest first. Raises DataError if it is bad."""
    if config.near is None:
        raise ValueError("settings name no image")
    items = list_items(config.near, None)
    with items.source.opened() as read:
        (vector,), bad = Predictor(config, "torch", here=True).of_files([lambda: read(0)])
    if bad:
        raise DataError(f"{config.near} cannot be read: {bad[0]}.", "name another image.")
    vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    best: list[tuple[float, str]] = []
    for files, vectors in read_embeddings(out):
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        cosines = vectors @ vector / lengths
        chosen = np.argsort(-cosines, kind="stable")[: config.count]
        best += [(float(cosines[i]), files[i]) for i in chosen]
        best = sorted(best, key=lambda item: -item[0])[: config.count]
    return tuple(best)


def read_embeddings(out: Location) -> Iterator[tuple[list[str], Array]]:
    """Some rows at a time of a file of embeddings: the files' names, and their vectors float32 (n, F)."""
    import pyarrow.parquet as pq

    with storage.stream(out) as stream:
        for block in pq.ParquetFile(stream).iter_batches(_ROWS, columns=["file", "embedding"]):
            column = block.column("embedding")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            yield block.column("file").to_pylist(), flat.reshape(len(block), -1)
