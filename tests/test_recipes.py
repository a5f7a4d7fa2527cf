"""The recipes of the reference systems: each is a configuration that can be run, and the small ones are run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mlic.cli import cli
from mlic.config import PackConfig, TrainConfig
from mlic.model import losses, reference, zoo
from mlic.settings import build, find_file, read_file, recipes
from mlic.stages import checkpoints, loop
from mlic.stages.place import Place
from mlic.values import parse_policy

FOLDER = Path(__file__).parents[1] / "jobs" / "reference"
PACKS = sorted(FOLDER.glob("pack-*.yaml"))
RECIPES = sorted(set(FOLDER.glob("*.yaml")) - set(PACKS))
SMALL = [path for path in RECIPES if read_file(path)["arch"] in reference.NETS]


def config(path: Path, **changes: Any) -> TrainConfig:
    return build(TrainConfig, read_file(path), {"shards": "shards"}, changes)


def test_every_system_is_there() -> None:
    assert {path.stem[0] for path in RECIPES} == set("abcde")
    assert len([path for path in RECIPES if path.stem.startswith("a-cnn")]) == 8
    assert {config(path).arch for path in SMALL} == set(reference.NETS)
    assert len([path for path in RECIPES if path.stem.startswith("d-") and path not in SMALL]) == 6 * (2 * 2 + 1)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration_and_says_what_was_reported(path: Path) -> None:
    found = config(path)
    zoo.check(found.arch)
    losses.check(found.loss, found.loss_options)
    parse_policy(found.threshold_policy)
    head = re.match(r"(#.*\n)+", path.read_text())
    assert head is not None
    assert f"system {path.stem[0].upper()}" in head.group()


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.stem)
def test_shards_as_a_system_dealt_them_out(path: Path) -> None:
    found = build(PackConfig, read_file(path), {"images": "i", "labels": "l"})
    assert (found.split_by, found.split) == ("random", {"train": 0.8, "val": 0.2})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in SMALL if "weights" not in read_file(p)], ids=lambda path: path.stem)
def test_a_small_recipe_runs(path: Path, shards: Path, tmp_path: Path) -> None:
    """One epoch at 96 pixels, or 128 where the net needs them. Going on from another run is in test_pipeline."""
    size = 128 if path.stem.startswith("a-cnn3") else 96
    changes: dict[str, Any] = {"shards": shards, "epochs": 1, "image_size": size}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    loop.fit(
        config(path, **changes), Place(0, 1, torch.device("cpu"), folder, folder, 1), lambda _: None
    )  # fmt: skip
    (row,) = checkpoints.read_history(folder)
    assert row["val/loss"] > 0
    assert checkpoints.read_best(folder).epoch == 1


def test_recipes_are_listed_printed_and_taken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {recipe.name: recipe for recipe in recipes()}
    assert set(found) == {path.stem for path in [*RECIPES, *PACKS]}
    assert found["b-final"].reported == "micro-F1 0.57 at 0.2, 0.60 with a threshold a label"
    assert found["a-ffnn"].reported == ""
    listed = CliRunner().invoke(cli, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in listed] == sorted(found)
    assert CliRunner().invoke(cli, ["recipes", "b-final"]).output == (FOLDER / "b-final.yaml").read_text()
    plain = json.loads(CliRunner().invoke(cli, ["recipes", "--json"]).output)
    assert plain["recipes"][0]["name"] == min(found)
    lost = CliRunner().invoke(cli, ["recipes", "b-finale"], standalone_mode=False)
    assert lost.return_value == 2
    assert "did you mean b-final?" in lost.output
    monkeypatch.chdir(tmp_path)
    assert find_file("b-final") == found["b-final"].path
    Path("b-final").touch()
    assert find_file("b-final") == Path("b-final")
    assert find_file("b-final.yaml") == Path("b-final.yaml")
