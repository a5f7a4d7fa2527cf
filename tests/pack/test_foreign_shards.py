"""Shards that another program wrote: trained on where they lie, after they are indexed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mlic.config.data import DoctorConfig
from mlic.config.evaluate import EvaluateConfig
from mlic.config.train import TrainConfig
from mlic.data.shards import read_index, read_split, read_table
from mlic.doctor.doctor import doctor
from mlic.errors import ConfigError, DataError
from mlic.evaluate.evaluate import evaluate
from mlic.pack.foreign_shards import index_if_needed
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET

pytestmark = pytest.mark.ray


def write_shards(folder: Path, corpus: Path, splits: dict[str, range]) -> dict[str, list[str]]:
    """The toy images `im1.jpg` ... as webdataset's ShardWriter writes them; returns the labels of each by key."""
    lists = sorted((corpus / "annotations").glob("*.txt"))
    positive = {path.stem: set(path.read_text().split()) for path in lists}
    labels_of = {}
    folder.mkdir()
    for prefix, numbers in splits.items():
        with webdataset.ShardWriter(str(folder / f"{prefix}-%06d.tar"), maxcount=50, verbose=0) as sink:
            for number in numbers:
                labels = [label for label, images in positive.items() if str(number) in images]
                labels_of[f"im{number}"] = labels
                image = (corpus / "images" / f"im{number}.jpg").read_bytes()
                sink.write({"__key__": f"im{number}", "jpg": image, "json": {"labels": labels}})
    return labels_of


def test_a_folder_of_shards_is_trained_on_where_it_lies(
    ray_cluster: None, corpus: Path, tmp_path: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "wds"
    labels_of = write_shards(folder, corpus, {"s": range(1, 201)})
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    config = TrainConfig(shards=folder, runs=tmp_path / "runs", name="a", workers=1, **(FIT | NET | {"epochs": 2}))
    more = ("--image-size", 64, "--arch", "b-final", "--color", "rgb", "--name", "first", "--workers", 1)
    done = mlic("train", folder, "--epochs", 1, *more)
    assert done.returncode == 0, done.stderr
    assert "holds shards of another program; they are indexed first" in done.stderr
    report = train(config)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert sorted({path.name for path in folder.iterdir()} - before.keys()) == [
        "doctor.json",
        "index.json",
        "left_out.tsv",
        "samples.parquet",
    ]
    split = read_split(folder, None)
    with split.opened() as read:
        for i in range(len(split)):
            key = split.key(i)
            assert read(i) == (corpus / "images" / f"{key}.jpg").read_bytes()
            assert [split.labels[j] for j in np.flatnonzero(split.targets[i] == 1)] == labels_of[key]
    index = read_index(folder)
    assert {name: part["samples"] for name, part in index["splits"].items()} == {"train": 160, "val": 20, "test": 20}
    assert index["leakage"] == 0
    assert set(read_table(folder, ["format"]).column("format").to_pylist()) == {"JPEG"}
    measured = evaluate(EvaluateConfig(predictions=report.run, split="val"))
    assert measured.measurement.samples == 20
    stamp = (folder / "index.json").stat().st_mtime_ns
    assert train(config) == report
    assert (folder / "index.json").stat().st_mtime_ns == stamp


def test_shards_that_are_named_after_splits_keep_them(ray_cluster: None, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wds"
    write_shards(folder, corpus, {"train": range(1, 121), "val": range(121, 171)})
    with pytest.raises(DataError, match="holds shards of another program") as caught:
        doctor(DoctorConfig(shards=folder))
    assert f"mlic train {folder} writes it" in str(caught.value.hint)
    index_if_needed(folder, None)
    keys = set(read_split(folder, "val").keys.to_pylist())
    assert keys == {f"im{i}" for i in range(121, 171)}
    assert {check.status for check in doctor(DoctorConfig(shards=folder)).checks} <= {"ok", "note", "warning"}
    (folder / "val-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="has 0 bytes") as caught:
        read_split(folder, "val")
    assert "delete index.json" in str(caught.value.hint)


def test_too_many_broken_images_stop_before_an_index_is_written(
    ray_cluster: None, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wds"
    write_shards(folder, corpus, {"s": range(1, 41)})
    with webdataset.ShardWriter(str(folder / "t-%06d.tar"), verbose=0) as sink:
        for number in range(20):
            sink.write({"__key__": f"b{number}", "jpg": b"no image", "json": {"labels": ["disc"]}})
    with pytest.raises(DataError, match="20 images cannot be read, more than max_bad allows"):
        index_if_needed(folder, None)
    assert not (folder / "index.json").exists()


def test_shards_of_the_same_name_in_folders(ray_cluster: None, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wds"
    write_shards(folder, corpus, {"0": range(1, 31)})
    write_shards(folder / "more", corpus, {"0": range(31, 61)})
    index_if_needed(folder, None)
    split = read_split(folder, None)
    assert len(split) == 60
    with split.opened() as read:
        for i in range(len(split)):
            assert read(i) == (corpus / "images" / f"{split.key(i)}.jpg").read_bytes()


def test_loose_images_beside_shards_are_refused(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wds"
    write_shards(folder, corpus, {"s": range(1, 31)})
    shutil.copy(corpus / "images" / "im1.jpg", folder / "im1.jpg")
    with pytest.raises(DataError, match=r"holds no \.tar shards alone|loose images"):
        index_if_needed(folder, None)


def test_what_a_stopped_pack_has_left_is_not_taken_for_shards_of_others(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    shutil.copytree(shards, left)
    (left / "index.json").unlink()
    with pytest.raises(DataError, match=r"holds no index\.json"):
        train(TrainConfig(shards=left, runs=tmp_path / "runs"))
    (left / "run.json").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="is read-only") as caught:
        train(TrainConfig(shards=left, runs=tmp_path / "runs"))
    assert f"mlic pack {left} --labels {left}" in str(caught.value.hint)
