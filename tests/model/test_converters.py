from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.data import Preprocessing
from mlic.config.predict import PredictConfig
from mlic.config.types import Backend
from mlic.errors import ConfigError
from mlic.model import converters, runtimes, zoo

PREP = Preprocessing(image_size=64, color="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), resize="squash")
ENGINES: tuple[Backend, ...] = ("compile", "onnx", "openvino")


def needed(name: Backend) -> None:
    if not runtimes.is_installed(name) or (name == "compile" and shutil.which("g++") is None):
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_gives_the_scores_of_torch(name: Backend, activation: Any) -> None:
    needed(name)
    torch.manual_seed(3)
    whole = converters.Whole(zoo.build("small", 5, 3, 64, {}).eval(), PREP, activation).eval()
    images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    engine = converters.engine(name, whole, 8, images[0].numpy())
    with torch.inference_mode():
        expected = whole(images).numpy()
    assert expected.std() > 1e-3
    for count in (8, 3, 1):
        found = engine(images[:count].numpy())
        assert found.shape == (count, 5)
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


@pytest.fixture
def run(trained_run: Path) -> Path:
    return trained_run


def computed(config: PredictConfig) -> tuple[prediction_files.Predictions, list[str]]:
    predict(config)
    index = json.loads((config.out.with_name(config.out.name + ".parts") / "index.json").read_text())
    return prediction_files.read(config.out), index["computed_by"]


@pytest.mark.ray
@pytest.mark.parametrize("workers", ["auto", 2])
def test_predictions_of_a_backend(run: Path, corpus: Path, tmp_path: Path, workers: Any) -> None:
    needed("onnx")
    config = PredictConfig(
        model=run, images=corpus / "unlabelled", out=tmp_path / "t.csv", batch_size=8, chunk=20, workers=workers
    )
    plain, by = computed(config)
    assert by == ["torch"]
    found, by = computed(config.model_copy(update={"backend": "onnx", "out": tmp_path / "o.csv"}))
    assert by == ["onnx"]
    assert found.scores is not None
    assert plain.scores is not None
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    assert (found.decisions == plain.decisions).all()


@pytest.mark.ray
def test_the_mean_of_an_image_and_its_mirror_image(run: Path, corpus: Path, tmp_path: Path) -> None:
    needed("onnx")
    (tmp_path / "mirrored").mkdir()
    for path in (corpus / "unlabelled").iterdir():
        ImageOps.mirror(Image.open(path)).save(tmp_path / "mirrored" / f"{path.stem}.png")
    config = PredictConfig(model=run, images=tmp_path / "mirrored", out=tmp_path / "m.csv", values="scores")
    plain = [
        computed(config.model_copy(update={"images": images, "out": tmp_path / f"{number}.csv"}))[0].scores
        for number, images in enumerate((tmp_path / "mirrored", corpus / "unlabelled"))
    ]
    for backend in ("torch", "onnx"):
        given = {"tta": "mirror", "backend": backend, "out": tmp_path / f"{backend}.csv"}
        both, _ = computed(config.model_copy(update=given))
        assert both.scores is not None
        assert plain[0] is not None
        np.testing.assert_allclose(both.scores, (plain[0] + plain[1]) / 2, atol=2e-5)


@pytest.mark.ray
def test_a_backend_that_is_not_right_is_not_used(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = PredictConfig(model=run, images=corpus / "unlabelled", out=tmp_path / "t.csv", batch_size=8)
    plain, _ = computed(config)

    def wrong(*_: object) -> runtimes.Scorer:
        return lambda images: np.full((len(images), len(plain.labels)), 0.5, dtype=np.float32)

    def refuses(*_: object) -> runtimes.Scorer:
        raise NotImplementedError("no operator for this")

    monkeypatch.setattr(runtimes, "is_installed", lambda _: True)
    for number, (engine, why) in enumerate(
        (
            (wrong, "torch, as the scores of onnx are up to 0."),
            (refuses, "torch, as onnx does not take this network: no "),
        )
    ):
        monkeypatch.setattr(converters, "engine", engine)
        found, by = computed(config.model_copy(update={"backend": "onnx", "out": tmp_path / f"{number}.csv"}))
        assert by[0].startswith(why)
        assert f"computed by {by[0]}" in caplog.text
        assert found.scores is not None
        assert (found.scores == plain.scores).all()
    monkeypatch.setattr(runtimes, "is_installed", lambda name: name == "torch")
    assert runtimes.best() == "torch"
    with pytest.raises(ConfigError, match="openvino needs openvino"):
        predict(config.model_copy(update={"backend": "openvino", "out": tmp_path / "v.csv"}))
