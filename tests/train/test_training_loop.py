"""The training loop without Ray: it learns, it resumes bit for bit, and two processes do what one does."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from mlic.config.data import Preprocessing
from mlic.config.train import TrainConfig
from mlic.data.loader import ShardReader, eval_batches
from mlic.data.pixels.augment import Normalizer
from mlic.data.shards import read_split
from mlic.errors import ConfigError, DataError, RunError
from mlic.metrics import metrics
from mlic.model import losses, zoo
from mlic.train import checkpoints, epoch_choice, evaluation, setup, training_loop
from mlic.train.launch import finish
from mlic.train.rank import RankContext
from mlic.train.steps import Steps
from mlic.train.train import train


def place(folder: Path, rank: int = 0, world_size: int = 1) -> RankContext:
    folder.mkdir(exist_ok=True)
    if rank == 0 and not (folder / "run.json").exists():
        (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    return RankContext(rank, world_size, torch.device("cpu"), folder, folder, 1)


def settings(shards: Path, **changes: Any) -> TrainConfig:
    base = {
        "shards": shards,
        "arch": "b-final",
        "image_size": 48,
        "epochs": 4,
        "batch_size": 32,
        "seed": 3,
        "optimizer": "adam",
        "lr": 1e-3,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "ema": 0.0,
        "precision": "fp32",
    }
    return TrainConfig(**(base | {"arch_options": {"hidden": 32}} | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["net"])


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def goes_on_alike(config: TrainConfig, stopped: RankContext, straight: Path) -> None:
    """Whether a run that was asked to stop comes to the history and the weights of one that was not."""
    (stopped.folder / ".stop-1").unlink()
    training_loop.fit(config, stopped)
    one, two = checkpoints.read_history(straight), checkpoints.read_history(stopped.folder)
    assert without_times(one) == without_times(two)
    first, second = weights(straight), weights(stopped.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def ask_to_stop(here: RankContext, steps: int, patch: pytest.MonkeyPatch) -> list[Any]:
    """Ask a run to stop after so many steps of Adam; returns a list that has an entry for each step that is taken."""
    taken, ended = list[Any](), torch.optim.Adam.step

    def ask(self: Any, *arguments: Any) -> Any:
        taken.append(self)
        if len(taken) == steps:
            (here.folder / ".stop-1").touch()
        return ended(self, *arguments)

    patch.setattr(torch.optim.Adam, "step", ask)
    return taken


class Killed(Exception):
    pass


def fit_until(config: TrainConfig, here: RankContext, epoch: int) -> None:
    """Train, and stop as a killed process does when an epoch has been reported."""

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        training_loop.fit(config, here, stop)


@pytest.mark.ray
def test_after_its_deadline_a_call_trains_one_epoch_more(shards: Path, tmp_path: Path) -> None:
    config = settings(shards)
    for epochs in (1, 2, 3):
        training_loop.fit(config, place(tmp_path / "run"), deadline=time.time() - 1)
        assert len(checkpoints.read_history(tmp_path / "run")) == epochs


@pytest.mark.ray
@pytest.mark.parametrize("steps", [0, 3, 6])
def test_asked_to_stop_it_loses_no_step(
    shards: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps an epoch, and the request is seen after every second and between epochs."""
    config = settings(shards, epochs=2)
    monkeypatch.setattr(training_loop, "_SETTLE_STEPS", 2)
    training_loop.fit(config, place(tmp_path / "straight"))
    here = place(tmp_path / "stopped")
    if steps == 0:
        (here.folder / ".stop-1").touch()
    with monkeypatch.context() as patch:
        taken = ask_to_stop(here, steps, patch)
        training_loop.fit(config, here)
    said = {0: "after epoch 0", 3: "after epoch 0 and 4 steps", 6: "after epoch 1"}[steps]
    assert (here.folder / "log.txt").read_text().splitlines()[-1] == f"stops on request {said}"
    assert len(taken) == {0: 0, 3: 4, 6: 6}[steps]
    goes_on_alike(config, here, tmp_path / "straight")


@pytest.mark.ray
@pytest.mark.parametrize("after", [1, 3])
def test_resumed_equals_straight_bit_for_bit(shards: Path, tmp_path: Path, after: int) -> None:
    config = settings(shards)
    straight: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "straight"), straight.append)
    fit_until(config, place(tmp_path / "stopped"), after)
    again: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "stopped"), again.append)
    assert (
        without_times(straight) == without_times(again) == without_times(checkpoints.read_history(tmp_path / "stopped"))
    )
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(one[name], two[name]) for name in one)
    best = [checkpoints.read_best(tmp_path / name) for name in ("straight", "stopped")]
    assert best[0].epoch == best[1].epoch
    assert (best[0].thresholds == best[1].thresholds).all()


@pytest.mark.ray
@pytest.mark.parametrize("steps", [5, 8, 9])
def test_resumed_within_an_epoch_equals_straight(
    shards: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps an epoch, checkpoints after every second: with all that is drawn at random."""
    options = {"hidden": 32, "dropout": 0.5}
    config = settings(
        shards,
        epochs=2,
        crop=0.5,
        checkpoint_minutes=1e-9,
        arch_options=options,
        mixup=0.2,
        cutmix=1.0,
        augment={"rotate": 10.0, "brightness": 0.2, "erase": 0.3},
        rand_augment=1,
        layer_decay=0.7,
    )
    monkeypatch.setattr(training_loop, "_SETTLE_STEPS", 2)
    training_loop.fit(config, place(tmp_path / "straight"), lambda _: None)
    taken = 0
    ended = torch.optim.Adam.step

    def stop(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise Killed
        return ended(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stop)
        with pytest.raises(Killed):
            training_loop.fit(config, place(tmp_path / "stopped"), lambda _: None)
    training_loop.fit(config, place(tmp_path / "stopped"), lambda _: None)
    within = steps % 6 // 2 * 2
    assert (
        f"resumes after epoch {steps // 6} of 2" + (f" and {within} steps" if within else "") + "\n"
        in (tmp_path / "stopped" / "log.txt").read_text()
    )
    one, two = (checkpoints.read_history(tmp_path / name) for name in ("straight", "stopped"))
    assert without_times(one) == without_times(two)
    first, second = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.ray
def test_it_learns(shards: Path, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    training_loop.fit(settings(shards, epochs=10, image_size=64, lr=3e-3), place(tmp_path / "run"), rows.append)
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert max(row["val/map"] for row in rows) > 0.6
    assert checkpoints.read_best(tmp_path / "run").metrics["val/f1_micro"] == max(row["val/f1_micro"] for row in rows)


def _rank(rank: int, world_size: int, folder: str, config: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=world_size)
    training_loop.fit(TrainConfig(**json.loads(config)), place(Path(folder), rank, world_size), lambda _: None)
    torch.distributed.barrier()  # a rank that leaves while the other is at work may abort
    torch.distributed.destroy_process_group()


@pytest.mark.ray
def test_two_ranks_do_what_one_does(shards: Path, tmp_path: Path) -> None:
    """Without batch norm and dropout, a step of two ranks is the step of one, and so is every metric."""
    config = settings(shards, arch="a-cnn1", arch_options={}, epochs=2, batch_size=24, optimizer="sgd", lr=0.05)
    for ranks in (1, 2):
        folder = tmp_path / f"ranks{ranks}"
        folder.mkdir()
        place(folder)
        multiprocessing.spawn(_rank, (ranks, str(folder), config.model_dump_json()), nprocs=ranks)
    one, two = (checkpoints.read_history(tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    for a, b in zip(one, two, strict=True):
        for key in ("train/loss", "train/f1_micro", "train/hamming_accuracy", "val/loss", "val/f1_micro", "val/map"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
    first, second = weights(tmp_path / "ranks1"), weights(tmp_path / "ranks2")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def _slow_second_rank(rank: int, world_size: int, folder: str, config: str) -> None:
    if rank == 1:
        backward = Steps.backward

        def slowly(self: Steps, step: int, batch: Any, mirror: Any, scale: float) -> torch.Tensor:
            plain = self.normalize
            self.normalize = lambda *images: (time.sleep(0.05), plain(*images))[1]
            try:
                return backward(self, step, batch, mirror, scale)
            finally:
                self.normalize = plain

        Steps.backward = slowly  # type: ignore[method-assign]
    _rank(rank, world_size, folder, config)


@pytest.mark.ray
def test_a_rank_that_falls_behind_is_named(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, arch="a-cnn1", arch_options={}, epochs=1, batch_size=8)
    place(tmp_path / "run")
    multiprocessing.spawn(_slow_second_rank, (2, str(tmp_path / "run"), config.model_dump_json()), nprocs=2)
    (said,) = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "Warning" in line]
    assert f"rank 1 on {socket.gethostname()} falls behind" in said
    assert "most of them in its forward pass" in said


@pytest.mark.ray
def test_evaluation_counts_every_sample_once(shards: Path, tmp_path: Path) -> None:
    training_loop.fit(settings(shards, epochs=1), place(tmp_path / "run"), lambda _: None)
    best = checkpoints.read_best(tmp_path / "run")
    val = read_split(shards, "val")
    assert (best.targets == val.targets).all()
    assert best.scores.shape == val.targets.shape
    assert (best.scores > 0).all()
    assert np.isfinite(best.scores).all()


@pytest.mark.ray
def test_a_loss_that_is_not_finite_stops_the_run(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, optimizer="sgd", lr=1e12, arch_options={})
    with pytest.raises(RunError, match=r"the loss is not finite at step \d+ on rank 0") as caught:
        training_loop.fit(config, place(tmp_path / "run"), lambda _: None)
    assert re.search(r"samples \S+, \S+, \S+, \S+, \S+ and 27 more\)", caught.value.message)
    assert caught.value.hint == "lower --lr (now 1e+12), or leave such steps out by --set non_finite=skip."
    assert checkpoints.read_history(tmp_path / "run") == []


@pytest.mark.ray
def test_damaged_shards_stop_the_run(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    for path in copy.glob("train-*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="cannot be decoded, more than max_bad allows"):
        training_loop.fit(settings(copy, cache_gb=0), place(tmp_path / "run"), lambda _: None)
    for path in copy.glob("val-*.tar"):
        path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"val-000000.tar has .* bytes where index.json says"):
        train(settings(copy).model_copy(update={"runs": tmp_path / "runs", "doctor": False}))


@pytest.mark.ray
def test_resumed_with_averaged_weights_in_parts_and_clipped(shards: Path, tmp_path: Path) -> None:
    """What lives across steps is kept: the average of weights and the state of another optimiser."""
    config = settings(
        shards,
        epochs=3,
        ema=0.9,
        accumulate=3,
        clip_norm=1.0,
        optimizer="adadelta",
        lr=0.5,
        schedule="one-cycle",
        loss="asymmetric",
        label_smoothing=0.05,
    )
    training_loop.fit(config, place(tmp_path / "straight"), lambda _: None)
    fit_until(config, place(tmp_path / "stopped"), 2)
    training_loop.fit(config, place(tmp_path / "stopped"), lambda _: None)
    last = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("straight", "stopped")
    ]
    for kind in ("net", "shadow"):
        assert all(torch.equal(last[0][kind][name], last[1][kind][name]) for name in last[0][kind])
    assert any(not torch.equal(last[0]["net"][name], last[0]["shadow"][name]) for name in last[0]["net"])
    one, two = (checkpoints.read_history(tmp_path / name) for name in ("straight", "stopped"))
    assert without_times(one) == without_times(two)
    best = checkpoints.read_best(tmp_path / "straight")
    if best.epoch == 3:
        assert all(torch.equal(best.state[name], last[0]["shadow"][name]) for name in best.state)


@pytest.mark.ray
def test_parts_of_a_step_make_the_step(shards: Path, tmp_path: Path) -> None:
    """Without batch norm and dropout, the samples of a step may go through one after another."""
    for parts in (1, 4):
        config = settings(shards, arch="a-cnn1", arch_options={}, epochs=1, optimizer="sgd", lr=0.05, accumulate=parts)
        training_loop.fit(config, place(tmp_path / f"parts{parts}"), lambda _: None)
    one, four = weights(tmp_path / "parts1"), weights(tmp_path / "parts4")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-6)


@pytest.mark.ray
def test_patience_ends_a_run(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, epochs=40, patience=2, lr=0.02, arch="a-cnn1", arch_options={})
    rows: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "run"), rows.append)
    values = [row["val/loss"] for row in rows]
    assert len(rows) < 40
    assert values.index(min(values)) == len(rows) - 3
    assert epoch_choice.is_done(config, rows)
    again: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "run"), again.append)
    assert without_times(again) == without_times(rows)


def test_patience_waits_for_more_of_what_is_better() -> None:
    config = settings(Path("shards"), epochs=9, patience=2, stop_on="val/map")
    rows = [{"val/map": value} for value in (0.1, 0.3, 0.2, 0.2)]
    assert [epoch_choice.is_done(config, rows[:n]) for n in range(5)] == [False, False, False, False, True]
    assert not epoch_choice.is_done(config.model_copy(update={"patience": 0}), rows)


@pytest.mark.ray
def test_a_head_learns_on_features_that_are_computed_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(zoo.build("b-final", 6, 1, 48, {"hidden": 32}).state_dict(), tmp_path / "w.pth")
    config = settings(shards, train="head", weights=str(tmp_path / "w.pth"), epochs=6, lr=0.2)
    training_loop.fit(config, place(tmp_path / "one"), lambda _: None)
    features = {path.name: path.stat().st_ino for path in (tmp_path / "cache").glob("*.f32")}
    assert len(features) == 2
    start = torch.load(tmp_path / "w.pth", weights_only=True)
    end = weights(tmp_path / "one")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert {name.rpartition(".")[0] for name in changed} == {list(start)[-1].rpartition(".")[0]}
    rows = checkpoints.read_history(tmp_path / "one")
    assert rows[-1]["val/map"] > rows[0]["val/map"]
    assert "begins with w.pth, 26 tensors by name" in (tmp_path / "one" / "log.txt").read_text()
    fit_until(config, place(tmp_path / "two"), 2)
    training_loop.fit(config, place(tmp_path / "two"), lambda _: None)
    again = weights(tmp_path / "two")
    assert all(torch.equal(end[name], again[name]) for name in end)
    assert {p.name: p.stat().st_ino for p in (tmp_path / "cache").glob("*.f32")} == features
    without = config.model_copy(update={"cache_gb": 0.0})
    training_loop.fit(without, place(tmp_path / "three"), lambda _: None)
    assert all(torch.equal(end[name], tensor) for name, tensor in weights(tmp_path / "three").items())


@pytest.mark.ray
def test_features_are_mixed(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the features of unmixed images, which are computed once; a resumed run is that of one go."""
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "cache"))
    config = settings(shards, train="head", epochs=3, lr=0.2, feature_mixup=0.4, arch_options={"hidden": 32})
    training_loop.fit(config, place(tmp_path / "one"), lambda _: None)
    fit_until(config, place(tmp_path / "two"), 1)
    training_loop.fit(config, place(tmp_path / "two"), lambda _: None)
    plain = config.model_copy(update={"feature_mixup": 0.0})
    training_loop.fit(plain, place(tmp_path / "three"), lambda _: None)
    assert len(list((tmp_path / "cache").glob("*.f32"))) == 2
    whole = [settings(shards, epochs=1).model_copy(update={"feature_mixup": alpha}) for alpha in (0.0, 0.4)]
    for config, name in zip(whole, ("plain", "ignored"), strict=True):
        training_loop.fit(config, place(tmp_path / name), lambda _: None)
    plain_weights, ignored = weights(tmp_path / "plain"), weights(tmp_path / "ignored")
    assert all(torch.equal(plain_weights[name], ignored[name]) for name in ignored), "images are never mixed by it"
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert "train/f1_micro" not in checkpoints.read_history(tmp_path / "one")[-1], "mixed labels are not measured"


@pytest.mark.ray
def test_scores_of_a_head_are_those_of_the_whole_network(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, train="head", epochs=2)
    training_loop.fit(config, place(tmp_path / "run"), lambda _: None)
    best = checkpoints.read_best(tmp_path / "run")
    val = read_split(shards, "val")
    prep = setup.preprocessing(config)
    net = zoo.build(config.arch, len(val.labels), prep.channels, prep.image_size, config.arch_options).eval()
    net.load_state_dict(best.state)
    with ShardReader(val, prep) as reader, torch.no_grad():
        (batch,) = reader.batches([np.arange(len(val))], 0)
        scores = torch.sigmoid(net(Normalizer(prep.mean, prep.std, torch.device("cpu"))(batch.images)))
    assert np.abs(scores.numpy() - best.scores).max() < 1e-5


@pytest.mark.ray
def test_a_network_is_measured_as_it_begins(shards: Path, tmp_path: Path) -> None:
    """D's first mode: published weights and a new last layer, not trained at all."""
    config = settings(shards, train="none", epochs=1, optimizer="adamw", lr=2e-3, schedule="one-cycle")
    rows: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "run"), rows.append)
    assert [row["epoch"] for row in rows] == [1]
    assert "train/loss" not in rows[0]
    assert rows[0]["step"] == 0
    assert epoch_choice.is_done(config, rows)
    torch.manual_seed(config.seed)
    fresh = zoo.build(config.arch, 6, 1, config.image_size, config.arch_options).state_dict()
    kept = weights(tmp_path / "run")
    assert all(torch.equal(fresh[name], kept[name]) for name in fresh if not name.endswith("bias"))
    with pytest.raises(ValueError, match=r"mixup 0\.2 needs train all or head, not none"):
        config.model_validate({**dict(config), "mixup": 0.2})


def _evaluating_rank(rank: int, world_size: int, shards: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=world_size)
    here = RankContext(rank, world_size, torch.device("cpu"), Path(folder), Path(folder), 1)
    torch.manual_seed(0)
    split = read_split(Path(shards), "val").take(np.arange(23))
    net = zoo.build("resnet18", len(split.labels), 3, 48, {})
    prep = Preprocessing(image_size=48, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3, resize="squash")
    with ShardReader(split, prep) as reader:
        found = evaluation.evaluate(
            here,
            net,
            reader.batches(eval_batches(23, 4, rank, world_size), 0),
            Normalizer(prep.mean, prep.std, here.device),
            "bce",
            lambda logits, targets: losses.loss_sum("bce", logits, targets, torch.ones(len(split.labels))),
            split,
        )
    assert found is not None
    if rank == world_size - 1:
        np.savez(Path(folder), scores=found.scores, targets=found.targets, loss=found.loss)
    torch.distributed.barrier()  # as above
    torch.distributed.destroy_process_group()


@pytest.mark.ray
@pytest.mark.slow
def test_evaluation_is_the_same_on_any_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    """23 samples divide by no number of ranks, and eight ranks have more of them than there are shards."""
    found = []
    for ranks in (1, 2, 4, 8):
        where = (str(shards), str(tmp_path / f"ranks{ranks}"))
        multiprocessing.spawn(_evaluating_rank, (ranks, *where), nprocs=ranks)
        found.append(np.load(tmp_path / f"ranks{ranks}.npz"))
    one, *others = found
    assert (one["targets"] == read_split(shards, "val").targets[:23]).all()
    for other in others:
        assert (other["targets"] == one["targets"]).all()
        np.testing.assert_allclose(other["scores"], one["scores"], atol=1e-6)
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), abs=1e-6)
        measured = [metrics.score_metrics(each["scores"], each["targets"]) for each in (one, other)]
        assert measured[0] == pytest.approx(measured[1], abs=1e-6)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_resumes_bit_for_bit(shards: Path, tmp_path: Path, precision: str) -> None:
    """Its samplers too. Scores are those of float32, which predictions are computed in."""
    # Convolutions in fp16 are slow on a CPU: small images.
    changes = {"repeat_below": 0.3, "thin": 0.2, "thin_labels": ("disc",), "image_size": 38}
    config = settings(shards, epochs=2, precision=precision, **changes)
    training_loop.fit(config, place(tmp_path / "straight"), lambda _: None)
    fit_until(config, place(tmp_path / "stopped"), 1)
    training_loop.fit(config, place(tmp_path / "stopped"), lambda _: None)
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    assert f"computes in {precision}" in (tmp_path / "straight" / "log.txt").read_text()
    best = checkpoints.read_best(tmp_path / "straight")
    net = zoo.build(config.arch, best.targets.shape[1], 1, 38, config.arch_options)
    net.load_state_dict(best.state)
    prep = setup.preprocessing(config)
    with ShardReader(read_split(shards, "val"), prep) as reader, torch.no_grad():
        (batch,) = reader.batches([np.arange(8)], 0)
        scores = torch.sigmoid(net.eval()(Normalizer(prep.mean, prep.std, torch.device("cpu"))(batch.images)))
    np.testing.assert_allclose(scores.numpy(), best.scores[:8], atol=1e-6)


@pytest.mark.ray
def test_the_last_stages_alone_change(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, epochs=1, arch="resnet18", arch_options={}, train=2, precision="fp32")
    torch.manual_seed(config.seed)
    prep = setup.preprocessing(config)
    before, _, _ = setup.network(config, read_split(shards, "train"), prep)
    training_loop.fit(config, place(tmp_path / "run"), lambda _: None)
    after = weights(tmp_path / "run")
    changed = {name.partition(".")[0] for name, tensor in before.state_dict().items() if (tensor != after[name]).any()}
    assert changed == {"layer4", "fc"}


@pytest.mark.ray
def test_steps_that_are_not_finite_are_left_out_where_that_is_asked_for(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(shards, epochs=1, non_finite="skip")
    calls = 0
    ended = losses.loss_sum

    def spoilt(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return ended(*arguments) * (float("nan") if calls == 3 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "loss_sum", spoilt)
        training_loop.fit(config, place(tmp_path / "run"), lambda _: None)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"Warning: step 2 on rank 0 is left out: its loss is not finite; samples \S+,", log)
    (row,) = checkpoints.read_history(tmp_path / "run")
    assert np.isfinite(row["train/loss"])
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    monkeypatch.setattr(losses, "loss_sum", lambda *arguments: ended(*arguments) * float("nan"))
    with pytest.raises(RunError, match="the loss is not finite at step"):
        training_loop.fit(settings(shards, batch_size=4, non_finite="skip"), place(tmp_path / "all"), lambda _: None)


@pytest.mark.ray
def test_an_output_that_says_nothing_is_told_of(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, epochs=3, lr=1e-12, head_prior=False, threshold_policy="fixed=0.99")
    training_loop.fit(config, place(tmp_path / "run"), lambda _: None)
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    (warning,) = [line for line in lines if line.startswith("Warning: ")]
    assert "no image gets any label" in warning or "nearly the same scores" in warning
    assert warning.endswith("Try --set head_prior=true.")
    assert lines.index(warning) == next(i for i, line in enumerate(lines) if "epoch 2/3" in line) + 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a compiler")
def test_a_compiled_network_learns_the_same(shards: Path, tmp_path: Path) -> None:
    plain = settings(shards, epochs=2, arch="a-cnn1", arch_options={}, batch_size=48, precision="fp32")
    rows = []
    for name, config in (("plain", plain), ("compiled", plain.model_copy(update={"compile": True}))):
        training_loop.fit(config, place(tmp_path / name), lambda _: None)
        rows.append(checkpoints.read_history(tmp_path / name))
    for one, two in zip(*rows, strict=True):
        for metric in ("train/loss", "val/loss"):
            assert two[metric] == pytest.approx(one[metric], rel=1e-3), metric


@pytest.mark.ray
def test_the_training_split_has_its_metrics_by_epoch(shards: Path, tmp_path: Path) -> None:
    """Without augmentation, batch norm and steps that change anything they are those of the network as it is."""
    config = settings(
        shards,
        arch="a-cnn1",
        arch_options={},
        epochs=1,
        hflip=False,
        optimizer="sgd",
        lr=1e-30,
        batch_size=50,
        schedule="constant",
        threshold_policy="fixed=0.3",
        head_prior=False,
    )
    training_loop.fit(config, place(tmp_path / "run"))
    (row,) = checkpoints.read_history(tmp_path / "run")
    train = read_split(shards, "train")
    prep = setup.preprocessing(config)
    torch.manual_seed(config.seed)
    net = zoo.build(config.arch, len(train.labels), 3, 48, {})
    with ShardReader(train, prep) as reader:
        found = evaluation.evaluate(
            place(tmp_path / "run"),
            net,
            reader.batches(eval_batches(len(train), 50, 0, 1), 0),
            Normalizer(prep.mean, prep.std, torch.device("cpu")),
            "bce",
            lambda logits, _: logits.sum(),
            train,
        )
    assert found is not None
    expected = metrics.decision_metrics(found.scores >= 0.3, found.targets)
    for name in ("f1_micro", "precision_micro", "recall_micro", "f1_macro", "subset_accuracy", "hamming_accuracy"):
        assert row[f"train/{name}"] == pytest.approx(expected[name], abs=0.02), name


@pytest.mark.ray
@pytest.mark.parametrize("kept", ["best", "lowest-loss", "last"])
def test_the_epoch_that_is_asked_for_is_kept_and_measured(shards: Path, tmp_path: Path, kept: str) -> None:
    config = settings(shards, epochs=4, keep_epoch=kept, lr=3e-3, runs=tmp_path, name="run", doctor=False)
    training_loop.fit(config, place(tmp_path / "run"))
    history = checkpoints.read_history(tmp_path / "run")
    wanted = {
        "best": max(history, key=lambda row: row["val/f1_micro"]),
        "last": history[-1],
        "lowest-loss": min(history, key=lambda row: row["val/loss"]),
    }[kept]
    best = checkpoints.read_best(tmp_path / "run")
    assert best.epoch == wanted["epoch"] == epoch_choice.kept_epoch(config, history) + 1
    report = finish(config, tmp_path / "run", tmp_path / "run", warn=False)
    assert report.best_epoch == wanted["epoch"]
    for name in ("f1_micro", "f1_macro", "map", "subset_accuracy"):
        assert report.measurement.values[name] == wanted[f"val/{name}"], "one number for one thing"


@pytest.mark.ray
def test_a_head_is_trained_on_augmented_images_where_that_is_asked_for(shards: Path, tmp_path: Path) -> None:
    config = settings(
        shards, arch="resnet18", arch_options={}, epochs=1, train="head", augment={"rotate": 25, "hue": 0.2}
    )
    training_loop.fit(config, place(tmp_path / "run"))
    plain = config.model_copy(update={"augment": {}})
    training_loop.fit(plain, place(tmp_path / "plain"))
    kept, other = weights(tmp_path / "run"), weights(tmp_path / "plain")
    changed = {name for name in kept if not torch.equal(kept[name], other[name])}
    assert changed == {"fc.weight", "fc.bias"}, "the backbone and its statistics stay"
    assert not setup.has_fixed_features(config)
    assert setup.has_fixed_features(plain)


@pytest.mark.ray
def test_a_head_may_be_shown_mixed_images_after_some_epochs(shards: Path, tmp_path: Path) -> None:
    plain = settings(
        shards, arch_options={"dropout": 0.0}, epochs=3, train="head", schedule="constant", ema=0, keep_epoch="last"
    )
    later = plain.model_copy(update={"changes": {2: {"mixup": 0.5}}})
    assert setup.has_fixed_features(plain)
    assert not setup.has_fixed_features(later)
    training_loop.fit(plain, place(tmp_path / "plain"))
    training_loop.fit(later, place(tmp_path / "later"))
    rows = [checkpoints.read_history(tmp_path / name) for name in ("plain", "later")]
    assert [row["val/loss"] for row in rows[1][:2]] == pytest.approx([row["val/loss"] for row in rows[0][:2]], rel=1e-4)
    assert rows[1][2]["train/loss"] != pytest.approx(rows[0][2]["train/loss"], rel=1e-3)


@pytest.mark.ray
def test_a_score_that_is_no_number_stops_with_the_name_of_the_sample(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = read_split(shards, "val")
    plain = losses.scores

    def scores(activation: Any, logits: torch.Tensor) -> torch.Tensor:
        found = plain(activation, logits)
        if len(found) == len(val):
            found[3, 1] = float("nan")
        return found

    monkeypatch.setattr(losses, "scores", scores)
    with pytest.raises(RunError, match=re.escape(f"the score of the sample {val.key(3)!r}, or the loss")):
        training_loop.fit(settings(shards, batch_size=64), place(tmp_path / "run"))


@pytest.mark.ray
def test_bad_samples_of_one_split_are_not_held_against_another(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bad training images of 190 are within 2% of theirs, and would be more than 2% of 24 validation images."""
    train = read_split(shards, "train")
    bad = {train.key(3), train.key(77)}
    load = ShardReader._load

    def damaged(self: ShardReader, piece: Any) -> dict[int, str]:
        load(self, piece)
        rows = enumerate(piece.samples)
        return {piece.first + row: "damaged" for row, i in rows if self._split.key(i) in bad}

    monkeypatch.setattr(ShardReader, "_load", damaged)
    training_loop.fit(settings(shards, epochs=2, max_bad=0.02, cache_gb=0), place(tmp_path / "run"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("cannot be decoded") == 2
    with pytest.raises(DataError, match=r"2 of 19\d samples of the split train cannot be decoded"):
        training_loop.fit(settings(shards, epochs=2, max_bad=0.01, cache_gb=0), place(tmp_path / "strict"))


@pytest.mark.ray
@pytest.mark.parametrize("where", ["steps", "evaluation"])
def test_a_request_to_stop_is_seen_by_time(
    shards: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of half a minute it is seen after the next one, and in a long evaluation before its end."""
    config = settings(shards, epochs=2, arch="a-cnn1", arch_options={}, batch_size=8)
    training_loop.fit(config, place(tmp_path / "straight"))
    here, clock, taken, seen = place(tmp_path / "stopped"), 0.0, 0, 0
    step, load = torch.optim.Adam.step, ShardReader._load

    def slow_step(self: Any, *arguments: Any) -> Any:
        nonlocal clock, taken
        clock, taken = clock + 30, taken + 1
        if where == "steps" and taken == 3:
            (here.folder / ".stop-1").touch()
        return step(self, *arguments)

    def slow_load(self: Any, *arguments: Any) -> Any:
        nonlocal clock, seen
        if self._split.name == "val":
            clock, seen = clock + 30, seen + 1
            if where == "evaluation":
                (here.folder / ".stop-1").touch()
        return load(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock)
        patch.setattr(torch.optim.Adam, "step", slow_step)
        patch.setattr(ShardReader, "_load", slow_load)
        training_loop.fit(config, here)
    assert (here.folder / "log.txt").read_text().splitlines()[-1].startswith("stops on request after epoch 0")
    assert (taken == 3) if where == "steps" else (seen == 1)
    goes_on_alike(config, here, tmp_path / "straight")


def _resuming_rank(rank: int, world_size: int, folder: str, config: str, blind_s: float) -> None:
    """A rank that does not see the checkpoint at first, as behind the cache of a network file system."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=world_size)
    if rank == 1:
        load, begun = checkpoints.Checkpoints._load, time.monotonic()

        def late(self: Any) -> Any:
            return None if time.monotonic() - begun < blind_s else load(self)

        checkpoints.Checkpoints._load = late  # type: ignore[method-assign]
    training_loop.fit(
        TrainConfig(**json.loads(config)),
        RankContext(rank, world_size, torch.device("cpu"), Path(folder), Path(folder), 1),
    )


@pytest.mark.ray
def test_all_ranks_go_on_from_what_the_first_one_has(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, arch="a-cnn1", arch_options={}, epochs=2, batch_size=24)
    fit_until(config, place(tmp_path / "run"), 1)
    where = (str(tmp_path / "run"), config.model_dump_json(), 3.0)
    multiprocessing.spawn(_resuming_rank, (2, *where), nprocs=2)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("resumes after epoch 1 of 2") == 1
    assert len(checkpoints.read_history(tmp_path / "run")) == 2


def test_a_metric_that_no_epoch_has_is_refused_before_the_first(shards: Path) -> None:
    config = settings(shards, stop_on="val/f1_micor", patience=2)
    with pytest.raises(ConfigError, match=r"stop_on names 'val/f1_micor'") as caught:
        setup.check_names(config, read_split(shards, "val").labels)
    assert caught.value.hint == "did you mean val/f1_micro?"
    undefined = [{"val/loss": 1.0}, {"val/loss": 1.0, "val/roc_auc": float("nan")}]
    assert not epoch_choice.is_done(settings(shards, stop_on="val/roc_auc", patience=3), undefined)
