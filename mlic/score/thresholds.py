"""Decision thresholds: exact search over all cut-offs, and an honest estimate of what they will give.

A label is given where score >= threshold, in float32, everywhere. A policy says what the thresholds are for:

fixed=T          T for every label
global           the one threshold with the best micro-F1
per-label        for each label the one with the best F1 of that label, drawn towards the global one for rare labels
per-label=K      the same, as much as K positives weigh (0: not at all)
one-at-a-time=T  for each label the one with the best micro-F1 while all others stay at T (reference system B)
joint            those that together have the best micro-F1
f-beta=B         for each label the one with the best F-beta; B above 1 asks for recall, below 1 for precision
precision=P      for each label the most recall at a precision of P or more; nothing where no cut-off reaches it
recall=R         for each label the best precision at a recall of R or more
cost=C           for each label the fewest errors, a missed label counted as C wrong ones
cardinality      the one threshold that gives as many labels as there are (Read et al., Classifier Chains, 2011)
top-k=K          no threshold: the K labels with the highest scores, of every image

All of them are exact over every cut-off between two scores, O(N L log(N L)). For those on each label alone it is enough
to look at cut-offs just below a positive: moving on from there to the next positive can only add wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.config import parse_policy
from mlic.score.calibration import logit, sigmoid

FOLDS = 5
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))  # above every score
MIN_POSITIVES = 10  # of a label whose own threshold can be taken seriously
_STRENGTHS = (0.0, 4.0, 16.0, 64.0, 256.0, 1e9)  # positives that the global threshold weighs
Array = np.ndarray[Any, Any]
Goal = Callable[[Array, Array, int], Array]  # of tp (C,), count (C,) and the number of positives


@dataclass(frozen=True)
class Fit:
    """Thresholds (L,) float32, and the decisions (N, L) of samples whose own fold had no part in theirs.

    Metrics of `decisions` estimate what the policy gives on new samples. `strength` is how many positives the global
    threshold weighs where rare labels are drawn to it, None for the other policies.
    """

    thresholds: Array
    decisions: Array
    strength: float | None = None


@dataclass(frozen=True)
class _Ranking:
    """The cut-offs of one label, or of all, just below a positive: C of them, the highest first, by K folds.

    `score` (C,); `tp` and `count` (C, K): positives and samples that reach it; `lower` (C, K): the next lower score,
    0 where there is none; `positives` (K,).
    """

    score: Array
    tp: Array
    count: Array
    lower: Array
    positives: Array


def fit(policy: str, scores: Array, targets: Array, seed: int) -> Fit:
    """Fit thresholds to scores (N, L) in [0, 1] and targets (N, L), and decide every sample by those of other folds.

    Raises ValueError for a policy that there is not. A label without a positive sample has the global threshold where
    the policy needs one.
    """
    name, value = parse_policy(policy)
    num_samples, num_labels = scores.shape
    if name in ("top-k", "fixed") or num_samples < FOLDS:
        # With so few samples there is nothing to fit without the sample itself; the middle is as good as any.
        middle = np.full(num_labels, value if name == "fixed" else 0.5, dtype=np.float32)
        return Fit(thresholds(policy, scores, targets, seed)[0], decide(scores, middle, top_k(policy)))
    search = _Search(name, value, scores, targets, seed)
    decisions = np.zeros(scores.shape, dtype=bool)
    for k in range(FOLDS):
        rest = [j for j in range(FOLDS) if j != k]
        held = search.fold == k
        decisions[held] = decide(scores[held], search.fit(rest, search.strength(rest)))
    every = range(FOLDS)
    strength = search.strength(every)
    return Fit(search.fit(every, strength), decisions, strength if name == "per-label" else None)


def thresholds(policy: str, scores: Array, targets: Array, seed: int) -> tuple[Array, float | None]:
    """The thresholds (L,) float32 and the strength of `fit`, without its decisions."""
    name, value = parse_policy(policy)
    if name in ("top-k", "fixed"):
        return np.full(scores.shape[1], NEVER if name == "top-k" else value, dtype=np.float32), None
    search = _Search(name, value, scores, targets, seed)
    strength = search.strength(range(FOLDS))
    return search.fit(range(FOLDS), strength), strength if name == "per-label" else None


def top_k(policy: str) -> int:
    """The number of labels that a policy gives to every image, 0 where it goes by thresholds."""
    name, value = parse_policy(policy)
    return int(value) if name == "top-k" else 0


def decide(scores: Array, thresholds: Array, top_k: int = 0) -> Array:
    """Decisions bool (N, L): where the scores reach the thresholds (L,), or the `top_k` highest of each sample.

    Of equal scores the label that comes first is given first.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if not top_k:
        return scores >= np.asarray(thresholds, dtype=np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    decisions = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(decisions, order, True, axis=1)
    return decisions


def warnings(labels: Sequence[str], targets: Array, policy: str) -> list[str]:
    """A sentence where thresholds of single labels rest on too few positives."""
    if parse_policy(policy)[0] in ("fixed", "global", "cardinality", "top-k"):
        return []
    counts = (targets == 1).sum(axis=0)
    few = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True) if count < MIN_POSITIVES]
    if not few:
        return []
    shown = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
    return [f"thresholds of these labels rest on fewer than {MIN_POSITIVES} positives: {shown}."]


class _Search:
    """Scores ranked once, so that thresholds for any set of folds cost little more than a look."""

    def __init__(self, name: str, value: float, scores: Array, targets: Array, seed: int) -> None:
        self.name, self.value = name, value
        self.scores, self.targets = np.ascontiguousarray(scores, dtype=np.float32), targets
        self.fold = fold = np.random.default_rng([seed, 3]).permutation(len(scores)) % FOLDS
        self.strengths = _STRENGTHS if name == "per-label" and value < 0 else (max(value, 0.0),)
        scores, known = self.scores, targets >= 0
        self.labels = [
            _rank(scores[k, i], targets[k, i] == 1, fold[k])
            for i, k in enumerate(known.T)
        ] if name not in ("global", "cardinality") else []  # fmt: skip
        row, _ = np.nonzero(known)
        self.all = _rank(scores[known], targets[known] == 1, fold[row])
        self._fitted: dict[tuple[int, ...], tuple[np.float32, Array]] = {}

    def fit(self, folds: Sequence[int], strength: float) -> Array:
        """Thresholds (L,) from the samples of some folds."""
        together, own = self._own(tuple(folds))
        if self.name != "per-label" or not strength:
            return own
        positives = np.array([ranking.positives[list(folds)].sum() for ranking in self.labels], dtype=np.float64)
        share = positives / (positives + strength)
        drawn = share * logit(own) + (1 - share) * logit(np.full(len(own), together))
        return np.asarray(sigmoid(drawn), dtype=np.float32)

    def strength(self, folds: Sequence[int]) -> float:
        """The strength whose thresholds do best on those of the folds that they were not fitted to."""
        strengths = self.strengths
        if len(strengths) == 1:
            return strengths[0]
        counts = np.zeros((len(strengths), 3, self.scores.shape[1]))
        for k in folds:
            held = self.fold == k
            scores, targets = self.scores[held], self.targets[held]
            positive, known = targets == 1, targets >= 0
            for i, strength in enumerate(strengths):
                given = decide(scores, self.fit([j for j in folds if j != k], strength)) & known
                tp = (given & positive).sum(axis=0)
                counts[i] += tp, given.sum(axis=0), positive.sum(axis=0)
        return strengths[int(np.argmax([_goodness(*own) for own in counts]))]

    def _own(self, folds: tuple[int, ...]) -> tuple[np.float32, Array]:
        """The global threshold of some folds, and those (L,) of the policy."""
        if folds not in self._fitted:
            chosen = list(folds)
            together = _best(self.all, chosen, lambda tp, count, p: 2 * tp / (count + p))
            self._fitted[folds] = together, self._by_policy(chosen, together)
        return self._fitted[folds]

    def _by_policy(self, folds: list[int], together: np.float32) -> Array:
        num_labels = self.scores.shape[1]
        if self.name == "global":
            return np.full(num_labels, together, dtype=np.float32)
        if self.name == "cardinality":
            return np.full(num_labels, self._matching(folds), dtype=np.float32)
        if self.name == "joint":
            return self._joint(folds, together)
        if self.name == "one-at-a-time":
            return self._one_at_a_time(folds)
        goal = _GOALS[self.name](self.value)
        found = [_best(ranking, folds, goal) if ranking.positives[folds].any() else together for ranking in self.labels]
        return np.array(found, dtype=np.float32)

    def _matching(self, folds: list[int]) -> np.float32:
        """The threshold that gives as many labels as there are, to the nearest count that a cut-off has."""
        rows = np.isin(self.fold, folds)
        scores, known = self.scores[rows], self.targets[rows] >= 0
        wanted, flat = int((self.targets[rows] == 1).sum()), np.sort(scores[known])[::-1]
        if not wanted:
            return np.float32(NEVER)
        at = flat[wanted - 1]
        reach, above = int((flat >= at).sum()), int((flat > at).sum())
        if reach - wanted > wanted - above:  # equal scores: better to stay above all of them
            return _between(flat[above - 1], at) if above else np.float32(NEVER)
        return _between(at, flat[reach] if reach < len(flat) else np.float32(0))

    def _one_at_a_time(self, folds: list[int]) -> Array:
        start = np.float32(self.value)
        rows = np.isin(self.fold, folds)
        given = (self.scores[rows] >= start) & (self.targets[rows] >= 0)
        tp, count = (given & (self.targets[rows] == 1)).sum(axis=0), given.sum(axis=0)
        positives = sum(int(ranking.positives[folds].sum()) for ranking in self.labels)
        found = [start] * len(self.labels)
        for i, ranking in enumerate(self.labels):
            if ranking.positives[folds].any():
                others = _micro_f1_with(int(tp.sum() - tp[i]), int(count.sum() - count[i]), positives)
                found[i] = _best(ranking, folds, others)
        return np.array(found, dtype=np.float32)

    def _joint(self, folds: list[int], together: np.float32) -> Array:
        """The best micro-F1 of all labels together, by Dinkelbach, On Nonlinear Fractional Programming (1967).

        F1 = 2 TP / (COUNT + P) reaches x where the sum over labels of 2 TP - x COUNT reaches x P. For a given x each
        label has its best cut-off by itself; the F1 of those cut-offs is the next x. The values rise until they stay,
        and then no choice of cut-offs has a higher F1.
        """
        labels = [_of_folds(ranking, folds) for ranking in self.labels]
        positives = sum(int(ranking.positives[folds].sum()) for ranking in self.labels)
        if not positives:
            return np.full(len(labels), together, dtype=np.float32)
        best, before = 0.0, -1.0
        picks = [-1] * len(labels)
        while best > before:
            before, tp, count = best, 0, 0
            for i, (_, own, own_count, _) in enumerate(labels):
                gain = 2 * own - before * own_count
                picks[i] = int(np.argmax(gain)) if len(gain) and gain.max() > 0 else -1
                if picks[i] >= 0:
                    tp, count = tp + int(own[picks[i]]), count + int(own_count[picks[i]])
            best = 2 * tp / (count + positives)
        return np.array(
            [
                _between(score[pick], lower[pick]) if pick >= 0 else NEVER
                for (score, _, _, lower), pick in zip(labels, picks, strict=True)
            ],
            dtype=np.float32,
        )


def _f_beta(beta: float) -> Goal:
    square = beta * beta
    return lambda tp, count, positives: np.asarray((1 + square) * tp / (square * positives + count))


def _micro_f1_with(others_tp: int, others_count: int, all_positives: int) -> Goal:
    """Micro-F1 of one label together with others that stay as they are."""
    return lambda tp, count, _: np.asarray(2 * (tp + others_tp) / (count + others_count + all_positives))


# What a policy makes as large as it can, of (tp, count, positives); -inf where a cut-off will not do.
_GOALS: dict[str, Callable[[float], Goal]] = {
    "per-label": lambda _: _f_beta(1.0),
    "f-beta": _f_beta,
    "precision": lambda least: lambda tp, count, _: np.where(tp >= least * count, tp, -np.inf),
    "recall": lambda least: (
        lambda tp, count, positives: np.where(tp >= least * positives, tp / np.maximum(1, count), -np.inf)
    ),
    "cost": lambda cost: lambda tp, count, positives: -(count - tp) - cost * (positives - tp),
}


def _best(ranking: _Ranking, folds: list[int], goal: Goal) -> np.float32:
    """The threshold with the highest goal, the highest of equals; NEVER where giving nothing is better still."""
    score, tp, count, lower = _of_folds(ranking, folds)
    positives = int(ranking.positives[folds].sum())
    if not len(score):
        return np.float32(0.5 if not positives else NEVER)
    values = goal(tp, count, positives)
    best = int(np.argmax(values))
    nothing = goal(np.array([0]), np.array([0]), positives)[0]
    if values[best] == -np.inf or nothing > values[best]:
        return np.float32(NEVER)
    return _between(score[best], lower[best])


def _of_folds(ranking: _Ranking, folds: list[int]) -> tuple[Array, Array, Array, Array]:
    """score, tp, count and lower (C',) of the cut-offs that are just below a positive of these folds."""
    tp = ranking.tp[:, folds].sum(axis=1)
    kept = np.diff(tp, prepend=0) > 0
    lower = ranking.lower[:, folds].max(axis=1, initial=0)
    return ranking.score[kept], tp[kept], ranking.count[:, folds].sum(axis=1)[kept], lower[kept]


def _rank(scores: Array, positive: Array, fold: Array) -> _Ranking:
    # Scores are not negative, so their bits have their order; with fold and target beside them one sort does it all.
    keys = scores.view(np.uint32).astype(np.uint64) << np.uint64(8)
    keys |= (fold.astype(np.uint64) << np.uint64(1)) | positive.astype(np.uint64)
    keys.sort()
    keys = keys[::-1]
    score = (keys >> np.uint64(8)).astype(np.uint32).view(np.float32)
    is_positive = (keys & np.uint64(1)).astype(bool)
    of_fold = ((keys >> np.uint64(1)) & np.uint64(127)).astype(np.int8)
    del keys
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])
    positives = np.cumsum(is_positive, dtype=np.int64)[ends]
    ends = ends[np.diff(positives, prepend=0) > 0]
    shape = (len(ends), FOLDS)
    tp, count, lower = np.empty(shape, np.int64), np.empty(shape, np.int64), np.zeros(shape, np.float32)
    total = np.empty(FOLDS, np.int64)
    for k in range(FOLDS):
        mine = of_fold == k
        count[:, k] = np.cumsum(mine, dtype=np.int64)[ends]
        tp[:, k] = np.cumsum(mine & is_positive, dtype=np.int64)[ends]
        total[k] = int((mine & is_positive).sum())
        lower[:, k] = np.append(score[mine], np.float32(0))[count[:, k]]
    return _Ranking(score[ends], tp, count, lower, total)


def _between(upper: np.float32, lower: np.float32) -> np.float32:
    """Halfway to the next lower score, so that a score that differs in its last bits is decided alike."""
    middle = np.float32((np.float64(upper) + np.float64(lower)) / 2)
    return np.float32(middle if lower < middle <= upper else upper)


def _goodness(tp: Array, count: Array, positives: Array) -> float:
    """Micro-F1 plus macro-F1: rare labels are to gain without the frequent ones losing."""
    micro = 2 * tp.sum() / max(1, count.sum() + positives.sum())
    return float(micro + (2 * tp / np.maximum(1, count + positives)).mean())
