"""A model learns from the scores of others, and from images without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.evaluate import EvaluateConfig
from mlic.config.load import build
from mlic.config.predict import PredictConfig
from mlic.config.train import DistillConfig, TrainConfig
from mlic.data import shards as shard_files
from mlic.distill import distill as stage
from mlic.errors import ConfigError, DataError
from mlic.evaluate.evaluate import evaluate
from mlic.model import bundle
from mlic.train import setup
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET

NET_FIT = {**FIT, **NET, "color": "rgb", "calibration": "none", "doctor": False}


@pytest.fixture(scope="module")
def teacher(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    return train(TrainConfig(shards=shards, runs=runs, workers=1, name="teacher", **NET_FIT | {"epochs": 4})).run


def settings(teacher: Path, shards: Path, runs: Path, **more: Any) -> DistillConfig:
    given = NET_FIT | {"epochs": 2, "seed": 7} | more
    return DistillConfig(teachers=(teacher,), shards=shards, runs=runs, workers=1, **given)


@pytest.fixture(scope="module")
def straight(
    teacher: Path, shards: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillConfig, stage.DistillReport]:
    config = settings(teacher, shards, tmp_path_factory.mktemp("straight"), images=corpus / "unlabelled")
    return config, stage.distill(config)


@pytest.mark.ray
def test_a_student_learns_from_scores_and_from_images_without_labels(
    straight: tuple[DistillConfig, stage.DistillReport], teacher: Path, shards: Path, tmp_path: Path
) -> None:
    config, report = straight
    assert report.labelled == shard_files.read_index(shards)["splits"]["train"]["samples"]
    assert report.unlabelled == 30
    assert report.gain is not None
    assert report.gain[1] <= report.gain[0] <= report.gain[2]
    assert stage.distill(config) == report  # as it was reported
    with pytest.raises(ConfigError, match="made from different images"):
        stage.distill(config.model_copy(update={"images": None}))
    folder = config.folder
    weights = [bundle.read(folder / name).weights_sha256 for name in (".", "student", "without-teachers")]
    assert weights[0] == weights[1] != weights[2]
    table = pq.read_table(folder / "teachers" / "labelled.parquet")
    predict(PredictConfig(model=teacher, images=shards, split="train", out=tmp_path / "t.parquet", values="scores"))
    read = prediction_files.read(tmp_path / "t.parquet")
    assert read.scores is not None
    assert table.column("key").to_pylist() == list(read.keys)
    written = np.stack([table.column(label).to_numpy() for label in read.labels], axis=1)
    np.testing.assert_allclose(written, read.scores, atol=1e-6)
    evaluate(EvaluateConfig(predictions=folder))


@pytest.mark.ray
@pytest.mark.slow
def test_stopped_between_its_steps_it_ends_with_the_same_model(
    straight: tuple[DistillConfig, stage.DistillReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, report = straight
    stopped = config.model_copy(update={"runs": tmp_path})
    asked = list[str]()

    def failing(student: TrainConfig) -> Any:
        asked.append(str(student.name))
        if len(asked) in (1, 3):
            raise KeyboardInterrupt
        return train(student)

    monkeypatch.setattr(stage, "train", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stage.distill(stopped)
    again = stage.distill(stopped)
    assert asked == ["student", "student", "without-teachers", "student", "without-teachers"]
    assert (again.measurement, again.gain) == (report.measurement, report.gain)
    assert bundle.read(stopped.folder).weights_sha256 == bundle.read(config.folder).weights_sha256


def test_unlabelled_images_come_after_the_labelled_ones(shards: Path) -> None:
    split = shard_files.read_split(shards, "train")
    joined = shard_files.with_unlabelled(split, split)
    assert len(joined) == 2 * len(split)
    assert (joined.targets[: len(split)] == split.targets).all()
    assert (joined.targets[len(split) :] == -1).all()
    assert joined.key(len(split) + 3) == split.key(3)
    with split.opened() as one, joined.opened() as both:
        assert both(len(split) + 3) == one(3) == both(3)
    assert joined.fingerprint != split.fingerprint


def test_known_labels_are_mixed_and_unknown_ones_replaced() -> None:
    mixed = setup.blended(torch.tensor([[1, 0, -1]]), torch.tensor([[0.6, 0.2, 0.9]]), 0.25)
    torch.testing.assert_close(mixed, torch.tensor([[0.9, 0.05, 0.9]]))


def test_soft_targets_are_found_by_key(shards: Path, tmp_path: Path) -> None:
    split = shard_files.read_split(shards, "train")
    scores: Any = np.random.default_rng(0).random(split.targets.shape, np.float32)
    order = np.random.default_rng(1).permutation(len(split))

    def written(rows: Any) -> Path:
        columns = {label: scores[rows, i] for i, label in enumerate(split.labels)}
        pq.write_table(pa.table({"key": split.keys.take(pa.array(rows)), **columns}), tmp_path / "soft.parquet")
        return tmp_path / "soft.parquet"

    config = TrainConfig(shards=shards, soft_targets=(written(order),))
    soft = setup.soft_targets(config, split)
    assert soft is not None
    assert np.array_equal(soft.numpy(), scores)
    written(order[5:])
    with pytest.raises(DataError, match="has no scores of .*, and of 5 training images in all"):
        setup.soft_targets(config, split)
    with pytest.raises(DataError, match="cannot read the soft targets"):
        setup.soft_targets(config, replace(split, labels=("unicorn", *split.labels[1:])))


def test_a_teacher_of_other_labels_is_refused(teacher: Path, shards: Path, tmp_path: Path) -> None:
    model, net = bundle.load_model(teacher)
    other = replace(model, labels=("unicorn", *model.labels[1:]))
    bundle.save(other, net.state_dict(), tmp_path / "other")
    with pytest.raises(DataError, match="other has not the labels of .*unicorn"):
        stage.distill(settings(tmp_path / "other", shards, tmp_path / "runs"))


def test_the_shards_may_be_the_last_argument(teacher: Path, shards: Path) -> None:
    config = build(DistillConfig, {"teachers": [str(teacher), str(shards)]})
    assert (config.teachers, config.shards) == ((teacher,), shards)
    with pytest.raises(ConfigError, match="leave fold and cross_validate out"):
        build(DistillConfig, {"teachers": [str(teacher)], "shards": str(shards), "fold": 0})
    with pytest.raises(ConfigError, match="soft_targets has 0 tables"):
        build(TrainConfig, {"shards": str(shards), "unlabelled_shards": str(shards)})
