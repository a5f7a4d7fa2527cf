"""The recipes of the reference systems: each is a configuration that can be run, and the small ones are run."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

from mlic.cli.main import cli
from mlic.config.data import PackConfig
from mlic.config.evaluate import ReportConfig
from mlic.config.load import build, find_file, read_file
from mlic.config.recipes import Recipe, backbones, recipes
from mlic.config.space import grid
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.config.types import parse_policy
from mlic.model import losses, published, reference, zoo
from mlic.pack.pack import pack
from mlic.report.report import report as page_of
from mlic.train import checkpoints, setup, training_loop
from mlic.train.rank import RankContext
from mlic.tune.tune import tune

FOLDER = Path(__file__).parents[2] / "jobs" / "reference"
PACKS = sorted(FOLDER.glob("pack-*.yaml"))
SEARCHES = sorted(FOLDER.glob("tune-*.yaml"))
RECIPES = sorted(set(FOLDER.glob("*.yaml")) - {*PACKS, *SEARCHES})
SMALL = [path for path in RECIPES if read_file(path)["arch"] in reference.NETS]


def config(path: Path, **changes: Any) -> TrainConfig:
    return build(TrainConfig, read_file(path), {"shards": "shards"}, changes)


def test_every_system_is_there() -> None:
    assert {path.stem[0] for path in RECIPES} == set("abcde")
    assert len([path for path in RECIPES if path.stem.startswith("a-cnn")]) == 8
    assert {config(path).arch for path in SMALL} == set(reference.NETS) - {"b-drawn"}  # that one is for tune-b
    assert len([path for path in RECIPES if path.stem.startswith("d-") and path not in SMALL]) == 6 * (2 * 2 + 1) + 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration_and_says_what_was_reported(path: Path) -> None:
    found = config(path)
    zoo.check(found.arch)
    losses.check(found.loss, found.loss_options)
    parse_policy(found.threshold_policy)
    head = re.match(r"(#.*\n)+", path.read_text())
    assert head is not None
    assert f"system {path.stem[0].upper()}" in head.group()


@pytest.mark.parametrize("path", sorted(FOLDER.parent.glob("tune*.yaml")), ids=lambda path: path.stem)
def test_a_search_to_begin_with_is_a_configuration(path: Path) -> None:
    found = build(TuneConfig, read_file(path), {"shards": "shards"})
    drawn = grid(found.space) if found.searcher == "grid" else [found.drawn(number) for number in range(found.trials)]
    assert len({repr(settings) for settings in drawn}) == found.trials
    for name in {str(value) for value in found.space["arch"].ends} if "arch" in found.space else {found.arch}:
        zoo.check(name)


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.stem)
def test_shards_as_a_system_dealt_them_out(path: Path) -> None:
    found = build(PackConfig, read_file(path), {"images": "i", "labels": "l"})
    shares = {"c": {"train": 0.85, "val": 0.15}, "d": {"train": 0.8, "val": 0.1, "test": 0.1}}
    assert (found.split_by, found.split) == ("random", shares.get(path.stem[-1], {"train": 0.8, "val": 0.2}))


def test_searches_as_the_systems_made_them() -> None:
    a, b = (build(TuneConfig, read_file(path), {"shards": "shards"}) for path in SEARCHES)
    assert (a.trials, b.trials, b.cross_validate) == (3 * 4 * 2 * 3 * 3 * 2 * 2 * 3, 30, True)
    for number in range(b.trials):  # what it draws can be built
        plan = b.plan(b.drawn(number))
        with torch.device("meta"):
            zoo.build(plan.arch, 14, 1, plan.image_size, plan.arch_options)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_of_a_system_runs(path: Path, corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    """Two of its trials, for an epoch."""
    images = {"images": corpus / "images", "labels": corpus / "annotations", "out": tmp_path / "shards"}
    pack(build(PackConfig, images, {"folds": 2} if path.stem == "tune-b" else {}))
    few = {"num_samples": 2, "epochs": 1, "image_size": 96, "doctor": False, "runs": tmp_path, "name": "search"}
    found = build(TuneConfig, read_file(path), {"shards": tmp_path / "shards"}, few)
    report = tune(found)
    assert [trial.status for trial in report.trials] == ["finished", "finished"]
    own = tmp_path / "search" / "trials" / f"{report.trials[0].number:05d}"
    if report.folds:
        assert report.trials[0].value == report.measurement.values["f1_micro"]
        assert report.measurement.samples == sum(
            checkpoints.read_best(own / f"fold{k}").targets.shape[0] for k in (0, 1)
        )
        page = page_of(ReportConfig(runs=tmp_path / "search"))  # of the first fold's model
        assert page.measurement == report.measurement
    assert tune(found) == report


@pytest.fixture(scope="module")
def few(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of few images, enough for a few steps."""
    folder = tmp_path_factory.mktemp("few")
    result = CliRunner().invoke(
        cli,
        [
            "pack",
            str(shards),
            "--labels",
            str(shards),
            "--out",
            str(folder / "shards"),
            "--split",
            "train=0.1,val=0.05,test=0.85",
            "--workers",
            "1",
        ],
    )
    assert result.exit_code == 0, result.output
    return folder / "shards"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for checkpoints of up to two gigabytes: in memory, where there is room."""
    memory = Path("/dev/shm")  # noqa: S108 - its file names are random
    if not memory.is_dir() or min(shutil.disk_usage(memory).free, psutil.virtual_memory().available) < 10 << 30:
        yield tmp_path_factory.mktemp("scratch")
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def publish(arch: str, torch_home: Path) -> None:
    """Random weights where PyTorch keeps the published ones."""
    url = published.sources(arch)[0].url
    path = torch_home / "hub" / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(zoo.build(arch, 1000, 3, 224, {}).state_dict(), path)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "e-cnn-second"], ids=lambda path: path.stem)
def test_a_recipe_runs(path: Path, few: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps at 64 pixels, or what the net needs. Published weights are stood in for by random ones where PyTorch
    keeps them; resuming from another run, as e-cnn-second does, is in test_pipeline."""
    arch = config(path).arch
    size = 128 if arch in ("a-cnn3", "d-cnn") else 96 if arch in reference.NETS else 64
    found = config(path, shards=few, epochs=1, image_size=size, batch_size=16, doctor=False, checkpoint_minutes=60)
    if found.weights == "default":
        monkeypatch.setenv("TORCH_HOME", str(scratch / "torch"))
        publish(arch, scratch / "torch")
    folder = scratch / path.stem
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    training_loop.fit(found, RankContext(0, 1, torch.device("cpu"), folder, folder, 1), lambda _: None)
    (row,) = checkpoints.read_history(folder)
    assert row["val/loss"] > 0
    assert checkpoints.read_best(folder).epoch == 1
    begins = (folder / "log.txt").read_text()
    assert ("tensors by name" if found.weights == "default" else "random weights") in begins
    shutil.rmtree(folder)


def test_recipes_are_listed_printed_and_taken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {recipe.name: recipe for recipe in (*backbones(), *recipes())}
    assert {recipe.name for recipe in recipes()} == {path.stem for path in [*RECIPES, *PACKS, *SEARCHES]}
    assert found["b-final"].reported == "micro-F1 0.57 at 0.2, 0.60 with a threshold a label"
    assert found["a-ffnn"].reported == ""
    listed = CliRunner().invoke(cli, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(found)
    assert CliRunner().invoke(cli, ["recipes", "b-final"]).output == (FOLDER / "b-final.yaml").read_text()
    plain = json.loads(CliRunner().invoke(cli, ["recipes", "--json"]).output)
    assert [row["name"] for row in plain["recipes"]] == list(found)
    lost = CliRunner().invoke(cli, ["recipes", "b-finale"], standalone_mode=False)
    assert lost.return_value == 2
    assert "did you mean b-final?" in lost.output
    monkeypatch.chdir(tmp_path)
    assert find_file("b-final") == found["b-final"].path
    Path("b-final").touch()
    assert find_file("b-final") == Path("b-final")
    assert find_file("b-final.yaml") == Path("b-final.yaml")


@pytest.mark.parametrize("recipe", backbones(), ids=lambda recipe: recipe.name)
def test_recipes_for_backbones_name_networks_with_published_weights(recipe: Recipe, shards: Path) -> None:
    """By their name, from wherever mlic is installed."""
    pytest.importorskip("timm")
    assert find_file(recipe.name) == recipe.path
    config = build(TrainConfig, read_file(recipe.path), {"shards": shards})
    assert setup.has_fixed_features(config)
    for arch in config.arch.split(zoo.JOINT):
        zoo.check(arch)
        assert published.sources(arch)
