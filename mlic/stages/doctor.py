"""Are these shards fit to train on? Above all: do the labels belong to the images?"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import fingerprint, write_json
from mlic.config import DoctorConfig, Model
from mlic.data import features, images
from mlic.data.shards import TABLE, Split, read_index, read_split
from mlic.errors import DataError, MlicError
from mlic.score.alignment import Alignment, probe
from mlic.stages.measure import aligned

logger = logging.getLogger(__name__)

_CHUNK = 500
_MAX_PIXELS = 100_000_000
_FEW_FILES = 4096
_LITTLE_DISK, _LITTLE_SHM = 2 * 2**30, 64 * 2**20
_CONSTANT_SHARE = 0.01
_LISTED = 5


class Check(Model):
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "note", "warning", "error"]
    text: str


class DoctorReport(Model):
    """What the examination found; no check is an error, or the stage would have raised it."""

    shards: Path
    checks: tuple[Check, ...]

    def text(self) -> str:
        return "\n".join(aligned([["check", "", ""], *([c.name, c.status, c.text] for c in self.checks)], left=3))


def doctor(config: DoctorConfig) -> DoctorReport:
    """Examine shards. The answer is kept beside them and given again while they are the same.

    Raises DataError when the labels do not belong to the images, as far as images can tell.
    """
    index = read_index(config.shards)
    known = fingerprint(index["fingerprint"], config.max_samples, config.seed)
    read_split(config.shards, None)  # the kept answer is for whole shards
    kept = None if config.fresh else _read_kept(config.shards, known)
    if kept is None:
        split = read_split(config.shards, "train" if "train" in index["splits"] else None)
        chosen = np.random.default_rng([config.seed, 8]).permutation(len(split))[: config.max_samples]
        with cluster_ray.connect(config.address) as cluster:
            found, bad = _features(split, np.sort(chosen), cluster, config)
        kept = [_alignment(probe(found, split.targets[np.sort(chosen)][~bad], config.seed)), _pixels(found, bad)]
        with contextlib.suppress(MlicError):  # shards may lie where nothing can be written; then it is done again
            write_json(config.shards / "doctor.json", {
                "format": 1, "kind": "doctor", "fingerprint": known, "checks": [check.model_dump() for check in kept],
            })  # fmt: skip
    checks = [*kept, _labels(index), _leakage(config.shards), *_machine(config.shards)]
    for check in checks:
        if check.status == "warning":
            logger.warning("%s: %s", check.name, check.text)
    errors = [check for check in checks if check.status == "error"]
    if errors:
        raise DataError(
            f"{config.shards}: {errors[0].text}",
            "look at some images beside their labels, mend the join and pack again; --no-doctor trains all the same.",
        )
    return DoctorReport(shards=config.shards, checks=tuple(checks))


def _read_kept(shards: Path, known: str) -> list[Check] | None:
    try:
        plain = json.loads((shards / "doctor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [Check(**check) for check in plain["checks"]] if plain.get("fingerprint") == known else None


def _features(
    split: Split, chosen: np.ndarray[Any, Any], cluster: cluster_ray.Cluster, config: DoctorConfig
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features (n, F) of the chosen samples that decode, and which of the chosen (N,) do not."""
    import ray

    share = cluster_ray.task_share(cluster, config.workers, use_gpus=False)
    task = ray.remote(num_cpus=1)(_extract)
    parts = [
        [
            (split.shards[split.shard[i]], int(split.offsets[i]), int(split.sizes[i]))
            for i in chosen[start : start + _CHUNK]
        ]
        for start in range(0, len(chosen), _CHUNK)
    ]
    running: list[Any] = []
    for number, part in enumerate(parts):
        if number >= share.workers:
            ray.wait(running, num_returns=number - share.workers + 1)
        running.append(task.remote(part))
    found = np.concatenate(ray.get(running))
    bad = np.isnan(found[:, 0])
    return found[~bad], bad


def _extract(part: Sequence[tuple[Path, int, int]]) -> np.ndarray[Any, Any]:
    """A Ray task: features (n, F) of images in shards; a row of NaN for one that does not decode."""
    found = np.full((len(part), features.NUM_FEATURES), np.nan, dtype=np.float32)
    for row, (shard, offset, size) in enumerate(part):
        with shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        with contextlib.suppress(images.BadImage):
            found[row] = features.extract(data, _MAX_PIXELS)
    return found


def _alignment(answer: Alignment) -> Check:
    numbers = (
        f"AUC {answer.auc:.3f} of {answer.labels} labels over {answer.samples:,} samples from crude image features; "
        f"shuffled labels give {answer.chance:.3f} +- {answer.spread:.3f}"
    )
    if answer.verdict == "not aligned":
        text = f"the labels do not belong to the images: they are predicted no better than shuffled ones ({numbers})."
        return Check(name="alignment", status="error", text=text)
    if answer.verdict == "unsure":
        return Check(name="alignment", status="note", text=f"too few samples or too rare labels to tell ({numbers})")
    return Check(name="alignment", status="ok", text=numbers)


def _pixels(found: np.ndarray[Any, Any], bad: np.ndarray[Any, Any]) -> Check:
    contrast = found[:, 48:96].max(axis=1) if len(found) else np.zeros(0)
    constant = int((contrast < 1e-3).sum())
    text = f"{constant:,} of {len(found):,} images are of one colour, {int(bad.sum()):,} do not decode"
    wrong = constant > _CONSTANT_SHARE * max(1, len(found)) or bad.any()
    return Check(name="pixels", status="warning" if wrong else "ok", text=text)


def _labels(index: dict[str, Any]) -> Check:
    """Labels that a split has no positive sample of cannot be learnt, thresholded or measured there."""
    lacking = [
        f"{label} in {split}"
        for split, found in index["splits"].items()
        for label, count in found["label_counts"].items()
        if not count
    ]
    if lacking:
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        return Check(
            name="labels", status="warning", text=f"no positive sample of {', '.join(lacking[:_LISTED])}{more}"
        )
    fewest = min((count, label) for label, count in index["label_counts"].items())
    text = f"{len(index['labels'])} labels, each in every split; the rarest is {fewest[1]} with {fewest[0]:,}"
    return Check(name="labels", status="ok", text=text)


def _leakage(shards: Path) -> Check:
    """Byte-identical images in two splits are learnt in one and measured in the other."""
    import pandas as pd

    table = pd.read_parquet(shards / TABLE, columns=["key", "split", "sha256"])
    crossing = table.groupby("sha256")["split"].transform("nunique") > 1
    if crossing.any():
        first = table[crossing].sort_values("sha256")["key"].tolist()[:2]
        text = f"{int(crossing.sum()):,} images are byte for byte in more than one split ({' and '.join(first)})"
        return Check(name="leakage", status="warning", text=text)
    return Check(name="leakage", status="ok", text="no image is byte for byte in two splits")


def _machine(shards: Path) -> list[Check]:
    disk, files = shutil.disk_usage(shards).free, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0  # noqa: S108
    rows = [
        ("disk", disk < _LITTLE_DISK, f"{disk / 2**30:,.1f} GB free beside the shards"),
        ("shared memory", shm < _LITTLE_SHM, f"{shm / 2**30:,.1f} GB free in /dev/shm"),
        ("open files", files < _FEW_FILES, f"a process may open {files:,} files (ulimit -n)"),
    ]
    return [Check(name=name, status="warning" if little else "ok", text=text) for name, little, text in rows]
