"""Random numbers and permutations as pure functions of a key and a position: any of them at once, and nothing stored.

A key is a few integers, such as the seed and the epoch. Other processes with the same key get the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROUNDS = 8
_LEAST_BITS = 8  # of a domain that is permuted: with fewer, a network of so few rounds reaches few permutations


def uniform(numbers: Array, *key: int) -> Array:
    """Numbers float64 in [0, 1), one for each of the integers `numbers` of any shape, independent of each other."""
    return (_mixed(numbers.astype(np.uint64) + _words(1, key)[0]) >> np.uint64(11)) * 2.0**-53


def permuted(positions: Array, count: int, *key: int) -> Array:
    """Where a random permutation of 0 to `count` - 1 takes some of these numbers; int64 of the same shape.

    A Feistel network permutes the smallest power of two that is large enough, and is applied again to what it takes
    outside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).
    """
    bits = max(_LEAST_BITS, (count - 1).bit_length())
    words, moved = _words(_ROUNDS, key), positions.astype(np.uint64)
    outside = np.ones(moved.shape, bool)
    while outside.any():
        moved[outside] = _network(moved[outside], bits, words)
        outside &= moved >= count
    return moved.astype(np.int64)


def _network(numbers: Array, bits: int, words: Array) -> Array:
    """A permutation of the numbers below 2**bits, whose halves change each other in turn."""
    low = bits - bits // 2
    right, of_left, of_right = np.uint64(low), *(np.uint64(2**size - 1) for size in (bits // 2, low))
    high, rest = numbers >> right, numbers & of_right
    for number, word in enumerate(words):
        if number % 2:
            rest ^= _mixed(high + word) & of_right
        else:
            high ^= _mixed(rest + word) & of_left
    return (high << right) | rest


def _words(count: int, key: tuple[int, ...]) -> Array:
    return np.random.SeedSequence(key).generate_state(count, np.uint64)


def _mixed(numbers: Array) -> Array:
    """SplitMix64's output function (Steele and others, Fast Splittable Pseudorandom Number Generators, 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
