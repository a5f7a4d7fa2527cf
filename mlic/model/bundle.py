"""The model folder: weights, labels in order, preprocessing, thresholds and provenance.

model.json            everything but the weights; "format": 1
weights.safetensors   the state dict; in an export the files of its engine instead, the network's layers in them

Only saving and loading networks needs PyTorch. Code that uses an export reads the rest without PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic.config.data import Preprocessing
from mlic.config.types import Activation, Engine, Precise, parse_policy
from mlic.errors import DataError
from mlic.model.ensemble_member import Member

if TYPE_CHECKING:
    import torch
    from torch import nn

NETS = 2  # the version of the networks that architectures name, see zoo.as_made
SPEC, WEIGHTS = "model.json", "weights.safetensors"
FILES: dict[Engine, tuple[str, ...]] = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "torchscript": ("model.pt",),
}


@dataclass(frozen=True)
class Export:
    """What computes the scores of an export: images uint8 (B, H, W, C) to scores float32 (B, L), before calibration.

    `parity` says on which images the export was compared with its original bundle, and how far apart the two are.
    """

    engine: Engine
    precision: Precise
    parity: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """What is needed to turn image files into decisions.

    `activation` makes scores of logits. `thresholds` holds one number a label: the label is given where the calibrated
    score >= threshold.
    `threshold_fit` says how they were fitted and what they are expected to give, `calibration` how scores are
    calibrated before (empty: not at all), `provenance` where the model comes from. With `members` the model is the
    average of several networks, and `arch` is "average". With `export` it is computed by another engine than PyTorch,
    and `weights_sha256` is of that engine's files.
    """

    arch: str
    arch_options: dict[str, float]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    activation: Activation
    thresholds: tuple[float, ...]
    threshold_fit: dict[str, Any]
    calibration: dict[str, Any]
    provenance: dict[str, Any]
    weights_sha256: str = ""
    members: tuple[Member, ...] = ()
    export: Export | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold the network."""
        return FILES[self.export.engine] if self.export else (WEIGHTS,)

    @property
    def top_k(self) -> int:
        """How many labels every image is given whatever the thresholds are; 0: those that reach their thresholds."""
        name, value = parse_policy(self.threshold_fit["policy"])
        return int(value) if name == "top-k" else 0

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could change a prediction."""
        parts = (
            [
                self.arch,
                sorted(self.arch_options.items()),
                self.labels,
                self.preprocessing.model_dump_json(exclude_defaults=True),
                self.activation,
                self.thresholds,
                self.top_k,
                sorted(self.calibration.items()),
                self.weights_sha256,
            ]
            + [self.members] * bool(self.members)
            + [self.export and (self.export.engine, self.export.precision)] * bool(self.export)
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def save(bundle: Bundle, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the bundle beside `folder` and rename it into place. Raises OSError, that of a full disk too."""
    from safetensors.torch import save as serialized

    with written(folder) as part:
        # Written here, because the library turns the error of a full disk into an error type of its own.
        data = serialized({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        (part / WEIGHTS).write_bytes(data)
        describe(bundle, part)


def describe(bundle: Bundle, part: Path) -> None:
    """Write model.json beside the files of the network, whose checksum it holds."""
    spec = _spec(dataclasses.replace(bundle, weights_sha256=_sha256(part, bundle.files)))
    (part / SPEC).write_text(spec, encoding="utf-8")


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` to write to; at the end, it is renamed to `folder`."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)  # noqa: PTH105 - Path.replace refuses nothing more, this reads as what it is
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sha256(folder: Path, files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def rewrite(bundle: Bundle, folder: Path) -> None:
    """Write everything but the weights of a bundle anew, in one step."""
    part = folder / f".{SPEC}.{uuid.uuid4().hex[:8]}.part"
    try:
        part.write_text(_spec(bundle), encoding="utf-8")
        part.replace(folder / SPEC)
    finally:
        part.unlink(missing_ok=True)


def _spec(bundle: Bundle) -> str:
    spec: dict[str, Any] = {
        "format": 1,
        "nets": NETS,
        "kind": "export" if bundle.export else "bundle",
        "arch": bundle.arch,
        "arch_options": bundle.arch_options,
        "labels": list(bundle.labels),
        "preprocessing": bundle.preprocessing.model_dump(mode="json"),
        "activation": bundle.activation,
        "calibration": bundle.calibration,
        "thresholds": dict(zip(bundle.labels, bundle.thresholds, strict=True)),
        "threshold_fit": bundle.threshold_fit,
        "provenance": bundle.provenance,
        "weights_sha256": bundle.weights_sha256,
    }
    if bundle.export:
        spec["export"] = dataclasses.asdict(bundle.export)
    if bundle.members:
        spec["members"] = [dataclasses.asdict(member) for member in bundle.members]
    return json.dumps(spec, indent=2) + "\n"


def find(path: Path) -> Path:
    """The bundle's folder for a run folder or the bundle itself. Raises DataError when there is none."""
    for folder in (path / "model", path):
        if (folder / SPEC).is_file():
            return folder
    what = "holds no model" if path.is_dir() else "is a file, not a run" if path.exists() else "does not exist"
    raise DataError(f"{path} {what}.", "name a finished run of mlic train or mlic tune.")


def read(path: Path) -> Bundle:
    """Read everything but the weights. Raises DataError when a file is missing, broken or of another format."""
    folder = find(path)
    try:
        spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        if spec.get("format") != 1 or spec.get("kind") not in ("bundle", "export"):
            raise DataError(
                f"{folder / SPEC} is not a bundle of format 1.", "train the model with this version of mlic."
            )
        labels, nets = tuple(spec["labels"]), int(spec.get("nets", 1))
        return Bundle(
            *_as_made(spec["arch"], spec["arch_options"], nets),
            labels,
            Preprocessing(**spec["preprocessing"]),
            spec["activation"],
            tuple(float(spec["thresholds"][label]) for label in labels),
            spec["threshold_fit"],
            spec["calibration"],
            spec["provenance"],
            spec["weights_sha256"],
            tuple(_member(member, nets) for member in spec.get("members", ())),
            Export(**spec["export"]) if spec["kind"] == "export" else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the bundle {folder} cannot be read: {error!r}.", "run the same mlic train command again."
        ) from None


def _as_made(arch: str, options: dict[str, float], nets: int) -> tuple[str, dict[str, float]]:
    """The result of `zoo.as_made`; PyTorch is not loaded if there is nothing to change."""
    if nets >= NETS:
        return arch, dict(options)
    try:
        from mlic.model import zoo
    except ModuleNotFoundError:  # an export is used without PyTorch, and builds no network
        return arch, dict(options)
    return zoo.as_made(arch, options, nets)


def _member(stored: dict[str, Any], nets: int) -> Member:
    arch, options = _as_made(stored["arch"], stored["arch_options"], nets)
    arrays = {name: tuple(stored[name]) for name in ("mean", "std")}
    return Member(**{**stored, **arrays, "arch": arch, "arch_options": options})


def check_weights(path: Path) -> None:
    """Raise DataError when the weights are not those that model.json was written with."""
    bundle, folder = read(path), find(path)
    try:
        sha256 = _sha256(folder, bundle.files)
    except OSError as error:
        raise DataError(
            f"the weights of {folder} cannot be loaded: {error}.", "train or copy the model again."
        ) from None
    if sha256 != bundle.weights_sha256:
        raise DataError(
            f"{folder / bundle.files[-1]} is not the file that model.json was written with.",
            "train or copy the model again.",
        )


def load_model(path: Path) -> tuple[Bundle, nn.Module]:
    """Read the bundle and build its network, in evaluation mode on the CPU.

    Raises DataError when the weights are not those that model.json was written with, and for an export.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from mlic.model import zoo
    from mlic.model.ensemble import Average

    bundle = read(path)
    if bundle.export:
        raise DataError(
            f"{find(path)} is an export to {bundle.export.engine}, which has no weights for PyTorch.",
            "name the run that it was made from.",
        )
    check_weights(path)
    file = find(path) / WEIGHTS
    try:
        data = file.read_bytes()
        prep, num_labels = bundle.preprocessing, len(bundle.labels)
        model: nn.Module
        if bundle.members:
            model = Average(bundle.members, num_labels, prep)
        else:
            model = zoo.build(bundle.arch, num_labels, prep.channels, prep.image_size, bundle.arch_options)
        model.load_state_dict(load(data))
    except (OSError, SafetensorError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"the weights {file} cannot be loaded: {line}.", "train or copy the model again.") from None
    return bundle, model.eval()
