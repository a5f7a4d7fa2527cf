"""Bootstrap intervals over images, of one measurement or of the difference between two.

Up to BLOCKS images are resampled one by one. With more images, random blocks of equal size are resampled. The variance
of a sum over such blocks is that of a sum over images, and the width of an interval is then right to about
1 / sqrt(2 BLOCKS), 0.5%. Average precision and ROC AUC of more than 2,000 images are resampled in 2,000 blocks, from
scores in 512 bins of equal counts. Those over all labels at once are always computed from 2,048 bins. Binned values are
shifted to the exact value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlic.metrics import metrics, ranking

Array = np.ndarray[Any, Any]
Limits = dict[str, tuple[float, float]]

BLOCKS = 20_000
_SCORE_BLOCKS = 2_000
_BINS, _MICRO_BINS = 512, 2_048
_AT_ONCE = 50  # resamples
_LEVEL = 0.95


def intervals(
    decisions: Array, targets: Array, scores: Array | None, resamples: int, seed: int, ranked: Array | None = None
) -> Limits:
    """The 95% percentile interval of every metric of decisions and, where there are any, of scores (N, L)."""
    return _limits(draws(decisions, targets, scores, resamples, seed, ranked))


def differences(one: Mapping[str, Array], two: Mapping[str, Array]) -> Limits:
    """The 95% interval of the metrics of `one` minus those of `two`, the `draws` of both for the same images and seed.

    Both use the same resamples, so an effect of an image on both cancels out. The interval holds 0 if the two cannot be
    told apart. It is narrower than two separate intervals suggest.
    """
    return _limits({name: one[name] - two[name] for name in one if name in two})


def draws(
    decisions: Array, targets: Array, scores: Array | None, resamples: int, seed: int, ranked: Array | None = None
) -> dict[str, Array]:
    """Every metric of each resample, arrays (R,); the drawn images do not depend on the decisions.

    `ranked` (N, L) are the scores that order samples within a label, where they are not `scores` themselves.
    """
    num_labels = targets.shape[1]
    order, starts = _blocks(len(targets), BLOCKS, seed)
    sums = _block_sums(decisions, targets, scores, order, starts)
    total = np.concatenate([w.astype(np.float64) @ sums for w in _weights(len(starts), resamples, seed)])
    width = 4 * num_labels + metrics.PER_SAMPLE
    drawn = metrics.from_sums(total[:, :width], num_labels)
    if scores is None:
        return drawn
    for i, name in enumerate(ranking.SAMPLE_METRICS):
        drawn[name] = total[:, width + i] / total[:, width - 1]
    return drawn | _area_draws(scores, scores if ranked is None else ranked, targets, resamples, seed)


def _limits(drawn: dict[str, Array]) -> Limits:
    edges = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    limits = {name: np.nanquantile(values, edges) for name, values in drawn.items() if not np.isnan(values).all()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def _blocks(count: int, most: int, seed: int) -> tuple[Array, Array]:
    """An order of the samples, and the position in it where each of at most `most` blocks begins."""
    if count <= most:
        return np.arange(count), np.arange(count)
    return np.random.default_rng([seed, 9]).permutation(count), np.linspace(0, count, most, endpoint=False, dtype=int)


def _block_sums(decisions: Array, targets: Array, scores: Array | None, order: Array, starts: Array) -> Array:
    """The blocks' sums (B, ...) of `metrics.per_sample` and, with scores, of `ranking.per_sample`."""
    ends = np.append(starts[1:], len(order))
    step = max(1, 65_536 * len(starts) // max(1, len(order)))
    parts = []
    for i in range(0, len(starts), step):
        rows = order[starts[i] : ends[min(i + step, len(starts)) - 1]]
        columns = [metrics.per_sample(decisions[rows], targets[rows])]
        if scores is not None:
            columns.append(ranking.per_sample(scores[rows], targets[rows]))
        parts.append(np.add.reduceat(np.concatenate(columns, axis=1), starts[i : i + step] - starts[i], axis=0))
    return np.concatenate(parts)


def _weights(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of `count` images or blocks is drawn, float32 (R, count), for some resamples at a time."""
    rng = np.random.default_rng([seed, 4])
    for start in range(0, resamples, _AT_ONCE):
        picks = rng.integers(0, count, (min(_AT_ONCE, resamples - start), count))
        yield np.stack([np.bincount(row, minlength=count) for row in picks]).astype(np.float32)


def _area_draws(scores: Array, ranked: Array, targets: Array, resamples: int, seed: int) -> dict[str, Array]:
    """`map`, `roc_auc` and both over all labels at once, arrays (R,)."""
    num_samples = len(targets)
    order, starts = _blocks(num_samples, _SCORE_BLOCKS, seed)
    block = np.empty(num_samples, dtype=np.int64)
    block[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, num_samples)))
    weights = np.concatenate(list(_weights(len(starts), resamples, seed)))
    known = targets >= 0
    row, _ = np.nonzero(known)
    micro = _binned(scores[known], targets[known] == 1, block[row], weights, _MICRO_BINS)

    def of_label(i: int) -> tuple[Array, Array]:
        rows = known[:, i]
        return _binned(ranked[rows, i], targets[rows, i] == 1, block[rows], weights, _BINS)

    if num_samples > _SCORE_BLOCKS:
        with ThreadPoolExecutor(ranking.THREADS) as pool:
            by_label = list(pool.map(of_label, range(targets.shape[1])))
    else:
        by_label = _exact(ranked, targets, resamples, seed)
    precision = np.mean([own[0] for own in by_label], axis=0)
    area = np.array([own[1] for own in by_label])
    defined = ~np.isnan(area)
    return {
        "map": precision,
        "map_micro": micro[0],
        "roc_auc": metrics.ratio(np.where(defined, area, 0).sum(axis=0), defined.sum(axis=0))
        + np.where(defined.any(axis=0), 0, np.nan),
        "roc_auc_micro": micro[1],
    }


def _exact(scores: Array, targets: Array, resamples: int, seed: int) -> list[tuple[Array, Array]]:
    """Average precision and ROC AUC (R,) of each label, every image drawn by itself."""
    parts: list[list[tuple[Array, Array]]] = [[] for _ in targets.T]
    ranked = []
    for i in range(targets.shape[1]):
        samples = np.flatnonzero(targets[:, i] >= 0)
        order = samples[np.argsort(scores[samples, i])[::-1]]
        value = scores[order, i]
        last = np.flatnonzero(np.append(value[1:] != value[:-1], True)[: len(value)])
        ranked.append((order, (targets[order, i] == 1).astype(np.float32), last))
    for weights in _weights(len(targets), resamples, seed):
        for part, (order, positive, last) in zip(parts, ranked, strict=True):
            if not len(order):  # no sample of the label is known
                part.append((np.zeros(len(weights)), np.full(len(weights), np.nan)))
                continue
            drawn = weights[:, order]
            count = np.cumsum(drawn, axis=1)[:, last]
            part.append(_areas(np.cumsum(drawn * positive, axis=1)[:, last], count))
    return [tuple(np.concatenate(found) for found in zip(*part, strict=True)) for part in parts]  # type: ignore[misc]


def _binned(scores: Array, positive: Array, block: Array, weights: Array, bins: int) -> tuple[Array, Array]:
    """Average precision and ROC AUC (R,) of scores (N,) in bins; `weights` (R, B) say how often each block is drawn."""
    resamples, blocks = weights.shape
    if not len(scores):
        return np.zeros(resamples), np.full(resamples, np.nan)
    exact = ranking.cuts(scores, positive)
    places = len(scores) - 1 - np.linspace(0, len(scores) - 1, bins + 1).astype(int)
    edges = np.unique(exact.score[np.searchsorted(exact.count, places, side="right")])
    bin_of = len(edges) - np.searchsorted(edges, scores, side="right")  # the highest scores first
    width = len(edges) + 1
    flat = np.bincount((block * width + bin_of) * 2 + positive, minlength=blocks * width * 2)
    histogram = flat.reshape(blocks, width * 2).astype(np.float32)
    parts = [_of_bins(weights[i : i + _AT_ONCE] @ histogram) for i in range(0, resamples, _AT_ONCE)]
    drawn = [np.concatenate(part) for part in zip(*parts, strict=True)]
    overall = _of_bins(histogram.sum(axis=0, dtype=np.float64)[None])
    exactly = (exact.average_precision(), exact.roc_auc())
    precision, area = (value + (now - about) for value, now, about in zip(drawn, exactly, overall, strict=True))
    return precision, area


def _of_bins(drawn: Array) -> tuple[Array, Array]:
    pairs = drawn.reshape(len(drawn), -1, 2).astype(np.float64)
    return _areas(np.cumsum(pairs[:, :, 1], axis=1), np.cumsum(pairs.sum(axis=2), axis=1))


def _areas(tp: Array, count: Array) -> tuple[Array, Array]:
    """Average precision and ROC AUC (R,) from positives and samples (R, C) that reach each cut-off."""
    gained = np.diff(tp, axis=1, prepend=0)
    precision = metrics.ratio((gained * metrics.ratio(tp, count)).sum(axis=1), tp[:, -1])
    fp = (count - tp).astype(np.float64)
    area = (np.diff(fp, axis=1, prepend=0) * (2 * tp - gained)).sum(axis=1) / 2
    pairs = tp[:, -1] * fp[:, -1]
    return precision, np.where(pairs > 0, metrics.ratio(area, pairs), np.nan)
