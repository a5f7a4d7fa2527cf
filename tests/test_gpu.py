"""What only a GPU can show: `make gpu` runs these tests and the benchmark on a machine that has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import multiprocessing, nn

from mlic.batch_predict.inference import Network
from mlic.config.data import Preprocessing
from mlic.config.predict import ExportConfig, PredictConfig
from mlic.config.train import TrainConfig
from mlic.config.types import Distortion
from mlic.data.loader import Batch, ShardReader, eval_batches, to_device
from mlic.data.pixels.augment import Normalizer, distort, distortions
from mlic.data.pixels.rand_augment import rand_augment
from mlic.data.shards import read_split
from mlic.errors import RunError
from mlic.export.export import export
from mlic.model import amp, bundle
from mlic.train import checkpoints, launch, setup, training_loop
from mlic.train.rank import RankContext
from mlic.train.steps import Steps

GPU, CPU = torch.device("cuda"), torch.device("cpu")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def place(folder: Path, device: torch.device, rank: int = 0, world_size: int = 1) -> RankContext:
    folder.mkdir(exist_ok=True)
    if rank == 0 and not (folder / "run.json").exists():
        (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    return RankContext(rank, world_size, device, folder, folder, 1)


def settings(shards: Path, **changes: Any) -> TrainConfig:
    base = {
        "shards": shards,
        "arch": "resnet18",
        "image_size": 64,
        "epochs": 3,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 1e-3,
        "precision": "fp32",
    }
    return TrainConfig(**(base | changes))


def fitted(config: TrainConfig, folder: Path, device: torch.device = GPU) -> list[dict[str, float]]:
    """The metrics of each epoch of a run."""
    training_loop.fit(config, place(folder, device))
    return checkpoints.read_history(folder)


def fitted_in_two(config: TrainConfig, folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch of a run that ended after its first epoch and was started again."""
    training_loop.fit(config, place(folder, GPU), until=1)
    return fitted(config, folder)


def column(history: list[dict[str, float]], name: str) -> np.ndarray[Any, Any]:
    return np.array([row[name] for row in history])


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (48, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `mlic train` made on the GPU by its defaults."""
    config = TrainConfig(shards=shards, runs=tmp_path_factory.mktemp("runs"), arch="resnet18", image_size=64, epochs=3)
    return launch.fit(config).run


# Arithmetic and augmentation


def test_fp32_is_not_tf32() -> None:
    amp.configure_gpu(GPU)
    net = nn.Conv2d(64, 64, 3, padding=1)
    images, weights = torch.randn(16, 64, 32, 32), torch.randn(512, 512)
    exact, product = net.double()(images.double()), weights.double() @ weights.double()
    net.float()
    for there, here in ((net.to(GPU)(images.to(GPU)), exact), ((weights.to(GPU) @ weights.to(GPU)), product)):
        assert float((there.cpu() - here).norm() / here.norm()) < 1e-5  # TF32 is about 3e-4 away


def test_normalised_images_are_those_of_a_cpu(pixels: torch.Tensor) -> None:
    mirror = torch.arange(len(pixels)) % 3 == 0
    here, there = (Normalizer((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), device)(pixels, mirror) for device in (CPU, GPU))
    assert there.device.type == "cuda"
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(here, there.cpu(), atol=1e-5)


@pytest.mark.parametrize("name", get_args(Distortion))
def test_distorted_images_are_those_of_a_cpu(pixels: torch.Tensor, name: Distortion) -> None:
    drawn = distortions(np.arange(len(pixels)), {name: 0.4}, 3, 1)
    here, there = (distort(pixels.to(device), drawn).cpu() for device in (CPU, GPU))
    apart = (here.int() - there.int()).abs()
    assert float((apart > 1).float().mean()) < 1e-3
    assert not here.equal(pixels)


def test_rand_augment_is_that_of_a_cpu(pixels: torch.Tensor) -> None:
    here, there = (rand_augment(pixels.to(device), np.arange(48), 2, 9, 3, 1).cpu() for device in (CPU, GPU))
    assert float(((here.int() - there.int()).abs() > 1).float().mean()) < 0.01  # a nearest pixel may be another
    assert float((here != pixels).float().mean()) > 0.3


# Loading


def test_batches_on_the_gpu_are_those_of_the_cpu(shards: Path) -> None:
    split = read_split(shards, "train")
    numbers = eval_batches(len(split), 48, 0, 1)
    with ShardReader(
        split, Preprocessing(image_size=64, color="rgb", mean=(0,) * 3, std=(1,) * 3, resize="squash")
    ) as reader:
        here = list(reader.batches(numbers, 0))
        there = list(to_device(reader.batches(numbers, 4, pinned=True), GPU))
    assert len(here) == len(there) > 3
    for one, two in zip(here, there, strict=True):
        assert two.images.device.type == "cuda"
        assert one.images.equal(two.images.cpu())
        assert one.targets.equal(two.targets.cpu())


# A training step


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "precision": "bf16", "clip_norm": 1.0},
        {"augment": {"rotate": 10, "hue": 0.1, "erase": 0.5}, "rand_augment": 2, "mixup": 0.2, "cutmix": 0.2},
        {"precision": "fp16", "accumulate": 2, "optimizer": "adam"},
    ],
)
def test_a_step_never_waits_for_the_gpu(shards: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = settings(shards, **changes)
    train, prep = setup.train_split(config), setup.preprocessing(config)
    net, head, _ = setup.network(config, train, prep)
    net = net.to(GPU, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = Steps(config, place(tmp_path, GPU), train, (net, net, head), Normalizer(prep.mean, prep.std, GPU))
    steps.use(amp.of_device(config.precision, GPU))
    show = training_loop.epoch_order.of_epoch(config, train, None, 0, augmented=True)
    batches = list(show.batches(0, 1))
    with ShardReader(train, prep) as reader:
        loaded = to_device(reader.batches([mine.samples for mine in batches], 2, pinned=True), GPU)
        for number, (mine, batch) in enumerate(zip(batches, loaded, strict=True)):
            if number >= 2:  # the first steps allocate memory and choose kernels, which waits
                torch.cuda.set_sync_debug_mode("error")
            try:
                changed = Batch(show.change(batch.images, mine), batch.index, batch.targets, batch.bad)
                steps.set_lr(number, len(batches))
                loss = steps.backward(number, changed, show.mirror(mine), 1 / len(mine.samples))
                steps.update(number, loss, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(float(loss))


@contextmanager
def little_memory(gigabytes: float) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gigabytes * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_too_little_memory_is_one_sentence_and_what_to_do(shards: Path, tmp_path: Path) -> None:
    with little_memory(1.5), pytest.raises(RunError, match="too little memory for the 190 images") as caught:
        fitted(settings(shards, batch_size=190, image_size=512), tmp_path / "run")
    assert caught.value.hint is not None
    assert "accumulate=2" in caught.value.hint
    with little_memory(3.0):
        fitted(settings(shards, batch_size=190, image_size=512, accumulate=24, epochs=1), tmp_path / "parts")


# Whole trainings


def test_the_losses_are_those_of_a_cpu(shards: Path, tmp_path: Path) -> None:
    """To 1%: batch norm after random weights magnifies the rounding of the first steps a hundred times."""
    config = settings(shards, optimizer="sgd", lr=1e-3)
    here, there = (fitted(config, tmp_path / device.type, device) for device in (CPU, GPU))
    assert np.allclose(column(here, "train/loss"), column(there, "train/loss"), rtol=1e-2)
    assert np.allclose(column(here, "val/loss"), column(there, "val/loss"), rtol=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_the_same_to_the_last_bit(shards: Path, tmp_path: Path, precision: str) -> None:
    config = settings(shards, precision=precision, crop=0.6, rand_augment=1)
    straight, resumed = fitted(config, tmp_path / "a"), fitted_in_two(config, tmp_path / "b")
    assert column(straight, "train/loss").tolist() == column(resumed, "train/loss").tolist()
    assert column(straight, "val/loss").tolist() == column(resumed, "val/loss").tolist()
    one, two = (checkpoints.read_best(tmp_path / name).state for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_is_about_the_same_with_the_fastest_convolutions(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, deterministic=False, optimizer="sgd", lr=0.01)
    straight, resumed = fitted(config, tmp_path / "a"), fitted_in_two(config, tmp_path / "b")
    assert np.allclose(column(straight, "train/loss"), column(resumed, "train/loss"), rtol=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_much(shards: Path, tmp_path: Path, precision: str) -> None:
    full, half = (
        fitted(settings(shards, precision=name, epochs=6), tmp_path / name)[-1]["train/loss"]
        for name in ("fp32", precision)
    )
    assert abs(half - full) < 0.1 * full


def test_a_batch_in_parts_gives_the_same_gradient(shards: Path, tmp_path: Path) -> None:
    # Without batch norm, whose statistics are those of a part.
    config = settings(shards, arch="a-ffnn", optimizer="sgd", lr=0.01)
    whole, parts = (fitted(config.model_copy(update={"accumulate": count}), tmp_path / str(count)) for count in (1, 4))
    assert np.allclose(column(whole, "train/loss"), column(parts, "train/loss"), rtol=1e-3)


def test_a_compiled_network_trains_with_a_last_batch_of_another_size(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, arch="a-cnn1", optimizer="sgd", lr=0.01, epochs=2)
    eager, compiled = (
        fitted(config.model_copy(update={"compile": value}), tmp_path / str(value)) for value in (False, True)
    )
    assert np.allclose(column(eager, "train/loss"), column(compiled, "train/loss"), rtol=1e-2)


def test_a_head_on_features_is_that_of_a_cpu(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, train="head", optimizer="sgd", lr=0.1, cache_gb=0)
    here, there = (fitted(config, tmp_path / device.type, device) for device in (CPU, GPU))
    assert np.allclose(column(here, "train/loss"), column(there, "train/loss"), rtol=1e-3)


def test_a_loss_that_is_not_finite_names_its_samples(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the loss is not finite at step \d+ on rank 0 .*samples im\d+"):
        fitted(settings(shards, optimizer="sgd", lr=1e20), tmp_path / "run")


# Several ranks


def _rank(rank: int, world_size: int, folder: str, config: str, backend: str, slow_s: float) -> None:
    store = f"file://{folder}.store"
    torch.distributed.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
    if rank == 0:
        use = ShardReader.use_cache

        def slow(self: Any, *arguments: Any) -> bool:
            time.sleep(slow_s)
            return use(self, *arguments)

        ShardReader.use_cache = slow  # type: ignore[method-assign]
    training_loop.fit(TrainConfig(**json.loads(config)), place(Path(folder), torch.device("cuda", 0), rank, world_size))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), ("gloo", 2)])
def test_a_group_of_ranks_trains_as_one(shards: Path, tmp_path: Path, backend: str, ranks: int) -> None:
    """NCCL refuses two ranks on one GPU; gloo takes them. One rank is slow to decode, and the other waits."""
    config = settings(shards, arch="a-cnn1", optimizer="sgd", lr=0.01, batch_size=32)
    alone = fitted(config, tmp_path / "alone")
    arguments = (ranks, str(tmp_path / "group"), config.model_dump_json(), backend, 2.0)
    multiprocessing.spawn(_rank, arguments, nprocs=ranks)
    together = checkpoints.read_history(tmp_path / "group")
    assert np.allclose(column(alone, "train/loss"), column(together, "train/loss"), rtol=5e-3)


# The commands


def test_train_uses_the_gpu_and_half_precision(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "computes in bf16" in log or "computes in fp16" in log
    assert (run / "model").is_dir()


def test_the_scores_of_training_are_those_of_the_bundle_on_a_cpu(run: Path, shards: Path) -> None:
    best = checkpoints.read_best(run)
    described, net = bundle.load_model(run)
    prep, val = described.preprocessing, read_split(shards, "val")
    normalize = Normalizer(prep.mean, prep.std, CPU)
    with ShardReader(val, prep) as reader, torch.inference_mode():
        images = next(reader.batches([np.arange(len(val))], 0)).images
        scores = torch.sigmoid(net.eval()(normalize(images))).numpy()
    assert np.abs(scores - best.scores).max() < 1e-4


def predicted(run: Path, images: Path, out: Path, *more: str, gpu: bool = True) -> pd.DataFrame:
    """What `mlic batch-predict` writes, in a process of its own."""
    command = [sys.executable, "-m", "mlic", "batch-predict", str(run), str(images), "--out", str(out)]
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--values", "both", *more], env=os.environ | hidden, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(out)


def test_predictions_are_those_of_a_cpu(run: Path, corpus: Path, tmp_path: Path) -> None:
    """Many parts, two of them at once on the GPU, with an image that cannot be read."""
    images = tmp_path / "images"
    images.mkdir()
    for file in (corpus / "images").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / "im1.jpg").write_bytes(b"no image")
    more = ("--set", "chunk=20", "--workers", "1", "--tta", "mirror")
    there = predicted(run, images, tmp_path / "gpu.parquet", *more)
    here = predicted(run, images, tmp_path / "cpu.parquet", *more, "--backend", "torch", gpu=False)
    assert len(here) == len(there) == 239
    numbers = here.select_dtypes("floating").columns
    assert len(numbers) > 3
    assert np.abs(here[numbers].to_numpy() - there[numbers].to_numpy()).max() < 1e-4
    assert here.drop(columns=numbers).equals(there.drop(columns=numbers))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_used_where_the_decisions_agree(run: Path, pixels: torch.Tensor, precision: str) -> None:
    full = Network(PredictConfig(model=run, images=run), "torch", "cuda")
    half = Network(PredictConfig(model=run, images=run, precision=precision), "torch", "cuda")
    expected, scores = full(pixels.numpy()), half(pixels.numpy())
    assert precision in half.said
    if half.said.startswith(f"torch in {precision}"):
        assert not np.array_equal(expected, scores)
        assert np.abs(expected - scores).max() < 0.1
    else:
        assert np.array_equal(expected, scores)


def test_a_batch_that_does_not_fit_is_computed_in_halves(run: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (256, 64, 64, 3), dtype=np.uint8)
    network = Network(PredictConfig(model=run, images=run, batch_size=256), "torch", "cuda")
    expected = network(images)
    with little_memory(torch.cuda.memory_allocated() / 2**30 + 0.12):
        scores = network(images)
    assert np.abs(scores - expected).max() < 1e-4


def test_an_export_agrees_with_the_gpu(run: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mlic.batch_predict.inference import Exported

    export(ExportConfig(model=run, out=tmp_path / "onnx"))
    theirs = Exported(PredictConfig(model=tmp_path / "onnx", images=run))
    ours = Network(PredictConfig(model=run, images=run), "torch", "cuda")
    assert np.abs(theirs(pixels.numpy()) - ours(pixels.numpy())).max() < 1e-4


def test_trials_share_a_gpu(shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlic", "tune", str(shards), "--num-samples", "6", "--epochs", "2"]
    more = ["--gpus-per-trial", "0.25", "--cpus-per-trial", "2", "--image-size", "64", "--runs", str(tmp_path)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trials = pd.read_parquet(tmp_path / "tune" / "trials.parquet")
    assert len(trials) == 6
    assert not (trials["status"] == "failed").any()
