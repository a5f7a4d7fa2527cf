"""Looks at the labels that were read: do they look like labels?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlic.data.annotations.cells import NO_LABEL
from mlic.data.marks import Annotations
from mlic.errors import DataError

_SEPARATORS = re.compile(r"\s*[,;|/+& ]\s*")
_MISSING = frozenset({"nan", "null", "<na>"})
_AT_ONCE = 1_000_000  # marks
_MANY = 10  # labels; with fewer, one image for each is nothing special


def checked(annotations: Annotations, no_label: Sequence[str] = ()) -> Annotations:
    """The annotations with warnings about labels that look wrong. Raises DataError where they cannot be right."""
    labels = annotations.labels
    for name in labels:
        if name[:1] in ("[", "{", "'", '"') or name[-1:] in ("]", "}"):
            raise DataError(
                f"the label {name!r} of {annotations.source} has brackets or quotes around it.",
                'write lists as ["cat", "dog"] or cat;dog, or name the columns of a vector by --label-names.',
            )
        if name.lower() in _MISSING and annotations.format != "wide table":
            raise DataError(
                f"the label {name!r} of {annotations.source} is a missing value, not a label.",
                f"take it out, or say by --no-label {name} that such images have no label.",
            )
    warnings = [*annotations.warnings]
    warnings += _digits(labels, annotations)
    warnings += _same_but_case(labels)
    warnings += _others_inside(labels)
    warnings += _one_image_each(annotations)
    warnings += _words_for_none(annotations, {word.lower() for word in no_label})
    return replace(annotations, warnings=tuple(warnings))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:3]) + (" ..." if len(names) > 3 else "")


def _digits(labels: Sequence[str], annotations: Annotations) -> list[str]:
    numbers = [name for name in labels if re.fullmatch(r"-?\d+(\.\d+)?", name)]
    if len(numbers) * 2 <= len(labels) or (annotations.format == "wide table" and len(numbers) < len(labels)):
        return []
    return [f"labels are numbers: {_shown(numbers)}; --label-names FILE names them"]


def _same_but_case(labels: Sequence[str]) -> list[str]:
    by_lower = defaultdict[str, list[str]](list)
    for name in labels:
        by_lower[name.lower()].append(name)
    alike = [names for names in by_lower.values() if len(names) > 1]
    if not alike:
        return []
    shown = "; ".join(", ".join(names) for names in alike[:3])
    return [f"{len(alike)} labels differ in upper and lower case alone: {shown}"]


def _others_inside(labels: Sequence[str]) -> list[str]:
    known = set(labels)
    inside = [name for name in labels if len(parts := _SEPARATORS.split(name)) > 1 and set(parts) <= known - {name}]
    if not inside:
        return []
    return [f"labels consist of other labels: {_shown(inside)}; --delimiter separates them"]


def _one_image_each(annotations: Annotations) -> list[str]:
    if len(annotations.labels) < _MANY:
        return []
    counts = np.zeros(len(annotations.labels), np.int64)
    for start in range(0, len(annotations.value), _AT_ONCE):
        piece = slice(start, start + _AT_ONCE)
        positive = annotations.label[piece][annotations.value[piece] == 1]
        counts += np.bincount(positive, minlength=len(counts))
    alone = np.flatnonzero(counts == 1)
    if len(alone) * 2 <= len(annotations.labels):
        return []
    names = [annotations.labels[int(i)] for i in alone]
    return [f"{len(alone):,} of {len(annotations.labels):,} labels have one image each: {_shown(names)}"]


def _words_for_none(annotations: Annotations, said: set[str]) -> list[str]:
    """Warn of labels such as `none` that never stand beside another."""
    if annotations.format == "wide table":
        return []
    found = [i for i, name in enumerate(annotations.labels) if name.lower() in NO_LABEL and name.lower() not in said]
    if not found:
        return []
    positive = annotations.value == 1
    per_image = np.bincount(annotations.image[positive], minlength=len(annotations.names))
    names = [
        annotations.labels[i]
        for i in found
        if (per_image[annotations.image[positive & (annotations.label == i)]] == 1).all()
    ]
    if not names:
        return []
    return [f"{_shown(names)} may mean that an image has no label; --no-label {','.join(names)!r} says so"]
