"""A model that turns images into parts of the predictions, one after another, and outlives images that kill it.

Beside a part that is being made lies its trail, `part-N.trail`: where the process was when it died, for the one that
does the part again. That one decodes the images one at a time, and gives up on one whose decoding has killed three
processes; the batches are the same as ever, and so are the scores.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from mlic.cluster import ray as cluster_ray
from mlic.cluster.runs import disk_errors, temporary
from mlic.config import PredictConfig
from mlic.data.shards import Split
from mlic.data.sources import Listing
from mlic.model import backends, bundle, losses
from mlic.score import thresholds
from mlic.score.calibration import Calibration
from mlic.values import Backend

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-4  # between the scores of two backends
_DEADLY = 3  # processes that die while they decode an image, before it is given up


@dataclass(frozen=True)
class Items:
    """N images to predict in the order of their keys: a listing of images, or the samples of shards.

    `keys` and `files` are columns of bytes, as file systems have names; `rows` numbers them in `source`.
    """

    source: Listing | Split
    rows: Array
    keys: pa.Array
    files: pa.Array

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, end: int) -> Items:
        """Those from `start` to `end`, fit to be sent to another process."""
        rows = self.rows[start:end]
        source = self.source.take(rows)
        # A slice would take its whole column with it.
        keys, files = (pa.concat_arrays([column[start:end]]) for column in (self.keys, self.files))
        return Items(source, np.arange(len(rows)), keys, files)


class Trail:
    """Where the attempts at a part were: "begin", and in a careful one "+N" and "-N" around the decoding of image N."""

    def __init__(self, part: Path) -> None:
        self.path = part.with_suffix(".trail")

    @staticmethod
    def attempts(part: Path) -> int:
        """How many attempts at a part have begun and not ended."""
        path = Trail(part).path
        return path.read_text(encoding="ascii").split().count("begin") if path.is_file() else 0

    def __enter__(self) -> Self:
        words = self.path.read_text(encoding="ascii").split() if self.path.is_file() else []
        self.careful = bool(words)
        before = [*words[1:], "begin"]
        died = Counter(int(word[1:]) for word, after in zip(words, before, strict=False)
                       if word[0] == "+" and after == "begin")  # fmt: skip
        self.deadly = {image for image, times in died.items() if times >= _DEADLY}
        self._file = self.path.open("a", encoding="ascii")
        self._note("begin")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if kind is None or issubclass(kind, Exception | KeyboardInterrupt):
            self.path.unlink(missing_ok=True)  # the process lives: nothing has killed it

    def _note(self, word: str) -> None:
        self._file.write(word + "\n")
        self._file.flush()

    def watched(self, image: int, decode: Callable[[], Any]) -> Any:
        """The decoding of an image, with a note before it and one after it."""
        self._note(f"+{image}")
        found = decode()
        self._note(f"-{image}")
        return found


class Predictor:
    """Holds the model, in this process or as a Ray actor."""

    def __init__(self, config: PredictConfig, backend: Backend, device: str | None = None) -> None:
        """Load the bundle, for the device that Ray gave to this actor unless one is named.

        A `backend` other than torch is for CPUs; it is used when the first batch says that it gives torch's scores.
        """
        import torch

        from mlic.data.augment import Normalizer

        self._torch = torch
        device = device or cluster_ray.assigned_device()
        self._bundle, net = bundle.load_model(config.model)
        self._net = net.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        prep = self._bundle.preprocessing
        self._normalize = Normalizer(prep.mean, prep.std, torch.device(device))
        self._batch_size, self._max_pixels = config.batch_size, config.max_pixels
        self._mirrors = config.tta == "mirror"
        self._backend: Backend = backend if device == "cpu" else "torch"
        self._engine: backends.Scorer | None = None
        self._said = ""

    def run(self, items: Items, out: Path) -> tuple[int, int, str]:
        """Predict the items and write their part; returns the numbers of rows and of bad ones, and the backend."""
        from mlic.data.loader import ahead

        batches = [range(i, min(i + self._batch_size, len(items))) for i in range(0, len(items), self._batch_size)]
        scores, errors = [], []
        with Trail(out) as trail, items.source.opened() as read:
            decode = functools.partial(self._carefully if trail.careful else self._decode, read, trail)
            for batch, (pixels, bad) in zip(batches, ahead(decode, batches, int(not trail.careful)), strict=True):
                scores.append(self._scores(pixels))
                errors += [bad.get(position) for position in range(len(batch))]
            write_part(out, items, np.concatenate(scores), errors)
        return len(items), sum(error is not None for error in errors), self._said or "torch"

    def _scores(self, pixels: Any) -> Array:
        """The scores float32 (B, L) of images uint8 (B, H, W, C), as test-time augmentation makes them."""
        found = self._plain(pixels)
        return (found + self._plain(pixels.flip(2))) / 2 if self._mirrors else found

    def _plain(self, pixels: Any) -> Array:
        if self._engine is not None:
            return self._engine(pixels)
        with self._torch.inference_mode():
            logits = self._net(self._normalize(pixels))
            found: Array = losses.scores(self._bundle.activation, logits).cpu().numpy()
        if self._backend != "torch" and not self._said:
            self._try_engine(pixels, found)
        return found

    def _try_engine(self, pixels: Any, expected: Array) -> None:
        """Go on with the backend when it gives a batch the scores, and the decisions, that torch gave it."""
        whole = backends.Whole(self._net, self._bundle.preprocessing, self._bundle.activation).eval()
        shape = tuple(pixels.shape[1:])
        try:
            engine = backends.engine(self._backend, whole, self._batch_size, shape, self._torch.get_num_threads())
            found = engine(pixels)
        except Exception as error:  # of whatever an engine does not support
            self._said = f"torch, as {self._backend} does not take this network: {' '.join(str(error).split())[:200]}"
            return
        apart = float(np.abs(found - expected).max())
        cuts, maps = np.array(self._bundle.thresholds), Calibration.read(self._bundle.calibration)
        decided = [thresholds.decide(maps.apply(each), cuts, self._bundle.top_k) for each in (found, expected)]
        if apart > _TOLERANCE or (decided[0] != decided[1]).any():
            self._said = f"torch, as the scores of {self._backend} are up to {apart:.1g} apart from its own"
        else:
            self._engine, self._said = engine, self._backend

    def _decode(self, read: Callable[[int], bytes], _: Trail, batch: range) -> tuple[Any, dict[int, str]]:
        from mlic.data.loader import decode_batch

        readers = [functools.partial(read, i) for i in batch]
        return decode_batch(readers, self._bundle.preprocessing, self._max_pixels)

    def _carefully(self, read: Callable[[int], bytes], trail: Trail, batch: range) -> tuple[Any, dict[int, str]]:
        """As `_decode`, one image after another, each with its trail."""
        prep = self._bundle.preprocessing
        pixels = self._torch.zeros(len(batch), prep.image_size, prep.image_size, prep.channels, dtype=self._torch.uint8)
        bad = {}
        for position, image in enumerate(batch):
            if image in trail.deadly:
                bad[position] = f"the process that decoded it died, {_DEADLY} times"
                continue
            one, why = trail.watched(image, lambda i=image: self._decode(read, trail, range(i, i + 1)))  # type: ignore[misc]
            pixels[position] = one[0]
            if why:
                bad[position] = why[0]
        return pixels, bad


def write_part(path: Path, items: Items, scores: Array, errors: Sequence[str | None]) -> None:
    """Write a part: key, file, error and scores of each image, whole or not at all."""
    import pyarrow.parquet as pq

    flat = pa.array(scores.astype(np.float32).ravel(), pa.float32())
    table = pa.table(
        {
            "key": pa.array([_text(key) for key in items.keys.to_pylist()], pa.string()),
            "file": pa.array([_text(file) for file in items.files.to_pylist()], pa.string()),
            "error": pa.array(errors, pa.string()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, scores.shape[1]),
        }
    )
    with disk_errors(path), temporary(path) as part:
        pq.write_table(table, part)
        os.replace(part, path)  # noqa: PTH105 - the counterpart of the write above


def _text(name: bytes) -> str:
    """A name as text that Parquet takes; bytes that are no UTF-8 are shown as \\xNN."""
    return name.decode("utf-8", "backslashreplace")
