"""Merge parts of predictions into the output: one file or a folder of Parquet files, in the order of the keys."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlic.batch_predict import prediction_files
from mlic.config.base import Model
from mlic.config.predict import PredictConfig
from mlic.config.remote_path import RemotePath
from mlic.config.types import AnyPath, Location, Output
from mlic.data import storage
from mlic.data.shards import INDEX
from mlic.errors import ConfigError, DataError
from mlic.metrics import thresholds
from mlic.metrics.calibration import Calibration
from mlic.model import bundle
from mlic.runs.files import disk_errors, temporary, write_atomic, write_json
from mlic.runs.run import read_state

logger = logging.getLogger(__name__)

_OURS = re.compile(r"part-\d{6,}\.parquet|\.part-.*\.part")  # the second pattern matches what a killed process has left
_PART = re.compile(r"part-(\d{6,})\.parquet")
_ALLOWED_BAD = 10  # bad images that are no failure in any folder


class PredictReport(Model):
    """The report of batch-predict: `found` is `predicted` plus `bad`, and `errors` is the file that names the bad ones.

    `rows` are the predictions themselves if they go to the standard output. `first_bad` is the reason why the first bad
    image is bad. More bad images than `max_bad` allows, or no good one, are no success.
    """

    out: Output
    model: Path
    fingerprint: str
    sha256: str
    values: str
    top_k: int
    found: int
    predicted: int
    bad: int
    errors: AnyPath | None
    rows: str | None = None
    first_bad: str | None = None
    max_bad: float = 1.0

    @property
    def exit_code(self) -> int:
        """0, or the exit code of DataError if too many images are bad."""
        return DataError.exit_code if is_too_bad(self.bad, self.found, self.max_bad) else 0

    def text(self) -> str:
        if self.rows is not None:
            return self.rows.removesuffix("\n")
        lines = [
            f"found {self.found:,} = {self.predicted:,} predicted + {self.bad:,} bad",
            f"predictions  {self.out}",
        ]
        if self.errors is not None:
            lines.append(f"bad images   {self.errors}")
        if self.exit_code:
            lines.append(f"no success: {self.bad:,} of {self.found:,} images are bad, more than --max-bad allows")
        return "\n".join(lines)


def is_too_bad(bad: int, found: int, max_bad: float) -> bool:
    """Whether so many of the images are bad that the command is no success."""
    return bad > max(_ALLOWED_BAD, max_bad * found) or bad == found > 0


def check_out(out: Location, fresh: bool) -> None:
    """Raise ConfigError if the output would overwrite something that this command did not write."""
    folder, parts = storage.is_folder(out), parts_of(out)
    if out.suffix.lower():
        if folder:
            raise ConfigError(f"the output {out} is a folder.", "name a file.")
    elif folder:
        foreign = [name for name in storage.names(out) if not _OURS.fullmatch(name)]
        if foreign:
            raise ConfigError(
                f"{out} holds files that batch-predict did not write ({foreign[0]!r}).", "name another folder."
            )
    there = storage.names(out) if folder else storage.size(out) is not None
    if there and read_state(parts) is None and not fresh:
        raise ConfigError(f"{out} exists and was not made by this command.", "name another file, or use --fresh.")


def parts_of(out: Location) -> Location:
    """The folder of the parts that an output is made of."""
    return _beside(out, ".parts")


def part_at(parts: Location, number: int) -> Location:
    """The file of a part."""
    return parts / f"part-{number:06d}.parquet"


def part_numbers(parts: Location) -> list[int]:
    """The numbers of the parts that are written, in order."""
    return sorted(int(match[1]) for name in storage.names(parts) if (match := _PART.fullmatch(name)))


def merge(
    config: PredictConfig,
    out: Location,
    model: bundle.Bundle,
    values: prediction_files.Values,
    parts: Location,
    tables: Iterable[pa.Table],
) -> PredictReport:
    """Write the output from `tables`, which are parts in their order, the errors beside it, and the index."""
    errors: list[tuple[str, str]] = []
    count = 0

    def good() -> Iterator[prediction_files.Predictions]:
        nonlocal count
        for table in tables:
            part, bad = _predictions(table, model, config.top_k or model.top_k)
            errors.extend(bad)
            count += 1
            yield part

    with disk_errors(out):
        if out.suffix.lower():
            predicted = _write(out, model, values, good())
        else:
            predicted = _write_folder(out, model, values, good())
    named = write_errors(out, errors)
    report = PredictReport(
        out=out,
        model=config.model,
        fingerprint=model.fingerprint,
        sha256=sha256(out),
        values=values,
        top_k=config.top_k,
        found=predicted + len(errors),
        predicted=predicted,
        bad=len(errors),
        errors=named,
        first_bad=errors[0][1] if errors else None,
    )
    write_json((parts / INDEX), _index(config, model, report, parts, count))
    return report


def _index(
    config: PredictConfig, model: bundle.Bundle, report: PredictReport, parts: Location, count: int
) -> dict[str, Any]:
    """The content of index.json: what the predictions are of, and by what they were computed."""
    state = read_state(parts) or {}
    return {
        "format": 1,
        "kind": "predictions",
        "model": model.fingerprint,
        "labels": list(model.labels),
        "thresholds": dict(zip(model.labels, model.thresholds, strict=True)),
        "threshold_fit": model.threshold_fit,
        "calibration": model.calibration,
        "trained_on": model.provenance.get("shards"),
        "values": report.values,
        "top_k": config.top_k or model.top_k,
        "scores": "float32, in text six significant digits",
        "versions": state.get("versions"),
        "computed_by": state.get("computed_by"),
        "found": report.found,
        "predicted": report.predicted,
        "bad": report.bad,
        "parts": count,
    }


def sha256(out: Location) -> str:
    """The sha256 of an output file, or of all files of a folder, one after another."""
    digest = hashlib.sha256()
    files = [out] if out.suffix.lower() else [(out / name) for name in storage.names(out)]
    for location in files:
        with storage.stream(location) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def exists(out: Location) -> bool:
    """Whether there is an output, a file or a folder with files in it."""
    return storage.size(out) is not None if out.suffix.lower() else bool(storage.names(out))


def _write(
    out: Location, model: bundle.Bundle, values: prediction_files.Values, parts: Iterable[prediction_files.Predictions]
) -> int:
    """Write a file whole or not at all; returns the number of its rows."""
    if isinstance(out, RemotePath):
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "out"
            rows = prediction_files.write(local, out.suffix.lower(), model.labels, values, parts)
            storage.upload(local, out)
        return rows
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):  # from a killed process; no other writes this now
        left.unlink()
    with temporary(out) as part:
        rows = prediction_files.write(part, out.suffix.lower(), model.labels, values, parts)
        os.replace(part, out)  # noqa: PTH105 - the counterpart of the write above
    return rows


def _write_folder(
    out: Location, model: bundle.Bundle, values: prediction_files.Values, parts: Iterable[prediction_files.Predictions]
) -> int:
    """Write a Parquet file for each part; returns the number of rows of all."""
    if isinstance(out, Path):
        out.mkdir(parents=True, exist_ok=True)
    rows, written = 0, set()
    for number, part in enumerate(parts):
        file = out / f"part-{number:06d}.parquet"
        written.add(file.name)
        rows += _write(file, model, values, [part])
    for name in set(storage.names(out)) - written:
        storage.delete(out / name)
    return rows


def write_errors(out: Location, errors: Sequence[tuple[str, str]]) -> Location | None:
    """Write the names of bad images and their reasons beside the output; returns the file, if one is needed."""
    named = _beside(out, ".errors.tsv")
    if not errors:
        storage.delete(named)
        return None
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([("Filename", "reason"), *errors])
    write_atomic(named, text.getvalue().encode("utf-8", "backslashreplace"))
    for file, reason in errors[:3]:
        logger.warning("%s: %s", file, reason)
    if len(errors) > 3:
        logger.warning("and %s more bad images, all in %s", f"{len(errors) - 3:,}", named)
    return named


def _beside(out: Location, ending: str) -> Location:
    return out.parent / (out.name + ending)


def read_part(parts: Location, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A part as a table, or those of some columns that it has."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(storage.read(part_at(parts, number))))
    return file.read(None if columns is None else [name for name in columns if name in file.schema_arrow.names])


def _predictions(
    table: pa.Table, model: bundle.Bundle, top_k: int
) -> tuple[prediction_files.Predictions, list[tuple[str, str]]]:
    keys, files, errors = (table.column(name).to_pylist() for name in ("key", "file", "error"))
    flat = table.column("scores").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    scores = flat.reshape(len(keys), len(model.labels))
    good = [i for i, error in enumerate(errors) if error is None]
    calibrated = Calibration.read(model.calibration).apply(scores[good])
    part = prediction_files.Predictions(
        model.labels,
        tuple(keys[i] for i in good),
        tuple(files[i] for i in good),
        calibrated,
        thresholds.decide(calibrated, np.array(model.thresholds), top_k),
    )
    return part, [(file, error) for file, error in zip(files, errors, strict=True) if error is not None]
