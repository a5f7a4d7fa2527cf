"""Training on streamed shards gives what training does, on any number of ranks and after any stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from mlic.config.data import PackConfig
from mlic.config.remote_path import RemotePath
from mlic.config.train import TrainConfig
from mlic.data import storage
from mlic.errors import ConfigError
from mlic.pack.pack import pack
from mlic.train import checkpoints, training_loop
from mlic.train.batches import streaming
from mlic.train.setup import train_split
from tests.train.test_training_loop import _rank, ask_to_stop, goes_on_alike, place, settings, weights

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def many(corpus: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus in so many shards that they are streamed in two groups."""
    out = tmp_path_factory.mktemp("many") / "shards"
    pack(PackConfig(images=corpus / "images", labels=corpus / "annotations", out=out, workers=2, min_shards=16))
    return out


def streamed(many: Path, **changes: Any) -> TrainConfig:
    plain = {"arch": "a-cnn1", "arch_options": {}, "epochs": 2, "batch_size": 24, "optimizer": "sgd", "lr": 0.05}
    return settings(many, **(plain | {"stream": "always"} | changes))


def test_two_ranks_do_what_one_does(many: Path, tmp_path: Path) -> None:
    config = streamed(many, repeat_below=0.5)
    for ranks in (1, 2):
        folder = tmp_path / f"ranks{ranks}"
        place(folder)
        multiprocessing.spawn(_rank, (ranks, str(folder), config.model_dump_json()), nprocs=ranks)
        assert "in 2 groups, each once an epoch" in (folder / "log.txt").read_text()
    one, two = (checkpoints.read_history(tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    for a, b in zip(one, two, strict=True):
        for key in ("train/loss", "train/f1_micro", "val/loss", "val/f1_micro", "val/map"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
    first, second = weights(tmp_path / "ranks1"), weights(tmp_path / "ranks2")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [3, 5])
def test_stopped_within_an_epoch_it_resumes_bit_for_bit(
    many: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = streamed(many, optimizer="adam", lr=1e-3, hflip=True, crop=0.5, repeat_below=0.5)
    monkeypatch.setattr(training_loop, "_SETTLE_STEPS", 1)
    training_loop.fit(config, place(tmp_path / "straight"))
    here = place(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        ask_to_stop(here, steps, patch)
        training_loop.fit(config, here)
    assert f"stops on request after epoch 0 and {steps} steps" in (here.folder / "log.txt").read_text()
    goes_on_alike(config, here, tmp_path / "straight")


def test_validation_is_that_of_shards_on_disk(many: Path, tmp_path: Path) -> None:
    """Every sample counts once, whichever rank has it."""
    for name, stream in (("streamed", "always"), ("read", "never")):
        config = TrainConfig(shards=many, arch="a-cnn1", image_size=48, train="none", stream=stream)  # type: ignore[arg-type]
        training_loop.fit(config, place(tmp_path / name))
    one, two = (checkpoints.read_best(tmp_path / name) for name in ("streamed", "read"))
    assert (one.targets == two.targets).all()
    assert one.scores == pytest.approx(two.scores, abs=1e-6)


def test_it_chooses_by_the_room_on_the_disk(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    config = settings(many, batch_size=24)
    here, train = place(tmp_path / "run"), train_split(config)
    remote = config.model_copy(update={"shards": RemotePath("s3://bucket/shards")})
    assert streaming.decide(config, here, train, train, None) == 0
    assert streaming.decide(remote, here, train, train, None) == 0
    monkeypatch.setattr(storage, "KEEP_FREE", 10**18)
    assert streaming.decide(config, here, train, train, None) == 0
    assert streaming.decide(remote, here, train, train, None) == 2
    assert streaming.decide(remote.model_copy(update={"stream": "never"}), here, train, train, None) == 0
    assert streaming.decide(remote, here, train, train, {"groups": 0}) == 0, "a run goes on as it began"
    assert streaming.decide(config, here, train, train, {"groups": 2}) == 2


def test_what_cannot_be_streamed(many: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "run")
    for changes, why in (
        ({"shuffle": False}, "without shuffling"),
        ({"train": "head"}, "a head is trained on features"),
    ):
        config = streamed(many, **changes)
        with pytest.raises(ConfigError, match=f"the shards cannot be streamed: {why}") as error:
            streaming.decide(config, here, train_split(config), train_split(config), None)
        assert error.value.hint == "leave --stream out."
