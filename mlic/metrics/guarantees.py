"""Thresholds whose recall or precision on new images is at least a number, with 95% confidence for each label.

They assume that the images they are fitted on are drawn as new ones are, and nothing about scores or the model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_CANDIDATES = 20  # numbers of samples that a threshold for precision may give
_FEWEST = 10  # samples of the smallest candidate
Array = np.ndarray[Any, Any]


def recall_cut(positives: Array, least: float) -> np.float32:
    """The highest threshold for the scores (P,) of a label's positives whose recall is `least` or more.

    The true share of positives below the (m + 1)-th lowest of P scores has the distribution Beta(m + 1, P - m), or less
    where scores are equal (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, 1941). If there are too
    few positives for any, the threshold is 0: the label is always given.
    """
    from scipy import stats

    missed = np.arange(len(positives))
    allowed = stats.beta.cdf(1 - least, missed + 1, len(positives) - missed) >= CONFIDENCE
    if not allowed.any():
        return np.float32(0)
    return np.float32(np.sort(positives)[np.flatnonzero(allowed)[-1]])


def needed(least: float) -> int:
    """The fewest positives that can show a recall of `least` or more: all of them are found by chance too rarely."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(least))


def precision_cut(scores: Array, is_positive: Array, least: float) -> np.float32 | None:
    """The lowest of a few thresholds for scores (N,) of a label whose precision is `least` or more; None if none is.

    A threshold is the c-th highest score, for up to 20 numbers c that do not depend on the labels. The c - 1 samples
    above it are tested (Clopper and Pearson, 1934), with Bonferroni's correction for the number of thresholds: one
    that is tested and kept is right with this confidence, whichever it is (Angelopoulos et al., Learn then Test, 2021).
    """
    from scipy import stats

    count = len(scores)
    if count <= _FEWEST:
        return None
    given = np.unique(np.geomspace(_FEWEST, count - 1, _CANDIDATES).astype(int))
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Only whole groups of equal scores can be given: samples with a score above that of the next one.
    given = np.unique(np.searchsorted(-ranked, -ranked[given], side="left"))
    given = given[given > 0]
    right = np.cumsum(is_positive[order])[given - 1]
    lowest = np.where(right > 0, stats.beta.ppf((1 - CONFIDENCE) / _CANDIDATES, right, given - right + 1), 0.0)
    kept = np.flatnonzero(lowest >= least)
    if not len(kept):
        return None
    return np.float32(
        np.nextafter(ranked[given[kept[-1]]], np.float32(2))
    )  # the test is of all scores above this sample's
