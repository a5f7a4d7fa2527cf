from __future__ import annotations

from typing import Any

import pytest

from mlic.config.load import build
from mlic.config.space import Dimension, active, draw, grid, nested
from mlic.config.train import TrainConfig
from mlic.config.tune import DEFAULT_SPACE, TuneConfig
from mlic.errors import ConfigError


def test_draws_keep_to_their_dimensions() -> None:
    space = {
        "a": Dimension(choice=(1, "x", None)),
        "b": Dimension(uniform=(-1, 1)),
        "c": Dimension(loguniform=(1e-5, 1)),
        "d": Dimension(int=(2, 4)),
        "e": Dimension(logint=(1, 100)),
        "f": Dimension(grid=(True, False)),
    }
    drawn = [draw(space, 1, number) for number in range(400)]
    assert {each["a"] for each in drawn} == {1, "x", None}
    assert {each["d"] for each in drawn} == {2, 3, 4}
    assert [each["f"] for each in drawn[:4]] == [True, False, True, False]
    for name, low, high in (("b", -1, 1), ("c", 1e-5, 1), ("e", 1, 100)):
        values = [float(each[name]) for each in drawn]  # type: ignore[arg-type]
        assert low <= min(values) < max(values) <= high
    assert sum(float(each["c"]) < 10**-2.5 for each in drawn) in range(160, 240)  # type: ignore[arg-type]
    assert {1, 100} <= {each["e"] for each in [draw(space, 1, number) for number in range(3000)]}


def test_a_dimension_more_leaves_the_others_draws() -> None:
    some = {"lr": Dimension(loguniform=(1e-4, 1)), "arch": Dimension(choice=("a", "b"))}
    more = {"momentum": Dimension(uniform=(0, 1)), **some}
    for number in range(20):
        one, two = draw(some, 3, number), draw(more, 3, number)
        assert one == {name: two[name] for name in some}


def test_conditions_and_grids() -> None:
    space = {
        "momentum": Dimension(choice=(0.5, 0.9), when={"optimizer": ("sgd",)}),
        "optimizer": Dimension(choice=("sgd", "adam")),
        "nesterov": Dimension(choice=(0, 1), when={"momentum": (0.9,)}),
    }
    assert grid(space) == [
        {"momentum": 0.5, "optimizer": "sgd"},
        {"optimizer": "adam"},
        {"momentum": 0.9, "optimizer": "sgd", "nesterov": 0},
        {"momentum": 0.9, "optimizer": "sgd", "nesterov": 1},
    ]
    assert active(space, {"momentum": 0.9, "optimizer": "adam", "nesterov": 1}) == {"optimizer": "adam"}
    with pytest.raises(ValueError, match="which waits for it in turn"):
        grid({"a": Dimension(choice=(1,), when={"b": (1,)}), "b": Dimension(choice=(1,), when={"a": (1,)})})


def test_dots_reach_into_mappings() -> None:
    assert nested({"lr": 1, "arch_options.hidden": 5, "arch_options.dropout": 0.1}) == {
        "lr": 1,
        "arch_options": {"hidden": 5, "dropout": 0.1},
    }
    config = build(
        TuneConfig,
        {
            "shards": "s",
            "arch": "b-final",
            "arch_options": {"dropout": 0.2},
            "space": {"arch_options.hidden": {"choice": [64]}, "augment.rotate": {"uniform": [0, 20]}},
        },
    )
    plan = config.plan(config.drawn(0))
    assert plan.arch_options == {"dropout": 0.2, "hidden": 64}
    assert 0 <= plan.augment["rotate"] <= 20


def test_what_is_given_is_not_searched() -> None:
    assert set(build(TuneConfig, {"shards": "s"}).space) == set(DEFAULT_SPACE)
    assert set(build(TuneConfig, {"shards": "s", "arch": "b-final", "lr": 1e-3}).space) == {
        "loss",
        "pos_weight_power",
        "rand_augment",
        "threshold_policy",
    }
    assert "rand_augment" not in build(TuneConfig, {"shards": "s", "train": "head"}).space


@pytest.mark.parametrize(
    ("space", "more", "error"),
    [
        ({"lrr": {"choice": [1]}}, {}, "there is no setting 'lrr'; did you mean lr?"),
        ({"lr.high": {"choice": [1]}}, {}, "space.lr.high: lr has no parts"),
        ({"epochs": {"choice": [1]}}, {}, "epochs cannot differ between trials"),
        ({"lr": {"choice": [1], "uniform": [0, 1]}}, {}, "space.lr: give exactly one of .* not choice and uniform"),
        ({"lr": {"choise": [1]}}, {}, "there is no setting space.lr.choise"),
        ({"lr": {"uniform": [2, 1]}}, {}, r"uniform should be \[low, high\], not \[2, 1\]"),
        ({"lr": {"loguniform": [0, 1]}}, {}, r"\[low, high\] above 0, not \[0, 1\]"),
        ({"lr": {"uniform": [-1, 1]}}, {}, "space.lr can draw lr=-1.0: lr: Input should be greater than 0"),
        ({"loss": {"choice": ["bse"]}}, {}, "space.loss can draw loss=bse: loss: Input should be"),
        ({"momentum": {"choice": [0.9], "when": {"optimizer": "sgd"}}}, {}, "optimizer .* is not in the space"),
        (
            {"loss": {"choice": ["mse"]}, "pos_weight_power": {"uniform": [0.5, 1]}},
            {},
            "space can draw loss=mse, .* the loss mse does not weight positives",
        ),
        ({"lr": {"uniform": [1, 2]}}, {"searcher": "grid"}, "space.lr is an interval, which has no grid"),
        ({"lr": {"grid": [1, 2]}}, {"searcher": "tpe"}, "give those of a grid as choice"),
        ({}, {}, "space is empty"),
        ({"lr": {"choice": [1]}}, {"grace_epochs": 11}, "grace_epochs is 11, more than epochs"),
        ({"lr": {"choice": [1]}}, {"min_workers": 2}, "min_workers is 2, and a trial has 1 workers"),
        ({"lr": {"choice": [1]}}, {"budget": "4 hours"}, "should look like 4h, 30m or 90s, not '4 hours'"),
        ({"lr": 3}, {}, "space.lr should be a mapping of names to values, not 3"),
    ],
)
def test_spaces_that_cannot_work(space: dict[str, Any], more: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        build(TuneConfig, {"shards": "s", "space": space, **more})


def test_budgets_and_numbers_of_trials() -> None:
    assert build(TuneConfig, {"shards": "s", "budget": "1.5h"}).budget == 5400
    assert build(TuneConfig, {"shards": "s"}).trials == 10
    lists = {"lr": {"grid": [1, 2, 3]}, "arch": {"choice": ["small", "b-final"]}}
    config = build(TuneConfig, {"shards": "s", "space": lists, "searcher": "grid"})
    assert config.trials == 6
    assert len({str(config.drawn(number)) for number in range(6)}) == 6
    assert config.model_copy(update={"num_samples": 4}).trials == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"rand_magnitude": 12},
        {"train": "none", "arch": "small"},
        {"warmup_epochs": 1, "space": {"schedule": {"choice": ["cosine", "constant"]}}},
        {"momentum": 0.95, "confirm": 2, "space": {"optimizer": {"choice": ["sgd", "rmsprop"]}}},
        {"rand_magnitude": 12, "confirm": 2, "space": {"rand_augment": {"choice": [1, 2]}}},
        {"momentum": 0.95, "space": {"optimizer": {"choice": ["adam", "sgd"]}}},
    ],
)
def test_a_fixed_setting_may_be_for_some_of_the_draws(settings: dict[str, Any]) -> None:
    found = build(TuneConfig, settings)
    for number in range(found.trials):
        found.plan(found.drawn(number))
    defaults = {name: TrainConfig.model_fields[name].default for name in found.space}
    found.plan(defaults)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"momentum": 0.95, "space": {"lr": {"choice": [0.1, 0.2]}}}, "momentum 0.95 needs optimizer sgd or rmsprop"),
        ({"space": {"momentum": {"choice": [0.5, 0.6]}}}, "momentum 0.5 needs optimizer sgd or rmsprop"),
    ],
)
def test_a_setting_that_no_draw_uses_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(TuneConfig, settings)


def test_a_schedule_may_switch_random_augmentation_off() -> None:
    build(TrainConfig, {"rand_augment": 2, "rand_magnitude": 12, "changes": {5: {"rand_augment": 0}}})
