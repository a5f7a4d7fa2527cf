"""Looks at the labels that were read: do they look like labels?"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlic.data.annotations.cells import NO_LABEL, WORDS
from mlic.data.image_labels import Annotations
from mlic.errors import DataError

_SEPARATORS = re.compile(r"\s*(?:<br ?/?>|__+|\band\b|[-,;|/+& #、，；｜・·~^\\:])\s*")
_RARE = re.compile(
    r"\w\s?([#、，；｜・·~^\\])\s?\w"
)  # between letters these separate labels, and hardly ever belong to one
_ANSWERED = re.compile(r"(.+?)\s*[:=(]\s*(yes|no|true|false|0|1|present|absent)\)?", re.IGNORECASE)
_QUALIFIED = re.compile(
    r"(?:\d+\s?x?\s+)?(.+?)(?:\s*\((?:\?|uncertain|unsure|maybe|probable|probably|possible)\)|\s*\?|\s+x\s?\d+)?"
)
_SCORED = re.compile(r"(.+?)[\s:=(]+([01]?\.\d+|\d+(\.\d+)? ?%)\)?")
_WORDS = frozenset(word for word in WORDS if word.isalpha()) | {"ok", "nok", "pass", "fail", "passed", "failed"}
_ENDING = re.compile(r"(.+?)((?:[ _.-]+\(?[^ _.-]+\)?)|\d+)")  # of a column about a label: _pred, .1, (Anna), 2
_READER = re.compile(r" ?\(.*\)|[ _.-]?(\w?\d+|\w|(reader|rater|annotator|expert|obs|round|pass)_?\w*)", re.IGNORECASE)
_ENTITY = re.compile(r"&(amp|quot|lt|gt|apos|#\d+)\b")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?")
_SIGNS = frozenset(string.punctuation + "–—·•")
_BETWEEN = frozenset({"and", "or", "und", "et"})
_NOT_YET = frozenset(
    {"todo", "to do", "tbd", "tba", "pending", "unlabeled", "unlabelled", "not labeled", "not labelled"}
    | {
        "untagged",
        "unclassified",
        "unannotated",
        "not annotated",
        "skip",
        "skipped",
        "bad image",
        "delete",
        "undefined",
    }
    | {"unknown", "uncertain", "unsure", "not sure", "i am not sure", "i don't know", "not determined", "nd", "n.d."}
    | {
        "unclear",
        "see above",
        "same as above",
        "ditto",
        "idem",
        "not visible",
        "ungradable",
        "ungradeable",
        "cannot tell",
    }
    | {
        "can't tell",
        "missing",
        "void",
        "invalid",
        "rejected",
        "unassigned",
        "not assessed",
        "not assessable",
        "no annotation",
    }
    | {
        "delete me",
        "duplicate",
        "ignore",
        "exclude",
        "corrupt",
        "unreadable",
        "in progress",
        "later",
        "tbc",
        "error",
        "done",
    }
    | {"unbekannt", "inconnu", "desconocido", "n.v.", "maybe", "to check", "check", "blurred", "ohne"}
    | {"#n/a", "#ref!", "#value!", "#name?", "nat", "n.a.", "n.a", "not applicable", "\\n", "-99", "-999"}
)
_NEGATED = re.compile(
    r"(?:(?:no|not|non|without|keine?|nicht|sans|pas de|sin|ohne|absence of|negative for|no evidence of"
    r"|possible|probable|suspected|free of|r/o|rule out|absent:|deleted:?|excluded:?)[ _-]+|[¬!~]|deleted:|absent:)"
    r"(.+)|(.+?)[ _-]+(?:absent|negative|neg|no|not present|ruled out|excluded|deleted)"
)
_ABSENT = re.compile(r"(.+?)(?:\s*[:=]\s*|\s*\()(?:no|false|0|absent|negative|neg|not present|ruled out|removed)\)?")
_MISSING = frozenset({"nan", "null", "<na>"})
_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval", "holdout"}
)
_AT_ONCE = 1_000_000  # marks
_MANY = 10  # labels; with fewer, one image for each is nothing special


def checked(annotations: Annotations, no_label: Sequence[str] = (), are_named: bool = False) -> Annotations:
    """The annotations with warnings about labels that look wrong. Raises DataError where they cannot be right.

    `are_named` says that somebody has named the labels.
    """
    labels = annotations.labels
    for name in labels:
        is_of_form = annotations.format == "wide table" and re.fullmatch(r"[^\[\]]+ ?\[[^\[\]]+\]", name)
        if (name[:1] in ("[", "{", "'", '"') or name[-1:] in ("]", "}")) and not is_of_form:
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
    _refuse_scores(annotations, are_named)
    entity = next((match[0] for name in labels if (match := _ENTITY.search(name))), None)
    if entity is not None:
        raise DataError(f"labels of {annotations.source} hold {entity!r}, which is HTML.", "write them as plain text.")
    if not are_named:
        _refuse_answers(annotations)
        _refuse_splits(annotations)
    warnings = [*annotations.warnings]
    warnings += _digits(labels, annotations)
    warnings += _nearly_the_same(labels)
    warnings += _odd_words(annotations)
    warnings += _others_inside(labels)
    warnings += _of_several(annotations)
    warnings += _of_readers(annotations)
    warnings += _garbled(annotations)
    warnings += _one_image_each(annotations)
    warnings += _words_for_none(annotations, {word.lower() for word in no_label})
    return replace(annotations, warnings=tuple(warnings))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:3]) + (" ..." if len(names) > 3 else "")


def _digits(labels: Sequence[str], annotations: Annotations) -> list[str]:
    numbers = [name for name in labels if re.fullmatch(r"-?\d+(\.\d+)?([ ,;]+-?\d+(\.\d+)?)* ?%?", name)]
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


def _refuse_scores(annotations: Annotations, are_named: bool) -> None:
    """Raise DataError for labels with scores or answers in them, such as `cat (0.90)` or `cat: no`."""
    answered = [name for name in annotations.labels if _ANSWERED.fullmatch(name)]
    if len(answered) * 2 > len(annotations.labels) and annotations.format != "wide table":
        raise DataError(
            f"labels of {annotations.source} have answers in them: {_shown(answered)}.",
            'write a column for each label with yes and no, or JSON Lines with {"labels": {"cat": 1, "dog": 0}}.',
        )
    known = {name.lower() for name in annotations.labels}
    absent = [name for name in annotations.labels if (m := _ABSENT.fullmatch(name.lower())) and m[1] in known]
    if absent and annotations.format != "wide table" and not are_named:
        raise DataError(
            f"labels of {annotations.source} say that another label is absent: {_shown(absent)}.",
            "delete them, or write a column for each label with yes and no; if they are labels, name all labels by "
            "--label-names.",
        )
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


def _refuse_splits(annotations: Annotations) -> None:
    """Raise DataError for labels that are all names of splits."""
    names = {name.lower() for name in annotations.labels}
    if len(names) > 1 and names <= _SPLITS:
        raise DataError(
            f"the labels of {annotations.source} are names of splits: {_shown(annotations.labels)}.",
            "give the file as --split-files, and another one with the labels; if these words are the labels, "
            f"--label-names {','.join(annotations.labels)} says so.",
        )


def _nearly_the_same(labels: Sequence[str]) -> list[str]:
    by_letters = defaultdict[str, list[str]](list)
    for name in labels:
        letters = unicodedata.normalize("NFKC", name).lower()
        by_letters[" ".join(re.findall(r"[^\W_]+", letters)) or name].append(name)
    alike = [names for names in by_letters.values() if len(names) > 1]
    plural = [name for name in labels if len(name) > 2 and f"{name}s" in labels]
    if not alike:
        return [f"{_shown([plural[0], plural[0] + 's'])} may be one label"] if plural else []
    is_case = all(len({name.lower() for name in names}) == 1 for names in alike)
    what = "upper and lower case" if is_case else "case, signs and spaces"
    shown = "; ".join(", ".join(names) for names in alike[:3])
    return [f"labels differ in {what} alone: {shown}"]


def _odd_words(annotations: Annotations) -> list[str]:
    """Warn of labels that are words between labels, say that an image is not annotated, or negate another label."""
    labels = annotations.labels
    known, warnings = {name.lower() for name in labels}, list[str]()
    if not_yet := [name for name in labels if name.lower() in _NOT_YET]:
        warnings.append(
            f"{_shown(not_yet)} may mean that an image is not annotated; delete these rows, or say by --no-label "
            f"{not_yet[0]!r} that there is no label"
        )
    if annotations.format == "wide table":
        return warnings
    if len(answers := [name for name in labels if name.lower() in _WORDS]) > 1:
        warnings.append(f"{_shown(answers)} may be answers to a question, and no labels")
    if between := [name for name in labels if name.lower() in _BETWEEN and _beside_others(annotations, name)]:
        warnings.append(f"{_shown(between)} may stand between labels; --delimiter {between[0]!r} separates them")
    if dates := [name for name in labels if _DATE.fullmatch(name)]:
        warnings.append(f"{_shown(dates)} are dates, and hardly labels; a spreadsheet may have made them of other text")
    qualified = [
        name for name in labels if (m := _QUALIFIED.fullmatch(name)) and m[1] != name and m[1].lower() in known
    ]
    if qualified:
        warnings.append(f"{_shown(qualified)} may be another label with a count or a doubt; write these apart")
    negated = [name for name in labels if (m := _NEGATED.fullmatch(name.lower())) and (m[1] or m[2]).strip() in known]
    if negated:
        warnings.append(
            f"{_shown(negated)} may say that a label is absent or in doubt; delete these words, or give 0 for them"
        )
    return warnings


def _others_inside(labels: Sequence[str]) -> list[str]:
    known = set(labels)
    inside = [name for name in labels if len(parts := _SEPARATORS.split(name)) > 1 and set(parts) <= known - {name}]
    if not inside:
        return []
    return [f"labels consist of other labels: {_shown(inside)}; --delimiter separates them"]


def _of_several(annotations: Annotations) -> list[str]:
    """Warn of labels that several labels may have been written as."""
    if annotations.format == "wide table":
        return []
    labels, warnings = annotations.labels, list[str]()
    rare = [(name, match[1]) for name in labels if (match := _RARE.search(name))]
    if rare:
        warnings.append(
            f"{_shown([name for name, _ in rare])} may be several labels; --delimiter {rare[0][1]!r} separates them"
        )
    warnings += _sharing_words(annotations)
    sentences = [name for name in labels if len(name.split()) > 4]
    if len(sentences) * 3 > len(labels):
        warnings.append(f"{_shown(sentences)} look like sentences, not like labels")
    cut = [name for name in labels if name.count("(") != name.count(")")]
    if cut:
        warnings.append(f"{_shown(cut)} have half of a pair of brackets, so a label may have been cut in two")
    return warnings


def _of_readers(annotations: Annotations) -> list[str]:
    """Warn of columns such as cat_A, cat_B, dog_A, dog_B, of several readers, or cat, cat_pred, dog, dog_pred."""
    if annotations.format != "wide table":
        return []
    endings, labels = defaultdict[str, set[str]](set), set(annotations.labels)
    for name in annotations.labels:
        match = _ENDING.fullmatch(name)
        endings[match[1] if match else name].add(match[2] if match else "")
    beside = Counter(ending for stem, found in endings.items() if stem in labels for ending in found if ending)
    common = [ending for ending, count in beside.items() if count > 1]
    if common:
        names = [f"{stem}{ending}" for stem, found in endings.items() for ending in found & {*common} if stem in labels]
        return [
            f"{_shown(sorted(names))} may say something about the labels before them; --ignore-columns leaves them out"
        ]
    kinds = next(iter(endings.values()))
    is_same = len(endings) > 1 and len(kinds) > 1 and all(other == kinds for other in endings.values())
    if not is_same or not all(_READER.fullmatch(kind) for kind in kinds):
        return []
    shown = ", ".join(sorted(kind.strip(" _.()") for kind in kinds)[:3])
    return [
        f"the columns are {len(endings)} labels with the endings {shown}, as of several readers: each is a label now"
    ]


def _sharing_words(annotations: Annotations) -> list[str]:
    """Warn of labels whose parts come again in others, such as `clear primary` and `haze primary`."""
    labels = annotations.labels
    for sign, named in () if annotations.tool else ((" ", "space"), ("-", "-"), ("+", "+"), ("/", "/"), (":", ":")):
        parts = {name: [part.strip() for part in name.split(sign)] for name in labels if sign in name.strip(sign)}
        counts = Counter(part for found in parts.values() for part in set(found))
        shared = [part for part, count in counts.items() if count > 1]
        is_most = len(parts) > 2 and len(parts) * 2 >= len(labels)
        if is_most and shared and (sign == " " or len(shared) * 3 >= len(counts) * 2):
            names = [name for name in parts if set(parts[name]) & set(shared)]
            return [f"{_shown(names)} share parts ({shared[0]!r}); --delimiter {named} makes labels of the parts"]
    return []


def _garbled(annotations: Annotations) -> list[str]:
    """Warn of labels that were read in another encoding than they were written in."""
    odd = [name for name in annotations.labels if not name.isascii()]
    twice = [name for name in odd if _decodes_again(name)]
    if twice:
        return [f"{_shown(twice)} look like UTF-8 that was read as Windows-1252; save the file anew as UTF-8"]
    if odd and any("Windows-1252" in note for note in annotations.notes):
        return [
            f"the file is not UTF-8 and was read as Windows-1252, with labels such as {_shown(odd)}; if they look "
            "wrong, save it as UTF-8"
        ]
    return []


def _decodes_again(name: str) -> bool:
    try:
        return name.encode("cp1252").decode("utf-8") != name
    except ValueError:
        return False


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
    pairs = np.unique(np.stack([annotations.image[positive], annotations.label[positive]]), axis=1)
    per_image = np.bincount(pairs[0], minlength=len(annotations.names))  # of several rows each label once
    names = [
        annotations.labels[i]
        for i in found
        if (per_image[annotations.image[positive & (annotations.label == i)]] == 1).all()
    ]
    if not names:
        return []
    return [f"{_shown(names)} may mean that an image has no label; --no-label {','.join(names)!r} says so"]
