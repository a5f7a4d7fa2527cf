"""Draw settings by Optuna's tree-structured Parzen estimator, from earlier trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlic.config.space import Dimension, Value, order, rounded
from mlic.errors import ConfigError
from mlic.tune.early_stopping import Search


class Tpe:
    """The settings of each trial, from the results of the trials that are at least `lag` before it.

    The trials in between count as having no result, even if they have one by then. So the draws do not depend on what
    finishes first, and a resumed search draws the same settings as an uninterrupted one.
    """

    def __init__(self, space: Mapping[str, Dimension], seed: int, search: Search, lag: int) -> None:
        """Raises ConfigError where Optuna is not installed."""
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "searcher tpe needs optuna, which is not installed.", "pip install 'mlic[tpe]'."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space, self._seed, self._search, self._lag = optuna, space, seed, search, lag
        self._study = optuna.create_study(direction="maximize")
        self._asked: list[Any] = []
        self._drawn: list[dict[str, Value]] = []
        self._told = 0

    def __call__(self, number: int) -> dict[str, Value] | None:
        """The settings of a trial; None while they depend on trials that have not ended."""
        while len(self._drawn) <= number:
            if not self._tell(len(self._drawn) - self._lag):
                return None
            self._ask()
        return self._drawn[number]

    def _tell(self, count: int) -> bool:
        """Tell the estimator of the first `count` trials; False where one of them has not ended."""
        while self._told < count:
            trial, status = self._asked[self._told], self._search.status(self._told)
            if not status:
                return False
            values = self._search.values(self._told)
            states = self._optuna.trial.TrialState
            if status == "failed" or not values:
                self._study.tell(trial, state=states.FAIL)
            else:
                for epoch, value in enumerate(values):
                    trial.report(value, epoch)
                self._study.tell(trial, max(values))
            self._told += 1
        return True

    def _ask(self) -> None:
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed * 1_000_003 + len(self._drawn)) % 2**32, n_startup_trials=10, constant_liar=True
        )
        trial = self._study.ask()
        values: dict[str, Value] = {}
        for name in order(self._space):
            dimension = self._space[name]
            if all(other in values and values[other] in allowed for other, allowed in dimension.when.items()):
                values[name] = self._suggest(trial, name, dimension)
        self._asked.append(trial)
        self._drawn.append({name: values[name] for name in self._space if name in values})

    def _suggest(self, trial: Any, name: str, dimension: Dimension) -> Value:
        if dimension.listed is not None:
            return dimension.listed[int(trial.suggest_categorical(name, list(range(len(dimension.listed)))))]
        low, high = dimension.bounds
        if dimension.whole:
            return int(trial.suggest_int(name, int(low), int(high), log=dimension.log))
        return rounded(float(trial.suggest_float(name, low, high, log=dimension.log)))
