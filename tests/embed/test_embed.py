"""Embeddings: the features that a model's head gets, and the images nearest to one."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mlic.average.average import average
from mlic.batch_predict.actor import Predictor
from mlic.batch_predict.predict import list_items
from mlic.config.predict import AverageConfig, EmbedConfig, PredictConfig
from mlic.data import toy
from mlic.embed.embed import embed
from mlic.errors import ConfigError, DataError
from mlic.model import bundle, zoo
from tests.end_to_end.test_kill import start
from tests.end_to_end.test_kill_nodes import save_model

pytestmark = pytest.mark.ray


def vectors(out: Path) -> np.ndarray:
    table = pq.read_table(out)
    return np.array(table.column("embedding").to_pylist(), np.float32)


def test_the_head_makes_the_scores_of_them(trained_run: Path, corpus: Path, tmp_path: Path) -> None:
    report = embed(EmbedConfig(model=trained_run, images=corpus / "unlabelled", out=tmp_path / "e.parquet", chunk=8))
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["key", "file", "embedding"]
    assert table.column("key").to_pylist() == sorted(path.stem for path in (corpus / "unlabelled").iterdir())
    assert (report.found, report.embedded, report.bad) == (30, 30, 0)
    model, net = bundle.load_model(trained_run)
    with torch.inference_mode():
        logits = zoo.head(net, len(model.labels))(torch.from_numpy(vectors(tmp_path / "e.parquet")))
    config = PredictConfig(model=trained_run, images=corpus / "unlabelled")
    items = list_items(config.images, None)
    with items.source.opened() as read:
        readers = [functools.partial(read, i) for i in range(len(items))]
        scores, bad = Predictor(config, "torch", here=True).of_files(readers)
    assert not bad
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), scores, atol=1e-5)


def test_before_a_decoder_they_are_the_mean_over_places(corpus: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    model, _ = bundle.load_model(tmp_path / "model")
    options = {"head_decoder": 32.0}
    net = zoo.build("resnet18", len(toy.LABELS), 3, 64, options)
    bundle.save(replace(model, arch="resnet18", arch_options=options), net.state_dict(), tmp_path / "model")
    report = embed(EmbedConfig(model=tmp_path / "model", images=corpus / "unlabelled", out=tmp_path / "e.parquet"))
    assert report.width == 512
    plain = zoo.build("resnet18", len(toy.LABELS), 3, 64, {})
    plain.load_state_dict({**plain.state_dict(), **{k: v for k, v in net.state_dict().items() if "fc" not in k}})
    save = replace(model, arch="resnet18", arch_options={})
    bundle.save(save, plain.state_dict(), tmp_path / "plain")
    embed(EmbedConfig(model=tmp_path / "plain", images=corpus / "unlabelled", out=tmp_path / "p.parquet"))
    np.testing.assert_allclose(vectors(tmp_path / "e.parquet"), vectors(tmp_path / "p.parquet"), atol=1e-5)


def test_the_nearest_images(trained_run: Path, corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    first, *_ = sorted(images.iterdir())
    shutil.copy(first, images / "zz.jpg")
    config = EmbedConfig(model=trained_run, images=images, out=tmp_path / "e.parquet", near=first, count=4)
    report = embed(config)
    assert {file for _, file in report.nearest[:2]} == {first.name, "zz.jpg"}
    cosines = [value for value, _ in report.nearest]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[1] == pytest.approx(1, abs=1e-5)
    table = vectors(tmp_path / "e.parquet")
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert cosines == pytest.approx(sorted(unit @ unit[0], reverse=True)[:4], abs=1e-5)
    assert f"nearest to {first}" in report.text()
    with pytest.raises(DataError, match="nowhere.jpg does not exist"):
        embed(config.model_copy(update={"near": tmp_path / "nowhere.jpg", "out": tmp_path / "f.parquet"}))
    with pytest.raises(DataError, match="is 31 images, not one"):
        embed(config.model_copy(update={"near": images, "out": tmp_path / "f.parquet"}))
    assert not (tmp_path / "f.parquet").exists()
    (tmp_path / "broken.jpg").write_bytes(first.read_bytes()[:100])
    with pytest.raises(DataError, match="broken.jpg cannot be read"):
        embed(config.model_copy(update={"near": tmp_path / "broken.jpg"}))


def test_bad_images_have_a_reason_and_no_row(trained_run: Path, corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    bad = sorted(images.iterdir())[3]
    bad.write_bytes(b"no image")
    config = EmbedConfig(model=trained_run, images=images, out=tmp_path / "e.parquet")
    report = embed(config)
    assert (report.found, report.embedded, report.bad, report.exit_code) == (30, 29, 1, 0)
    assert bad.name in (tmp_path / "e.parquet.errors.tsv").read_text()
    assert embed(config) == report
    (tmp_path / "e.parquet").write_bytes(b"")
    assert embed(config).sha256 == report.sha256, "it is written again from its parts"
    for path in images.iterdir():
        path.write_bytes(b"no image")
    assert embed(config.model_copy(update={"fresh": True})).exit_code == DataError.exit_code


def test_what_has_no_embedding(trained_run: Path, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained_run, other)
    both = average(AverageConfig(runs=(trained_run, other), out=tmp_path / "both")).model.parent
    with pytest.raises(DataError, match="is an average of 2 networks"):
        embed(EmbedConfig(model=both, images=corpus / "unlabelled", out=tmp_path / "e.parquet"))
    with pytest.raises(ValueError, match=r"out should end in \.parquet"):
        EmbedConfig(model=trained_run, images=corpus / "unlabelled", out=tmp_path / "e.csv")
    (tmp_path / "e.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="was not made by this command"):
        embed(EmbedConfig(model=trained_run, images=corpus / "unlabelled", out=tmp_path / "e.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_embedding(
    trained_run: Path,
    corpus: Path,
    tmp_path: Path,
    mlic: Callable[..., CompletedProcess[str]],
    number: signal.Signals,
) -> None:
    command = ["embed", trained_run, corpus / "images", "--out", "e.parquet", "--set", "chunk=8", "--batch-size", "8"]
    process = start(tmp_path, *command)
    parts = tmp_path / "e.parquet.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode in (6, -signal.SIGKILL)
    assert not (tmp_path / "e.parquet").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    done = mlic(*command)
    assert done.returncode == 0, done.stderr
    assert all((parts / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    command[4] = "f.parquet"
    assert mlic(*command).returncode == 0
    assert (tmp_path / "e.parquet").read_bytes() == (tmp_path / "f.parquet").read_bytes()
