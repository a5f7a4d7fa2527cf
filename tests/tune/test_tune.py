"""Searches of the toy corpus, on one Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mlic.batch_predict import prediction_files
from mlic.batch_predict.predict import predict
from mlic.config.evaluate import EvaluateConfig, ReportConfig
from mlic.config.load import build, read_file
from mlic.config.predict import PredictConfig
from mlic.config.space import Dimension
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import ClusterError, ConfigError
from mlic.evaluate.evaluate import evaluate
from mlic.model import bundle, zoo
from mlic.report.report import report as page_of
from mlic.train import checkpoints
from mlic.train.launch import fit as train
from mlic.tune.tune import tune
from tests.end_to_end.test_pipeline import FIT

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.smoke
def test_tune_searches_prunes_and_leaves_a_config(shards: Path, tmp_path: Path) -> None:
    config = TuneConfig(shards=shards, runs=tmp_path, num_samples=4, color="rgb", **(FIT | {"epochs": 4}))
    report = tune(config)
    assert len(report.trials) == 4
    assert {t.status for t in report.trials} == {"finished", "pruned"}
    assert all((t.epochs == 4) == (t.status == "finished") for t in report.trials)
    assert report.trials[0].value == max(t.value or 0 for t in report.trials)
    table = pd.read_parquet(tmp_path / "tune" / "trials.parquet")
    assert table["number"].tolist() == [t.number for t in report.trials]
    assert table["epochs_trained"].tolist() == [t.epochs for t in report.trials]
    assert bundle.read(report.run).arch == report.trials[0].settings["arch"]
    assert tune(config) == report

    winner = read_file(report.best_config)
    again = train(build(TrainConfig, winner, {"name": "again", "workers": 1}))
    trial_epochs = json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"]
    assert (again.arch, trial_epochs) == (report.trials[0].settings["arch"], 4)
    assert yaml.safe_load(report.best_config.read_text())["loss"] == report.trials[0].settings["loss"]
    epochs = pd.read_parquet(tmp_path / "tune" / "epochs.parquet")
    assert epochs.groupby("trial").size().to_dict() == {t.number: t.epochs for t in report.trials}
    assert table["space.pos_weight_power"].tolist() == table["pos_weight_power"].tolist()
    page = report.page.read_text()
    assert all(f"<td>{t.number}</td>" in page for t in report.trials)
    assert {path.stem for path in report.page.parent.glob("*.png")} >= {
        "search-history",
        "search-curves",
        "search-rungs",
        "search-coordinates",
    }
    kept = {int(path.parent.parent.name) for path in (tmp_path / "tune" / "trials").glob("*/checkpoints/best.pt")}
    assert kept == {t.number for t in report.trials[:3]}


def test_a_search_goes_on_with_more_trials(shards: Path, tmp_path: Path) -> None:
    """As if it had had them from the start, whatever a kill left of it; what was done is not done again."""
    config = TuneConfig(shards=shards, runs=tmp_path / "a", num_samples=5, color="rgb", **(FIT | {"epochs": 4}))
    whole = tune(config)
    config = config.model_copy(update={"runs": tmp_path / "b", "num_samples": 3})
    tune(config)
    folder = tmp_path / "b" / "tune"
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(state | {"status": "running"}))
    logs = {path: path.read_text() for path in folder.glob("trials/*/log.txt")}
    assert len(logs) == 3
    more = tune(config.model_copy(update={"num_samples": 5}))
    assert more.trials == whole.trials
    assert all(path.read_text() == text for path, text in logs.items())


def test_trials_of_several_workers(shards: Path, tmp_path: Path) -> None:
    """Batches of two workers are those of one, so the values are the same but for the order of sums."""
    space = {"lr": Dimension(grid=(1e-3,))}
    config = TuneConfig(
        shards=shards, runs=tmp_path, num_samples=1, arch="a-cnn1", space=space, **(FIT | {"epochs": 2}), name="one"
    )
    one = tune(config)
    two = tune(config.model_copy(update={"workers_per_trial": 2, "name": "two"}))
    assert [(t.number, t.status, t.epochs) for t in two.trials] == [(t.number, t.status, t.epochs) for t in one.trials]
    for a, b in zip(one.trials, two.trials, strict=True):
        assert a.value == pytest.approx(b.value, abs=0.02)
    log = (tmp_path / "two" / "trials" / "00000" / "log.txt").read_text()
    assert log.count("val  epoch") == 2
    with pytest.raises(ClusterError, match="a trial needs 3 workers; this cluster has room for 2"):
        tune(config.model_copy(update={"workers_per_trial": 3, "name": "three"}))


def test_a_winner_is_confirmed_on_what_it_never_saw(shards: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=3,
        confirm=2,
        color="rgb",
        arch="b-final",
        space={"lr": Dimension(grid=(1e-6, 1e-3, 2e-3))},
        scheduler="none",
        **(FIT | {"epochs": 3}),
    )
    report = tune(config)
    found = report.confirmation
    assert found is not None
    assert (found.split, found.seeds, list(found.values)) == ("test", 2, ["winner", "runner-up", "default"])
    assert all(len(values) == 2 for values in found.values.values())
    lead, low, high = found.lead["runner-up"]
    assert low <= lead <= high
    assert lead == pytest.approx(np.mean(found.values["winner"]) - np.mean(found.values["runner-up"]))
    assert "retrained with 2 new seeds" in report.text()
    winner = read_file(tmp_path / "tune" / "best.yaml")
    for number, seed in enumerate((43, 44)):
        own = tmp_path / "tune" / "confirm" / f"{number:05d}"
        settings = json.loads((own / "trial.json").read_text())
        assert settings == {"lr": winner["lr"], "seed": seed}
        scored = evaluate(EvaluateConfig(predictions=own, labels=shards, split="test"))
        assert scored.measurement.values["f1_micro"] == pytest.approx(found.values["winner"][number])
    assert tune(config) == report


def test_a_search_ends_when_its_time_is_up(shards: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        shards=shards, runs=tmp_path, num_samples=300, budget=4, color="rgb", scheduler="none", **(FIT | {"epochs": 2})
    )
    report = tune(config)
    assert 1 <= len(report.trials) < 300
    assert report.seconds >= 4  # not before it is up either
    assert {t.status for t in report.trials} <= {"finished", "cut"}
    assert tune(config) == report


def test_all_workers_of_a_search_are_started_at_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.tune.experiment import Trial

    from mlic.tune.scheduler import TrialSearcher

    events = list[str]()
    suggest, init_local_path = TrialSearcher.suggest, Trial.init_local_path

    def note_trial(searcher: TrialSearcher, trial_id: str) -> Any:
        config = suggest(searcher, trial_id)
        events.extend(["trial"] if isinstance(config, dict) else [])
        return config

    def note_worker(trial: Trial) -> None:
        events.append("worker")
        init_local_path(trial)

    monkeypatch.setattr(TrialSearcher, "suggest", note_trial)
    monkeypatch.setattr(Trial, "init_local_path", note_worker)
    tune(
        TuneConfig(shards=shards, runs=tmp_path, num_samples=4, color="rgb", scheduler="none", **(FIT | {"epochs": 1}))
    )
    assert events[:4] == ["trial", "trial", "worker", "worker"]


def test_a_search_over_heads_shares_the_features(shards: Path, tmp_path: Path) -> None:
    """Features of a frozen network are computed once for all trials, which differ in their heads' training alone."""
    torch.manual_seed(0)
    file = tmp_path / "resnet18.pth"
    torch.save(zoo.build("resnet18", 1000, 3, 64, {}).state_dict(), file)
    kept = Path(os.environ["MLIC_CACHE_DIR"])
    before = set(kept.glob("*.f32"))
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=3,
        arch="resnet18",
        weights=str(file),
        train="head",
        epochs=2,
        image_size=64,
        batch_size=32,
        grace_epochs=2,
        space={"arch_options.head_hidden": Dimension(grid=(0, 16, 32)), "lr": Dimension(loguniform=(1e-4, 1e-2))},
    )
    report = tune(config)
    assert [trial.status for trial in report.trials] == ["finished"] * 3
    assert len(set(kept.glob("*.f32")) - before) == 2  # of the training and the validation split
    for trial in report.trials:
        log = (tmp_path / "tune" / "trials" / f"{trial.number:05d}" / "log.txt").read_text()
        assert "begins with resnet18.pth, " in log
    two = {"arch": Dimension(choice=("resnet18", "resnet34"))}
    with pytest.raises(ConfigError, match=r"are those of one architecture, and space.arch has 2\."):
        tune(config.model_copy(update={"space": two, "name": "two"}))
    with pytest.raises(ConfigError, match="pos_weights names 'discs'") as caught:
        tune(config.model_copy(update={"pos_weights": {"discs": 2.0}, "name": "three"}))
    assert caught.value.hint == "did you mean disc?"


def test_a_search_with_failing_trials_says_so(shards: Path, tmp_path: Path) -> None:
    from mlic.errors import RunError

    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=5,
        arch="b-final",
        space={"lr": Dimension(grid=(1e12,))},
        **(FIT | {"optimizer": "sgd", "epochs": 2}),
    )
    with pytest.raises(RunError, match="the first 3 trials all failed with the same error: the loss is not finite"):
        tune(config)
    config = config.model_copy(update={"space": {"lr": Dimension(grid=(1e12, 1e-3, 1e12))}, "name": "some"})
    report = tune(config)
    assert [(t.number, t.status) for t in report.trials] == [
        (1, "finished"),
        (4, "finished"),
        (0, "failed"),
        (2, "failed"),
        (3, "failed"),
    ]
    assert report.trials[2].error is not None
    assert "the loss is not finite at step" in report.text()
    with pytest.raises(ClusterError, match="a trial needs 64 CPUs; the largest node has"):
        tune(config.model_copy(update={"cpus_per_trial": 64, "name": "big"}))


def test_the_best_trials_are_averaged(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = {"lr": Dimension(grid=(1e-3, 2e-3)), "arch": Dimension(grid=("b-final", "small"))}
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=4,
        ensemble=2,
        keep=1,
        color="rgb",
        space=space,
        scheduler="none",
        calibration="none",
        **(FIT | {"epochs": 2}),
    )
    report = tune(config)
    made = report.ensemble
    assert made is not None
    assert made.trials == tuple(trial.number for trial in report.trials[:2])
    low, high = made.lead[1:]
    assert low <= made.lead[0] <= high
    assert made.lead[0] == pytest.approx(
        made.measurement.values["f1_micro"] - report.measurement.values["f1_micro"], abs=1e-9
    )
    assert "Average of trials" in report.page.read_text()
    assert f"average of trials {made.trials[0]}, {made.trials[1]}: f1_micro" in report.text()

    out = tmp_path / "val.parquet"
    predict(PredictConfig(model=tmp_path / "tune" / "ensemble", images=shards, split="val", out=out, values="both"))
    found = prediction_files.read(out)
    bests = [checkpoints.read_best(tmp_path / "tune" / "trials" / f"{number:05d}") for number in made.trials]
    mean = np.mean([best.scores for best in bests], axis=0)
    assert found.scores == pytest.approx(mean, abs=1e-5)

    assert tune(config) == report
    more = tune(config.model_copy(update={"ensemble": 3}))
    assert more.ensemble is not None
    assert (more.trials, more.ensemble.trials) == (report.trials, made.trials)
    assert "an ensemble of 3 was asked for: 2 of 4 trials finished with images of the winner's size" in caplog.text


def test_a_population_copies_better_trials(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And what came of it can be trained again by one run whose settings change at the same epochs."""
    space = {"lr": Dimension(loguniform=(1e-4, 1e-1)), "weight_decay": Dimension(uniform=(0, 0.2))}
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=5,
        scheduler="pbt",
        color="rgb",
        space=space,
        arch="a-cnn1",
        reduction_factor=2,
        name="one",
        **(FIT | {"epochs": 4, "optimizer": "sgd", "schedule": "constant"}),
    )
    report = tune(config)
    assert [(trial.status, trial.epochs) for trial in report.trials] == [("finished", 4)] * 5
    assert report.exploits
    assert "lost its worker" not in caplog.text
    assert tune(config) == report
    assert "Copies" in report.page.read_text()
    trial = next(trial for trial in report.trials if any(name.startswith("changes.") for name in trial.settings))
    plan = config.plan(trial.settings)
    changes = {"lr": plan.lr, "weight_decay": plan.weight_decay, "changes": plan.changes}
    alone = {"space": {"seed": Dimension(choice=(plan.seed,))}, "num_samples": 1, "scheduler": "none", "name": "alone"}
    tune(config.model_copy(update={**alone, **changes}))
    rows = [
        checkpoints.read_history(tmp_path / name) for name in (f"one/trials/{trial.number:05d}", "alone/trials/00000")
    ]
    timed = ("time/images_per_s", "time/data_pct")
    plain = [[{name: value for name, value in row.items() if name not in timed} for row in part] for part in rows]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_schedulers_of_ray_tune_stop_trials_that_stay_stopped(shards: Path, tmp_path: Path, scheduler: str) -> None:
    space = {"lr": Dimension(grid=(1e-3, 1e-7, 1e-3, 1e-7))}
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=8,
        scheduler=scheduler,
        color="rgb",
        arch="a-cnn1",
        space=space,
        **(FIT | {"epochs": 9, "image_size": 32}),
    )
    report = tune(config)
    assert {trial.status for trial in report.trials} == {"finished", "pruned"}
    assert all((trial.epochs == 9) == (trial.status == "finished") for trial in report.trials)
    assert tune(config) == report
    state = json.loads((report.run / "run.json").read_text())
    (report.run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    logs = {path: path.read_text() for path in report.run.glob("trials/*/log.txt")}
    more = tune(config.model_copy(update={"num_samples": 9}))
    assert len(more.trials) == 9
    assert [trial for trial in more.trials if trial.number < 8] == list(report.trials)
    assert all(path.read_text() == text for path, text in logs.items())


def test_the_winner_has_one_number_everywhere(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the table of trials, the log, the report, the page and the model: to the last digit, with any seed."""
    caplog.set_level("INFO", logger="mlic")
    for seed in range(3):
        caplog.clear()
        fast = FIT | {"epochs": 2, "seed": seed}
        report = tune(TuneConfig(shards=shards, runs=tmp_path, name=f"t{seed}", num_samples=4, **fast))
        value = report.trials[0].value
        assert value == report.measurement.values["f1_micro"]
        model = bundle.read(report.run)
        assert model.threshold_fit["cross_fitted"]["f1_micro"] == value
        logged = [record.getMessage() for record in caplog.records if record.getMessage().endswith("| best")]
        assert f"val/f1_micro {value:.4f} | best" in logged[-1]
        assert f'<div class="tile"><b>{value:.4f}</b>' in report.page.read_text()
        assert f"f1_micro {value:.4f}" in report.best_config.read_text()
        table = pd.read_parquet(report.run / "trials.parquet")
        assert table["value"].tolist()[0] == value
        shown = page_of(ReportConfig(runs=report.run)).measurement
        assert shown.values["f1_micro"] == value
        assert report.page.is_file()
        assert report.page.with_name("search-history.png").is_file()


@pytest.mark.parametrize("objective", ["map", "f1_macro", "hamming_accuracy"])
def test_the_winner_has_one_number_whatever_is_searched_for(shards: Path, tmp_path: Path, objective: str) -> None:
    space = {"lr": Dimension(choice=(1e-3, 4e-3)), "threshold_policy": Dimension(choice=("fixed=0.3", "per-label"))}
    fast = FIT | {"epochs": 2, "image_size": 32, "objective": objective}
    report = tune(TuneConfig(shards=shards, runs=tmp_path, num_samples=3, space=space, arch="small", **fast))
    assert report.trials[0].value == report.measurement.values[objective]


@pytest.mark.parametrize("kept", ["last", "lowest-loss"])
def test_trials_are_ranked_by_the_epoch_that_is_kept(shards: Path, tmp_path: Path, kept: str) -> None:
    space = {"lr": Dimension(choice=(1e-3, 4e-3, 2e-2))}
    fast = FIT | {"epochs": 3, "image_size": 32, "keep_epoch": kept}
    report = tune(
        TuneConfig(shards=shards, runs=tmp_path, num_samples=3, space=space, arch="small", scheduler="none", **fast)
    )
    values = [trial.value for trial in report.trials]
    assert values == sorted(values, reverse=True)
    for trial in report.trials:
        history = checkpoints.read_history(report.run / "trials" / f"{trial.number:05d}")
        row = history[-1] if kept == "last" else min(history, key=lambda row: row["val/loss"])
        assert (trial.value, trial.best_epoch) == (row["val/f1_micro"], row["epoch"])
    assert report.measurement.values["f1_micro"] == values[0]


def test_why_there_is_no_ensemble_stands_in_the_report_and_on_the_page(shards: Path, tmp_path: Path) -> None:
    space = {"lr": Dimension(choice=(1e-3, 4e-3))}
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        num_samples=1,
        ensemble=2,
        arch="small",
        space=space,
        **(FIT | {"epochs": 1, "image_size": 32}),
    )
    report = tune(config)
    assert report.ensemble is None
    assert "Warning: there is no ensemble of 2: 1 of 1 trials finished with images" in report.text()
    assert "There is no ensemble of 2" in report.page.read_text()


def test_an_ensemble_keeps_the_trials_that_it_can_average(shards: Path, tmp_path: Path) -> None:
    """Gray and colour nets in one search: of each kind as many stay as are to be averaged."""
    space = {"arch": Dimension(grid=("small", "b-final")), "lr": Dimension(grid=(1e-3, 2e-3))}
    config = TuneConfig(
        shards=shards,
        runs=tmp_path,
        searcher="grid",
        ensemble=2,
        keep=1,
        space=space,
        scheduler="none",
        **(FIT | {"epochs": 1, "image_size": 32}),
    )
    report = tune(config)
    assert report.ensemble is not None
    assert len(report.ensemble.trials) == 2
    archs = {trial.number: trial.settings["arch"] for trial in report.trials}
    assert len({archs[number] for number in report.ensemble.trials}) == 1
