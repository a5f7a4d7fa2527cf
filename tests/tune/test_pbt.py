from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlic.config.load import build
from mlic.config.space import Dimension, Value
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError
from mlic.train import checkpoints
from mlic.tune import pbt
from mlic.tune.early_stopping import Rule, Search, Work
from mlic.tune.pbt import Population, current, exchanges

SPACE = {
    "lr": Dimension(loguniform=(1e-4, 1e-2)),
    "mixup": Dimension(choice=(0.0, 0.2, 0.4)),
    "rand_augment": Dimension(int=(0, 3)),
    "batch_size": Dimension(choice=(16, 32)),
}
CONFIG = TuneConfig(shards="s", scheduler="pbt", num_samples=7, epochs=6, grace_epochs=2, space=SPACE)


def folders(base: Path, search: Search, epoch: int) -> None:
    """Every trial is trained for so many epochs, and its files say of what it is."""
    for number in range(search.count):
        own = base / str(number)
        (own / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in checkpoints.FILES:
            (own / name).write_text(f"{name} of {number} after {epoch}")
        search.tell(number, [*search.values(number), *[value(number, e) for e in range(epoch - 1, epoch + 1)]])


def value(number: int, epoch: int) -> float:
    return random.Random(number * 100 + epoch).random()


def a_population(run: Path, base: Path) -> tuple[Search, Population]:
    search = Search(Rule("pbt", CONFIG.epochs, CONFIG.grace_epochs, CONFIG.reduction_factor), CONFIG.trials)
    return search, Population(CONFIG, run, lambda number: base / str(number), search)


def test_the_worst_take_over_the_best() -> None:
    settings = {number: CONFIG.drawn(number) for number in range(7)}
    values = {number: value(number, 2) for number in range(7)}
    ranking = sorted(values, key=lambda number: -values[number])
    found = exchanges(values, settings, SPACE, CONFIG.movable, 2, 3, 42)
    assert {each.trial for each in found} == set(ranking[-2:])
    assert {each.source for each in found} <= set(ranking[:2])
    for each in found:
        assert each.value == values[each.trial]
        assert {name: each.settings[name] for name in SPACE} == settings[each.source]
        assert set(each.settings) - set(SPACE) == {"changes.2.lr", "changes.2.mixup", "changes.2.rand_augment"}
        assert TuneConfig.plan(CONFIG, each.settings).changes.keys() == {2}
    assert exchanges(values, settings, SPACE, CONFIG.movable, 2, 3, 42) == found


def test_settings_move_within_their_bounds_and_from_what_they_have_become() -> None:
    settings: dict[int, dict[str, Value]] = {0: {"lr": 1e-2}, 1: {"lr": 5e-3}}
    space = {"lr": SPACE["lr"]}
    seen = set()
    for epoch in range(1, 200):
        (only,) = exchanges({0: 1.0, 1: 0.5}, settings, space, ("lr",), epoch, 2, 1)
        before, now = current(settings[0], "lr"), current(only.settings, "lr")
        assert isinstance(before, float)
        assert isinstance(now, float)
        assert 1e-4 <= now <= 1e-2
        seen.add(round(now / before, 3))
        settings[0] = only.settings
    assert {0.8, 1.2} <= seen
    assert len(seen) > 10
    assert current({"lr": 1.0, "changes.10.lr": 3.0, "changes.9.lr": 2.0}, "lr") == 3.0


def test_members_wait_for_each_other() -> None:
    search = Search(Rule("pbt", 6, 2, 3), 3)
    assert search.ask(()) == Work(0, 2)
    search.tell(0, [0.1, 0.2])
    assert (search.ask({1}), search.due) == (Work(1, 2), None)
    search.tell(1, [0.1, 0.2])
    assert search.ask(()) == Work(2, 2)
    assert (search.ask({2}), search.due) == (None, None)
    search.tell(2, [], "failed")
    assert (search.ask(()), search.due) == (None, 2)
    search.compared = 2
    assert (search.ask(()), search.due) == (Work(0, 4), None)


@pytest.mark.parametrize("copies", [0, 1, 3, 4, 6])
def test_an_exchange_that_is_interrupted_is_carried_out(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, whole = a_population(tmp_path, tmp_path / "whole")
    folders(tmp_path / "whole", search, 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    expected = whole.exchange(2)
    assert len(expected) == 2

    (tmp_path / "run").mkdir()
    search, interrupted = a_population(tmp_path / "run", tmp_path / "cut")
    folders(tmp_path / "cut2", search, 2)
    left = copies

    def copy(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        Path(target).write_bytes(Path(source).read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(pbt.shutil, "copyfile", copy)
        if copies < 6:
            with pytest.raises(KeyboardInterrupt):
                interrupted.exchange(2)
        else:
            interrupted.exchange(2)
    again_search, again = a_population(tmp_path / "run", tmp_path / "cut")
    assert (again.exchanges, again_search.compared) == (whole.exchanges, 2)
    for number in range(7):
        assert again(number) == whole(number)
        for name in checkpoints.FILES:
            one, two = (tmp_path / base / str(number) / name for base in ("whole", "cut"))
            assert one.read_text() == two.read_text()
    with pytest.raises(ConfigError, match="has 7 trials, not 8, and cannot change"):
        Population(CONFIG, tmp_path / "run", lambda number: tmp_path / str(number), Search(Rule("pbt", 6, 2, 3), 8))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"space": {"batch_size": {"choice": [16, 32]}}}, "the space needs a setting that can change: lr, "),
        ({"num_samples": 2}, "a population of 2 has no 1/3; raise num_samples"),
        ({"cross_validate": True}, "leave cross_validate out"),
        ({"searcher": "tpe"}, "leave searcher tpe out"),
        ({"checkpoint_copy": "/x"}, "leave checkpoint_copy out"),
    ],
)
def test_populations_that_make_no_sense(given: dict[str, Any], error: str) -> None:
    settings = {"shards": "s", "scheduler": "pbt", "num_samples": 7, "epochs": 6, "space": {"lr": {"choice": [1, 2]}}}
    with pytest.raises(ConfigError, match=error):
        build(TuneConfig, settings | given)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({3: {"arch": 1}}, r"changes.3: arch cannot change during training; allowed: lr, "),
        ({0: {"lr": 1}}, "changes.0: give a number of epochs from 1 to 9"),
        ({10: {"lr": 1}}, "changes.10: give a number of epochs from 1 to 9"),
        ({2: {"lr": -1}}, "changes.2: lr: Input should be greater than 0"),
        ({2: {"momentum": 0.5}}, "changes.2: momentum 0.5 needs optimizer sgd or rmsprop"),
    ],
)
def test_changes_that_make_no_sense(changes: dict[int, dict[str, float]], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        build(TrainConfig, {"shards": "s", "train": "head", "weights": "default", "changes": changes})


def test_settings_after_some_epochs() -> None:
    config = TrainConfig(shards="s", lr=1.0, changes={3: {"lr": 2.0, "mixup": 0.5}, 7: {"lr": 4.0}})
    assert [config.after(epochs).lr for epochs in (0, 2, 3, 6, 7, 9)] == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert config.after(9).mixup == 0.5
    assert TrainConfig(**config.model_dump(mode="json")) == config
