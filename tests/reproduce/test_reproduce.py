"""The reference systems anew: packed, trained and measured as they did, on a few images of the toy corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mlic.config.examples import ReproduceConfig
from mlic.config.recipes import reported
from mlic.data.shards import read_index, read_table
from mlic.errors import ConfigError
from mlic.model import zoo
from mlic.reproduce.reproduce import read_rows, reproduce

pytestmark = pytest.mark.ray

SMALL = {"image_size": 96, "batch_size": 16, "doctor": False}


def config(corpus: Path, out: Path, system: str, row: str | None = None, **more: Any) -> ReproduceConfig:
    data = {"images": corpus / "images", "labels": corpus / "annotations", "out": out}
    return ReproduceConfig(
        **{"system": system, "row": row, "epochs": 1, "limit": 120, "overrides": SMALL, **data, **more}
    )


@pytest.mark.slow
@pytest.mark.smoke
def test_a_row_is_packed_trained_and_laid_beside_what_was_reported(
    corpus: Path, ray_cluster: None, tmp_path: Path
) -> None:
    report = reproduce(config(corpus, tmp_path, "a", "cnn1-2"))
    (row,) = report.rows
    assert (row.recipe, row.split, row.epochs, row.of) == ("a-cnn1-2", "val", 1, 40)
    index = read_index(tmp_path / "shards-a")
    assert {name: split["samples"] for name, split in index["splits"].items()} == {"train": 96, "val": 24}
    assert row.reported["f1_micro"] == 0.4483
    text = report.text()
    assert "f1_micro" in text
    assert "0.4483" in text
    assert "They may differ: A measured on the images that also stopped its training" in text
    assert "1 of its 40 epochs" in text
    settings = json.loads((row.run / "config.json").read_text())
    assert (settings["optimizer"], settings["lr"], settings["weight_decay"]) == ("adam", 0.1, 0.1)
    assert reproduce(config(corpus, tmp_path, "a", "a-cnn1-2")) == report, "what is done is not done again"


@pytest.mark.slow
def test_the_second_round_of_e_goes_on_from_the_first(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    overrides = SMALL | {"image_size": 64}
    more = {"overrides": overrides}
    (tmp_path / "labels").mkdir()
    for name, label in zip(("people", "male", "female", "portrait"), ("disc", "ring", "square", "night"), strict=True):
        found = corpus / "annotations" / f"{label}.txt"
        (tmp_path / "labels" / f"{name}.txt").write_text(found.read_text() if found.is_file() else "1\n")
    report = reproduce(config(corpus, tmp_path, "e", labels=tmp_path / "labels", **more))
    assert [row.recipe for row in report.rows] == ["e-cnn", "e-cnn-second"]
    settings = json.loads((report.rows[1].run / "config.json").read_text())
    assert settings["weights"] == str(tmp_path / "runs" / "e-cnn")
    versions = read_table(tmp_path / "shards-e", ["version"]).column("version").to_pylist()
    assert max(versions) == 4, "E's expansion"
    assert [row.recipe for row in read_rows(tmp_path)] == ["e-cnn", "e-cnn-second"]


@pytest.mark.slow
def test_published_weights_are_taken_from_a_file(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    """Stand-ins of the right shape, since the published ones are fetched by nobody."""
    torch.save(zoo.build("squeezenet1_1", 1000, 3, 64, {}).state_dict(), tmp_path / "published.pth")
    found = config(corpus, tmp_path / "out", "d", "squeezenet-head", weights=str(tmp_path / "published.pth"))
    report = reproduce(found.model_copy(update={"overrides": SMALL | {"image_size": 64}}))
    (row,) = report.rows
    assert row.split == "test"
    assert (tmp_path / "out" / "measured" / "d-squeezenet-head" / "report.html").is_file()


def test_published_weights_that_are_not_there_are_named_before_anything_is_done(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ConfigError, match="the weights of resnet50 are not on this machine") as caught:
        reproduce(config(corpus, tmp_path / "out", "c"))
    assert "mlic weights fetch resnet50" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_is_reproduced_with_few_trials(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    overrides = {"image_size": 96, "doctor": False}
    report = reproduce(config(corpus, tmp_path, "b", "search", num_samples=2, overrides=overrides, limit=60))
    (row,) = report.rows
    assert row.recipe == "tune-b"
    assert row.reported == {"f1_micro": 0.43}
    assert read_index(tmp_path / "shards-b-3-folds")["folds"] == 3


def test_rows_that_there_are_not(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system a has no row 'cnn9-1'") as caught:
        reproduce(config(corpus, tmp_path, "a", "cnn9-1"))
    assert "did you mean cnn" in caught.value.hint
    with pytest.raises(ConfigError, match="system c has no row 'search'"):
        reproduce(config(corpus, tmp_path, "c", "search"))


def test_every_recipe_has_what_was_reported_of_it() -> None:
    told = reported()
    assert {name[0] for name in told if not name.startswith("tune-")} == set("abcde")
    assert told["tune-b"].pack_settings == {"folds": 3}
    assert all(row.why for row in told.values())
