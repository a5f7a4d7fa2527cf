"""What is measured: images with a line, by names that mean one image, with what a number rests on beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlic.batch_predict.predict import predict
from mlic.batch_predict.prediction_files import Predictions
from mlic.config.data import ExploreConfig
from mlic.config.evaluate import EvaluateConfig, ThresholdConfig
from mlic.config.predict import PredictConfig
from mlic.data import shards as shard_files
from mlic.errors import ConfigError, DataError
from mlic.evaluate import evaluate as stage
from mlic.evaluate.evaluate import evaluate
from mlic.explore.explore import explore
from mlic.model import bundle
from mlic.threshold.threshold import threshold

LABELS = ("disc", "night")


def write_predictions(path: Path, rows: dict[str, tuple[int, int]]) -> Path:
    lines = ["\t".join(["Filename", *LABELS]), *("\t".join([name, *map(str, row)]) for name, row in rows.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def right(count: int) -> dict[str, tuple[int, int]]:
    return {f"im{i}.jpg": (i % 2, int(i % 3 == 0)) for i in range(count)}


def test_a_row_that_is_not_there_is_not_a_negative(tmp_path: Path) -> None:
    """100 perfect predictions against a table of ten of the images are perfect, and 90 are said to be unmeasured."""
    file = write_predictions(tmp_path / "p.tsv", right(100))
    rows = list(right(100).items())[:10]
    (tmp_path / "wide.csv").write_text("image,disc,night\n" + "".join(f"{n},{a},{b}\n" for n, (a, b) in rows))
    long = [f"{name},{label}\n" for name, row in rows for label, yes in zip(LABELS, row, strict=True) if yes]
    (tmp_path / "long.csv").write_text("image,label\n" + "".join(long))
    for name, measured in (("wide.csv", 10), ("long.csv", len({line.split(",")[0] for line in long}))):
        report = evaluate(EvaluateConfig(predictions=file, labels=tmp_path / name, out=tmp_path / f"{name}.eval"))
        assert report.measurement.values["f1_micro"] == 1.0
        assert (report.measurement.samples, report.unlabelled) == (measured, 100 - measured)
        assert f"{100 - measured} predicted images have no line in" in report.text()
    config = EvaluateConfig(predictions=file, labels=tmp_path / "wide.csv", unlabelled="negative")
    counted = evaluate(config)
    assert counted.measurement.samples == 100
    assert counted.measurement.values["f1_micro"] < 0.5
    assert "90 predicted images are in no label file and count as without a label" in counted.text()


@pytest.mark.ray
def test_what_label_files_do_not_have_is_refused(tmp_path: Path, shards: Path) -> None:
    file = write_predictions(tmp_path / "p.tsv", right(4))
    (tmp_path / "wide.csv").write_text("image,disc,night\nim1.jpg,1,0\n")
    with pytest.raises(ConfigError, match="holds label files, which have no split 'val'"):
        evaluate(EvaluateConfig(predictions=file, labels=tmp_path / "wide.csv", split="val"))
    with pytest.raises(ConfigError, match="are shards, which have a label of each sample"):
        evaluate(EvaluateConfig(predictions=file, labels=shards, unlabelled="negative"))
    with pytest.raises(ConfigError, match="are shards, which have their labels"):
        explore(ExploreConfig(data=shards, labels=tmp_path / "wide.csv", out=tmp_path / "look"))


def test_an_image_that_no_list_of_a_label_names_has_no_label(tmp_path: Path) -> None:
    """The reference layout: half of its images are in no list."""
    file = write_predictions(tmp_path / "p.tsv", right(12))
    (tmp_path / "lists").mkdir()
    for place, label in enumerate(LABELS):
        named = [name.removesuffix(".jpg")[2:] for name, row in right(12).items() if row[place]]
        (tmp_path / "lists" / f"{label}.txt").write_text("\n".join(named) + "\n")
    report = evaluate(EvaluateConfig(predictions=file, labels=tmp_path / "lists"))
    assert report.measurement.samples == 12
    assert report.measurement.values["subset_accuracy"] == 1.0
    assert (report.unlabelled, report.unlabelled_are) == (4, "negative")
    strict = evaluate(EvaluateConfig(predictions=file, labels=tmp_path / "lists", unlabelled="skip"))
    assert strict.measurement.samples == 8


def test_a_number_that_could_mean_two_images_is_refused() -> None:
    with pytest.raises(DataError, match="the prediction '1' could mean a/im1 or b/im1"):
        stage._by_number(["a/im1", "b/im1"], {"1": 0, "2": 1})
    with pytest.raises(DataError, match="the number 1 is predicted twice, as '01' too"):
        stage._by_number(["im1", "im2"], {"1": 0, "01": 1})
    assert stage._by_number(["im07", "x"], {"7": 3}) == (["7", "x"], {"7": 3})


def test_a_gate_on_nothing_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    config = EvaluateConfig(predictions=tmp_path / "not-there", gate=("f1_mico>=0.5",))
    with pytest.raises(ConfigError, match="'f1_mico>=0.5' names no metric") as caught:
        evaluate(config)
    assert caught.value.hint == "did you mean f1_micro?"


@pytest.mark.ray
@pytest.mark.slow
def test_numbers_say_that_thresholds_or_weights_were_fitted_to_their_split(
    shards: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    fitted = "the thresholds of the model were fitted to this split"
    assert not any(fitted in text for text in evaluate(EvaluateConfig(predictions=run)).measurement.warnings)
    assert any(fitted in t for t in evaluate(EvaluateConfig(predictions=run, split="val")).measurement.warnings)
    seen = evaluate(EvaluateConfig(predictions=run, split="train"))
    assert any("the model was trained on this split" in text for text in seen.measurement.warnings)
    again = threshold(ThresholdConfig(model=run, labels=shards, split="test"))
    assert "the thresholds are fitted to the split test, which can no longer say" in again.text()
    assert bundle.read(run).threshold_fit["split"] == "test"
    report = evaluate(EvaluateConfig(predictions=run))
    assert any(fitted in text for text in report.measurement.warnings)
    assert fitted in report.text()
    assert fitted in report.report.read_text()
    index = shard_files.read_index(shards)
    assert bundle.read(run).threshold_fit["data"] == index["fingerprint"]


@pytest.mark.ray
@pytest.mark.slow
def test_thresholds_of_an_export_are_not_those_of_its_run(trained_run: Path, tmp_path: Path) -> None:
    from mlic.config.predict import ExportConfig
    from mlic.export.export import export

    run = shutil.copytree(trained_run, tmp_path / "run")
    export(ExportConfig(model=run))
    before = (run / "report.json").read_text()
    threshold(ThresholdConfig(model=run / "export-onnx", policy="top-k=1"))
    assert bundle.read(run / "export-onnx").top_k == 1
    assert (run / "report.json").read_text() == before
    assert bundle.read(run).top_k == 0


@pytest.mark.ray
@pytest.mark.slow
def test_an_image_whose_scores_are_no_numbers_is_bad(
    corpus: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlic.batch_predict.actor import Predictor

    run = shutil.copytree(trained_run, tmp_path / "run")
    plain, seen = Predictor._scores, 0

    def scores(self: Predictor, pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal seen
        found = np.array(plain(self, pixels))
        if seen == 0:
            found[2, 1] = np.nan
        seen += 1
        return found

    monkeypatch.setattr(Predictor, "_scores", scores)
    report = predict(PredictConfig(model=run, images=corpus / "unlabelled", out=tmp_path / "p.csv"))
    assert (report.predicted, report.bad) == (29, 1)
    assert "the scores that the model gives it are not numbers" in (tmp_path / "p.csv.errors.tsv").read_text()


@pytest.mark.ray
def test_numbers_of_rows_are_no_names(shards: Path) -> None:
    """The images are im1 to im240, so that 0 is of none of them."""
    count = len(shard_files.read_split(shards, "test"))
    found = Predictions(LABELS, tuple(map(str, range(count))), (), None, np.zeros((count, 2), bool))
    with pytest.raises(DataError, match=f"numbered from 0 to {count - 1}, as rows are"):
        stage._join_split(
            replace(found, labels=tuple(shard_files.read_index(shards)["labels"])),
            {key: i for i, key in enumerate(found.keys)},
            shards,
            "test",
        )


def test_numbers_that_are_keys_are_keys() -> None:
    """Images named 1.jpg and 01.jpg: each prediction has its own."""
    found = Predictions(LABELS, ("1", "01"), ("1.jpg", "01.jpg"), None, np.zeros((2, 2), bool))
    keys = ["1", "01"]
    position = {key: i for i, key in enumerate(found.keys)}
    assert all(key in position for key in keys), "so nothing goes by number"
    with pytest.raises(DataError):
        stage._by_number(keys, position)
