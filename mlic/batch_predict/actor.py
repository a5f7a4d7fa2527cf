"""A Ray actor that predicts parts of the images and survives images that crash it.

While a part is in progress, its trail `part-N.trail` lies beside it. The trail records where the process was when it
died. The next process that predicts the same part reads the trail. It decodes the images one at a time, and gives up an
image whose decoding has killed three processes. The batches stay the same, and so do the scores.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from mlic.batch_predict.inference import Exported, Network, any_device
from mlic.cluster import placement
from mlic.config.predict import EmbedConfig, PredictConfig
from mlic.config.remote_path import RemotePath
from mlic.config.types import Backend, Location
from mlic.data import storage
from mlic.data.pixels.decoding import ahead, decode_batch
from mlic.data.shards import Split
from mlic.data.sources.image_listing import Listing, as_text
from mlic.model import bundle, runtimes
from mlic.runs.files import disk_errors, temporary

Array = np.ndarray[Any, Any]

_PIECE = 16  # images that one thread decodes for a GPU
_DEADLY = 3  # an image is given up after this many processes have died while decoding it


@dataclass(frozen=True)
class Items:
    """N images to predict in the order of their keys: a listing of images, or the samples of shards.

    `keys` and `files` are columns of bytes, because file names are bytes. `numbers` (N,) are those of the images in
    `source`, or None: all of them in its order.
    """

    source: Listing | Split
    numbers: Array | None
    keys: pa.Array
    files: pa.Array

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def rows(self) -> Array:
        """The images' numbers (N,) in `source`."""
        return np.arange(len(self)) if self.numbers is None else self.numbers

    def part(self, start: int, end: int) -> Items:
        """The items from `start` to `end`, picklable."""
        return self.take(np.arange(start, min(end, len(self))))

    def take(self, numbers: Array) -> Items:
        """The items with these numbers, in this order, without the others' names."""
        chosen = pa.array(numbers, pa.int64())
        source = self.source.take(numbers if self.numbers is None else self.numbers[numbers])
        return Items(source, None, self.keys.take(chosen), self.files.take(chosen))


class Trail:
    """The journal of attempts at a part: "begin", and in a careful attempt "+N" and "-N" around decoding image N."""

    def __init__(self, part: Location) -> None:
        self.path = part.parent / part.name.replace(".parquet", ".trail")

    @staticmethod
    def attempts(part: Location) -> int:
        """The number of attempts at a part that started and did not end."""
        return Trail(part)._read().count("begin")

    def __enter__(self) -> Self:
        self._words = self._read()
        self.careful = bool(self._words)
        after = [*self._words[1:], "begin"]
        died = Counter(
            int(word[1:])
            for word, next_ in zip(self._words, after, strict=False)
            if word[0] == "+" and next_ == "begin"
        )
        self.deadly = {image for image, times in died.items() if times >= _DEADLY}
        self._note("begin")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception | KeyboardInterrupt):
            storage.delete(self.path)  # the process lives: nothing has killed it

    def _read(self) -> list[str]:
        try:
            return storage.read(self.path).decode("ascii").split()
        except FileNotFoundError:
            return []

    def _note(self, word: str) -> None:
        self._words.append(word)
        if isinstance(self.path, RemotePath):  # an object store cannot append, so the whole object is written again
            storage.put(self.path, "\n".join(self._words).encode("ascii"))
            return
        with self.path.open("a", encoding="ascii") as file:
            file.write(word + "\n")

    def watched(self, image: int, decode: Callable[[], Any]) -> Any:
        """Note the start and the end of decoding an image."""
        self._note(f"+{image}")
        decoded = decode()
        self._note(f"-{image}")
        return decoded


def _ranges(start: int, end: int, step: int) -> list[range]:
    return [range(i, min(i + step, end)) for i in range(start, end, step)]


def _joined(pieces: Sequence[tuple[Array, dict[int, str]]]) -> tuple[Array, dict[int, str]]:
    """One batch of pieces of images (B, H, W, C), with the reasons of bad images by their position in the batch."""
    if len(pieces) == 1:
        return pieces[0]
    starts = np.cumsum([0, *(len(pixels) for pixels, _ in pieces)]).tolist()
    reasons = [
        (start + row, reason) for start, (_, bad) in zip(starts, pieces, strict=False) for row, reason in bad.items()
    ]
    return np.concatenate([pixels for pixels, _ in pieces]), dict(reasons)


class Predictor:
    """Computes scores of images, in this process or as a Ray actor."""

    def __init__(self, config: PredictConfig | EmbedConfig, backend: Backend, here: bool = False) -> None:
        """Load the model on the device that Ray assigned to this actor, or on any device of this process if `here`."""
        exported, device = bundle.read(config.model).export is not None, "cpu"
        if not exported:
            device = any_device() if here else placement.assigned_device()
        self._model: Exported | Network
        if exported and isinstance(config, PredictConfig):
            self._model = Exported(config)
        else:
            self._model = Network(config, backend, device)
        # On a CPU, one background thread for decoding keeps the model busy. A GPU needs all CPUs of this process, which
        # decode a batch together.
        self._threads = 1 if device == "cpu" else runtimes.threads()
        self._piece = self._model.batch_size if device == "cpu" else _PIECE
        self._prep, self._max_pixels = self._model.bundle.preprocessing, config.max_pixels
        self._mirrors = config.tta == "mirror"

    def of_files(self, readers: Sequence[Callable[[], bytes]]) -> tuple[Array, dict[int, str]]:
        """The scores float32 (N, L) of image files, and the reasons of those that cannot be decoded, by position."""
        scores, bad = [], dict[int, str]()
        for start in range(0, len(readers), self._model.batch_size):
            pixels, reasons = decode_batch(
                readers[start : start + self._model.batch_size], self._prep, self._max_pixels
            )
            scores.append(self._scores(pixels))
            bad |= {start + position: reason for position, reason in reasons.items()}
        return np.concatenate(scores), bad

    def ready(self) -> None:
        """Return when the model is loaded."""

    def run(self, items: Items, out: Location) -> tuple[int, int, str]:
        """Predict the items and write their part; returns the number of rows, of bad rows, and the engine."""
        size = self._model.batch_size
        batches = [_ranges(i, min(i + size, len(items)), self._piece) for i in range(0, len(items), size)]
        scores, errors = [], []
        with Trail(out) as trail, items.source.opened() as read:
            decode = functools.partial(self._carefully if trail.careful else self._decode, read, trail)
            threads = 0 if trail.careful else self._threads
            pieces = ahead(decode, [piece for batch in batches for piece in batch], threads)
            # Closed here and not by the garbage collector, which would swallow a Ctrl-C while the thread ends.
            with contextlib.closing(pieces) as decoded:
                for batch in batches:
                    pixels, bad = _joined([next(decoded) for _ in batch])
                    predicted = self._scores(pixels)
                    for position in np.flatnonzero(~np.isfinite(predicted).all(axis=1)).tolist():
                        bad.setdefault(position, "the scores that the model gives it are not numbers")
                        predicted[position] = 0
                    scores.append(predicted)
                    errors += [bad.get(position) for position in range(len(pixels))]
            write_part(out, items, np.concatenate(scores), errors)
        return len(items), sum(error is not None for error in errors), self._model.said

    def _scores(self, pixels: Array) -> Array:
        """The scores float32 (B, L) of images uint8 (B, H, W, C), as test-time augmentation makes them."""
        scores = self._model(pixels)
        return (scores + self._model(np.ascontiguousarray(pixels[:, :, ::-1]))) / 2 if self._mirrors else scores

    def _decode(self, read: Callable[[int], bytes], _: Trail, batch: range) -> tuple[Array, dict[int, str]]:
        readers = [functools.partial(read, i) for i in batch]
        return decode_batch(readers, self._prep, self._max_pixels)

    def _carefully(self, read: Callable[[int], bytes], trail: Trail, batch: range) -> tuple[Array, dict[int, str]]:
        """Like `_decode`, but one image after another, with an entry in the trail for each."""
        side = self._prep.image_size
        pixels = np.zeros((len(batch), side, side, self._prep.channels), self._prep.dtype)
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


def write_part(path: Location, items: Items, scores: Array, errors: Sequence[str | None]) -> None:
    """Write a part atomically: key, file, size, time of the last change, error and scores of each image."""
    import pyarrow.parquet as pq

    flat = pa.array(scores.astype(np.float32).ravel(), pa.float32())
    stamps = items.source.stamps[items.rows] if isinstance(items.source, Listing) else np.zeros(len(items), np.int64)
    table = pa.table(
        {
            "key": as_text(items.keys),
            "file": as_text(items.files),
            "size": pa.array(items.source.sizes[items.rows], pa.int64()),
            "stamp": pa.array(stamps, pa.int64()),
            "error": pa.array(errors, pa.string()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, scores.shape[1]),
        }
    )
    with disk_errors(path):
        if isinstance(path, RemotePath):
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            storage.put(path, buffer.getvalue())
            return
        with temporary(path) as part:
            pq.write_table(table, part)
            os.replace(part, path)  # noqa: PTH105 - the counterpart of the write above
