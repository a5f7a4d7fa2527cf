"""Exports: PyTorch's scores and decisions without PyTorch, or no export at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.evaluate import EvaluateConfig, ThresholdConfig
from mlic.config.predict import ExportConfig, PredictConfig
from mlic.config.train import TrainConfig
from mlic.config.types import Engine
from mlic.errors import ConfigError, DataError, RunError
from mlic.evaluate.evaluate import evaluate
from mlic.export.export import export
from mlic.model import bundle, converters
from mlic.threshold.threshold import threshold
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET

pytestmark = pytest.mark.ray

ENGINES: tuple[Engine, ...] = ("onnx", "openvino", "torchscript")

# Loaded first by a Python that is to find neither PyTorch nor Ray.
_WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(self, name, path=None, target=None):
        missing = ("torch", "torchvision", "ray", "sklearn", "pandas", "matplotlib", "webdataset")
        return None if name.split(".")[0] in missing else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
"""


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with other pixels than by default, which every engine has to see."""
    runs = tmp_path_factory.mktemp("runs")
    seen = {"resize": "pad", "interpolation": "bicubic"}
    return train(TrainConfig(shards=shards, runs=runs, workers=1, **(FIT | NET | seen | {"epochs": 2}))).run


@pytest.fixture(scope="module", params=ENGINES)
def exported(run: Path, request: pytest.FixtureRequest) -> Path:
    return export(ExportConfig(model=run, to=request.param)).export


def predicted(model: Path, images: Path, out: Path, **more: Any) -> prediction_files.Predictions:
    predict(PredictConfig(model=model, images=images, out=out, batch_size=8, **more))
    return prediction_files.read(out)


def same(one: prediction_files.Predictions, two: prediction_files.Predictions) -> None:
    assert one.keys == two.keys
    assert one.scores is not None
    assert two.scores is not None
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
    assert (one.decisions == two.decisions).all()


@pytest.mark.parametrize("workers", ["auto", 2])
def test_an_export_predicts_what_its_model_predicts(
    run: Path, exported: Path, corpus: Path, tmp_path: Path, workers: Any
) -> None:
    plain = predicted(run, corpus / "unlabelled", tmp_path / "plain.csv")
    assert plain.decisions is not None
    assert 0 < plain.decisions.mean() < 1
    same(predicted(exported, corpus / "unlabelled", tmp_path / "e.csv", workers=workers, chunk=20), plain)
    index = json.loads((tmp_path / "e.csv.parts" / "index.json").read_text())
    assert index["computed_by"] == [bundle.read(exported).export.engine]  # type: ignore[union-attr]
    mirrored = [
        predicted(model, corpus / "unlabelled", tmp_path / f"{name}.csv", tta="mirror")
        for name, model in (("m", run), ("me", exported))
    ]
    same(*mirrored)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_export_needs_neither_pytorch_nor_ray(run: Path, corpus: Path, tmp_path: Path, engine: Engine) -> None:
    folder = export(ExportConfig(model=run, to=engine, out=tmp_path / "moved")).export
    images = tmp_path / "images"  # more than are predicted without Ray where there is one
    images.mkdir()
    for copy in range(18):
        for path in (corpus / "unlabelled").iterdir():
            (images / f"{copy}{path.name}").hardlink_to(path)
    (tmp_path / "without.py").write_text(_WITHOUT + "from mlic.cli.main import main\nmain(sys.argv[1:])\n")
    command = [sys.executable, str(tmp_path / "without.py"), "batch-predict", str(folder), str(images), "--out"]
    for name in ("p.csv", "p.parquet"):
        done = subprocess.run(
            [*command, str(tmp_path / name)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
    found, plain = prediction_files.read(tmp_path / "p.csv"), predicted(run, images, tmp_path / "plain.csv")
    assert len(found.keys) > 500
    same(found, plain)
    done = subprocess.run(
        [*command, str(tmp_path / "q.csv"), "--workers", "2"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "Error: --workers and --address need Ray, which is not installed." in done.stderr
    command[3:5] = [str(run), str(corpus / "unlabelled")]
    done = subprocess.run([*command, str(tmp_path / "r.csv")], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: this needs torch, which is not installed.\nHint: pip install torch." in done.stderr


def test_what_an_export_says_of_itself(run: Path, exported: Path) -> None:
    model, source = bundle.read(exported), bundle.read(run)
    assert model.export is not None
    assert model.export.parity["images"] == 24
    assert model.export.parity["same_decisions"] == 1
    assert model.export.parity["max_difference"] < 1e-5
    assert (model.labels, model.thresholds, model.calibration) == (source.labels, source.thresholds, source.calibration)
    assert model.provenance["exported_from"] == source.fingerprint
    assert model.fingerprint != source.fingerprint


def test_an_export_is_evaluated_and_fitted_to_shards(run: Path, shards: Path, tmp_path: Path) -> None:
    folder = export(ExportConfig(model=run, to="onnx", out=tmp_path / "x")).export
    found = evaluate(EvaluateConfig(predictions=folder, labels=shards, out=tmp_path / "a"))
    plain = evaluate(EvaluateConfig(predictions=run, out=tmp_path / "b"))
    assert found.measurement.values == pytest.approx(plain.measurement.values, abs=1e-4)
    threshold(ThresholdConfig(model=folder, labels=shards, policy="fixed=0.25"))
    model = bundle.read(folder)
    assert model.export is not None
    assert set(model.thresholds) == {0.25}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_reduced_precision_is_measured(run: Path, corpus: Path, tmp_path: Path, precision: Any) -> None:
    images = corpus / "unlabelled"
    config = ExportConfig(model=run, to="openvino", precision=precision, out=tmp_path / "x", min_agreement=0.9)
    report = export(config)
    assert report.same_decisions >= 0.9
    found, plain = (predicted(model, images, tmp_path / f"{model.name}.csv") for model in (report.export, run))
    assert (found.decisions == plain.decisions).mean() > 0.85
    by = json.loads((tmp_path / "x.csv.parts" / "index.json").read_text())["computed_by"]
    if precision == "bf16":
        assert by[0].startswith("openvino")
        assert by[0].endswith("of the decisions of a first batch are those in fp32")
    else:
        assert by == ["openvino in int8"]
        assert found.scores is not None
        assert plain.scores is not None
        assert np.abs(found.scores - plain.scores).max() > 1e-5
    with pytest.raises(ConfigError, match="was settled when it was made"):
        predicted(report.export, images, tmp_path / "q.csv", precision="bf16")


def test_an_export_that_is_not_right_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = converters.to_onnx

    def other(whole: converters.Whole, *arguments: Any, **settings: Any) -> bytes:
        with torch.no_grad():
            whole.scale.mul_(1.05)
        return plain(whole, *arguments, **settings)

    def refuses(*_: Any, **__: Any) -> bytes:
        raise NotImplementedError("no operator for this")

    for replaced, why in ((other, "onnx gives other scores than PyTorch: up to"), (refuses, "onnx does not take")):
        monkeypatch.setattr(converters, "to_onnx", replaced)
        with pytest.raises(RunError, match=why):
            export(ExportConfig(model=run, to="onnx", out=tmp_path / "x"))
        assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    config = ExportConfig(model=run, to="openvino", precision="int8", out=tmp_path / "x", min_agreement=1.0)
    monkeypatch.setattr("mlic.export.export.agreement", lambda *_: 0.9)
    with pytest.raises(RunError, match="in int8 90.000% of 144 decisions are the same, less than 100.000%"):
        export(config)
    assert list(tmp_path.iterdir()) == []


def test_what_exports_refuse(run: Path, corpus: Path, tmp_path: Path) -> None:
    folder = export(ExportConfig(model=run, to="onnx", out=tmp_path / "x")).export
    assert export(ExportConfig(model=run, to="onnx", out=tmp_path / "x")).export == folder  # written anew
    with pytest.raises(ConfigError, match="is an export to onnx, which openvino does not run"):
        predicted(folder, corpus / "unlabelled", tmp_path / "p.csv", backend="openvino")
    with pytest.raises(DataError, match="is an export to onnx, which has no weights for PyTorch"):
        export(ExportConfig(model=folder, to="openvino", out=tmp_path / "y"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for out in (tmp_path / "mine", run, tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(ConfigError, match="is not an export of mlic"):
            export(ExportConfig(model=run, to="onnx", out=out))
    shutil.copytree(run / "model", tmp_path / "alone" / "model")
    with pytest.raises(DataError, match="is not a run of mlic train") as caught:
        export(ExportConfig(model=tmp_path / "alone", to="onnx"))
    assert "--images" in caught.value.hint
    found = export(ExportConfig(model=tmp_path / "alone", to="onnx", images=corpus / "unlabelled"))
    assert found.export == tmp_path / "alone" / "export-onnx"
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(DataError, match="model.onnx is not the file that model.json was written with"):
        predicted(folder, corpus / "unlabelled", tmp_path / "q.csv")
