"""Which trials continue and how far, decided in the order of their numbers.

Whether a trial continues at an epoch depends only on the trials with lower numbers at that epoch. So the same trials
are stopped, whichever finishes first: on one worker or on a hundred, and after any interruption. A trial whose
predecessors have not reached the epoch yet is paused, and others start in its place.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["asha", "none"]
Verdict = Literal["go", "stop", "wait"]
_WORST = -1e9  # replaces a value that is not finite; it is finite, so that quantiles are finite


@dataclass(frozen=True)
class Rule:
    """How trials are stopped early. A trial has at most `epochs` epochs, and at least `grace` in any case.

    asha: at grace, grace * factor, grace * factor^2, ... epochs a trial continues when its value is not below the
    (1 - 1/factor) quantile of its predecessors' (the stopping variant of Li et al., arXiv:1810.05934, as in Ray Tune).
    none: no trial is stopped, or another scheduler stops them.
    Values are larger for better trials; not a number is the worst.
    """

    kind: Kind
    epochs: int
    grace: int
    factor: int

    def milestones(self) -> list[int]:
        """The epochs after which a trial may be stopped."""
        if self.kind == "none":
            return []
        epochs, epoch = [], self.grace
        while epoch < self.epochs:
            epochs.append(epoch)
            epoch *= self.factor
        return epochs


class Work(NamedTuple):
    """A task: train a trial up to `until` epochs."""

    trial: int
    until: int


@dataclass
class _State:
    """A trial: its values by epoch, whether it has ended, and how."""

    values: list[float] = field(default_factory=list)
    status: str = ""  # "", "finished", "pruned" or "failed"


class Search:
    """Decides the next task from the reported values.

    `ask(busy)` returns the next task for a worker; `tell` takes its result. The order of the calls of `tell` does not
    change the answers.
    """

    def __init__(self, rule: Rule, count: int) -> None:
        self.rule, self.count = rule, count
        self._trials: dict[int, _State] = {}
        self._fresh = 0  # the first trial that nobody has begun
        self._open: list[int] = []  # begun and not ended, by number
        self._rungs: dict[int, _Rung] = {}  # by the epoch
        self._awaited: dict[int, set[int]] = {}  # by an awaited trial: the trials whose verdict depends on it
        self._waiting: set[int] = set()  # all trials that wait
        self.ended: list[int] = []  # the trials that have ended, in the order in which they did

    def tell(self, trial: int, values: Sequence[float], ended: str | None = None) -> None:
        """Take the values of all epochs of a trial so far; `ended` is "finished" or "failed" when no more will come."""
        state = self._begin(trial)
        state.values = [value if math.isfinite(value) else _WORST for value in values]
        self._waiting -= self._awaited.pop(trial, set())
        if ended is None and len(values) >= self.rule.epochs:
            ended = "finished"
        if ended is not None:
            self._end(trial, ended)

    def ask(self, busy: Collection[int], may_begin: bool = True) -> Work | None:
        """The next task of the trial with the lowest number; None if that depends on busy trials."""
        for trial in list(self._open):
            if trial in busy or trial in self._waiting:
                continue
            verdict = self.verdict(trial)
            if verdict == "stop":
                self._end(trial, "pruned")
            elif verdict == "go":
                return Work(trial, self._until(trial))
        if may_begin and self._fresh < self.count:
            trial = self._fresh
            self._begin(trial)
            return Work(trial, self._until(trial))
        return None

    def stop(self, trial: int) -> None:
        """Note that a trial was stopped, as its verdict says."""
        self._end(trial, "pruned")

    def settle(self) -> None:
        """Decide on idle trials, as far as possible."""
        self.ask((), may_begin=False)

    def begun(self, trial: int) -> bool:
        """Whether a trial has started."""
        return trial in self._trials

    @property
    def next_fresh(self) -> int | None:
        """The next trial to start."""
        return self._fresh if self._fresh < self.count else None

    @property
    def waiting(self) -> frozenset[int]:
        """The trials that wait for a trial with a lower number, if that trial has reported nothing new since."""
        return frozenset(self._waiting)

    @property
    def done(self) -> bool:
        return self._fresh >= self.count and not self._open

    def status(self, trial: int) -> str:
        """ "finished", "pruned", "failed", or "" of a trial that has not ended."""
        return self._trials[trial].status if trial in self._trials else ""

    def values(self, trial: int) -> list[float]:
        return self._trials[trial].values if trial in self._trials else []

    def rungs(self) -> Mapping[int, int]:
        """The number of trials that reached each milestone."""
        reached: dict[int, int] = {}
        for state in self._trials.values():
            for epoch in [*self.rule.milestones(), self.rule.epochs]:
                reached[epoch] = reached.get(epoch, 0) + (len(state.values) >= epoch)
        return dict(sorted(reached.items()))

    def _begin(self, trial: int) -> _State:
        if trial not in self._trials:
            self._trials[trial] = _State()
            bisect.insort(self._open, trial)
            while self._fresh in self._trials:
                self._fresh += 1
        return self._trials[trial]

    def _end(self, trial: int, status: str) -> None:
        if not self._trials[trial].status:
            self.ended.append(trial)
        self._trials[trial].status = status
        self._waiting -= self._awaited.pop(trial, set())
        if trial in self._open:
            self._open.remove(trial)

    def _until(self, trial: int) -> int:
        done = len(self._trials[trial].values)
        return next((epoch for epoch in self.rule.milestones() if epoch > done), self.rule.epochs)

    def verdict(self, trial: int) -> Verdict:
        """Whether a trial goes beyond its last epoch: "go", "stop", or "wait" for trials with lower numbers."""
        epoch = len(self._trials[trial].values)
        if epoch not in self.rule.milestones():
            return "go"
        rung = self._rungs.setdefault(epoch, _Rung())
        awaited = self._fill(rung, epoch, trial)
        if awaited is not None:
            self._awaited.setdefault(awaited, set()).add(trial)
            self._waiting.add(trial)
            return "wait"
        before = rung.values[: bisect.bisect_left(rung.trials, trial)]
        if not before:
            return "go"
        value = self._trials[trial].values[-1]
        return "go" if value >= np.quantile(before, 1 - 1 / self.rule.factor, method="linear") else "stop"

    def _fill(self, rung: _Rung, epoch: int, trial: int) -> int | None:
        """Record the predecessors of a trial that reached a rung; returns the first one whose outcome is unknown."""
        while rung.looked_at < trial:
            other = rung.looked_at
            state = self._trials.get(other)
            if state is not None and len(state.values) >= epoch:
                rung.trials.append(other)
                rung.values.append(state.values[epoch - 1])
            elif state is None or not state.status:
                return other
            rung.looked_at += 1
        return None


@dataclass
class _Rung:
    """The trials that reached an epoch, by number, with their values there; trials below `looked_at` are recorded."""

    trials: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    looked_at: int = 0
