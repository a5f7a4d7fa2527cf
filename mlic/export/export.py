"""Export a model to another engine, without PyTorch and Ray, and compare its scores with PyTorch's.

The folder is a bundle with the engine's files in place of the weights: labels, preprocessing, calibration and
thresholds are those of the model. It is written when its scores and decisions on real images are PyTorch's, and not
otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlic.batch_predict.inference import agreement, opened
from mlic.batch_predict.predict import list_items
from mlic.config.base import Model
from mlic.config.predict import ExportConfig
from mlic.config.types import Location
from mlic.data import storage
from mlic.data.pixels.decoding import decode_batch
from mlic.data.pixels.images import MAX_PIXELS
from mlic.data.shards import INDEX
from mlic.errors import ConfigError, DataError, RunError
from mlic.evaluate.evaluate import shards_of
from mlic.model import bundle, converters, runtimes
from mlic.runs.files import disk_errors

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-4  # between scores in fp32
_BATCH = 32


class ExportReport(Model):
    """What was written, and how far apart its scores and those of the model are on the same images.

    `max_difference` is between uncalibrated scores, `same_decisions` the share of decisions that are the same.
    """

    export: Path
    engine: str
    precision: str
    model: Path
    images: int
    compared_on: str
    max_difference: float
    decisions: int
    same_decisions: float

    def text(self) -> str:
        same = "all" if self.same_decisions == 1 else f"{self.same_decisions:.3%} of"
        return "\n".join(
            [
                f"compared on {self.images:,} images of {self.compared_on}: scores up to {self.max_difference:.1e} "
                f"apart, {same} {self.decisions:,} decisions the same",
                f"export  {self.export} ({self.engine}, {self.precision})",
            ]
        )


def export(config: ExportConfig) -> ExportReport:
    """Write a model for another engine, and compare the two on real images.

    Raises ConfigError where the engine is not installed or the output is something else, DataError without a model or
    images, and RunError where the engine does not take the network or does not give what the model gives.
    """
    runtimes.check(config.to)
    if config.precision == "int8":
        runtimes.check("int8")
    source = bundle.find(config.model)
    out = config.out or source.parent / f"export-{config.to}"
    _check_out(out)
    model, net = bundle.load_model(config.model)
    pixels, where = _images(config, model, source)
    full_model = converters.Whole(
        net.to(memory_format=torch.channels_last), model.preprocessing, model.activation
    ).eval()
    expected = _by_torch(full_model, pixels)
    description = bundle.Export(config.to, config.precision, {})
    with disk_errors(out), bundle.written(out) as part:
        file = part / bundle.FILES[config.to][0]
        try:
            _write(config, full_model, pixels, file)
            run = opened(file, description, _BATCH)
            scores = np.concatenate([run(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)])
        except Exception as error:  # of whatever an engine does not support
            why = " ".join(str(error).split())[:300]
            raise RunError(f"{config.to} does not take {model.arch}: {why}.", "export it to another engine.") from error
        report = ExportReport(
            export=out,
            engine=config.to,
            precision=config.precision,
            model=source,
            images=len(pixels),
            compared_on=where,
            max_difference=float(np.abs(scores - expected).max()),
            decisions=expected.size,
            same_decisions=agreement(model, scores, expected),
        )
        _check_parity(config, report)
        parity = report.model_dump(include={"images", "max_difference", "decisions", "same_decisions"})
        exported = dataclasses.replace(
            model,
            export=dataclasses.replace(description, parity=parity),
            provenance=model.provenance | {"exported_from": model.fingerprint},
        )
        bundle.describe(exported, part)
    return report


def _check_out(out: Path) -> None:
    """Raise ConfigError for a place that holds anything but an earlier export."""
    if not out.exists():
        return
    try:
        ours = out.is_dir() and (not any(out.iterdir()) or bundle.read(out).export is not None)
    except DataError:
        ours = False
    if not ours:
        raise ConfigError(f"{out} is not an export of mlic.", "name another folder by --out.")


def _images(config: ExportConfig, model: bundle.Bundle, source: Path) -> tuple[Array, str]:
    """At most `config.samples` images as the model sees them, evenly taken, and where they are from in words.

    Raises DataError where none decodes.
    """
    images: Location | None = config.images
    split = config.split
    if images is None:
        try:
            images, split = shards_of(source.parent), split or "val"
        except DataError as error:
            raise DataError(error.message, "name images or shards to compare on by --images.") from None
    elif split is None and storage.size(images / INDEX) is not None:
        split = "val"
    items = list_items(images, split)
    rows = np.unique(np.linspace(0, len(items) - 1, min(config.samples, len(items))).astype(int))
    with items.source.opened() as read:
        order = items.rows[rows].tolist()
        pixels, bad = decode_batch([functools.partial(read, i) for i in order], model.preprocessing, MAX_PIXELS)
    good = np.array([position for position in range(len(order)) if position not in bad], dtype=int)
    if not len(good):
        raise DataError(f"none of {len(order)} images of {images} decodes.", "name other images by --images.")
    return pixels[good], f"the split {split}" if split else str(images)


def _by_torch(full_model: converters.Whole, pixels: Array) -> Array:
    with torch.inference_mode():
        batches = [full_model(torch.from_numpy(pixels[i : i + _BATCH])) for i in range(0, len(pixels), _BATCH)]
    return torch.cat(batches).numpy()


def _write(config: ExportConfig, full_model: converters.Whole, pixels: Array, file: Path) -> None:
    example = torch.from_numpy(pixels[: min(2, len(pixels))])
    if len(example) < 2:  # one image would be taken for a batch that is always of one
        example = example.repeat(2, 1, 1, 1)
    if config.to == "onnx":
        file.write_bytes(converters.to_onnx(full_model, example, any_batch=True))
    elif config.to == "torchscript":
        converters.to_torchscript(full_model, example).save(str(file))
    else:
        import openvino

        model = converters.to_openvino(full_model, example, any_batch=True)
        if config.precision == "int8":
            model = converters.to_int8(model, pixels)
        openvino.save_model(model, str(file), compress_to_fp16=False)


def _check_parity(config: ExportConfig, report: ExportReport) -> None:
    if config.precision == "fp32":
        if report.max_difference > _TOLERANCE or report.same_decisions < 1:
            raise RunError(
                f"{config.to} gives other scores than PyTorch: up to {report.max_difference:.1e} apart, "
                f"{report.same_decisions:.3%} of {report.decisions:,} decisions the same.",
                "export it to another engine.",
            )
    elif report.same_decisions < config.min_agreement:
        raise RunError(
            f"in {config.precision} {report.same_decisions:.3%} of {report.decisions:,} decisions are the same, less "
            f"than {config.min_agreement:.3%}.",
            "export it with --precision fp32, or lower --min-agreement.",
        )
