"""Training steps: on a device that has no values, so nothing can wait for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlic.data.loader import Batch, ShardReader
from mlic.data.pixels.augment import Normalizer
from mlic.errors import RunError
from mlic.train import setup
from mlic.train.batches import epoch_order, readers
from mlic.train.steps import Steps, memory_errors
from tests.train.test_training_loop import place, settings
from tests.waits import META, Waits

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.99},
        {"optimizer": "sgd", "clip_norm": 1.0, "loss": "asymmetric"},
        {"augment": {"rotate": 10, "hue": 0.1, "erase": 0.5, "contrast": 0.2}, "rand_augment": 2, "mixup": 0.2},
        {"accumulate": 2, "cutmix": 0.2, "loss": "focal"},
    ],
)
def test_a_step_waits_for_nothing(shards: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = settings(shards, arch="resnet18", arch_options={}, **changes)
    train, prep = setup.train_split(config), setup.preprocessing(config)
    net, head, _ = setup.network(config, train, prep)
    net = net.to(META)
    context = place(tmp_path)
    steps = Steps(
        config,
        type(context)(0, 1, META, context.folder, context.owner, 1),
        train,
        (net, net, head),
        Normalizer(prep.mean, prep.std, META),
    )
    show = epoch_order.of_epoch(config, train, None, 0, augmented=True)
    batches = list(show.batches(0, 1))
    with ShardReader(train, prep) as reader:
        loaded = list(reader.batches([mine.samples for mine in batches[:2]], 2))
    with Waits():
        for number, (mine, batch) in enumerate(zip(batches, loaded, strict=False)):
            images = show.change(batch.images.to(META), mine)
            changed = Batch(images, batch.index, batch.targets.to(META), batch.bad)
            steps.set_lr(number, len(batches))
            loss = steps.backward(number, changed, show.mirror(mine), 1 / len(mine.samples))
            assert steps.update(number, loss, batch).is_meta


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda there: float(there.sum()), RuntimeError),
        (lambda there: there[there > 0], NotImplementedError),
        (lambda there: there[:, [1]], AssertionError),
        (lambda there: there.__setitem__((0, 1), 1.0), AssertionError),
        (lambda there: torch.tensor([1.0], device=there.device), AssertionError),
    ],
)
def test_the_stand_in_sees_what_waits(wait: Callable[[torch.Tensor], Any], error: type[Exception]) -> None:
    there = torch.zeros(4, 4, device=META)
    with Waits(), pytest.raises(error):
        wait(there)


def test_loader_threads_of_a_gpu_are_the_cpus_of_its_share(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [readers.threads_of(settings(shards), device) for device in (gpu, cpu)] == [11, 2]
    assert readers.threads_of(settings(shards, loader_threads=3), gpu) == 3


def test_too_little_memory_names_the_batch_and_what_to_change(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, batch_size=64, accumulate=4)
    with pytest.raises(RunError) as caught, memory_errors(config, place(tmp_path)):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert "64 images" in caught.value.message
    assert caught.value.hint == "--set accumulate=8 computes each batch in 8 parts; or lower --batch-size."
