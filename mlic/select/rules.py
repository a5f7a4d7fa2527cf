"""Rules that choose images to label, from a model's scores and features."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_CANDIDATES = 10  # times as many images as are chosen are looked at for diversity


def closeness(scores: Array, thresholds: Array) -> Array:
    """How near scores (N, L) are to thresholds (L,): 1 at the threshold, 0 at a score of 0 or 1."""
    room = np.where(scores >= thresholds, 1 - thresholds, thresholds)
    near: Array = np.clip(1 - np.abs(scores - thresholds) / np.maximum(room, 1e-6), 0, 1)
    return near


def uncertainty(scores: Array, thresholds: Array, weights: Array) -> Array:
    """The uncertainty (N,) of images: squared closeness, summed over labels by weights (L,)."""
    return (closeness(scores, thresholds) ** 2) @ weights


def rarity(positives: Array) -> Array:
    """Weights (L,) with mean 1 that fall with the root of how often a label is positive."""
    weights: Array = 1 / np.sqrt(np.maximum(positives, 1))
    return np.asarray(weights / weights.mean())


def best(values: Array, count: int) -> Array:
    """The numbers of the images with the largest values, the largest first; of equal ones the earlier."""
    return np.argsort(-values, kind="stable")[:count]


def spread(values: Array, features: Array, count: int, duplicates: float) -> Array:
    """Choose images greedily: the next one has the largest value times its distance to the nearest chosen one.

    `features` (N, F) are standardised and compared by cosine; the distance is 1 minus it. An image within `duplicates`
    of a chosen one is left out. With equal values this is farthest-first traversal (Sener and Savarese, ICLR 2018, as
    k-center greedy).
    """
    candidates = best(values, max(_CANDIDATES * count, 500))
    unit = features[candidates].astype(np.float32)
    # What all images share says nothing: behind a ReLU, raw features of any two images have a cosine near 1.
    unit = (unit - unit.mean(axis=0)) / np.maximum(unit.std(axis=0), 1e-6)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    distance = np.full(len(candidates), 2.0)
    worth, chosen = values[candidates] + 1e-9, list[int]()
    for _ in range(min(count, len(candidates))):
        gain = np.where(distance > 1 - duplicates, worth * distance, -1)
        pick = int(np.argmax(gain))
        if gain[pick] < 0:
            break
        chosen.append(pick)
        distance = np.minimum(distance, 1 - unit @ unit[pick])
        distance[pick] = 0
    return candidates[chosen]
