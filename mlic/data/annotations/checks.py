"""Looks at the labels that were read: do they look like labels?"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlic.data.annotations.cells import NO_LABEL, WORDS
from mlic.data.marks import Annotations
from mlic.errors import DataError

_SEPARATORS = re.compile(r"\s*(?:<br ?/?>|__+|\band\b|[,;|/+& ])\s*")
_SCORED = re.compile(r"(.+?)[\s:=(]+([01]?\.\d+|\d+(\.\d+)? ?%)\)?")
_WORDS = frozenset(word for word in WORDS if word.isalpha())
_ENTITY = re.compile(r"&(amp|quot|lt|gt|apos|#\d+)\b")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?")
_SIGNS = frozenset(string.punctuation + "–—·•")
_BETWEEN = frozenset({"and", "or", "und", "et"})
_NOT_YET = frozenset(
    {"todo", "to do", "tbd", "tba", "pending", "unlabeled", "unlabelled", "not labeled", "not labelled"}
)
_NEGATED = ("no ", "not ", "without ")
_MISSING = frozenset({"nan", "null", "<na>"})
_AT_ONCE = 1_000_000  # marks
_MANY = 10  # labels; with fewer, one image for each is nothing special


def checked(annotations: Annotations, no_label: Sequence[str] = (), are_named: bool = False) -> Annotations:
    """The annotations with warnings about labels that look wrong. Raises DataError where they cannot be right.

    `are_named` says that somebody has named the labels.
    """
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
    _refuse_signs(annotations)
    _refuse_scores(annotations)
    entity = next((match[0] for name in labels if (match := _ENTITY.search(name))), None)
    if entity is not None:
        raise DataError(f"labels of {annotations.source} hold {entity!r}, which is HTML.", "write them as plain text.")
    if not are_named:
        _refuse_answers(annotations)
    warnings = [*annotations.warnings]
    warnings += _digits(labels, annotations)
    warnings += _nearly_the_same(labels)
    warnings += _odd_words(annotations)
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


def _refuse_signs(annotations: Annotations) -> None:
    """Raise DataError for labels without a letter or digit, such as the + of `cat + dog`."""
    signs = [name for name in annotations.labels if set(name) <= _SIGNS and name.lower() not in NO_LABEL]
    if "-" in annotations.labels and _beside_others(annotations, "-"):
        signs.append("-")
    if signs and annotations.format != "wide table":
        raise DataError(
            f"labels of {annotations.source} are signs without a letter: {_shown(signs)}.",
            "say by --delimiter what separates labels, or by --no-label which of them means that there is none.",
        )


def _beside_others(annotations: Annotations, label: str) -> bool:
    """Whether some image has the label and another one."""
    positive = annotations.value == 1
    per_image = np.bincount(annotations.image[positive], minlength=len(annotations.names))
    with_label = annotations.image[positive & (annotations.label == annotations.labels.index(label))]
    return bool((per_image[with_label] > 1).any())


def _refuse_scores(annotations: Annotations) -> None:
    """Raise DataError for labels with scores in them, such as `cat (0.90)`."""
    scored = [name for name in annotations.labels if _SCORED.fullmatch(name)]
    if len(scored) * 2 > len(annotations.labels) and annotations.format != "wide table":
        raise DataError(
            f"labels of {annotations.source} have scores in them: {_shown(scored)}.",
            'write a column of scores beside that of the labels, or JSON Lines with {"label": ..., "score": ...}, and '
            "give --positive-from.",
        )


def _refuse_answers(annotations: Annotations) -> None:
    """Raise DataError for labels that are all words such as yes and no."""
    words = {name.lower() for name in annotations.labels}
    if annotations.format != "wide table" and not annotations.by_label and words <= _WORDS and words:
        raise DataError(
            f"the labels of {annotations.source} are answers: {_shown(annotations.labels)}.",
            "give each label a column of its own, named after it, with yes and no; if these words are the labels, "
            f"--label-names {','.join(annotations.labels)} says so.",
        )


def _nearly_the_same(labels: Sequence[str]) -> list[str]:
    by_letters = defaultdict[str, list[str]](list)
    for name in labels:
        by_letters[" ".join(re.findall(r"[^\W_]+", name.lower())) or name].append(name)
    alike = [names for names in by_letters.values() if len(names) > 1]
    if not alike:
        return []
    is_case = all(len({name.lower() for name in names}) == 1 for names in alike)
    what = "upper and lower case" if is_case else "case, signs and spaces"
    shown = "; ".join(", ".join(names) for names in alike[:3])
    return [f"{len(alike)} labels differ in {what} alone: {shown}"]


def _odd_words(annotations: Annotations) -> list[str]:
    """Warn of labels that are words between labels, say that an image is not annotated, or negate another label."""
    if annotations.format == "wide table":
        return []
    labels = annotations.labels
    known, warnings = {name.lower() for name in labels}, list[str]()
    if len(answers := [name for name in labels if name.lower() in _WORDS]) > 1:
        warnings.append(f"{_shown(answers)} may be answers to a question, and no labels")
    if between := [name for name in labels if name.lower() in _BETWEEN and _beside_others(annotations, name)]:
        warnings.append(f"{_shown(between)} may stand between labels; --delimiter {between[0]!r} separates them")
    if dates := [name for name in labels if _DATE.fullmatch(name)]:
        warnings.append(f"{_shown(dates)} are dates, and hardly labels; a spreadsheet may have made them of other text")
    if not_yet := [name for name in labels if name.lower() in _NOT_YET]:
        warnings.append(f"{_shown(not_yet)} may mean that an image is not annotated; delete these rows")
    negated = [
        name
        for name in labels
        for word in _NEGATED
        if name.lower().startswith(word) and name.lower().removeprefix(word).strip() in known
    ]
    if negated:
        warnings.append(f"{_shown(negated)} may say that a label is absent; delete these words, or give 0 for them")
    return warnings


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
