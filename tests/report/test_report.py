"""The page of runs: complete, open about what is missing, comparing only what can be compared, fit for a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mlic.cli.main import cli
from mlic.config.evaluate import ReportConfig
from mlic.config.train import TrainConfig
from mlic.data.shards import read_index, read_split
from mlic.errors import ConfigError, DataError
from mlic.metrics import thresholds
from mlic.metrics.measurement import measure
from mlic.model import bundle
from mlic.report import plots
from mlic.report.evidence import Evidence, of_predictions
from mlic.report.report import report, write
from mlic.runs.run import Run
from mlic.train import checkpoints, launch, training_loop
from mlic.train.rank import RankContext
from tests import chromium

SECTIONS = [
    "Headlines",
    "Comparison",
    "Epochs of the runs",
    "Labels",
    "Training",
    "Settings",
    "Architecture",
    "Distributions",
    "Confusion",
    "Thresholds",
    "Precision and recall",
    "Reliability",
    "Sets of labels",
    "Kinds of images",
    "Causes",
    "Examples",
]
HOSTILE = ("<script>alert(1)</script>", "a\"b'c & </td>", r"$x_1^2$ \frac{", "<b>bold", "日本語")


def fitted(shards: Path, folder: Path, **changes: Any) -> Path:
    """A run that was trained without Ray."""
    base = {"shards": shards, "arch": "b-final", "image_size": 48, "epochs": 2, "batch_size": 32, "color": "rgb"}
    config = TrainConfig(**base | {"arch_options": {"hidden": 32}} | changes, runs=folder.parent, name=folder.name)
    with Run.open(folder, "train", config, {"shards": read_index(shards)["fingerprint"]}, fresh=False) as run:
        training_loop.fit(config, RankContext(0, 1, torch.device("cpu"), folder, folder, run.attempt), lambda _: None)
        run.finish(launch.finish(config, folder, folder))
    return folder


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of other settings over the same shards."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        fitted(shards, folder / "first", calibration="none"),
        fitted(
            shards,
            folder / "second",
            arch="a-cnn1",
            arch_options={},
            epochs=3,
            threshold_policy="global",
            calibration="none",
        ),
    ]


def copied(run: Path, to: Path, **changes: Any) -> Path:
    """A run with other settings in its config.json."""
    shutil.copytree(run, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


@pytest.mark.ray
def test_the_page_of_two_runs(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = report(ReportConfig(runs=tuple(runs), out=out))
    page = (out / "report.html").read_text()
    content = json.loads((out / "report.json").read_text())
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "<script" not in page
    assert {path.stem for path in out.glob("*.png")} == set(plots.NAMES)
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 400
    best = checkpoints.read_best(runs[0])
    assert bundle.read(runs[0]).calibration["method"] == "none", "the decisions below are the loop's own"
    labels = bundle.read(runs[0]).labels
    assert f"{best.metrics['val/f1_micro']:.4f}" in page
    for i, row in enumerate(content["labels"]):
        positive = best.targets[:, i] == 1
        assert row["label"] == labels[i]
        assert (row["right"], row["missed"]) == (
            (positive & best.decisions[:, i]).sum(),
            (positive & ~best.decisions[:, i]).sum(),
        )
        assert sum(row["kinds"].values()) == row["missed"] + row["wrong"]
        assert content["history"][-1][f"val/f1/{labels[i]}"] is not None
    assert sum(content["kinds"].values()) == sum(row["missed"] + row["wrong"] for row in content["labels"])
    assert {row["name"] for row in content["settings"] if row["differs"]} == {
        "arch",
        "arch_options",
        "epochs",
        "threshold_policy",
    }
    assert sum(row["parameters"] for row in content["layers"]) == content["runs"][0]["parameters"]
    assert content["runs"][1]["differences"]["f1_micro"][0] == pytest.approx(
        checkpoints.read_best(runs[1]).metrics["val/f1_micro"] - best.metrics["val/f1_micro"]
    )
    assert "less first" in found.text()
    assert "Grad-CAM" in page
    assert page.count("data:image/jpeg") > len(content["examples"])
    report(ReportConfig(runs=tuple(runs), out=out))
    assert (out / "report.html").read_text() == page
    report(ReportConfig(runs=(runs[0],), out=out))
    assert not (out / "comparison.png").exists()


@pytest.mark.ray
def test_a_run_does_not_differ_from_itself(runs: list[Path], tmp_path: Path) -> None:
    again = copied(runs[0], tmp_path / "again")
    found = report(ReportConfig(runs=(runs[0], again), out=tmp_path / "out")).comparison[1]
    assert set(found.differences.values()) == {(0, 0, 0)}
    assert len(found.differences) == 7


@pytest.mark.ray
def test_without_the_shards(runs: list[Path], shards: Path, tmp_path: Path) -> None:
    """The page says what it lacks, has the rest, and still compares runs over the same data."""
    gone = [copied(run, tmp_path / run.name, shards=str(tmp_path / "gone")) for run in runs]
    found = report(ReportConfig(runs=tuple(gone)))
    assert found.page == gone[0] / "report" / "report.html"
    page = found.page.read_text()
    assert "gone are not there, so there are no pictures" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS
    assert "data:image/jpeg" not in page
    whole = report(ReportConfig(runs=tuple(runs), out=tmp_path / "out"))
    assert found.comparison[1].differences == whole.comparison[1].differences
    mixed = report(ReportConfig(runs=(runs[0], gone[1]), out=tmp_path / "mixed"))
    assert mixed.comparison[1].differences == whole.comparison[1].differences
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    index = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps(index | {"fingerprint": "another"}))
    changed = copied(runs[0], tmp_path / "changed", shards=str(other))
    assert "are no longer those of this run" in report(ReportConfig(runs=(changed,))).page.read_text()


@pytest.mark.ray
def test_the_winner_of_a_search(runs: list[Path], tmp_path: Path) -> None:
    """A search is its winning trial: the files that mlic tune leaves, around a run that is known."""
    search = tmp_path / "search"
    shutil.copytree(runs[1], search / "trials" / "00004")
    shutil.copytree(runs[1] / "model", search / "model")
    (search / "best.yaml").write_text((runs[1] / "config.json").read_text().replace('"name": "second"', '"name": null'))
    state, report_of = (json.loads((runs[1] / name).read_text()) for name in ("run.json", "report.json"))
    (search / "run.json").write_text(json.dumps(state | {"kind": "tune"}))
    with pytest.raises(DataError, match="the search .* is not finished"):
        report(ReportConfig(runs=(search,), out=tmp_path / "out"))
    (search / "report.json").write_text(json.dumps(report_of | {"trials": [{"number": 4}]}))
    found = report(ReportConfig(runs=(runs[1], search), out=tmp_path / "out"))
    assert set(found.comparison[1].differences.values()) == {(0, 0, 0)}
    assert found.comparison[1].values == found.comparison[0].values


@pytest.mark.ray
def test_the_shards_of_runs_that_start_again(runs: list[Path], shards: Path, tmp_path: Path) -> None:
    """A page inside a run is the run's own: --fresh throws it away."""
    run = copied(runs[1], tmp_path / "run")
    report(ReportConfig(runs=(run,)))
    inputs = {"shards": read_index(shards)["fingerprint"]}
    with Run.open(run, "train", TrainConfig(shards=shards, epochs=1), inputs, fresh=True):
        assert not (run / "report").exists()


@pytest.mark.ray
def test_what_is_refused(runs: list[Path], shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run of mlic train or mlic tune"):
        report(ReportConfig(runs=(shards,)))
    with pytest.raises(DataError, match="is not a run of mlic train or mlic tune"):
        report(ReportConfig(runs=(tmp_path / "nowhere",)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("precious")
    with pytest.raises(ConfigError, match="mine holds files that mlic did not write"):
        report(ReportConfig(runs=(runs[0],), out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "report.html").read_text() == "precious"
    with pytest.raises(ConfigError, match="is not a folder"):
        report(ReportConfig(runs=(runs[0],), out=tmp_path / "mine" / "report.html"))


def evidence(labels: tuple[str, ...], num_samples: int = 300, seed: int = 1, **changes: Any) -> Evidence:
    """Scores that know something, without a run behind them."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_samples, len(labels))) < 0.3).astype(np.int8)
    scores = (0.3 * targets + 0.7 * rng.random(targets.shape)).astype(np.float32)
    cuts = np.full(len(labels), 0.5, np.float32)
    decisions = thresholds.decide(scores, cuts)
    found = {
        "name": "it",
        "about": "",
        "data": "d",
        "labels": labels,
        "keys": tuple(f"im{i}" for i in range(num_samples)),
        "targets": targets,
        "decisions": decisions,
        "scores": scores,
        "thresholds": cuts,
    }
    found["measurement"] = measure(labels, decisions, targets, scores, 100, 1)
    return Evidence(**found | changes)


def test_only_the_same_samples_and_labels_are_compared(tmp_path: Path) -> None:
    first = evidence(("a", "b", "c"))
    images: Any = object()  # keys are only names where there are images
    fewer = evidence(("a", "b", "c"), 200, data="e", images=images)
    for other, words in (
        (evidence(("a", "b", "x")), "different labels: 2 occur in only one of them"),
        (evidence(("a", "b", "c"), data="e"), "are of other shards, which are gone"),
        (evidence(("a", "b", "c"), seed=2), r"\d+ labels of the samples are others in it than in it"),
    ):
        with pytest.raises(DataError, match=words):
            write(tmp_path, [first, other], 1)
    from mlic.report.analysis import _aligned

    with pytest.raises(DataError, match="it has 200 samples and it 300, of which only 200 are the same"):
        _aligned(evidence(("a", "b", "c"), images=images), fewer)


def test_runs_are_joined_by_key_and_label() -> None:
    from mlic.report.analysis import _aligned

    images: Any = object()
    first = evidence(("a", "b", "c"), images=images)
    order, columns = np.random.default_rng(3).permutation(300), [2, 0, 1]
    other = evidence(
        ("c", "a", "b"),
        images=images,
        data="e",
        keys=tuple(first.keys[i] for i in order),
        targets=first.targets[order][:, columns],
        decisions=first.decisions[order][:, columns],
        scores=None if first.scores is None else first.scores[order][:, columns],
    )
    decisions, scores = _aligned(first, other)
    assert (decisions == first.decisions).all()
    assert scores is not None
    assert (scores == first.scores).all()


def test_names_from_data_are_escaped(tmp_path: Path) -> None:
    keys = tuple(f"<img src=x onerror=alert({i})>\"'" for i in range(300))
    write(tmp_path / "o", [evidence(HOSTILE, keys=keys, name="<i>run</i>")], 1)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<i>run" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=" in page


@pytest.mark.ray
def test_predictions_of_shards_have_their_images_whatever_they_are_called(shards: Path) -> None:
    split = read_split(shards, "test")
    numbers = [key.removeprefix("im") for key in split.keys.to_pylist()]
    measured = measure(split.labels, split.targets == 1, split.targets, None, 100, 1)
    found = of_predictions(
        "p", split.labels, numbers, split.targets, split.targets == 1, None, measured, shards, "test"
    )
    assert found.images is not None
    assert list(found.keys) == found.images.keys.to_pylist() == split.keys.to_pylist()
    assert found.train_targets is not None
    assert len(found.train_targets) == len(read_split(shards, "train"))


def test_without_scores(tmp_path: Path) -> None:
    content = write(tmp_path / "o", [evidence(("a", "b"), scores=None, thresholds=None)], 1)
    assert content.curves == ()
    assert {path.stem for path in (tmp_path / "o").glob("*.png")} == {
        "distribution",
        "cardinality",
        "confusion",
        "swapped",
    }


def test_nothing_wrong(tmp_path: Path) -> None:
    """A perfect model, and labels that no image has."""
    targets = np.zeros((10, 3), np.int8)
    targets[:5, 0] = 1
    targets[0] = -1
    content = write(tmp_path / "o", [evidence(("a", "b", "c"), 10, targets=targets, decisions=targets == 1)], 1)
    assert content.examples == content.swaps == ()
    assert set(content.kinds.values()) == {0}


@pytest.mark.ray
def test_thumbnails_keep_to_their_budget(shards: Path) -> None:
    from mlic.report.images import pictures

    split = read_split(shards, "val")
    rows = list(range(len(split)))
    every, _ = pictures(split, rows, [[]] * len(rows), split.labels, None, 10**9)
    assert len(every) == len(rows)
    size = len(every[0].thumbnail) * 4 // 3
    some, _ = pictures(split, rows, [[]] * len(rows), split.labels, None, 3 * size)
    assert 1 <= len(some) <= 4
    assert list(some) == rows[: len(some)]


def test_the_command_takes_several_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "a"), str(tmp_path / "b")], standalone_mode=False)
    assert done.return_value == 3
    assert f"{tmp_path / 'a'} is not a run" in done.output
    none = CliRunner().invoke(cli, ["report"], standalone_mode=False)
    assert none.return_value == 2
    assert "runs is not given" in none.output
    assert ReportConfig(runs="one/run").runs == (Path.cwd() / "one/run",)


@pytest.mark.slow
def test_a_hundred_labels_and_a_hundred_thousand_images(tmp_path: Path) -> None:
    labels = tuple(f"label {i:03d}" for i in range(100))
    one = evidence(labels, 100_000)
    both = [one, replace(one)]
    content = write(tmp_path / "o", both, 1)  # benchmarks/report.py measures how long it takes
    assert (tmp_path / "o" / "report.html").stat().st_size < 5_000_000  # 3 MB of pictures would come on top
    assert max(len(curve.thresholds) for curve in content.curves) <= 200
    assert "The 24 most frequent labels; 76 more are in the tables" in (tmp_path / "o" / "report.html").read_text()
    if chromium.PROGRAM is not None:
        seen, complaints = chromium.visit(tmp_path / "o" / "report.html", 390, tmp_path)
        assert complaints == []
        assert seen["wide"] <= seen["width"]


needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium or chrome on the PATH")


@pytest.mark.ray
@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1300])
def test_in_a_browser(runs: list[Path], tmp_path: Path, width: int) -> None:
    page = report(ReportConfig(runs=tuple(runs), out=tmp_path / "out")).page
    seen, complaints = chromium.visit(page, width, tmp_path)
    assert complaints == []
    assert seen["headings"] == SECTIONS
    assert len(seen["links"]) == len(SECTIONS)
    assert all(seen["links"])
    assert seen["width"] == width
    assert seen["wide"] <= seen["width"]
    assert seen["pictures"] > len(plots.NAMES)
    assert seen["broken"] == 0


@pytest.mark.slow
@needs_chromium
def test_hostile_names_in_a_browser(tmp_path: Path) -> None:
    keys = tuple(f"<img src=x onerror=console.error({i})>\"'" + "long" * 60 for i in range(300))
    labels = (*HOSTILE, "<script>console.error('run')</script>", "very" * 60)
    write(tmp_path / "o", [evidence(labels, keys=keys)], 1)
    seen, complaints = chromium.visit(tmp_path / "o" / "report.html", 390, tmp_path)
    assert complaints == []
    assert seen["wide"] <= seen["width"]
    assert all(label[:60] in seen["text"].replace("\n", "") for label in HOSTILE)


@pytest.mark.slow
@needs_chromium
def test_the_browser_would_tell(tmp_path: Path) -> None:
    """A page with mistakes is seen to have them."""
    (tmp_path / "bad.html").write_text(
        '<h2>One</h2><nav><a href="#nowhere">x</a></nav><div style="width:900px">x</div><img src="data:image/png,no">'
        "<script>undefined_function()</script>"
    )
    seen, complaints = chromium.visit(tmp_path / "bad.html", 390, tmp_path)
    assert any("undefined_function is not defined" in line for line in complaints)
    assert seen["wide"] > seen["width"] == 390
    assert (seen["broken"], seen["links"], seen["headings"]) == (1, [False], ["One"])
