"""The recipes, searches and nets of the reference systems, held against what the systems' reports tell of them.

`data/seeds.json` was written down from the reports, not from the recipes: whoever changes an optimiser, a rate or the
grid of a recipe contradicts it. null is what a report does not tell; nothing is checked there.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlic.config.data import PackConfig
from mlic.config.load import build, read_file
from mlic.config.recipes import recipes
from mlic.config.space import Dimension
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.model import zoo

SEEDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "fixtures" / "seeds.json").read_text())
FOUND = {recipe.name: recipe for recipe in recipes()}
TRAINED = sorted(name for name in FOUND if not name.startswith(("pack-", "tune-")))
TUNED = sorted(name for name in FOUND if name.startswith("tune-"))
REPORTED: dict[str, Any] = json.loads((FOUND["pack-a"].path.parent / "reported.json").read_text())


def train_config(name: str) -> TrainConfig:
    return build(TrainConfig, read_file(FOUND[name].path), {"shards": "shards"})


def tune_config(name: str) -> TuneConfig:
    return build(TuneConfig, read_file(FOUND[name].path), {"shards": "shards"})


def pack_config(name: str) -> PackConfig:
    return build(PackConfig, read_file(FOUND[name].path), {"images": "images", "labels": "labels"})


def pack_of(name: str) -> str:
    """The recipe of the shards that a recipe names in a line of its own."""
    (pack,) = re.findall(r"^# Pack: (pack-[a-z])$", FOUND[name].path.read_text(), re.MULTILINE)
    return str(pack)


def net(arch: str, outputs: int, channels: int, side: int, options: dict[str, float]) -> nn.Module:
    """A net without memory for its weights."""
    with torch.device("meta"):
        return zoo.build(arch, outputs, channels, side, options)


def ends(dimension: Dimension) -> list[float]:
    """The values of a dimension, in the order of their size."""
    return sorted(float(str(value)) for value in dimension.ends)


def weighting(config: TrainConfig) -> str:
    """How the positives of a label are weighted."""
    if config.pos_weights or config.pos_weight_cap or config.pos_weight_power not in (0, 1):
        return "otherwise"
    if not config.pos_weight_power:
        return "none"
    return "neg/pos over its minimum" if config.pos_weight_by_min else "neg/pos"


def changes(config: TrainConfig) -> dict[str, float]:
    """All that changes training images at random."""
    found = {name: float(getattr(config, name)) for name in ("hflip", "rand_augment", "mixup", "cutmix")}
    found |= {"crop": 1 - config.crop} | {str(name): much for name, much in config.augment.items()}
    return {name: much for name, much in found.items() if much}


def dropout(config: TrainConfig) -> float:
    """The share that a net drops between its layers in training; all of its dropouts have the same one."""
    model = net(config.arch, 14, 1 if config.color == "gray" else 3, config.image_size, config.arch_options)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert len(shares - {0.0}) <= 1
    return max(shares, default=0.0)


def agrees(told: Any, found: Any) -> bool:
    """Whether a value is what was told: whether there is one, which kinds of them there are, or the value itself."""
    if isinstance(told, bool):
        return bool(found) == told
    if isinstance(told, list):
        return sorted(told) == sorted(found)
    return bool(told == found)


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_has_the_settings_that_its_report_tells(name: str) -> None:
    config, told = train_config(name), SEEDS["recipes"][name]
    own = {
        "weights": config.weights if config.weights in ("none", "default") else "run",
        "pos_weight": weighting(config),
        "split": pack_config(pack_of(name)).split,
        "augment": changes(config),
        "dropout": dropout(config) if told["dropout"] is not None else None,
    }
    for setting, value in told.items():
        found = own[setting] if setting in own else getattr(config, setting)
        assert value is None or agrees(value, found), f"{setting} is {found}, and the report tells {value}"


def test_every_recipe_has_a_row_of_its_report() -> None:
    assert sorted(SEEDS["recipes"]) == TRAINED
    assert sorted(SEEDS["searches"]) == TUNED
    assert sorted(SEEDS["packs"]) == sorted(name for name in FOUND if name.startswith("pack-"))
    settings = {tuple(row) for row in SEEDS["recipes"].values()}
    assert len(settings) == 1  # a setting that a row lacks is one that nothing checks


@pytest.mark.parametrize("name", [*TRAINED, *TUNED])
def test_a_recipe_computes_as_the_systems_did(name: str) -> None:
    """In single precision, at a constant rate, without what is the product's own; the last epoch is kept."""
    config = tune_config(name) if name in TUNED else train_config(name)
    assert (config.precision, config.head_prior, config.calibration) == ("fp32", False, "none")
    assert config.stop_on == "val/loss"  # what A waited for; the others waited for nothing
    if config.train != "none":
        assert (config.keep_epoch, config.schedule, config.ema, config.hflip) == ("last", "constant", 0.0, False)


@pytest.mark.parametrize("name", SEEDS["packs"])
def test_shards_are_dealt_out_as_the_report_tells(name: str) -> None:
    config = pack_config(name)
    for setting, value in SEEDS["packs"][name].items():
        found = getattr(config, setting)
        assert found == (tuple(value) if isinstance(value, list) else value), setting


def test_the_grid_of_system_a_has_the_values_that_its_report_tells() -> None:
    config, told = tune_config("tune-a"), SEEDS["searches"]["tune-a"]
    for setting in ("searcher", "trials", "optimizer", "epochs", "loss", "color", "image_size"):
        assert getattr(config, setting) == told[setting], setting
    assert set(config.space) == set(told["space"])
    for setting, values in told["space"].items():
        listed = config.space[setting].listed
        assert listed is not None
        switched = [bool(value) for value in listed] if values == [False, True] else list(listed)
        assert switched == values, setting
    ours = next(value for value in config.space["augment"].listed or () if value)
    assert ours == train_config("a-cnn1-1").augment
    assert ends(config.space["arch_options.dropout"])[-1] == dropout(train_config("a-cnn1-5"))


def test_the_random_search_of_system_b_draws_what_its_report_tells() -> None:
    config, told = tune_config("tune-b"), SEEDS["searches"]["tune-b"]
    for setting in ("searcher", "trials", "cross_validate", "loss", "color", "image_size", "arch", "threshold_policy"):
        assert getattr(config, setting) == told[setting], setting
    assert {re.sub(r"^arch_options\.|_\d$", "", name) for name in config.space} - {"momentum"} == set(told["drawn"])


def test_every_net_that_system_b_can_draw_can_be_built() -> None:
    """Whatever the kernels are, the feature maps stay large enough; widths and dense layers at both of their ends."""
    config = tune_config("tune-b")
    space = {name.removeprefix("arch_options."): each for name, each in config.space.items() if "." in name}
    kernels = [f"kernel_{i}" for i in range(1, 5)]
    for sizes in itertools.product(*(ends(space[name]) for name in kernels)):
        net("b-drawn", 14, 1, config.image_size, {"convs": 4, **dict(zip(kernels, sizes, strict=True))})
    for end in (0, -1):
        net("b-drawn", 14, 1, config.image_size, {name: ends(each)[end] for name, each in space.items()})


# How each number of a "Reported:" sentence reads; the mean of a recall is that of the precision before it.
_READ = {
    "precision_micro": r"micro precision (\.\d+)",
    "recall_micro": r"micro precision \.\d+, recall (\.\d+)",
    "precision_macro": r"macro precision (\.\d+)",
    "recall_macro": r"macro precision \.\d+, recall (\.\d+)",
    "f1_micro": r", F1 (\.\d+)|micro-F1 .* ([\d.]+) with a threshold a label|micro-F1 ([\d.]+)",
    "hamming_accuracy": r"([\d.]+)% of single labels",
    "subset_accuracy": r"([\d.]+)% of (?:the )?sets right",
}


def read(sentence: str) -> dict[str, float]:
    """The metrics that a sentence names, shares as fractions."""
    found = {}
    for metric, pattern in _READ.items():
        if match := re.search(pattern, sentence):
            number = next(group for group in match.groups() if group is not None)
            found[metric] = float(number) / (100 if metric.endswith("accuracy") else 1)
    return found


def test_every_recipe_has_a_row_of_reported_numbers() -> None:
    assert REPORTED["format"] == 1
    assert sorted(REPORTED["rows"]) == sorted([*TRAINED, *TUNED])


@pytest.mark.parametrize("name", [*TRAINED, *TUNED])
def test_the_reported_numbers_are_those_of_the_recipe(name: str) -> None:
    row = REPORTED["rows"][name]
    assert set(row) - {"pack_settings"} == {"pack", "reported", "why"}
    assert row["pack"] == pack_of(name)
    assert row["pack"] in FOUND
    assert row["reported"] == pytest.approx(read(FOUND[name].reported))
    assert bool(row["reported"]) == bool(FOUND[name].reported)
    assert re.fullmatch(r"[A-E]('s)? [^.]*(\.\d[^.]*)*\.", row["why"])  # one sentence, of the system
    assert row["why"][0] == pack_of(name).removeprefix("pack-").upper() or name.startswith("c-")


_LAYERS = {
    nn.Conv2d: "conv",
    nn.Linear: "dense",
    nn.BatchNorm2d: "norm",
    nn.BatchNorm1d: "norm",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.MaxPool2d: "max",
    nn.AvgPool2d: "mean",
    nn.Dropout: "dropout",
}


def layers(model: nn.Module) -> list[str]:
    """Its layers in their order, poolings with their kernel and stride, such as max3/2; a dropout of 0 is none."""
    words = []
    for module in model.modules():
        word = _LAYERS.get(type(module), "")
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            word += f"{module.kernel_size}/{module.stride}"
        if word and not (isinstance(module, nn.Dropout) and not module.p):
            words.append(word)
    return words


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("arch", SEEDS["nets"])
def test_a_net_has_the_layers_that_its_report_tells(arch: str) -> None:
    told = SEEDS["nets"][arch]
    model = net(arch, 14, told["channels"], told["side"], {})
    words = told["layers"].split()
    found = [word for word in layers(model) if word != "relu" or "relu" in words]  # A tells no activations
    assert [word if word in words else word.rstrip("0123456789/") for word in found] == words
    shapes = [list(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(shapes) == len(told["shapes"])
    for own, shape in zip(shapes, told["shapes"], strict=True):
        assert [None if side is None else size for size, side in zip(own, shape, strict=True)] == shape
    assert told["parameters"] in (None, parameters(model))


@pytest.mark.parametrize("arch", [arch for arch, told in SEEDS["nets"].items() if told["parameters"]])
def test_the_number_of_parameters_follows_from_the_shapes(arch: str) -> None:
    """Each layer has its weights and one bias an output; batch norm has two numbers for each of its channels."""
    told = SEEDS["nets"][arch]
    count = sum(math.prod(shape) + shape[0] for shape in told["shapes"])
    normed = [shape[0] for shape in told["shapes"] if len(shape) == 4] if "norm" in told["layers"] else []
    assert told["parameters"] == count + 2 * sum(normed)


@pytest.mark.parametrize("arch", SEEDS["published"])
def test_a_published_net_is_the_one_that_was_used(arch: str) -> None:
    """By its number of parameters with the 1,000 outputs that it was published with."""
    assert parameters(net(arch, 1000, 3, 224, {})) == SEEDS["published"][arch]
    used = {row["arch"] for row in SEEDS["recipes"].values() if row["weights"] == "default"}
    assert used == set(SEEDS["published"])


def test_without_options_a_drawn_net_is_the_best_one_of_the_search() -> None:
    drawn, best = (net(arch, 14, 1, 128, {}) for arch in ("b-drawn", "b-baseline"))
    assert [str(m) for m in drawn.children()] == [str(m) for m in best.children()]


def test_each_dense_layer_of_a_drawn_net_has_its_own_dropout_and_activation() -> None:
    options = {"denses": 2, "hidden_1": 64, "hidden_2": 32, "dropout_1": 0.25, "dropout_2": 0.1, "dense_tanh_2": 1}
    model = net("b-drawn", 14, 1, 128, options)
    assert layers(model)[12:] == ["dense", "relu", "dropout", "dense", "tanh", "dropout", "dense"]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.1]
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [64, 32, 14]


@pytest.mark.parametrize("options", [{}, {"denses": 2}])
def test_hidden_layers_of_system_b_begin_as_a_truncated_normal(options: dict[str, float]) -> None:
    model = zoo.build("b-drawn", 14, 1, 64, options)
    *hidden, _ = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for dense in hidden:
        weight = dense.weight.detach()
        assert float(weight.abs().max()) <= 0.1
        assert 0.04 < float(weight.std()) < 0.05
        assert not dense.bias.detach().any()
