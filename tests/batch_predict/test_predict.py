"""What batch-predict outlives: images that kill the process that decodes them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mlic.batch_predict import actor, prediction_files
from mlic.batch_predict.actor import Predictor, Trail
from mlic.batch_predict.inference import Network
from mlic.batch_predict.predict import list_items, predict
from mlic.config.predict import PredictConfig
from mlic.data.pixels.decoding import ahead
from mlic.errors import ConfigError
from mlic.metrics import thresholds
from mlic.model import runtimes
from tests import poison

pytestmark = pytest.mark.ray


@pytest.fixture
def run(trained_run: Path) -> Path:
    return trained_run


@pytest.fixture
def poisoned(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unlabelled images, of which the 3rd and the 5th are poison."""
    poison.install(tmp_path, monkeypatch)
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    poison.put(*sorted(images.iterdir())[2:5:2])
    return images


def predicted(tmp_path: Path, run: Path, images: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "mlic", "batch-predict", str(run), str(images), "--out", "p.csv", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr


def whole(tmp_path: Path, run: Path, images: Path) -> None:
    """All images but the poison are predicted as without it."""
    clean = tmp_path / "clean"
    shutil.copytree(images, clean)
    for path in sorted(clean.iterdir())[2:5:2]:
        path.write_bytes(path.read_bytes().removesuffix(b"POISON"))
    found = prediction_files.read(tmp_path / "p.csv")
    bad = (tmp_path / "p.csv.errors.tsv").read_text().splitlines()
    names = sorted(path.name for path in images.iterdir())
    assert bad[1:] == [f"{name}\tthe process that decoded it died, 3 times" for name in names[2:5:2]]
    (tmp_path / "p.csv").rename(tmp_path / "poisoned.csv")
    assert predicted(tmp_path, run, clean, "--out", "q.csv")[0] == 0
    expected = prediction_files.read(tmp_path / "q.csv")
    kept = [i for i, name in enumerate(expected.files) if name in found.files]
    assert found.files == tuple(expected.files[i] for i in kept)
    assert len(kept) == len(names) - 2
    assert found.scores is not None
    assert expected.scores is not None
    assert found.scores == pytest.approx(expected.scores[kept], abs=1e-5)


@pytest.mark.slow
def test_an_image_that_kills_its_worker_costs_itself_alone(run: Path, poisoned: Path, tmp_path: Path) -> None:
    code, err = predicted(tmp_path, run, poisoned, "--workers", "2", "--set", "chunk=8", "--batch-size", "4")
    assert code == 0, err
    assert "a worker died at part 0, which is retried in smaller pieces" in err
    whole(tmp_path, run, poisoned)
    assert not list((tmp_path / "p.csv.parts").glob("*.trail"))


@pytest.mark.slow
def test_an_image_that_kills_the_command_is_given_up_by_the_next_ones(
    run: Path, poisoned: Path, tmp_path: Path
) -> None:
    """Few images are predicted in the command's own process: once at speed, then three times with care for each."""
    codes = []
    while not codes or (codes[-1] and len(codes) < 12):
        codes.append(predicted(tmp_path, run, poisoned)[0])
    assert codes == [-9] * 7 + [0]
    whole(tmp_path, run, poisoned)


def test_few_images_start_no_cluster(run: Path, corpus: Path, tmp_path: Path) -> None:
    code, err = predicted(tmp_path, run, corpus / "unlabelled")
    assert (code, err) == (0, "")
    code, err = predicted(tmp_path, run, corpus / "unlabelled", "--out", "two.csv", "--workers", "2")
    assert code == 0
    assert "Ray inside this process" in err
    one, two = (prediction_files.read(tmp_path / name) for name in ("p.csv", "two.csv"))
    assert one.scores is not None
    assert two.scores == pytest.approx(one.scores, abs=1e-5)


def test_only_deaths_in_the_middle_of_an_image_count_against_it(tmp_path: Path) -> None:
    part = tmp_path / "part-000000.parquet"
    trail = tmp_path / "part-000000.trail"
    trail.write_text("begin begin +0 -0 +1 begin +0 -0 +1 -1 begin +0 -0 +1 begin +0 -0 +1 begin +0")
    assert Trail.attempts(part) == 6
    with Trail(part) as found:
        assert found.careful
        assert found.deadly == {1}
    assert not trail.exists()
    with Trail(part) as found:
        assert not found.careful


def test_another_choice_of_values_predicts_nothing_anew(run: Path, corpus: Path, tmp_path: Path) -> None:
    config = PredictConfig(model=run, images=corpus / "unlabelled", out=tmp_path / "p.csv", chunk=10)
    predict(config)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "p.csv.parts").glob("part-*")}
    both = prediction_files.read(tmp_path / "p.csv")
    predict(config.model_copy(update={"top_k": 2, "values": "decisions"}))
    two = prediction_files.read(tmp_path / "p.csv")
    assert both.scores is not None
    assert two.scores is None
    assert (two.decisions == thresholds.decide(both.scores, np.zeros(both.columns), 2)).all()
    assert json.loads((tmp_path / "p.csv.parts" / "index.json").read_text())["top_k"] == 2
    predict(config)
    assert (prediction_files.read(tmp_path / "p.csv").decisions == both.decisions).all()
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def ten_kinds(folder: Path, source: Path) -> tuple[set[str], set[str]]:
    """Files of ten kinds that break programs; returns the names of those that are images, and of those that are not."""
    good, bad = set(), set()
    photo = Image.open(source).convert("RGB")
    data = source.read_bytes()
    for number in range(2):
        files = {
            "zero": b"",
            "cut": data[: len(data) // 2],
            "text": b"Dear Sir or Madam,\n" * 9,
        }
        for name, content in files.items():
            (folder / f"{name}{number}.jpg").write_bytes(content)
            bad.add(f"{name}{number}.jpg")
        Image.new("1", (20_000, 20_000)).save(folder / f"huge{number}.png")
        (folder / f"gone{number}.jpg").symlink_to(folder / "nowhere.jpg")
        bad |= {f"huge{number}.png", f"gone{number}.jpg"}
        photo.convert("CMYK").save(folder / f"cmyk{number}.jpg")
        Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(folder / f"deep{number}.png")
        photo.save(folder / f"film{number}.webp", save_all=True, append_images=[photo.rotate(90)])
        shutil.copy(source, folder / f"closed{number}.jpg")
        (folder / f"closed{number}.jpg").chmod(0)
        odd = os.fsencode(folder) + b"/a 'b' \"c\"\n" + str(number).encode() + b"\xff.jpg"
        Path(os.fsdecode(odd)).write_bytes(data)
        good |= {f"cmyk{number}.jpg", f"deep{number}.png", f"film{number}.webp", f"a 'b' \"c\"\n{number}\\xff.jpg"}
        (good if os.geteuid() == 0 else bad).add(f"closed{number}.jpg")
    return good, bad


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_files_of_ten_kinds_that_break_programs(run: Path, corpus: Path, tmp_path: Path, suffix: str) -> None:
    """Each is predicted or listed with its reason, and what is written reads back with the names as they are."""
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    plain = {path.name for path in images.iterdir()}
    good, bad = ten_kinds(images, sorted(images.iterdir())[0])
    out = tmp_path / f"p{suffix}"
    report = predict(PredictConfig(model=run, images=images, out=out, values="both", batch_size=8))
    assert (report.found, report.predicted, report.bad) == (len(plain | good | bad), len(plain | good), len(bad))
    assert set(prediction_files.read(out).files) == plain | good
    with Path(f"{out}.errors.tsv").open(newline="", encoding="utf-8") as file:
        listed = dict(list(csv.reader(file, delimiter="\t"))[1:])
    assert set(listed) == bad
    assert listed["zero0.jpg"] == "zero bytes"
    assert listed["text0.jpg"] == "not an image"
    assert listed["huge1.png"] == "20,000 x 20,000 pixels, above the limit of 100,000,000"
    readers = {
        ".tsv": lambda: pd.read_csv(out, sep="\t")["Filename"],
        ".csv": lambda: pd.read_csv(out)["file"],
        ".jsonl": lambda: pd.read_json(out, lines=True)["file"],
        ".parquet": lambda: pd.read_parquet(out)["file"],
    }
    assert set(readers[suffix]()) == plain | good
    if suffix in (".tsv", ".csv"):
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","))
        assert {row[0 if suffix == ".tsv" else 1] for row in rows[1:]} == plain | good
        assert len({len(row) for row in rows}) == 1


def test_a_folder_of_parts_is_one_table(run: Path, corpus: Path, tmp_path: Path) -> None:
    config = PredictConfig(model=run, images=corpus / "unlabelled", out=tmp_path / "parts", chunk=7)
    report = predict(config)
    files = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert files == [f"part-{number:06d}.parquet" for number in range(-(-report.found // 7))]
    whole = config.model_copy(update={"out": tmp_path / "p.parquet"})
    predict(whole)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts"), pd.read_parquet(tmp_path / "p.parquet"))
    found, expected = (prediction_files.read(tmp_path / name) for name in ("parts", "p.parquet"))
    assert found.keys == expected.keys
    assert (found.scores == expected.scores).all()  # type: ignore[union-attr]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    predict(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == before
    (tmp_path / "parts" / files[1]).unlink()
    predict(config)
    assert (prediction_files.read(tmp_path / "parts").scores == expected.scores).all()  # type: ignore[union-attr]
    predict(config.model_copy(update={"chunk": 20, "fresh": True}))
    assert len(list((tmp_path / "parts").iterdir())) == -(-report.found // 20)
    (tmp_path / "parts" / ".part-000000.parquet.0a1b2c3d.part").touch()  # as a kill leaves one
    (tmp_path / "parts" / ".part-000009.parquet.0a1b2c3d.part").touch()
    (tmp_path / ".p.parquet.0a1b2c3d.part").touch()
    (tmp_path / "p.parquet").unlink()
    predict(config.model_copy(update={"chunk": 20, "values": "scores"}))
    predict(whole)
    assert len(list((tmp_path / "parts").iterdir())) == -(-report.found // 20)
    assert not list(tmp_path.glob(".*.part"))
    (tmp_path / "parts" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files that batch-predict did not write"):
        predict(config.model_copy(update={"chunk": 20}))


def test_bf16_is_measured_on_the_first_batch(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PredictConfig(model=run, images=corpus / "unlabelled", out=tmp_path / "p.csv", batch_size=16)
    predict(config)
    monkeypatch.setattr("mlic.batch_predict.inference._AGREEMENT", 0.9)
    reduced = config.model_copy(update={"precision": "bf16", "out": tmp_path / "q.csv", "backend": "torch"})
    predict(reduced)
    plain, found = (prediction_files.read(tmp_path / name) for name in ("p.csv", "q.csv"))
    assert plain.scores is not None
    assert found.scores is not None
    apart = np.abs(plain.scores - found.scores).max(axis=1)  # of every image: the first batch is in bf16 as well
    assert apart.min() > 0
    assert apart.max() < 0.02
    computed = json.loads((tmp_path / "q.csv.parts" / "index.json").read_text())["computed_by"]
    assert re.fullmatch(r"torch in bf16, \d+\.\d\d% of the decisions of a first batch are those in fp32", computed[0])
    monkeypatch.setattr("mlic.batch_predict.inference.agreement", lambda *_: 0.5)
    predict(reduced.model_copy(update={"out": tmp_path / "r.csv"}))
    assert (prediction_files.read(tmp_path / "r.csv").scores == plain.scores).all()
    computed = json.loads((tmp_path / "r.csv.parts" / "index.json").read_text())["computed_by"]
    assert computed == ["torch, as by torch in bf16 50.00% of the decisions of a first batch are those in fp32"]
    with pytest.raises(ConfigError, match="the backend onnx computes in fp32"):
        predict(reduced.model_copy(update={"backend": "onnx", "out": tmp_path / "s.csv"}))


def test_the_largest_batch_that_fits_a_gpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 100 images, as a stand-in for a GPU says it."""
    network = Network(PredictConfig(model=run, images=run, out=run / "p.csv"), "torch", "cpu")
    assert network.batch_size == 16 * runtimes.threads()

    def run_out(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(pixels) > 100:
            raise torch.cuda.OutOfMemoryError
        return pixels

    monkeypatch.setattr(network, "_device", "cuda")
    monkeypatch.setattr(network, "_run", run_out)
    assert network._fitting() == 32


def test_one_photograph_prints_its_row(
    run: Path, corpus: Path, tmp_path: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    photo = sorted((corpus / "unlabelled").iterdir())[0]
    done = mlic("batch-predict", run, photo)
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split("\t")[0] == "Filename"
    assert row.split("\t")[0] == photo.name
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    everything = mlic("batch-predict", run, corpus / "unlabelled")
    assert everything.returncode == 0, everything.stderr
    assert row in (tmp_path / "predictions.tsv").read_text().splitlines()
    both = mlic("batch-predict", run, corpus / "unlabelled", "--out", "-")
    assert both.stdout == (tmp_path / "predictions.tsv").read_text()
    assert "found 30 = 30 predicted + 0 bad" in both.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.tsv", "predictions.tsv.parts"]
    plain = json.loads(mlic("batch-predict", run, photo, "--json").stdout)
    assert (plain["out"], plain["rows"]) == ("-", done.stdout)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    broken = mlic("batch-predict", run, tmp_path / "broken.jpg")
    assert (broken.returncode, broken.stdout) == (3, "")
    assert "broken.jpg" in broken.stderr


@pytest.mark.slow
def test_the_commands_of_the_mission_as_they_are_typed(
    corpus: Path, tmp_path: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """In a folder with ./shards, and with few images, so that fifty trials take a minute."""
    packed = mlic("pack", corpus / "images", "--labels", corpus / "annotations", "--limit", 30)
    assert packed.returncode == 0, packed.stderr
    searched = mlic("tune", "--num-samples", 50, "--epochs", 3, timeout=900)
    assert searched.returncode == 0, searched.stderr
    assert "50 trials" in searched.stdout
    done = mlic("batch-predict", "runs/tune", corpus / "unlabelled")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 31


def test_a_batch_that_a_gpu_has_no_memory_for_is_computed_in_halves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(PredictConfig(model=run, images=run, batch_size=16), "torch", "cpu")
    images = np.random.default_rng(0).integers(0, 256, (13, 64, 64, 3), dtype=np.uint8)
    expected, forward, sizes = network(images), Network._forward, list[int]()

    def small(self: Network, dtype: Any, pixels: Any) -> Any:
        if len(pixels) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(pixels))
        return forward(self, dtype, pixels)

    monkeypatch.setattr(Network, "_forward", small)
    assert np.allclose(network(images), expected, atol=1e-6)
    assert sizes == [3, 3, 3, 4]


def test_an_image_that_a_gpu_has_no_memory_for_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    network = Network(PredictConfig(model=run, images=run, batch_size=16), "torch", "cpu")
    monkeypatch.setattr(Network, "_forward", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        network(np.zeros((2, 64, 64, 3), np.uint8))


def test_fp16_is_for_gpus(run: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    full, half = (
        Network(PredictConfig(model=run, images=run, precision=name), "torch", "cpu") for name in ("fp32", "fp16")
    )
    assert np.array_equal(full(images), half(images))
    assert half.said == "torch in fp32, as fp16 is for GPUs"


def test_pieces_of_a_batch_make_the_same_part(run: Path, corpus: Path, tmp_path: Path) -> None:
    """A GPU's batch is decoded in pieces by several threads."""
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    next(iter(sorted(images.iterdir()))).write_bytes(b"broken")
    items = list_items(images, None)
    predictor = Predictor(PredictConfig(model=run, images=images, batch_size=12), "torch", here=True)
    assert predictor.run(items, tmp_path / "part-0.parquet")[:2] == (30, 1)
    predictor._piece, predictor._threads = 5, 3
    assert predictor.run(items, tmp_path / "part-1.parquet")[:2] == (30, 1)
    one, two = (pd.read_parquet(tmp_path / f"part-{number}.parquet") for number in (0, 1))
    assert one.drop(columns="scores").equals(two.drop(columns="scores"))
    assert np.array_equal(np.stack(one["scores"]), np.stack(two["scores"]))


def test_a_stop_while_the_decoding_thread_ends_is_raised(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector would swallow it, and the part would be written as if nobody had pressed Ctrl-C."""

    def interrupted(*arguments: Any) -> Generator[Any, None, None]:
        try:
            yield from ahead(*arguments)
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr(actor, "ahead", interrupted)
    items = list_items(corpus / "unlabelled", None)
    predictor = Predictor(PredictConfig(model=run, images=corpus / "unlabelled"), "torch", here=True)
    with pytest.raises(KeyboardInterrupt):
        predictor.run(items, tmp_path / "part-0.parquet")
    assert not list(tmp_path.glob("part-0*"))
