from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlic.config.base import result_settings
from mlic.config.data import DoctorConfig, PackConfig
from mlic.config.evaluate import EvaluateConfig, ThresholdConfig
from mlic.config.examples import DemoConfig
from mlic.config.jobs import SlurmConfig
from mlic.config.load import build, read_file, read_sets
from mlic.config.predict import ExportConfig, PredictConfig
from mlic.config.train import NoiseConfig, TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError


def test_later_layers_win() -> None:
    config = build(TrainConfig, {"shards": "s", "epochs": 3, "lr": 0.1}, {"epochs": 4}, {"lr": "0.2"})
    assert (config.epochs, config.lr, config.batch_size) == (4, 0.2, 64)


def test_mappings_of_layers_are_merged() -> None:
    config = build(TrainConfig, {"shards": "s", "arch_options": {"hidden": 8}}, read_sets(["arch_options.dropout=0.1"]))
    assert config.arch_options == {"hidden": 8, "dropout": 0.1}


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'epoch'") as caught:
        build(TrainConfig, {"shards": "s", "epoch": 3})
    assert caught.value.hint == "did you mean epochs?"


def test_missing_argument_says_which() -> None:
    with pytest.raises(ConfigError, match="images is not given"):
        build(PackConfig)


@pytest.mark.parametrize("model", [TrainConfig, TuneConfig, NoiseConfig, DoctorConfig])
def test_shards_are_where_pack_writes_them(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert build(model).shards == tmp_path / "shards" == PackConfig(images="i", labels="l").out


@pytest.mark.parametrize(
    ("model", "values", "text"),
    [
        (TrainConfig, {"shards": "s", "epochs": 0}, "epochs should be at least 1, not 0"),
        (TrainConfig, {"shards": "s", "lr": "fast"}, "lr should be a number, not 'fast'"),
        (TrainConfig, {"shards": "s", "name": "../x"}, "name: .*not '../x'"),
        (TrainConfig, {"shards": "s", "lr": float("nan")}, "lr: .*finite"),
        (TuneConfig, {"shards": "s", "grace_epochs": 9, "epochs": 3}, "grace_epochs is 9, more than epochs"),
        (PackConfig, {"images": "i", "labels": "l", "split": "train=0.8,val=0.1"}, "should sum to 1, not 0.9"),
        (PackConfig, {"images": "i", "labels": "l", "split": "train"}, "split: .*should look like train=0.8"),
        (PackConfig, {"images": "i", "labels": "l", "workers": 0}, "workers should be auto or at least 1"),
        (PredictConfig, {"model": "m", "images": "i", "out": "p.doc"}, "out should end in .tsv"),
        (EvaluateConfig, {"predictions": "p", "resamples": 3}, "resamples should be at least 100"),
        (DemoConfig, {"samples": 3}, "samples should be at least 60"),
    ],
)
def test_bad_values_are_named(model: type, values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(model, values)


def test_sets_are_yaml() -> None:
    assert read_sets(["lr=1e-4", "hflip=false", "archs=[a, b]", "name=x"]) == {
        "lr": 1e-4,
        "hflip": False,
        "archs": ["a", "b"],
        "name": "x",
    }


def test_malformed_set() -> None:
    with pytest.raises(ConfigError, match="key=value, not 'lr'"):
        read_sets(["lr"])


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 3\nlr: 1e-4\n")
    (tmp_path / "b.json").write_text(json.dumps({"epochs": 4}))
    (tmp_path / "c.yaml").write_text("- 1\n")
    (tmp_path / "d.yaml").write_text("a: [1\n")
    assert read_file(tmp_path / "a.yaml") == {"epochs": 3, "lr": 1e-4}
    assert read_file(tmp_path / "b.json") == {"epochs": 4}
    (tmp_path / "e.yaml").mkdir()
    wrong = {
        "c.yaml": "holds no settings",
        "d.yaml": "is not valid yaml",
        "e.yaml": "cannot read",
        "f.yaml": "there is no",
    }
    for name, text in wrong.items():
        with pytest.raises(ConfigError, match=text):
            read_file(tmp_path / name)


def test_a_saved_configuration_repeats_itself() -> None:
    config = build(TuneConfig, {"shards": "s", "arch": "a-cnn1", "budget": "4h", "workers": "2"})
    assert build(TuneConfig, json.loads(config.model_dump_json())) == config


def test_where_it_runs_does_not_decide_the_result() -> None:
    here = build(TrainConfig, {"shards": "a", "workers": 1})
    there = build(TrainConfig, {"shards": "a", "workers": 8, "address": "10.0.0.1:6379", "fresh": True})
    assert result_settings(here) == result_settings(there)
    assert result_settings(here) != result_settings(build(TrainConfig, {"shards": "a", "lr": 0.5}))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"workers": "x"}, "workers should be a whole number or 'auto', not 'x'"),
        ({"color": "blue"}, "color should be 'rgb' or 'gray' or 'auto', not 'blue'"),
        ({"arch_options": {"hidden:7": None}}, "arch_options.hidden:7 should be a number, not None"),
        ({"arch_options": 7}, "arch_options should be a mapping of names to values, not 7"),
        ({"crop": 2}, "crop should be at most 1, not 2"),
    ],
)
def test_what_a_value_should_have_been(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(TrainConfig, {"shards": "s"} | values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"expand_by": "warp"}, "expand_by.* should be 'rotate', .* or 'contrast', not 'warp'"),
        ({"group_column": "p", "split_by": "random"}, "random splits part groups"),
        ({"thin_labels": "people"}, "thin_labels says what is thinned, and thin is 0"),
        ({"keep_test": "old", "split": "test=1"}, "keep_test needs a split named test, and others"),
        ({"split_column": "a", "keep_test": "old"}, "split_column and keep_test both say"),
        ({"folds": 1}, "folds should be 0 or at least 2"),
    ],
)
def test_settings_of_pack_that_do_not_go_together(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(PackConfig, {"images": "i", "labels": "l"} | values)


def test_shares_in_percent() -> None:
    base = {"images": "i", "labels": "l"}
    assert build(PackConfig, base | {"max_bad": "1%", "thin": "0.5"}).max_bad == 0.01
    with pytest.raises(ConfigError, match="max_bad should be a number, not 'x%'"):
        build(PackConfig, base | {"max_bad": "x%"})


@pytest.mark.parametrize("values", [{"time": "banana"}, {"mem": "lots"}, {"time": "1:2:3:4"}])
def test_what_slurm_would_refuse(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="should be"):
        build(SlurmConfig, {"stage": "train"} | values)
    for time in ("30", "04:00:00", "2-12", "1-00:00:00"):
        assert build(SlurmConfig, {"stage": "train", "time": time, "mem": "64G"}).time == time


def test_weights_are_a_word_or_an_absolute_path() -> None:
    """Ray workers run in other folders than the person who typed it."""
    assert [TrainConfig(shards="s", weights=word).weights for word in ("none", "default")] == ["none", "default"]
    assert TrainConfig(shards="s", weights="runs/x").weights == str(Path("runs/x").absolute())


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (TrainConfig, {"loss": "mse", "pos_weight_power": 0.5}, "the loss mse does not weight positives"),
        (TrainConfig, {"loss": "l1", "pos_weight_by_min": True}, "the loss l1 does not weight positives"),
        (TrainConfig, {"loss": "class-balanced", "pos_weight_power": 1.0}, "has weights of its own"),
        (TrainConfig, {"loss": "softmax", "label_smoothing": 0.1}, "has no targets to smooth"),
        (NoiseConfig, {"train": "none", "cutmix": 1.0}, "cutmix 1.0 needs train all or head, not none"),
        (TrainConfig, {"train": "none", "rand_augment": 2}, "rand_augment 2 needs train all or head, not none"),
        (TrainConfig, {"train": "none", "repeat_below": 0.1}, "repeat_below 0.1 needs train all or head"),
        (TrainConfig, {"train": "none", "ema": 0.9}, "ema 0.9 needs train all or head"),
        (TrainConfig, {"train": "none", "epochs": 7}, "epochs 7 needs train all or head"),
        (TrainConfig, {"train": "head", "layer_decay": 0.5}, "layer_decay 0.5 needs stages to decay over"),
        (TrainConfig, {"feature_mixup": 0.4}, "feature_mixup 0.4 needs train head without augmented images"),
        (
            TrainConfig,
            {"feature_mixup": 0.4, "train": "head", "crop": 0.5},
            "needs train head without augmented images",
        ),
        (TrainConfig, {"changes": {2: {"feature_mixup": 0.4}}}, "feature_mixup cannot change during training"),
        (TrainConfig, {"momentum": 0.8}, "momentum 0.8 needs optimizer sgd or rmsprop, and would be ignored"),
        (TrainConfig, {"step_factor": 0.5}, "step_factor 0.5 needs schedule step"),
        (NoiseConfig, {"step_epochs": 3, "schedule": "cosine"}, "step_epochs 3 needs schedule step"),
        (TrainConfig, {"warmup_epochs": 1}, "warmup_epochs 1.0 needs another schedule than one-cycle"),
        (TrainConfig, {"stop_on": "val/f1_micro"}, "stop_on val/f1_micro needs patience above 0"),
        (TrainConfig, {"rand_magnitude": 5}, "rand_magnitude 5 needs rand_augment above 0"),
        (TrainConfig, {"loss": "l1", "pos_weights": {"a": 2}}, "the loss l1 does not weight positives"),
        (TrainConfig, {"thin_labels": "a"}, "thin is 0; give thin a probability"),
        (TrainConfig, {"train": 0}, "train should be all, head, none or a number of stages, not 0"),
        (TrainConfig, {"pos_weights": {"a": 0}}, "pos_weights.a should be above 0, not 0"),
        (TuneConfig, {"loss": "mse"}, "the loss mse does not weight positives"),
        (TuneConfig, {"augment": {"shift": 3}}, "augment.shift should be from 0 to 1"),
        (ThresholdConfig, {"model": "m", "split": "test"}, "give --labels too"),
        (TuneConfig, {"scheduler": "median", "reduction_factor": 4}, "there is no reduction_factor"),
        (PackConfig, {"images": "i", "labels": "l", "expand_by": ["flip"]}, "expand_by needs expand above 0"),
        (PackConfig, {"images": "i", "labels": "l", "unlabelled_label": "x"}, "needs unlabelled as-label"),
        (PackConfig, {"images": "i", "labels": "l", "on_bad": "fail", "max_bad": 0.5}, "needs on_bad quarantine"),
        (ExportConfig, {"model": "m", "min_agreement": 0.5}, "min_agreement is for bf16 and int8"),
    ],
)
def test_settings_that_would_be_ignored(model: Any, values: dict[str, Any], words: str) -> None:
    shards = {} if model in (ThresholdConfig, PackConfig, ExportConfig) else {"shards": "s"}
    with pytest.raises(ConfigError, match=words):
        build(model, {**shards, **values})


def test_settings_that_are_used_are_taken() -> None:
    for values in (
        {"momentum": 0.8, "optimizer": "sgd"},
        {"step_factor": 0.5, "schedule": "step"},
        {"warmup_epochs": 1, "schedule": "cosine"},
        {"stop_on": "val/map", "patience": 2},
        {"rand_magnitude": 5, "changes": {2: {"rand_augment": 1}}},
        {"train": "none", "ema": 0.0},
        {"train": "head", "augment": {"rotate": 25}},
        {"momentum": 0.9},
    ):
        build(TrainConfig, values)


def test_a_setting_and_a_part_of_it_cannot_both_be_set() -> None:
    for sets in (["lr=1", "lr.x=2"], ["augment.hue=0.1", "augment=3", "augment.hue=0.2"]):
        with pytest.raises(ConfigError, match=r"(lr|augment) is .*, which has no parts"):
            read_sets(sets)
    assert read_sets(["augment.hue=0.1", "augment.rotate=5"]) == {"augment": {"hue": 0.1, "rotate": 5}}


def test_a_wrong_value_is_said_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(TuneConfig, {"space": {"lr": {"uniform": [1, 0]}}})
    assert caught.value.message.count("not ") == 1
