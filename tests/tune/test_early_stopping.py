from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest

from mlic.config.load import build
from mlic.config.space import Dimension, draw
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError, RunError
from mlic.train import checkpoints, cross_validation, out_of_fold
from mlic.tune import confirm, early_stopping
from mlic.tune.early_stopping import Kind, Rule, Search, Work
from mlic.tune.importance import code, importance
from mlic.tune.tpe import Tpe

EPOCHS = 9
KINDS: tuple[Kind, ...] = ("asha", "none")


def value(trial: int, epoch: int) -> float:
    """A learning curve of its own for each trial; some are not finite now and then."""
    rng = random.Random(trial)
    level, speed = rng.random(), rng.uniform(0.1, 1)
    if trial % 13 == 5 and epoch == 3:
        return math.nan
    return level * (1 - math.exp(-speed * epoch))


def run(search: Search, workers: int, seed: int) -> list[Work]:
    """Do all the work of a search with so many workers, whose work ends in a random order; returns it in its order."""
    rng, busy, done = random.Random(seed), dict[int, Work](), list[Work]()
    while not search.done:
        while len(busy) < workers and (work := search.ask(busy)) is not None:
            busy[work.trial] = work
        if not busy:
            continue
        work = busy.pop(rng.choice(list(busy)))
        done.append(work)
        died = work.trial % 11 == 7 and work.until > 1
        values = [value(work.trial, epoch) for epoch in range(1, (2 if died else work.until) + 1)]
        search.tell(work.trial, values, "failed" if died else None)
    return done


def ends(search: Search) -> list[tuple[str, int]]:
    return [(search.status(trial), len(search.values(trial))) for trial in range(search.count)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_trials_are_stopped_whatever_finishes_first(kind: Kind) -> None:
    rule = Rule(kind, EPOCHS, 1, 3)
    alone = Search(rule, 60)
    run(alone, 1, 0)
    for workers, seed in ((2, 1), (7, 2), (60, 3)):
        many = Search(rule, 60)
        run(many, workers, seed)
        assert ends(many) == ends(alone)
    statuses = {status for status, _ in ends(alone)}
    assert statuses == ({"finished", "failed"} if kind == "none" else {"finished", "failed", "pruned"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_goes_on_is_the_one_that_was_never_stopped(kind: Kind) -> None:
    """It is told what its trials came to before, more of them may follow, and the end is that of one long search."""
    rule = Rule(kind, EPOCHS, 1, 3)
    whole = Search(rule, 50)
    run(whole, 3, 4)
    stopped, rng = Search(rule, 20), random.Random(9)
    for _ in range(15):
        work = stopped.ask(())
        assert work is not None
        stopped.tell(work.trial, [value(work.trial, epoch) for epoch in range(1, rng.randint(0, work.until) + 1)])
    again = Search(rule, 50)
    for trial in range(20):
        if stopped.begun(trial):
            again.tell(trial, stopped.values(trial))
    run(again, 2, 5)
    assert ends(again) == ends(whole)


def test_asha_stops_the_trials_that_ray_tune_stops_on_one_worker() -> None:
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class Trial:
        def __init__(self, number: int) -> None:
            self.trial_id = str(number)

    theirs = ASHAScheduler(
        time_attr="epoch", metric="value", mode="max", max_t=EPOCHS, grace_period=1, reduction_factor=3
    )
    curves = [[value(trial, epoch) for epoch in range(1, EPOCHS + 1)] for trial in range(80) if trial % 13 != 5]
    epochs = []
    for number, curve in enumerate(curves):
        trial = Trial(number)
        theirs.on_trial_add(None, trial)
        for epoch, at in enumerate(curve, 1):
            if theirs.on_trial_result(None, trial, {"epoch": epoch, "value": at}) == TrialScheduler.STOP:
                break
        theirs.on_trial_complete(None, trial, {"epoch": epoch, "value": at})
        epochs.append(epoch)
    search = Search(Rule("asha", EPOCHS, 1, 3), len(curves))
    while not search.done:
        work = search.ask(())
        if work is not None:
            search.tell(work.trial, curves[work.trial][: work.until])
    assert [length for _, length in ends(search)] == epochs
    assert len(set(epochs)) == 3


def test_the_epochs_of_decisions() -> None:
    assert Rule("asha", 27, 1, 3).milestones() == [1, 3, 9]
    assert Rule("asha", 9, 2, 3).milestones() == [2, 6]
    assert Rule("none", 9, 1, 3).milestones() == []


def test_a_trial_that_ends_by_itself_stops_nobody() -> None:
    search = Search(Rule("asha", EPOCHS, 1, 3), 2)
    search.tell(0, [], "finished")
    search.tell(1, [0.5])
    assert search.ask(()) == Work(1, 3)


def lines_run(module: ModuleType, work: Callable[[], object]) -> int:
    """How many lines of a module are run in some work: the same on every machine, whatever else that does."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_two_thousand_trials_cost_no_more_each_than_the_first() -> None:
    few, many = (
        lines_run(early_stopping, lambda n=count: run(Search(Rule("asha", EPOCHS, 1, 3), n), 8, 1)) / count
        for count in (200, 2000)
    )
    assert many < 1.5 * few


SPACE = {
    "arch": Dimension(choice=("a", "b")),
    "lr": Dimension(loguniform=(1e-4, 1e-1)),
    "hidden": Dimension(logint=(16, 256)),
    "momentum": Dimension(uniform=(0.5, 0.9), when={"arch": ("b",)}),
}


def tried(search: Search, draw: Tpe, workers: int, seed: int) -> list[object]:
    rng, busy = random.Random(seed), dict[int, Work]()
    while not search.done:
        while len(busy) < workers:
            fresh = search.next_fresh
            work = search.ask(busy, may_begin=fresh is not None and draw(fresh) is not None)
            if work is None:
                break
            busy[work.trial] = work
        if busy:
            work = busy.pop(rng.choice(list(busy)))
            settings = draw(work.trial)
            assert settings is not None
            lr = settings["lr"]
            assert isinstance(lr, float)
            good = 1 / (1 + abs(math.log10(lr) + 2)) - 0.3 * (settings["arch"] == "a")
            search.tell(work.trial, [good * epoch / EPOCHS for epoch in range(1, work.until + 1)])
    return [draw(number) for number in range(search.count)]


def test_tpe_learns_and_draws_the_same_on_any_number_of_workers() -> None:
    drawn = []
    for workers, seed in ((1, 0), (4, 1)):
        search = Search(Rule("asha", EPOCHS, 1, 3), 40)
        drawn.append(tried(search, Tpe(SPACE, 7, search, 4), workers, seed))
    assert drawn[0] == drawn[1]
    late = [each for each in drawn[0][20:] if isinstance(each, dict)]
    assert sum(each["arch"] == "b" for each in late) >= 15
    assert all(("momentum" in each) == (each["arch"] == "b") for each in late)


def test_tpe_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="tpe needs optuna, which is not installed"):
        Tpe(SPACE, 7, Search(Rule("asha", EPOCHS, 1, 3), 1), 4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_recipe", [0.0, 0.02])
def test_the_interval_of_a_lead_holds_the_truth_as_often_as_it_says(seeds: int, of_recipe: float) -> None:
    """Recipes that are equally good, trained from some seeds and measured on images that are drawn alike for both.

    A score moves by its seed, by how easy the images are, by what they are to a recipe and by what to a training.
    """
    rng = np.random.default_rng(3)
    held, sure, runs, resamples = 0, 0, 3000, 200
    for _ in range(runs):
        seen = 0.6 + rng.normal(0, 0.01, (2, seeds)) + rng.normal(0, 0.02) + rng.normal(0, of_recipe, (2, 1))
        noise = rng.normal(0, 0.004, (2, seeds, resamples)) + rng.normal(0, of_recipe, (2, 1, resamples))
        seen = seen + rng.normal(0, 0.004, (2, seeds))
        drawn = seen[..., None] + rng.normal(0, 0.02, resamples) + noise
        _, low, high = confirm._lead(seen[0], seen[1], drawn[0], drawn[1])
        held += low <= 0 <= high
        sure += low > 0
    assert 0.93 <= held / runs <= 0.975
    assert sure / runs <= 0.06


def test_one_seed_confirms_nothing() -> None:
    with pytest.raises(ConfigError, match="confirm 1 cannot measure the spread between seeds"):
        build(TuneConfig, {"confirm": 1})


def test_the_epoch_of_a_fold_is_not_chosen_on_that_fold() -> None:
    """30 epochs of equal worth with noise between them: the best of each fold looks 0.016 better than it is."""
    rng = np.random.default_rng(4)
    config = TrainConfig()
    flattered, honest = [], []
    for _ in range(400):
        curves = 0.6 + rng.normal(0, 0.008, (5, 30))
        histories = [[{"val/f1_micro": value} for value in curve] for curve in curves.tolist()]
        chosen = out_of_fold.chosen_epochs(config, histories)
        honest.append(np.mean([curve[epoch] for curve, epoch in zip(curves, chosen, strict=True)]))
        flattered.append(curves.max(axis=1).mean())
    assert np.mean(flattered) > 0.615
    assert np.mean(honest) == pytest.approx(0.6, abs=0.0008)


def test_folds_agree_on_an_epoch_that_is_really_better() -> None:
    curve = [{"val/f1_micro": 0.5 + 0.1 * (epoch == 7), "val/loss": float(epoch != 3)} for epoch in range(10)]
    histories = [curve, curve[:9], curve]
    assert out_of_fold.chosen_epochs(TrainConfig(), histories) == [7, 7, 7]
    assert out_of_fold.chosen_epochs(TrainConfig(keep_epoch="lowest-loss"), histories) == [3, 3, 3]
    assert out_of_fold.chosen_epochs(TrainConfig(keep_epoch="last"), histories) == [9, 8, 9]
    with pytest.raises(RunError, match="a fold has no finished epoch"):
        out_of_fold.chosen_epochs(TrainConfig(), [curve, []])


def test_importance_finds_what_mattered() -> None:
    space = {
        "lr": Dimension(loguniform=(1e-4, 1e-1)),
        "arch": Dimension(choice=("a", "b", "c")),
        "seed": Dimension(int=(0, 100)),
        "momentum": Dimension(uniform=(0, 1), when={"arch": ("b",)}),
    }
    settings = [draw(space, 1, number) for number in range(60)]
    values = [-abs(math.log10(float(s["lr"])) + 2) + 0.3 * (s["arch"] == "b") for s in settings]  # type: ignore[arg-type]
    found = importance(space, settings, values, 0)
    assert found is not None
    assert found.explained > 0.6
    assert max(found.shares, key=found.shares.__getitem__) == "lr"
    assert found.shares["seed"] < 0.1
    assert sum(found.shares.values()) == pytest.approx(1)
    noise = importance(space, settings, [random.Random(i).random() for i in range(60)], 0)
    assert noise is not None
    assert noise.explained < 0.1
    assert importance(space, settings[:9], values[:9], 0) is None
    assert code(space["arch"], "b") == 0.5
    assert code(space["momentum"], None) == -1


def test_the_copies_of_the_folds_of_two_runs_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[object] = []

    def fit(config: TrainConfig, keep_scores: bool) -> None:
        assert keep_scores
        run = config.runs / str(config.name)
        copies.append(checkpoints.copy_of(config.checkpoint_copy or "", run, run))

    monkeypatch.setattr(cross_validation, "fit", fit)
    monkeypatch.setattr(cross_validation, "_write_scores", lambda *_: None)
    monkeypatch.setattr(cross_validation, "connect", lambda _: nullcontext())
    for name in ("one", "two"):
        config = TrainConfig(shards=tmp_path, doctor=False, checkpoint_copy=tmp_path / "copies")
        cross_validation.fit_folds(config, tmp_path / "runs" / name, 2)
    assert len(set(copies)) == 4
    assert copies[0] == tmp_path / "copies" / "one" / "folds" / "fold0"
