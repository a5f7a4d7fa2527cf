"""Model cards: their numbers are those that were measured, and what a person wrote is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mlic.card.card import card
from mlic.config.evaluate import CardConfig, EvaluateConfig, ThresholdConfig
from mlic.errors import ConfigError, DataError
from mlic.evaluate.evaluate import evaluate
from mlic.threshold.threshold import threshold

pytestmark = pytest.mark.ray


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A run of its own, which the tests may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "flowers"))


def test_the_numbers_of_the_training_and_of_the_test_split(run: Path, shards: Path) -> None:
    report = card(CardConfig(run=run))
    assert "validation split" in report.measured_on
    with pytest.raises(DataError, match="the split 'tset' of .* has not been measured"):
        card(CardConfig(run=run, split="tset"))
    measured = evaluate(EvaluateConfig(predictions=run, labels=shards)).measurement
    report = card(CardConfig(run=run))
    assert report.measured_on == "the test split, on which neither weights nor thresholds were fitted"
    text = (run / "CARD.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    metrics = {row["type"]: row["value"] for row in front["model-index"][0]["results"][0]["metrics"]}
    for name, value in metrics.items():
        assert value == pytest.approx(measured.values[name], abs=1e-4)
        low, high = measured.intervals[name]
        assert f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |" in text
    best = max(values["f1_micro"] for values in measured.baselines.values())
    assert f"{best:.4f} (" in text
    for row in measured.labels:
        assert f"| {row.label} | {row.support} |" in text
    index = json.loads((shards / "index.json").read_text())
    assert f"train {index['splits']['train']['samples']}" in text
    assert str(shards) not in text, "no path of a machine"


def test_numbers_of_other_thresholds_are_refused(run: Path, shards: Path) -> None:
    evaluate(EvaluateConfig(predictions=run, labels=shards))
    threshold(ThresholdConfig(model=run, policy="fixed=0.123"))
    shutil.move(run / "predictions", run / "elsewhere")
    given = json.loads((run / "report.json").read_text())["measurement"]["values"]["f1_micro"]
    assert f"| f1_micro | {given:.4f} |" in card(CardConfig(run=run)).card.read_text()
    assert "fixed=0.123" in (run / "CARD.md").read_text(), "numbers and thresholds are of one another"
    shutil.move(run / "elsewhere", run / "predictions")
    with pytest.raises(DataError, match="measured with other weights or thresholds") as caught:
        card(CardConfig(run=run))
    assert "mlic evaluate" in caught.value.hint
    evaluate(EvaluateConfig(predictions=run, labels=shards))
    assert "0.123" in card(CardConfig(run=run)).card.read_text()


def test_a_card_that_a_person_edited_is_kept(run: Path, tmp_path: Path) -> None:
    path = card(CardConfig(run=run)).card
    card(CardConfig(run=run))
    path.write_text(path.read_text().replace("<!-- written by mlic card -->\n", "").replace("*To be filled in", "Yes"))
    with pytest.raises(ConfigError, match="a person has taken it over"):
        card(CardConfig(run=run))
    assert card(CardConfig(run=run, out=tmp_path / "other.md")).card == tmp_path / "other.md"
    assert "*To be filled in" in card(CardConfig(run=run, fresh=True)).card.read_text()
    (run / "report.json").unlink()
    with pytest.raises(DataError, match="has no measurement"):
        card(CardConfig(run=run))
