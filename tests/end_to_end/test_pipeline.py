"""The whole pipeline on the toy corpus, in this process and on one Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.data import PackConfig
from mlic.config.evaluate import EvaluateConfig, ThresholdConfig
from mlic.config.load import build, read_file
from mlic.config.predict import PredictConfig
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data import toy
from mlic.data.shards import read_split
from mlic.errors import ClusterError, ConfigError, DataError
from mlic.evaluate.evaluate import evaluate
from mlic.metrics import thresholds
from mlic.metrics.calibration import Calibration
from mlic.model import bundle
from mlic.pack.pack import PackReport, pack
from mlic.threshold.threshold import threshold
from mlic.train.launch import TrainReport
from mlic.train.launch import fit as train
from mlic.tune.tune import tune

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FIT: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 32,
    "epochs": 3,
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "cosine",
    "weight_decay": 0.0,
    "ema": 0.0,
}
NET = {"arch": "b-final", "color": "rgb"}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of shards that are a function of the input; run.json and report.json hold times and paths."""
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tar", ".parquet") or p.name == "index.json"
    }


def packing(corpus: Path, out: Path, **changes: Any) -> PackConfig:
    return PackConfig(**({"images": corpus / "images", "labels": corpus / "annotations", "out": out} | changes))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    runs = tmp_path_factory.mktemp("runs")
    return train(TrainConfig(shards=shards, runs=runs, name="toy", workers=2, **(FIT | NET | {"epochs": 6})))


def test_pack_accounts_for_everything(corpus: Path, shards: Path) -> None:
    index = json.loads((shards / "index.json").read_text())
    account = index["account"]
    assert account["found"] == 240 == account["packed_labelled"] + account["packed_unlabelled"]
    for label, count in index["label_counts"].items():
        assert count == len((corpus / "annotations" / f"{label}.txt").read_text().splitlines())
    table = pd.read_parquet(shards / "samples.parquet")
    assert len(table) == 240
    assert table["key"].is_unique
    assert {name: split["samples"] for name, split in index["splits"].items()} == {"train": 192, "val": 24, "test": 24}
    for row in table.sample(20, random_state=0).itertuples():
        with (shards / row.shard).open("rb") as shard:
            shard.seek(row.offset)
            assert shard.read(row.size) == (corpus / "images" / row.file).read_bytes()
        number = row.key.removeprefix("im")
        listed = [number in (corpus / "annotations" / f"{label}.txt").read_text().split() for label in index["labels"]]
        assert row.target.tolist() == [int(value) for value in listed]


def test_pack_gives_the_same_bytes_for_one_and_two_workers(corpus: Path, shards: Path, tmp_path: Path) -> None:
    pack(packing(corpus, tmp_path / "one", workers=1))
    assert contents(tmp_path / "one") == contents(shards)


def test_pack_goes_on_after_a_kill_and_does_nothing_twice(corpus: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = pack(packing(corpus, out))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    assert pack(packing(corpus, out)) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"} == before
    # What a kill in the middle leaves: no index, some shards with their account, one half-written under another name.
    (out / "index.json").unlink()
    (out / "train-000000.tar").unlink()
    (out / ".train-000001.tar.0123abcd.part").write_bytes(b"half")
    assert pack(packing(corpus, out)) == first
    assert contents(out) == contents(shards)


def test_pack_lists_what_is_wrong(corpus: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    shutil.copytree(corpus / "images", images)
    shutil.copytree(corpus / "annotations", labels)
    (images / "im1.jpg").write_bytes(b"")
    (images / "im2.jpg").write_bytes((images / "im2.jpg").read_bytes()[:-100])
    for name in ("spare.jpg", "spare.png"):
        (images / name).write_bytes((images / "im3.jpg").read_bytes())
    (images / "notes.txt").touch()
    (labels / "disc.txt").write_text((labels / "disc.txt").read_text() + "99999\n")
    report = pack(packing(corpus, tmp_path / "out", images=images, labels=labels))
    assert report.account.model_dump() == {
        "found": 243,
        "packed_labelled": report.account.packed_labelled,
        "packed_unlabelled": 240 - report.account.packed_labelled,
        "missing": 1,
        "unreadable": 2,
        "duplicate": 0,
        "not_annotated": 0,
        "dropped": 0,
    }
    assert report.trouble["unreadable"][0] == "im1.jpg: zero bytes"
    assert report.trouble["unreadable"][1].startswith("im2.jpg: ")
    assert "99999" in report.trouble["missing"][0]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["trouble"]["missing"]
    assert {"spare.jpg", "spare.png"} <= set(read_split(tmp_path / "out", None).keys.to_pylist())


def test_pack_stops_at_too_many_bad_images(corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    for number in range(1, 40):
        (images / f"im{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"images cannot be read, more than max_bad allows \(1.0%\); .* zero bytes"):
        pack(packing(corpus, tmp_path / "out", images=images))
    assert pack(packing(corpus, tmp_path / "out", images=images, max_bad=0.5, fresh=True)).account.unreadable == 39


def test_a_changed_input_is_noticed(corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "images", images)
    pack(packing(corpus, tmp_path / "out", images=images))
    (images / "im7.jpg").write_bytes((images / "im8.jpg").read_bytes())
    with pytest.raises(ConfigError, match="made from different images"):
        pack(packing(corpus, tmp_path / "out", images=images))
    with pytest.raises(ConfigError, match="seed .was 42, now 1."):
        pack(packing(corpus, tmp_path / "out", images=images, seed=1))


@pytest.mark.smoke
def test_train_leaves_a_bundle_that_explains_itself(trained: TrainReport) -> None:
    assert trained.measurement.values["f1_micro"] > trained.measurement.baselines["always_top_2"]["f1_micro"]
    run = trained.run
    assert {p.name for p in run.iterdir()} >= {"config.json", "run.json", "metrics.jsonl", "checkpoints", "model"}
    spec = json.loads((run / "model" / "model.json").read_text())
    assert (spec["format"], tuple(spec["labels"]), spec["arch"]) == (1, toy.LABELS, "b-final")
    assert set(spec["thresholds"]) == set(toy.LABELS)
    assert spec["threshold_fit"]["policy"] == "per-label"
    assert spec["provenance"]["run"] == "toy"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[trained.best_epoch - 1]["val/f1_micro"] == max(row["val/f1_micro"] for row in rows)
    assert json.loads((run / "run.json").read_text())["workers"] == 2


def test_train_twice_trains_once(trained: TrainReport, shards: Path) -> None:
    config = build(TrainConfig, read_file(trained.run / "config.json"))
    before = (trained.run / "model" / "weights.safetensors").stat().st_mtime_ns
    assert train(config) == trained
    assert (trained.run / "model" / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="lr .was 0.001, now 0.5."):
        train(config.model_copy(update={"lr": 0.5}))


def test_train_asks_for_no_more_than_there_is(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="99 workers need 99 CPUs; this cluster has"):
        train(TrainConfig(shards=shards, runs=tmp_path, workers=99, **FIT))


def test_train_and_tune_need_their_splits(corpus: Path, tmp_path: Path) -> None:
    for name, split, error in (
        ("a", "train=1", "'val' of .* is missing"),
        ("b", "train=1,val=0", "'val' of .* is empty"),
    ):
        pack(build(PackConfig, packing(corpus, tmp_path / name).model_dump(), {"split": split}))
        with pytest.raises(DataError, match=error):
            train(TrainConfig(shards=tmp_path / name, runs=tmp_path / "runs"))
        with pytest.raises(DataError, match=error):
            tune(TuneConfig(shards=tmp_path / name, runs=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_training_errors_come_out_whole(shards: Path, tmp_path: Path) -> None:
    from mlic.errors import RunError

    with pytest.raises(RunError, match="the loss is not finite at step"):
        train(TrainConfig(shards=shards, runs=tmp_path, workers=1, **(FIT | NET | {"optimizer": "sgd", "lr": 1e12})))
    assert json.loads((tmp_path / "b-final" / "run.json").read_text())["status"] == "failed"


@pytest.mark.smoke
def test_predict_gives_every_image_once_in_order(trained: TrainReport, corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    (images / "im241.jpg").write_bytes(b"")
    (images / "im250.jpg").write_bytes((images / "im250.jpg").read_bytes()[:-100])
    (images / "letter.jpg").write_text("Dear Sir or Madam")
    report = predict(PredictConfig(model=trained.run, images=images, out=tmp_path / "p.tsv", chunk=7, batch_size=4))
    assert (report.found, report.predicted, report.bad) == (31, 28, 3)
    lines = (tmp_path / "p.tsv").read_text().splitlines()
    assert lines[0] == "Filename\t" + "\t".join(toy.LABELS)
    expected = sorted(p.name for p in images.iterdir() if p.name not in ("im241.jpg", "im250.jpg", "letter.jpg"))
    assert [line.split("\t")[0] for line in lines[1:]] == expected
    bad = (tmp_path / "p.tsv.errors.tsv").read_text().splitlines()
    assert bad[0] == "Filename\treason"
    assert bad[1] == "im241.jpg\tzero bytes"
    assert bad[3] == "letter.jpg\tnot an image"
    # Once more for the same command, and in other parts and batches for another: the same decisions.
    stamp = (tmp_path / "p.tsv").stat().st_mtime_ns
    assert (
        predict(PredictConfig(model=trained.run, images=images, out=tmp_path / "p.tsv", chunk=7, batch_size=4))
        == report
    )
    assert (tmp_path / "p.tsv").stat().st_mtime_ns == stamp
    for name, workers, size in (("q", 1, 64), ("r", 2, 1)):
        out = tmp_path / f"{name}.parquet"
        predict(PredictConfig(model=trained.run, images=images, out=out, workers=workers, batch_size=size, chunk=5))
    q, r = (prediction_files.read(tmp_path / f"{name}.parquet") for name in "qr")
    assert q.scores is not None
    assert r.scores is not None
    np.testing.assert_allclose(q.scores, r.scores, atol=1e-5)
    assert (q.decisions == r.decisions).all()
    found = prediction_files.read(tmp_path / "p.tsv")
    assert (found.decisions == q.decisions).all()
    given = np.array(list(bundle.read(trained.run).thresholds))
    assert (thresholds.decide(q.scores, given) == q.decisions).all()


def test_images_of_one_name_are_predicted_each(trained: TrainReport, corpus: Path, tmp_path: Path) -> None:
    """a.jpg beside a.png: both are in the output, by keys that tell them apart, and from an archive as well."""
    (tmp_path / "photos").mkdir()
    shutil.copy(corpus / "images" / "im1.jpg", tmp_path / "photos" / "a.jpg")
    Image.open(corpus / "images" / "im2.jpg").save(tmp_path / "photos" / "a.png")
    subprocess.run(["tar", "cf", tmp_path / "p.tar", "-C", tmp_path / "photos", "a.jpg", "a.png"], check=True)
    for number, images in enumerate((tmp_path / "photos", tmp_path / "p.tar")):
        predict(PredictConfig(model=trained.run, images=images, out=tmp_path / f"{number}.csv"))
    found = prediction_files.read(tmp_path / "0.csv")
    assert (found.keys, found.files) == (("a.jpg", "a.png"), ("a.jpg", "a.png"))
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_predict_goes_on_and_refuses_a_mixture(trained: TrainReport, corpus: Path, tmp_path: Path) -> None:
    config = PredictConfig(model=trained.run, images=corpus / "unlabelled", out=tmp_path / "p.csv", chunk=10)
    predict(config)
    whole = (tmp_path / "p.csv").read_bytes()
    parts = tmp_path / "p.csv.parts"
    kept = (parts / "part-000000.parquet").stat().st_mtime_ns
    (tmp_path / "p.csv").unlink()
    (parts / "part-000001.parquet").unlink()
    predict(config)
    assert (tmp_path / "p.csv").read_bytes() == whole
    assert (parts / "part-000000.parquet").stat().st_mtime_ns == kept
    (tmp_path / "p.csv").write_text("something else")
    predict(config)
    assert (tmp_path / "p.csv").read_bytes() == whole
    spec = json.loads((trained.run / "model" / "model.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(trained.run / "model", other)
    spec["thresholds"]["disc"] = 0.9
    (other / "model.json").write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match="made from another model"):
        predict(config.model_copy(update={"model": other}))
    (other / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be loaded: .*No such file"):
        predict(config.model_copy(update={"model": other, "out": tmp_path / "o.csv"}))
    (tmp_path / "mine.csv").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine\.csv exists and was not made by this command"):
        predict(config.model_copy(update={"out": tmp_path / "mine.csv"}))
    assert (tmp_path / "mine.csv").read_text() == "precious"


@pytest.mark.smoke
def test_evaluate_agrees_however_it_is_asked(trained: TrainReport, corpus: Path, shards: Path, tmp_path: Path) -> None:
    of_run = evaluate(EvaluateConfig(predictions=trained.run, out=tmp_path / "eval"))
    assert of_run.measurement.samples == 24
    values = of_run.measurement.values
    assert values["f1_micro"] > of_run.measurement.baselines["always_top_2"]["f1_micro"]
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["values"] == values
    page = (tmp_path / "eval" / "report.html").read_text()
    assert f"{values['f1_micro']:.4f}" in page
    assert all(label in page for label in toy.LABELS)
    for suffix in ("tsv", "csv", "jsonl", "parquet"):
        out = tmp_path / f"p.{suffix}"
        predict(PredictConfig(model=trained.run, images=shards, split="test", out=out))
        for labels in (shards, corpus / "annotations"):
            got = evaluate(EvaluateConfig(predictions=out, labels=labels)).measurement.values
            assert got["f1_micro"] == values["f1_micro"]
            assert got["subset_accuracy"] == values["subset_accuracy"]
            assert suffix == "tsv" or got["map"] == pytest.approx(values["map"], abs=1e-6)


def test_evaluate_refuses_what_does_not_belong_together(
    trained: TrainReport, corpus: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    predict(PredictConfig(model=trained.run, images=corpus / "unlabelled", out=out))
    with pytest.raises(DataError, match="24 of 24 samples of the split 'test' have no prediction"):
        evaluate(EvaluateConfig(predictions=out, labels=shards))
    with pytest.raises(DataError, match="none of the .* annotated images is among the 30 images"):
        evaluate(EvaluateConfig(predictions=out, labels=corpus / "annotations"))
    others = tmp_path / "others"
    shutil.copytree(corpus / "annotations", others)
    (others / "ring.txt").rename(others / "wing.txt")
    with pytest.raises(DataError, match="only predicted: ring; only annotated: wing"):
        evaluate(EvaluateConfig(predictions=out, labels=others))
    with pytest.raises(ConfigError, match="--labels is not given"):
        evaluate(EvaluateConfig(predictions=out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("precious")
    with pytest.raises(ConfigError, match="mine holds files that mlic did not write"):
        evaluate(EvaluateConfig(predictions=trained.run, out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "report.html").read_text() == "precious"
    predict(PredictConfig(model=trained.run, images=corpus / "unlabelled", out=tmp_path / "s.csv", values="scores"))
    with pytest.raises(ConfigError, match="holds scores and no decisions"):
        evaluate(EvaluateConfig(predictions=tmp_path / "s.csv", labels=corpus / "annotations"))


def test_gates_set_the_exit_code(trained: TrainReport, tmp_path: Path) -> None:
    config = EvaluateConfig(predictions=trained.run, out=tmp_path / "eval")
    passed = evaluate(config.model_copy(update={"gate": ("f1_micro>=0.01", "ranking_loss<1", "f1_micro.high > 0.01")}))
    assert (passed.exit_code, [gate.passed for gate in passed.gates]) == (0, [True, True, True])
    failed = evaluate(config.model_copy(update={"gate": ("f1_micro>=0.01", "f1_micro.low>=1")}))
    assert (failed.exit_code, [gate.passed for gate in failed.gates]) == (5, [True, False])
    assert "gate  f1_micro.low>=1: " in failed.text()
    assert "NOT passed" in failed.text()
    with pytest.raises(ConfigError, match="'f1_mico>=0.5' names no metric"):
        evaluate(config.model_copy(update={"gate": ("f1_mico>=0.5",)}))


def test_evaluate_reads_the_files_of_the_reference_systems(
    trained: TrainReport, corpus: Path, shards: Path, tmp_path: Path
) -> None:
    """Lines without names of labels, a table keyed by bare numbers, and one of scores alone."""
    predict(PredictConfig(model=trained.run, images=shards, split="test", out=tmp_path / "p.csv"))
    table = pd.read_csv(tmp_path / "p.csv")
    decided = table[list(toy.LABELS)]
    expected = evaluate(EvaluateConfig(predictions=tmp_path / "p.csv", labels=shards)).measurement
    lines = [" ".join([file, *map(str, row)]) for file, row in zip(table["file"], decided.to_numpy(), strict=True)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    numbered = decided.astype(float)
    numbered.insert(0, "Filename", table["key"].str.removeprefix("im"))
    numbered.to_csv(tmp_path / "d.tsv", sep="\t", index=False)
    for name in ("a.txt", "d.tsv"):
        for labels in (shards, corpus / "annotations"):
            got = evaluate(EvaluateConfig(predictions=tmp_path / name, labels=labels)).measurement
            assert got.values["f1_micro"] == expected.values["f1_micro"], (name, labels)
    scores = table[["file", *(f"{label}_score" for label in toy.LABELS)]]
    scores.columns = ["Filename", *toy.LABELS]
    scores.to_csv(tmp_path / "s.csv", index=False)
    config = EvaluateConfig(predictions=tmp_path / "s.csv", labels=shards)
    with pytest.raises(ConfigError, match=r"holds scores and no decisions"):
        evaluate(config)
    got = evaluate(config.model_copy(update={"threshold": 0.5})).measurement
    assert got.values["map"] == pytest.approx(expected.values["map"], abs=1e-6)
    (tmp_path / "short.txt").write_text("\n".join(line.rsplit(" ", 1)[0] for line in lines) + "\n")
    with pytest.raises(DataError, match=r"columns without names"):
        evaluate(EvaluateConfig(predictions=tmp_path / "short.txt", labels=shards))


@pytest.mark.smoke
def test_thresholds_are_fitted_again_without_training(trained: TrainReport, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "copy"
    shutil.copytree(trained.run, run)
    before = bundle.read(run)
    report = threshold(ThresholdConfig(model=run, policy="recall=0.9"))
    after = bundle.read(run)
    assert after.weights_sha256 == before.weights_sha256
    assert after.fingerprint != before.fingerprint
    assert after.threshold_fit["policy"] == "recall=0.9"
    assert after.threshold_fit["cross_fitted"]["f1_micro"] == report.measurement.values["f1_micro"]
    assert after.threshold_fit["data"] == json.loads((shards / "index.json").read_text())["fingerprint"]
    assert json.loads((run / "report.json").read_text())["threshold_policy"] == "recall=0.9"
    assert {row.policy for row in report.policies} == {
        "fixed",
        "global",
        "per-label",
        "joint",
        "cardinality",
        "recall=0.9",
    }
    assert "recall=0.9 *" in report.text()
    one = predict(PredictConfig(model=run, images=shards, split="test", out=tmp_path / "p.parquet"))
    table = pd.read_parquet(one.out)
    for i, label in enumerate(after.labels):
        assert (table[label] == (table[f"{label}_score"] >= np.float32(after.thresholds[i]))).all()
    again = threshold(ThresholdConfig(model=run, policy=before.threshold_fit["policy"]))
    assert bundle.read(run).thresholds == before.thresholds
    assert again.measurement == trained.measurement
    top = threshold(ThresholdConfig(model=run, policy="top-k=2"))
    assert top.measurement.values["recall_micro"] > 0
    predict(PredictConfig(model=run, images=shards, split="test", out=tmp_path / "k.csv"))
    assert (pd.read_csv(tmp_path / "k.csv")[list(toy.LABELS)].sum(axis=1) == 2).all()


def test_thresholds_are_fitted_to_shards_where_there_is_no_run(
    trained: TrainReport, shards: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(trained.model, alone)
    with pytest.raises(ConfigError, match="there are no validation scores beside"):
        threshold(ThresholdConfig(model=alone))
    report = threshold(ThresholdConfig(model=alone, labels=shards, policy="global"))
    assert bundle.read(alone).threshold_fit["fitted_on"] == f"val of {shards}"
    assert len(set(bundle.read(alone).thresholds)) == 1
    own = threshold(ThresholdConfig(model=_copy(trained.run, tmp_path), policy="global", calibration="none"))
    assert report.measurement.values["f1_micro"] == pytest.approx(own.measurement.values["f1_micro"], abs=0.05)
    with pytest.raises(ConfigError, match="is not a folder of shards"):
        threshold(ThresholdConfig(model=alone, labels=tmp_path))
    with pytest.raises(ConfigError, match="keeps the calibration of the model"):
        threshold(ThresholdConfig(model=alone, labels=shards, calibration="platt"))


def test_a_calibrated_bundle_predicts_calibrated_scores(trained: TrainReport, shards: Path, tmp_path: Path) -> None:
    run = _copy(trained.run, tmp_path)
    threshold(ThresholdConfig(model=run, calibration="none"))
    plain = predict(PredictConfig(model=run, images=shards, split="test", out=tmp_path / "a.parquet")).out
    threshold(ThresholdConfig(model=run, policy="global", calibration="platt"))
    model = bundle.read(run)
    assert model.calibration["method"] == "platt"
    mapped = predict(PredictConfig(model=run, images=shards, split="test", out=tmp_path / "b.parquet")).out
    columns = [f"{label}_score" for label in model.labels]
    raw, new = (pd.read_parquet(path)[columns].to_numpy() for path in (plain, mapped))
    expected = Calibration.read(model.calibration).apply(raw)
    assert np.abs(new - expected).max() < 1e-6
    assert np.abs(new - raw).max() > 0.01
    own = evaluate(EvaluateConfig(predictions=run, out=tmp_path / "eval")).measurement
    assert own.values["f1_micro"] > own.baselines["always_top_1"]["f1_micro"]


def _copy(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "copied")
    return folder / "copied"


def test_training_goes_on_from_another_run(trained: TrainReport, shards: Path, tmp_path: Path) -> None:
    """All of its weights, the last layer too, as the second round of reference system E does it."""
    base = TrainConfig(
        shards=shards,
        runs=tmp_path,
        name="second",
        workers=1,
        weights=str(trained.run),
        pos_weight_power=1.0,
        pos_weight_by_min=True,
        **(FIT | NET | {"epochs": 1, "lr": 1e-6}),
    )
    second = train(base)
    assert second.measurement.values["map"] == pytest.approx(trained.measurement.values["map"], abs=0.1)
    assert "all tensors" in (tmp_path / "second" / "log.txt").read_text()
    state = json.loads((tmp_path / "second" / "run.json").read_text())
    assert set(state["inputs"]) == {"shards", "weights"}
    with pytest.raises(ConfigError, match="made from different weights"):
        train(base.model_copy(update={"weights": "none"}))
    with pytest.raises(DataError, match="is of another architecture"):
        train(base.model_copy(update={"arch": "a-cnn1", "name": "third"}))


def test_a_tar_is_a_tar(shards: Path) -> None:
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert len(names) == 2 * json.loads((shards / "index.json").read_text())["shards"][path.name]["samples"]


def test_reports_are_printable(shards: Path, trained: TrainReport) -> None:
    report = PackReport(**json.loads((shards / "report.json").read_text()))
    assert "found 240 = " in report.text()
    assert "always-top-1" in trained.text()
