"""Decision thresholds: exact search over all cut-offs, and a cross-fitted estimate of their effect.

A label is given where score >= threshold, in float32, everywhere. A policy says what the thresholds are for:

fixed=T          T for every label
global           the one threshold with the best micro-F1
per-label        for each label its own: the best macro-F1 that does not cost micro-F1 against `global`; see below
one-at-a-time=T  for each label the one with the best micro-F1 while all others stay at T (reference system B)
joint            those that together have the best micro-F1
f-beta=B         for each label the one with the best F-beta; above 1 it asks for recall, below for precision
precision=P      for each label the most recall at a precision of P or more; nothing where no cut-off reaches it
recall=R         for each label the best precision at a recall of R or more
precision>=P     for each label the most it can give with a precision of P or more on new images, 95% sure; else nothing
recall>=R        for each label the highest with a recall of R or more on new images, 95% sure; always given if too few
cost=C           for each label the fewest errors, a missed label counted as C wrong ones
cardinality      the one threshold that gives as many labels as there are (Read et al., Classifier Chains, 2011)
top-k=K          no threshold: the K labels with the highest scores, of every image

All of them are exact over every cut-off between two scores, O(N L log(N L)). For policies on each label alone, cut-offs
just below a positive are enough: a lower cut-off adds only wrong labels until it reaches the next positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlic.config.types import parse_policy
from mlic.metrics import guarantees
from mlic.metrics.calibration import logit, sigmoid

FOLDS = 5
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))  # above every score
MIN_POSITIVES = 10  # a label with fewer has no reliable threshold of its own
_JUDGED = 20_000  # at most this many samples of a fold are used to compare the family
Array = np.ndarray[Any, Any]
Goal = Callable[[Array, Array, int], Array]  # of tp (C,), count (C,) and the number of positives


@dataclass(frozen=True)
class Choice:
    """A member of the family of `per-label`."""

    own: float
    strength: float


GLOBAL = Choice(0.0, 1e9)
FAMILY = (GLOBAL, *(Choice(own, strength) for strength in (64.0, 16.0, 4.0, 0.0) for own in (0, 0.25, 0.5, 0.75, 1)))


@dataclass(frozen=True)
class Fit:
    """Thresholds (L,) float32, and decisions (N, L) by thresholds fitted without the sample's fold.

    Metrics of `decisions` estimate what the policy gives on new samples. `choice` is what `per-label` chose, None for
    the other policies.
    """

    thresholds: Array
    decisions: Array
    choice: Choice | None = None


@dataclass(frozen=True)
class _Ranking:
    """The C cut-offs just below a positive, of one label or of all, the highest first, with counts by K folds.

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
        # With so few samples, fitting without the sample's fold is not possible; 0.5 is as good as any threshold.
        default_cuts = np.full(num_labels, value if name == "fixed" else 0.5, dtype=np.float32)
        return Fit(thresholds(policy, scores, targets, seed)[0], decide(scores, default_cuts, top_k(policy)))
    search = _Search(name, value, scores, targets, seed)
    decisions = np.zeros(scores.shape, dtype=bool)
    for k in range(FOLDS):
        rest = [j for j in range(FOLDS) if j != k]
        held = search.fold == k
        decisions[held] = decide(scores[held], search.fit(rest, search.choose(rest)))
    choice = search.choose(range(FOLDS))
    return Fit(search.fit(range(FOLDS), choice), decisions, choice)


def thresholds(policy: str, scores: Array, targets: Array, seed: int) -> tuple[Array, Choice | None]:
    """The thresholds (L,) float32 and the choice of `fit`, without its decisions."""
    name, value = parse_policy(policy)
    if name in ("top-k", "fixed"):
        return np.full(scores.shape[1], NEVER if name == "top-k" else value, dtype=np.float32), None
    search = _Search(name, value, scores, targets, seed)
    choice = search.choose(range(FOLDS))
    return search.fit(range(FOLDS), choice), choice


def top_k(policy: str) -> int:
    """The number of labels that a policy gives to every image, 0 where it goes by thresholds."""
    name, value = parse_policy(policy)
    return int(value) if name == "top-k" else 0


def decide(scores: Array, thresholds: Array, top_k: int = 0) -> Array:
    """Decisions bool (N, L): where the scores reach the thresholds (L,), or the `top_k` highest of each sample.

    Among labels with equal scores, the first label is given first.
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
    name, value = parse_policy(policy)
    needed = guarantees.needed(value) if name == "recall>" else 0
    if (counts < needed).any():
        lacking = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True) if count < needed]
        return [
            f"every image is given these labels, threshold 0: to be sure of a recall of {value:g} takes {needed} "
            f"positives: {_shown(lacking)}."
        ]
    few = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True) if count < MIN_POSITIVES]
    if not few:
        return []
    return [f"thresholds of these labels rest on fewer than {MIN_POSITIVES} positives: {_shown(few)}."]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class _Search:
    """Scores that are ranked once, so that thresholds for any set of folds are cheap to compute."""

    def __init__(self, name: str, value: float, scores: Array, targets: Array, seed: int) -> None:
        self.name, self.value = name, value
        self.scores, self.targets = np.ascontiguousarray(scores, dtype=np.float32), targets
        self.fold = fold = np.random.default_rng([seed, 3]).permutation(len(scores)) % FOLDS
        scores, known = self.scores, targets >= 0
        self.labels = (
            [_rank(scores[k, i], targets[k, i] == 1, fold[k]) for i, k in enumerate(known.T)]
            if name not in ("global", "cardinality")
            else []
        )
        row, _ = np.nonzero(known)
        self.all = _rank(scores[known], targets[known] == 1, fold[row])
        self._families: dict[tuple[int, ...], tuple[np.float32, dict[float, Array]]] = {}

    def fit(self, folds: Sequence[int], choice: Choice | None) -> Array:
        """Thresholds (L,) from the samples of some folds."""
        if choice is None:
            chosen = list(folds)
            return self._by_policy(chosen, _best(self.all, chosen, _f_beta(1)))
        together, separate = self._family(tuple(folds))
        positives = np.array([ranking.positives[list(folds)].sum() for ranking in self.labels], dtype=np.float64)
        share = np.where(positives > 0, positives / np.maximum(positives + choice.strength, 1), 0)
        drawn = share * logit(separate[choice.own]) + (1 - share) * logit(np.full(len(positives), together))
        return np.where(share == 1, separate[choice.own], sigmoid(drawn)).astype(np.float32)

    def choose(self, folds: Sequence[int]) -> Choice | None:
        """The member of the family with the best macro-F1, on folds that its thresholds were not fitted to.

        Only members whose micro-F1 is above that of the global threshold by at least half a standard error over the
        folds are candidates. The margin is needed because the best of many similar members is a little worse than it
        looks.
        """
        if self.name != "per-label":
            return None
        counts = np.zeros((len(folds), len(FAMILY), 3, self.scores.shape[1]))
        for position, k in enumerate(folds):
            held = np.flatnonzero(self.fold == k)[:_JUDGED]
            scores, targets = self.scores[held], self.targets[held]
            positive, known = targets == 1, targets >= 0
            for i, choice in enumerate(FAMILY):
                decided = decide(scores, self.fit([j for j in folds if j != k], choice)) & known
                counts[position, i] = (decided & positive).sum(axis=0), decided.sum(axis=0), positive.sum(axis=0)
        gains = _micro_f1(counts) - _micro_f1(counts[:, :1])
        error = gains.std(axis=0, ddof=1) / np.sqrt(len(folds))
        tp, count, positives = counts.sum(axis=0).transpose(1, 0, 2)
        macro = (2 * tp / np.maximum(1, count + positives)).mean(axis=1)
        return FAMILY[int(np.argmax(np.where(gains.mean(axis=0) >= error / 2, macro, -1)))]

    def _family(self, folds: tuple[int, ...]) -> tuple[np.float32, dict[float, Array]]:
        """The global threshold of some folds, and those (L,) of each label by `own`."""
        if folds not in self._families:
            chosen = list(folds)
            together = _best(self.all, chosen, _f_beta(1))
            _, common = self._joint(chosen, together)
            cuts_of: dict[float, list[np.float32]] = {choice.own: [] for choice in FAMILY}
            for ranking in self.labels:
                cuts = _of_folds(ranking, chosen)
                best = float(np.max(2 * cuts[1] / (cuts[2] + ranking.positives[chosen].sum()), initial=0))
                for own, values in cuts_of.items():
                    price = (1 - own) * common + own * best
                    values.append(_cut(cuts, 2 * cuts[1] - price * cuts[2], 0.0) if len(cuts[0]) else together)
            self._families[folds] = together, {own: np.array(v, dtype=np.float32) for own, v in cuts_of.items()}
        return self._families[folds]

    def _by_policy(self, folds: list[int], together: np.float32) -> Array:
        num_labels = self.scores.shape[1]
        if self.name == "global":
            return np.full(num_labels, together, dtype=np.float32)
        if self.name == "cardinality":
            return np.full(num_labels, self._matching(folds), dtype=np.float32)
        if self.name == "joint":
            return self._joint(folds, together)[0]
        if self.name == "one-at-a-time":
            return self._one_at_a_time(folds)
        if self.name in ("precision>", "recall>"):
            return self._guaranteed(folds)
        goal = _GOALS[self.name](self.value)
        cuts = [_best(ranking, folds, goal) if ranking.positives[folds].any() else together for ranking in self.labels]
        return np.array(cuts, dtype=np.float32)

    def _guaranteed(self, folds: list[int]) -> Array:
        """The thresholds that `guarantees` finds; NEVER for a label without any for its precision."""
        rows = np.isin(self.fold, folds)
        cuts = list[np.float32]()
        for scores, targets in zip(self.scores[rows].T, self.targets[rows].T, strict=True):
            known = targets >= 0
            if self.name == "recall>":
                cut: np.float32 | None = guarantees.recall_cut(scores[targets == 1], self.value)
            else:
                cut = guarantees.precision_cut(scores[known], targets[known] == 1, self.value)
            cuts.append(np.float32(NEVER) if cut is None else cut)
        return np.array(cuts, dtype=np.float32)

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
        decided = (self.scores[rows] >= start) & (self.targets[rows] >= 0)
        tp, count = (decided & (self.targets[rows] == 1)).sum(axis=0), decided.sum(axis=0)
        positives = sum(int(ranking.positives[folds].sum()) for ranking in self.labels)
        cuts = [start] * len(self.labels)
        for i, ranking in enumerate(self.labels):
            if ranking.positives[folds].any():
                others = _micro_f1_with(int(tp.sum() - tp[i]), int(count.sum() - count[i]), positives)
                cuts[i] = _best(ranking, folds, others)
        return np.array(cuts, dtype=np.float32)

    def _joint(self, folds: list[int], together: np.float32) -> tuple[Array, float]:
        """The thresholds with the best micro-F1 of all labels together, and that F1.

        By Dinkelbach, On Nonlinear Fractional Programming (1967).

        F1 = 2 TP / (COUNT + P) reaches x if the sum over labels of 2 TP - x COUNT reaches x P. For a given x, the best
        cut-off of each label does not depend on the other labels. The F1 of those cut-offs is the next x. The values
        rise until they no longer change; then no choice of cut-offs has a higher F1.
        """
        labels = [_of_folds(ranking, folds) for ranking in self.labels]
        positives = sum(int(ranking.positives[folds].sum()) for ranking in self.labels)
        if not positives:
            return np.full(len(labels), together, dtype=np.float32), 0.0
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
        cuts = [
            _between(score[pick], lower[pick]) if pick >= 0 else NEVER
            for (score, _, _, lower), pick in zip(labels, picks, strict=True)
        ]
        return np.array(cuts, dtype=np.float32), best


def _f_beta(beta: float) -> Goal:
    square = beta * beta
    return lambda tp, count, positives: np.asarray((1 + square) * tp / (square * positives + count))


def _micro_f1_with(others_tp: int, others_count: int, all_positives: int) -> Goal:
    """Micro-F1 of one label together with others that stay as they are."""
    return lambda tp, count, _: np.asarray(2 * (tp + others_tp) / (count + others_count + all_positives))


# The function of (tp, count, positives) that a policy maximises; -inf for a cut-off that is not allowed.
_GOALS: dict[str, Callable[[float], Goal]] = {
    "f-beta": _f_beta,
    "precision": lambda least: lambda tp, count, _: np.where(tp >= least * count, tp, -np.inf),
    "recall": lambda least: (
        lambda tp, count, positives: np.where(tp >= least * positives, tp / np.maximum(1, count), -np.inf)
    ),
    "cost": lambda cost: lambda tp, count, positives: -(count - tp) - cost * (positives - tp),
}


def _best(ranking: _Ranking, folds: list[int], goal: Goal) -> np.float32:
    """The threshold with the highest goal, the highest of equals; NEVER where giving nothing is better still."""
    cuts = _of_folds(ranking, folds)
    positives = int(ranking.positives[folds].sum())
    if not len(cuts[0]):
        return np.float32(0.5)
    return _cut(cuts, goal(cuts[1], cuts[2], positives), float(goal(np.array([0]), np.array([0]), positives)[0]))


def _cut(cuts: tuple[Array, Array, Array, Array], values: Array, nothing: float) -> np.float32:
    """The threshold of the highest value, the first of equals; NEVER where `nothing` is higher or no value will do."""
    best = int(np.argmax(values))
    if values[best] == -np.inf or nothing > values[best]:
        return np.float32(NEVER)
    return _between(cuts[0][best], cuts[3][best])


def _of_folds(ranking: _Ranking, folds: list[int]) -> tuple[Array, Array, Array, Array]:
    """score, tp, count and lower (C',) of the cut-offs that are just below a positive of these folds."""
    tp = ranking.tp[:, folds].sum(axis=1)
    is_end = np.diff(tp, prepend=0) > 0
    lower = ranking.lower[:, folds].max(axis=1, initial=0)
    return ranking.score[is_end], tp[is_end], ranking.count[:, folds].sum(axis=1)[is_end], lower[is_end]


def _rank(scores: Array, positive: Array, fold: Array) -> _Ranking:
    # Scores are not negative, so their bits sort like the scores. With fold and target in the low bits, one sort is
    # enough.
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
    """Halfway to the next lower score, so that the last bits of a score do not change its decision."""
    midpoint = np.float32((np.float64(upper) + np.float64(lower)) / 2)
    return np.float32(midpoint if lower < midpoint <= upper else upper)


def _micro_f1(counts: Array) -> Array:
    """Micro-F1 (...) of true positives, given and positives of each label, (..., 3, L)."""
    tp, count, positives = np.moveaxis(counts.sum(axis=-1), -1, 0)
    return np.asarray(2 * tp / np.maximum(1, count + positives))
