"""Compute scores of images: with PyTorch, with another engine, or with an exported model."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mlic.config.predict import EmbedConfig, PredictConfig
from mlic.config.types import STDOUT, Backend, Precise, Reduced
from mlic.metrics import thresholds
from mlic.metrics.calibration import Calibration
from mlic.model import bundle, malloc, runtimes

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-4  # between the scores of two engines in float32
_AGREEMENT = 0.99  # half precision is used only if at least this share of its decisions equals those in fp32
# A CPU's caches can hold the intermediate results of small batches: measured 1.3 to 1.6 times as fast as batches of 64.
# PyTorch computes the last elements of a tensor, up to 31, by other instructions, which give another last bit. A filled
# batch of 16 has no such rest where an image has an even number of values in each layer.
_CPU_BATCH, _ENGINE_BATCH = 16, 8
# Products of matrices that are equal to the last bit wherever they lie in memory: MKL reads this when it is first used.
_SAME_BITS = "AUTO,STRICT"
_GPU_BATCH = 256  # enough for any GPU; with larger batches, decoding and computing a part would overlap less

INSTEAD = ", as "  # stands between the engine that computes the scores and the reason why it is not the requested one


class Network:
    """The network of a bundle in PyTorch. The first batch decides whether another engine, or bf16, is used.

    On CPUs, PyTorch computes batches of 16, each in one thread: the scores of an image depend neither on the images
    beside it nor on the number of threads, and it is faster than one batch in all threads (measured on 2 CPUs with 7
    networks: 1.08 to 1.3 times).
    """

    def __init__(self, config: PredictConfig | EmbedConfig, backend: Backend, device: str) -> None:
        """Load the bundle; a `backend` other than torch is for CPUs. To embed, the features are its scores."""
        os.environ.setdefault("MKL_CBWR", _SAME_BITS)
        import torch

        from mlic.data.pixels.augment import Normalizer
        from mlic.model import amp, zoo

        if device == "cpu":
            malloc.keep()
        elif config.workers_per_gpu > 1:  # so that a process that takes more does not take it from its neighbours
            torch.cuda.set_per_process_memory_fraction(1 / config.workers_per_gpu)
        self.bundle, net = bundle.load_model(config.model)
        self._gives_features = config.gives == "features"
        if self._gives_features:
            net = zoo.without_head(net, len(self.bundle.labels))
        self.net = net.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        prep = self.bundle.preprocessing
        self._normalizer = functools.partial(Normalizer, prep.mean, prep.std, torch.device(device), prep.top)
        amp.configure_gpu(torch.device(device))
        self._device, self._precision = device, config.precision
        self._of_thread, self._settling = threading.local(), threading.Lock()
        self._backend: Backend = backend if device == "cpu" else "torch"
        self._run: runtimes.Scorer = functools.partial(self._by_torch, "fp32")
        self._remark = ""
        if device == "cpu" and self._precision == "fp16":
            self._precision, self._remark = "fp32", f" in fp32{INSTEAD}fp16 is for GPUs"
        ignored = device != "cpu" and config.backend not in ("auto", "torch")
        self.said = f"torch{INSTEAD}{config.backend} is for CPUs" if ignored else f"torch{self._remark}"
        self._settled = self._backend == "torch" and self._precision == "fp32"
        self._is_filled = config.out != STDOUT  # an image alone is faster than sixteen
        self._engine_batch = config.batch_size if isinstance(config.batch_size, int) else _ENGINE_BATCH
        if device == "cpu":
            threads = runtimes.threads()
            self._pool = ThreadPoolExecutor(threads, "network", torch.set_num_threads, (1,))
            self.batch_size = _CPU_BATCH * max(threads, -(-self._engine_batch // _CPU_BATCH))
        else:
            self.batch_size = config.batch_size if isinstance(config.batch_size, int) else self._fitting()
        if device != "cpu":
            torch.cuda.synchronize()  # other threads, with other streams, use the weights

    def __call__(self, pixels: Array) -> Array:
        """Scores float32 (B, L) of images uint8 (B, H, W, C). On a GPU, several threads may call it at once."""
        with self._settling:
            if not self._settled:
                self._try(pixels, self._run(pixels))
                self._settled = True
        return self._run(pixels)  # so that the first batch of a process is computed like all others

    def _by_torch(self, dtype: Reduced, pixels: Array) -> Array:
        """Scores by PyTorch. A batch for which a GPU has too little memory is computed in two halves."""
        import torch

        try:
            return self._forward(dtype, pixels)
        except torch.cuda.OutOfMemoryError:
            if len(pixels) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        return np.concatenate([self._by_torch(dtype, part) for part in (pixels[:half], pixels[half:])])

    def _forward(self, dtype: Reduced, pixels: Array) -> Array:
        if self._device != "cpu":
            return self._scores(dtype, pixels)
        batches = [pixels[i : i + _CPU_BATCH] for i in range(0, len(pixels), _CPU_BATCH)]
        with _one_thread_each():
            return np.concatenate(list(self._pool.map(functools.partial(self._filled_scores, dtype), batches)))

    def _filled_scores(self, dtype: Reduced, pixels: Array) -> Array:
        count = len(pixels)
        if self._is_filled and count < _CPU_BATCH:
            pixels = np.concatenate([pixels, np.zeros((_CPU_BATCH - count, *pixels.shape[1:]), pixels.dtype)])
        return self._scores(dtype, pixels)[:count]

    def _scores(self, dtype: Reduced, pixels: Array) -> Array:
        import torch

        from mlic.model import amp, losses

        if not hasattr(self._of_thread, "normalize"):
            self._of_thread.normalize = self._normalizer()
        with torch.inference_mode(), self._stream(), amp.autocast(dtype, torch.device(self._device)):
            outputs = self.net(self._of_thread.normalize(torch.from_numpy(pixels)))
            if not self._gives_features:
                outputs = losses.scores(self.bundle.activation, outputs)
            scores: Array = outputs.float().cpu().numpy()
        return scores

    def _stream(self) -> Any:
        """The GPU's stream of this thread, so that one thread's upload runs beside the computation of another."""
        if self._device == "cpu":
            return contextlib.nullcontext()
        import torch

        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._of_thread.stream)

    def _try(self, pixels: Array, expected: Array) -> None:
        """Use the requested engine or precision if its results for a batch agree with PyTorch in fp32."""
        reduced, name = self._precision != "fp32", self._backend
        try:
            run = functools.partial(self._by_torch, self._precision) if name == "torch" else self._engine(pixels)
            scores = run(pixels)
        except Exception as error:  # an engine may raise any type for an unsupported network
            self.said = f"torch{INSTEAD}{name} does not take this network: {' '.join(str(error).split())[:200]}"
            return
        engine = f"{name}{f' in {self._precision}' * reduced}"
        share = agreement(self.bundle, scores, expected)
        apart = float(np.abs(scores - expected).max())
        if reduced:
            if share >= _AGREEMENT:
                self._run, self.said = run, f"{engine}, {_as_plain(share)}"
            else:
                self.said = f"torch{INSTEAD}by {engine} {_as_plain(share)}"
        elif apart > _TOLERANCE or share < 1:
            self.said = f"torch{INSTEAD}the scores of {name} are up to {apart:.1g} apart from its own"
        else:
            self._run, self.said = run, f"{engine}{self._remark}"

    def _engine(self, pixels: Array) -> runtimes.Scorer:
        from mlic.model import converters

        full_model = converters.Whole(self.net, self.bundle.preprocessing, self.bundle.activation).eval()
        precision: Precise = "bf16" if self._precision == "bf16" else "fp32"
        return converters.engine(self._backend, full_model, self._engine_batch, pixels[0], precision)

    def _fitting(self) -> int:
        """The largest power of two as batch size for which this batch and the next one fit into the GPU's memory."""
        import torch

        prep, size = self.bundle.preprocessing, _GPU_BATCH
        while size > 1:
            try:
                self._run(np.zeros((2 * size, prep.image_size, prep.image_size, prep.channels), prep.dtype))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                size //= 2
            else:
                break
        return size


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Every thread computes alone. MKL has one number of threads for the whole process, which is set back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Exported:
    """The network of an export, on CPUs and without PyTorch; bf16 is measured once more on the first batch."""

    def __init__(self, config: PredictConfig) -> None:
        """Open the export. Raises DataError for files that are not its own, ConfigError without its engine."""
        self.bundle = bundle.read(config.model)
        export = self.bundle.export
        if export is None:
            raise ValueError(f"{config.model} is not an export")
        bundle.check_weights(config.model)
        runtimes.check_runs(export.engine)
        self.batch_size = config.batch_size if isinstance(config.batch_size, int) else _ENGINE_BATCH
        self._file = bundle.find(config.model) / self.bundle.files[0]
        self._settled = export.precision != "bf16"
        self._run = opened(self._file, export, self.batch_size)
        self.said = export.engine + " in int8" * (export.precision == "int8")

    def __call__(self, pixels: Array) -> Array:
        """Scores float32 (B, L) of images uint8 (B, H, W, C)."""
        scores = self._run(pixels)
        if not self._settled:
            self._settled = True
            scorer = runtimes.in_batches(runtimes.open_openvino(self._file, runtimes.threads()), self.batch_size)
            expected = scorer(pixels)
            share = agreement(self.bundle, scores, expected)
            if share < _AGREEMENT:
                self._run, scores = scorer, expected
                self.said = f"{self.said} in fp32{INSTEAD}in bf16 {_as_plain(share)}"
            else:
                self.said = f"{self.said} in bf16, {_as_plain(share)}"
        return scores


def _as_plain(share: float) -> str:
    return f"{share:.2%} of the decisions of a first batch are those in fp32"


def any_device() -> str:
    """The device of a process that may use all that there is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def opened(file: Any, export: bundle.Export, batch_size: int) -> runtimes.Scorer:
    """What computes scores by the file of an export."""
    count = runtimes.threads()
    openers: dict[str, Callable[[], runtimes.Scorer]] = {
        "onnx": lambda: runtimes.open_onnx(file, count),
        "openvino": lambda: runtimes.open_openvino(file, count, export.precision),
        "torchscript": lambda: _open_torchscript(file, count),
    }
    return runtimes.in_batches(openers[export.engine](), batch_size)


def _open_torchscript(model: Path, count: int) -> runtimes.Scorer:
    """A network of TorchScript. Loads PyTorch, whose number of threads it sets."""
    import torch

    torch.set_num_threads(count)
    with warnings.catch_warnings():  # it warns that the format will be removed
        warnings.simplefilter("ignore", FutureWarning)
        network = torch.jit.load(str(model), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: Array = network(torch.from_numpy(images)).numpy()
        return scores

    return run


def agreement(model: bundle.Bundle, one: Array, other: Array) -> float:
    """The share of equal decisions for two arrays of scores (B, L), with the bundle's calibration and thresholds."""
    cuts, maps = np.array(model.thresholds), Calibration.read(model.calibration)
    decided = [thresholds.decide(maps.apply(scores), cuts, model.top_k) for scores in (one, other)]
    return float((decided[0] == decided[1]).mean())
