"""Write a model card: what a model is, what it was trained on, and how good it is, for people who did not train it.

The sections are those of Mitchell et al., Model Cards for Model Reporting, 2019. What only people know is left to fill.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlic.config.base import Model
from mlic.config.evaluate import CardConfig
from mlic.errors import ConfigError, DataError
from mlic.metrics.measurement import BASELINES, SHOWN, Measurement
from mlic.model import bundle
from mlic.runs.files import write_atomic
from mlic.runs.run import read_state

_OURS = "<!-- written by mlic card -->"
_WEAK = 0.5  # a label with a lower F1 is named as weak
_FEW = 30  # positives with which a label's numbers are uncertain


class CardReport(Model):
    """Where the card is, and which samples its numbers are of."""

    card: Path
    measured_on: str

    def text(self) -> str:
        return f"card  {self.card}, with numbers of {self.measured_on}"


def card(config: CardConfig) -> CardReport:
    """Write the card of a run as Markdown, with the numbers of its last `mlic evaluate`, else of its validation split.

    Raises DataError for a run without a model or without numbers, and ConfigError if the file was edited by a person.
    """
    model = bundle.read(config.run)
    folder = bundle.find(config.run).parent
    out = config.out or folder / "CARD.md"
    if out.exists() and not config.fresh and _OURS not in out.read_text(encoding="utf-8"):
        raise ConfigError(
            f"{out} was not written by this command, or a person has taken it over.", "give another --out, or --fresh."
        )
    measurement, measured_on = _measured(model, folder, config.split)
    sections = [
        _front(model, measurement),
        f"# {folder.name}\n\n{_OURS}\n<!-- remove the line above when you edit this card: then it is kept -->",
        _about(model),
        "## Intended use\n\n*To be filled in: for which images and decisions, by whom, and for which ones not.*",
        _data(model, folder),
        _numbers(measurement, measured_on),
        _labels(model, measurement),
        _limits(measurement),
        _usage(model, folder),
        _provenance(model, folder),
    ]
    write_atomic(out, ("\n\n".join(sections) + "\n").encode())
    return CardReport(card=out, measured_on=measured_on)


def _measured(model: bundle.Bundle, folder: Path, asked: str | None) -> tuple[Measurement, str]:
    """The measurement of a split by `mlic evaluate`, else, if none is asked for, of the training; and what it is of."""
    split = asked or "test"
    predictions = folder / "predictions" / f"{split}.parquet"
    evaluated = _json(predictions.with_name(f"{split}.parquet.eval") / "metrics.json")
    if evaluated:
        index = _json(predictions.with_name(f"{split}.parquet.parts") / "index.json")
        if index.get("model") != model.fingerprint:
            raise DataError(
                f"the {split} split was measured with other weights or thresholds than {folder} has now.",
                f"run mlic evaluate {folder} --split {split} again.",
            )
        fit = model.threshold_fit
        is_fitted = fit.get("split") == split and fit.get("data") == model.provenance.get("shards")
        why = (
            "on which the thresholds were fitted"
            if is_fitted
            else "on which neither weights nor thresholds were fitted"
        )
        return _as_measurement(folder, evaluated), f"the {split} split, {why}"
    if asked is not None:
        raise DataError(
            f"the split {split!r} of {folder} has not been measured.", f"run mlic evaluate {folder} --split {split}."
        )
    training = _json(folder / "report.json").get("measurement", {})  # which mlic threshold writes anew
    return _as_measurement(folder, training), "the validation split, by thresholds fitted without each image"


def _as_measurement(folder: Path, stored: dict[str, Any]) -> Measurement:
    try:
        return Measurement(**{name: stored[name] for name in Measurement.model_fields})
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder} has no measurement ({error!r}).", f"run mlic evaluate {folder} first.") from None


def _front(model: bundle.Bundle, measurement: Measurement) -> str:
    """The head that the Hugging Face hub reads."""
    lines = [
        "---",
        "library_name: mlic",
        "pipeline_tag: image-classification",
        "tags:",
        "  - multi-label",
        "model-index:",
        f"  - name: {json.dumps(str(model.provenance.get('run', model.arch)))}",
        "    results:",
        "      - task:",
        "          type: image-classification",
        "        dataset:",
        f"          name: {json.dumps(str(model.provenance.get('shards', 'unknown')))}",
        "          type: webdataset",
        "        metrics:",
    ]
    for name in ("f1_micro", "f1_macro", "map"):
        if name in measurement.values:
            lines += [f"          - type: {name}", f"            value: {measurement.values[name]:.4f}"]
    return "\n".join([*lines, "---"])


def _about(model: bundle.Bundle) -> str:
    prep = model.preprocessing
    fit = model.threshold_fit
    return (
        f"A multi-label image classifier: it gives or withholds each of {len(model.labels)} labels.\n\n"
        f"- Architecture: `{model.arch}`{f' {model.arch_options}' if model.arch_options else ''}\n"
        f"- Input: {prep.image_size} x {prep.image_size} pixels, {prep.channels} channels, resized by {prep.resize}\n"
        f"- Thresholds: {fit.get('policy', '')}, fitted on {fit.get('samples', '?')} samples of the split "
        f"{fit.get('split', '?')}\n- Calibration: {model.calibration.get('method', 'none')}"
    )


def _data(model: bundle.Bundle, folder: Path) -> str:
    config = _json(folder / "config.json")
    shards = Path(str(config["shards"])) if "shards" in config else None
    lines = [f"- Fingerprint of the shards: `{model.provenance.get('shards', 'unknown')}`"]
    index = _json(shards / "index.json") if shards is not None else {}
    if index.get("fingerprint") == model.provenance.get("shards"):
        splits = ", ".join(f"{name} {split['samples']:,}" for name, split in index["splits"].items())
        lines += [f"- {index['samples']:,} samples: {splits}", f"- Labels: {index['source'].partition(' in /')[0]}"]
    return (
        "## Training data\n\n"
        + "\n".join(lines)
        + "\n\n*To be filled in: where the images are from, and who labelled them.*"
    )


def _numbers(measurement: Measurement, measured_on: str) -> str:
    """The main metrics beside the best of the trivial baselines."""
    rows = []
    for name in (name for name in SHOWN if name in measurement.values):
        low, high = measurement.intervals[name]
        others = {
            base: measurement.baselines[base][name] for base in BASELINES if name in measurement.baselines.get(base, {})
        }
        best = max(others, key=others.__getitem__) if others else ""
        beside = f"{others[best]:.4f} ({best.replace('_', '-')})" if best else "-"
        rows.append([name, f"{measurement.values[name]:.4f}", f"{low:.4f} to {high:.4f}", beside])
    head = ["metric", "value", "95% interval", "best trivial baseline"]
    warnings = "".join(f"\n\n**{text}**" for text in measurement.warnings)
    return (
        f"## Numbers\n\nMeasured on {measurement.samples:,} samples of {measured_on}.\n\n{_table(head, rows)}{warnings}"
    )


def _labels(model: bundle.Bundle, measurement: Measurement) -> str:
    cuts = dict(zip(model.labels, model.thresholds, strict=True))
    rows = [
        [
            row.label,
            f"{row.support:,}",
            *(f"{value:.3f}" for value in (row.precision, row.recall, row.f1, cuts[row.label])),
        ]
        for row in measurement.labels
        if row.label in cuts
    ]
    return "## Labels\n\n" + _table(["label", "positives", "precision", "recall", "F1", "threshold"], rows)


def _limits(measurement: Measurement) -> str:
    few = [row.label for row in measurement.labels if row.support < _FEW]
    weak = [row.label for row in measurement.labels if row.f1 < _WEAK]
    lines = [
        f"- {len(names)} labels {what}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for names, what in (
            (few, f"have fewer than {_FEW} positives, so their numbers are uncertain"),
            (weak, f"have an F1 below {_WEAK}"),
        )
        if names
    ]
    return "## Limits\n\n" + "\n".join(
        [*lines, "- *To be filled in: images and groups of people for which it is worse.*"]
    )


def _usage(model: bundle.Bundle, folder: Path) -> str:
    what = "" if model.export is None else " It is an export, which needs neither PyTorch nor Ray."
    return (
        f"## Use\n\nThe folder `model/` is complete: weights, preprocessing, calibration and thresholds.{what}\n\n"
        f"```sh\nmlic batch-predict path/to/{folder.name} photos/\n```\n\n"
        f'```python\nimport mlic\n\nmlic.load("path/to/{folder.name}").predict("photo.jpg")\n```'
    )


def _provenance(model: bundle.Bundle, folder: Path) -> str:
    state = read_state(folder) or {}
    versions = ", ".join(f"{name} {version}" for name, version in model.provenance.get("versions", {}).items())
    lines = [
        f"- Trained: {state.get('ended') or 'unknown'}, seed {model.provenance.get('seed', 'unknown')}",
        f"- Commit: `{model.provenance.get('git_commit') or 'unknown'}`",
        f"- Versions: {versions or 'unknown'}",
        f"- Weights (sha256): `{model.weights_sha256}`",
    ]
    return "## Provenance\n\n" + "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded
