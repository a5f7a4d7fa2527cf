"""Suspected label errors: the ranking on made-up scores, and the stage from shards with folds to corrected labels."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlic.config.data import PackConfig
from mlic.config.train import NoiseConfig, TrainConfig
from mlic.data.label_stats import implications
from mlic.data.shards import read_split
from mlic.errors import ConfigError, DataError
from mlic.metrics import label_noise as score
from mlic.metrics import metrics
from mlic.noise.noise import NoiseReport, noise
from mlic.pack.pack import pack
from mlic.train.cross_validation import FoldsReport, read_scores
from mlic.train.train import train

Array = np.ndarray[Any, Any]


def made_up(seed: int = 0, count: int = 2000) -> tuple[Array, Array, Array]:
    """Targets (N, 3) in which the first label implies the second, fair scores for them, and folds."""
    rng = np.random.default_rng(seed)
    people = rng.random(count) < 0.5
    truth = np.stack([people & (rng.random(count) < 0.4), people, rng.random(count) < 0.05], axis=1)
    logits = np.where(truth, 1.5, -1.5) + rng.normal(0, 1.5, truth.shape)
    return truth.astype(np.int8), 1 / (1 + np.exp(-logits)), np.arange(count) % 4


def with_errors(truth: Array, share: float, seed: int = 1) -> tuple[Array, Array]:
    wrong = np.random.default_rng(seed).random(truth.shape) < share
    return np.where(wrong, 1 - truth, truth).astype(np.int8), wrong


def precision(found: score.Suspects, wrong: Array, count: int) -> float:
    return float(wrong[found.sample[:count], found.label[:count]].mean())


def test_planted_errors_come_first_and_are_counted() -> None:
    truth, scores, fold = made_up()
    targets, wrong = with_errors(truth, 0.05)
    found = score.suspects(scores, targets, fold, [])
    assert precision(found, wrong, 50) > 0.9
    assert precision(found, wrong, int(wrong.sum())) > 8 * wrong.mean()
    assert found.errors == pytest.approx(wrong.sum(), rel=0.25)
    assert found.rates == pytest.approx(np.full((3, 2), 0.05), abs=0.03)
    alone = score.suspects(scores, targets, fold, [], context=False)
    assert precision(found, wrong, int(wrong.sum())) > precision(alone, wrong, int(wrong.sum())) + 0.02
    assert (alone.beside == -1).all()


def test_scores_of_a_label_that_was_not_learnt_do_not_crowd_the_top() -> None:
    """Its samples all have low scores, with the label and without it: self-confidence would rank all of them first."""
    truth, scores, fold = made_up()
    targets, _ = with_errors(truth, 0.02)
    targets[:, 2], scores[:, 2] = truth[:, 2], 0.01 + 0.001 * np.random.default_rng(3).random(len(truth))
    found = score.suspects(scores, targets, fold, [])
    assert (found.label[:50] == 2).mean() < 0.1
    assert (1 - scores[targets[:, 2] == 1, 2]).min() > 0.98


def test_an_exception_to_a_rule_is_laid_on_the_label_with_more_against_it() -> None:
    truth, scores, fold = made_up()
    people, portrait = truth[:, 1] == 1, truth[:, 0] == 1
    lost, added = np.flatnonzero(people & portrait)[:8], np.flatnonzero(~people)[:8]
    targets = truth.copy()
    targets[lost, 1], targets[added, 0] = 0, 1
    scores[lost, :2], scores[added, :2] = 0.97, 0.03
    rules = implications(targets, 30, 0.9)
    assert [(rule.first, rule.second) for rule in rules] == [(0, 1)]
    assert score.exceptions(targets, (0, 1)).tolist() == sorted([*lost, *added]) == rules[0].exceptions.tolist()
    found = score.suspects(scores, targets, fold, [(0, 1)])
    first = {(int(s), int(label)) for s, label in zip(found.sample[:16], found.label[:16], strict=True)}
    assert first == {*((int(i), 1) for i in lost), *((int(i), 0) for i in added)}
    assert (found.rule >= 0).tolist() == [True] * 16 + [False] * (len(found.rule) - 16)
    alone = score.suspects(scores, targets, fold, [], context=False)
    weaker = {(int(s), int(k)): e for s, k, e in zip(alone.sample, alone.label, alone.evidence, strict=True)}
    stronger = {(int(s), int(k)): e for s, k, e in zip(found.sample, found.label, found.evidence, strict=True)}
    assert all(stronger[pair] > weaker[pair] + 1 for pair in first)
    assert {int(label) for label in found.beside[:16]} == {0, 1}


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.sampled_from([-1, 0, 1])),
    st.integers(1, 5),
    st.data(),
)
def test_every_known_label_is_ranked_once_and_no_unknown_one(targets: Array, folds: int, data: st.DataObject) -> None:
    """Whatever the targets: labels without a positive, or known nowhere, scores of 0 and 1, constant ones, one."""
    scores = data.draw(hnp.arrays(np.float32, targets.shape, elements=st.sampled_from([0.0, 0.25, 1.0])))
    rules = [(a, b) for a in range(targets.shape[1]) for b in range(targets.shape[1]) if a != b]
    found = score.suspects(scores, targets, np.arange(len(targets)) % folds, rules)
    assert sorted(zip(found.sample, found.label, strict=True)) == sorted(zip(*np.nonzero(targets >= 0), strict=True))
    assert np.isfinite(found.evidence).all()
    assert (np.diff(found.evidence) <= 0).all()
    for rule, sample, label in zip(found.rule, found.sample, found.label, strict=True):
        if rule >= 0:
            assert label in rules[rule]
            assert (targets[sample, rules[rule][0]], targets[sample, rules[rule][1]]) == (1, 0)
    assert not score.confident(scores, targets)[targets < 0].any()


def test_a_label_that_nobody_has_brings_no_suspects() -> None:
    truth, scores, fold = made_up()
    truth[:, 2], scores[:, 2] = 0, 0.001
    found = score.suspects(scores, truth, fold, [])
    assert found.evidence[found.label == 2].max() < -5


def test_confident_learning_is_that_of_cleanlab() -> None:
    from cleanlab.internal.multilabel_utils import onehot2int
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    truth, scores, _ = made_up()
    targets, wrong = with_errors(truth, 0.05)
    found = score.confident(scores, targets)
    assert (found == find_multilabel_issues_per_class(onehot2int(targets), scores, n_jobs=1)).all()
    assert wrong[found].mean() > 3 * wrong.mean()


def test_without_cleanlab_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="need cleanlab, which is not installed") as caught:
        noise(NoiseConfig(shards=tmp_path / "none", out=tmp_path / "noise"))
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "noise").exists()


@pytest.mark.ray
def test_shards_without_folds_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folds") as caught:
        noise(NoiseConfig(shards=shards, out=tmp_path / "noise"))
    assert "--folds 5" in caught.value.hint
    assert not (tmp_path / "noise").exists()


def configured(folder: Path, **changes: Any) -> NoiseConfig:
    settings: dict[str, Any] = {
        "shards": folder / "shards",
        "out": folder / "noise",
        "epochs": 2,
        "image_size": 64,
        "batch_size": 32,
        "color": "rgb",
        "doctor": False,
        "workers": 1,
    }
    return NoiseConfig(**(settings | changes))


@pytest.fixture(scope="module")
def folder(corpus: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus with a derived label, in two folds, and mlic noise on it."""
    folder = tmp_path_factory.mktemp("noisy")
    pack(
        PackConfig(
            images=corpus / "images",
            labels=corpus / "annotations",
            out=folder / "shards",
            folds=2,
            unlabelled="as-label",
        )
    )
    noise(configured(folder))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.smoke
def test_the_table_holds_what_the_report_says(folder: Path) -> None:
    report = NoiseReport(**json.loads((folder / "noise" / "report.json").read_text()))
    table, split = rows(report.table), read_split(folder / "shards", None)
    assert len(table) == report.suspects >= 1
    given = dict(zip(split.files.to_pylist(), split.targets.tolist(), strict=True))
    for row in table:
        assert int(row["given"]) == given[row["Filename"]][split.labels.index(row["label"])]
        assert row["verdict"] == "?"
        assert int(row["suggestion"]) == 1 - int(row["given"])
        assert row["reason"].startswith(f"score {row['score']} for a label that is")
    evidence = [float(row["evidence"]) for row in table]
    assert evidence == sorted(evidence, reverse=True)
    assert not {row["Filename"] for row in table} & set(read_split(folder / "shards", "test").files.to_pylist())
    assert "none" not in {row.label for row in report.labels}  # it follows from the others
    for label in report.labels:
        listed = [row for row in table if row["label"] == label.label]
        assert (label.extra, label.missing) == (
            sum(row["given"] == "1" for row in listed),
            sum(row["given"] == "0" for row in listed),
        )
    for line in (label.label for label in report.labels):
        assert line in report.text()
    summary = json.loads((folder / "noise" / "noise.json").read_text())
    assert (summary["format"], summary["kind"], summary["suspects"]) == (1, "noise", len(table))


@pytest.mark.ray
@pytest.mark.slow
def test_stopped_anywhere_the_table_comes_out_the_same(folder: Path, tmp_path: Path) -> None:
    """As after a kill in the second fold: its run and all that comes later are not there."""
    copy = shutil.copytree(folder / "noise", tmp_path / "noise")
    state = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(state | {"status": "running"}))
    for name in ("report.json", "noise.json", "suspects.tsv", "scores.parquet"):
        (copy / name).unlink()
    shutil.rmtree(copy / "folds" / "fold1")
    kept = (copy / "folds" / "fold0" / "checkpoints" / "best.pt").stat().st_mtime_ns
    noise(configured(folder, out=copy))
    for name in ("suspects.tsv", "scores.parquet", "noise.json"):
        assert (copy / name).read_bytes() == (folder / "noise" / name).read_bytes(), name
    assert (copy / "folds" / "fold0" / "checkpoints" / "best.pt").stat().st_mtime_ns == kept


@pytest.mark.ray
@pytest.mark.slow
def test_an_edited_table_is_kept_and_its_verdicts_are_applied(folder: Path, corpus: Path, tmp_path: Path) -> None:
    out = shutil.copytree(folder / "noise", tmp_path / "noise")
    table = out / "suspects.tsv"
    longer = noise(configured(folder, out=out, max_suspects=7))  # nobody edited it: other rows, without training
    assert (longer.suspects, longer.edited, len(rows(table))) == (7, False, 7)
    text = table.read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in text[1:]]
    cells[0][3], cells[1][3] = cells[0][4], cells[1][2]  # the first is an error, the second is not
    table.write_text("\n".join([text[0], *("\t".join(line) for line in cells)]) + "\n", encoding="utf-8")
    edited = table.read_bytes()
    for _ in range(2):
        report = noise(configured(folder, out=out))
        assert (report.edited, report.decided, table.read_bytes()) == (True, 2, edited)
        assert "edited, 2 verdicts, and left as it is" in report.text()
    with pytest.raises(ConfigError, match="holds verdicts, which --fresh would throw away"):
        noise(configured(folder, out=out, fresh=True))
    assert table.read_bytes() == edited
    corrected = pack(
        PackConfig(
            images=corpus / "images",
            labels=corpus / "annotations",
            out=tmp_path / "again",
            folds=2,
            corrections=table,
            unlabelled="as-label",
        )
    )
    assert corrected.corrected == 1
    before, after = (read_split(shards, None) for shards in (folder / "shards", tmp_path / "again"))
    old, new = (dict(zip(s.files.to_pylist(), s.targets.tolist(), strict=True)) for s in (before, after))
    label = before.labels.index(cells[0][1])
    changed = {file for file in old if old[file][:-1] != new[file][:-1]}  # the last label is the derived one
    assert changed == {cells[0][0]}
    assert [old[cells[0][0]][label], new[cells[0][0]][label]] == [int(cells[0][2]), int(cells[0][4])]


@pytest.mark.ray
@pytest.mark.slow
def test_other_settings_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="epochs \\(was 2, now 3\\)"):
        noise(configured(folder, epochs=3))


@pytest.mark.ray
@pytest.mark.slow
def test_cross_validation(folder: Path, tmp_path: Path) -> None:
    """Every sample outside of test once, by the model of the other fold; noise's folds are the same trainings."""
    config = TrainConfig(
        shards=folder / "shards",
        runs=tmp_path,
        cross_validate=True,
        epochs=2,
        image_size=64,
        batch_size=32,
        workers=1,
        color="rgb",
        doctor=False,
    )
    report = train(config)
    assert isinstance(report, FoldsReport)
    split = read_split(folder / "shards", None)
    held_out = len(split) - len(read_split(folder / "shards", "test"))
    assert report.measurement.samples == held_out
    assert (tmp_path / "small-folds" / "scores.parquet").read_bytes() == (
        folder / "noise" / "scores.parquet"
    ).read_bytes()
    _, scores, targets, fold = read_scores(report.scores, split.labels)
    for k in (0, 1):
        mine = fold == k
        assert report.folds["map"][k] == pytest.approx(metrics.score_metrics(scores[mine], targets[mine])["map"])
    text = report.text()
    assert re.search(r"f1_micro +0\.\d{4} +0\.\d{4} +0\.\d{4} +0\.\d{4}", text)
    assert f"{held_out} samples" in text
    assert train(config) == report
    with pytest.raises(ConfigError, match="was made with different settings: lr"):
        train(config.model_copy(update={"lr": 0.5}))
