"""Images to label next: near the thresholds, rare labels first, far from each other, near-duplicates once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlic.batch_predict.predict import predict
from mlic.config.load import build
from mlic.config.predict import PredictConfig
from mlic.config.select import SelectConfig
from mlic.config.train import TrainConfig
from mlic.errors import ConfigError
from mlic.model import bundle
from mlic.select import rules
from mlic.select.select import select
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET


def test_a_score_is_near_its_own_threshold() -> None:
    near = rules.closeness(np.array([[0.2, 0.0, 0.6, 1.0]]), np.array([0.2, 0.2, 0.2, 0.2]))
    assert near.tolist() == [[1.0, 0.0, 0.5, 0.0]]
    values = rules.uncertainty(np.array([[0.2, 0.5], [0.0, 0.5]]), np.array([0.2, 0.5]), np.array([2.0, 1.0]))
    assert values.tolist() == [3.0, 1.0]


def test_rare_labels_count_more() -> None:
    weights = rules.rarity(np.array([100.0, 1.0, 0.0]))
    assert weights.mean() == pytest.approx(1)
    assert weights[1] == pytest.approx(10 * weights[0])
    assert weights[2] == weights[1]


def test_near_duplicates_are_chosen_once_and_others_by_distance() -> None:
    features = np.array([[1, 0], [1, 0.001], [0, 1], [0.7, 0.7], [0, 1.01]])
    chosen = rules.spread(np.array([3.0, 2.9, 1.0, 1.1, 0.9]), features, 5, 0.98)
    assert chosen.tolist() == [0, 2, 3]
    assert rules.spread(np.ones(5), features, 2, 0.98).tolist() == [0, 4]


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fit = {**FIT, **NET, "epochs": 2, "doctor": False}
    return train(TrainConfig(shards=shards, runs=tmp_path_factory.mktemp("runs"), workers=1, name="r", **fit)).run


@pytest.mark.ray
def test_the_table_of_images_to_label(run: Path, corpus: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(corpus / "unlabelled", images)
    first = min(images.iterdir())
    shutil.copy(first, images / "copy.jpg")
    config = SelectConfig(model=run, images=images, count=8, out=tmp_path / "batch.tsv")
    report = select(config)
    table = pd.read_csv(tmp_path / "batch.tsv", sep="\t", keep_default_na=False)
    assert (report.found, report.chosen) == (31, len(table))
    assert len(table) == 8
    assert table["rank"].tolist() == list(range(1, 9))
    assert not {first.name, "copy.jpg"} <= set(table["file"])
    assert "in the training split" in report.rarity_from
    written = (tmp_path / "batch.tsv").read_bytes()
    assert select(config) == report
    assert (tmp_path / "batch.tsv").read_bytes() == written

    # The columns are what the model says.
    predict(PredictConfig(model=run, images=images, out=tmp_path / "p.csv", values="both"))
    scores = pd.read_csv(tmp_path / "p.csv").set_index("key")
    model = bundle.read(run)
    for row in table.to_dict("records"):
        of_image, doubt = scores.loc[str(row["key"])].to_dict(), str(row["in_doubt"])
        assert row["suggested"] == "|".join(label for label in model.labels if of_image[label])
        assert row["score"] == pytest.approx(of_image[f"{doubt}_score"], abs=1e-3)
        assert row["threshold"] == pytest.approx(model.thresholds[model.labels.index(doubt)], abs=1e-3)

    uncertain = select(config.model_copy(update={"by": "uncertain", "count": 100}))
    table = pd.read_csv(tmp_path / "batch.tsv", sep="\t")
    assert uncertain.chosen == 31
    assert table["uncertainty"].is_monotonic_decreasing
    chosen = [select(config.model_copy(update={"by": "random", "seed": seed})).rows for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_table_is_a_tsv(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out should end in \.tsv, not be batch\.xlsx"):
        build(SelectConfig, {"model": str(tmp_path), "images": str(tmp_path), "out": str(tmp_path / "batch.xlsx")})
