"""Columns beside the labels of a table: do they say that some of the labels do not count, or hold labels too?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mlic.data.annotations.cells import is_vector, kind_of, number_of
from mlic.data.annotations.column_names import (
    READER_COLUMNS,
    REMARKS,
    SPLITS,
    is_about_annotation,
    is_flag,
    is_measure_name,
    plain_name,
)
from mlic.data.annotations.columns import Plan
from mlic.data.annotations.files.table_files import Table
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile
from mlic.errors import DataError

# Words of people who check labels; a column that holds nothing else says which rows count.
_STATES = re.compile(
    r"accept(ed)?|reject(ed)?|approved|declined|(not_)?ok(ay)?|wrong|right|good|bad|(in)?correct|to_?do|pending|done|open"
    r"|in_progress|draft|skip(ped)?|(in)?completed?|new|(not_)?(reviewed|started)|deleted|active|add(ed)?|removed?|keep"
    r"|(un)?(sure|certain|likely|confirmed)|maybe|probable|possible|pass(ed)?|fail(ed)?|(in)?valid|submitted|resolved"
    r"|(not_)?(found|detected|present|seen)|absent|positive|negative|negated?|ruled_out|hypothetical|definite|doubtful"
    r"|human|model|machine|manual|auto(matic)?|predict(ed|ion)|ground_truth|gold|noisy|historical|struck_out"
)
_DELETED = re.compile(r"(deleted|removed|rejected|cancelled)_(at|on|by|date)")
# What says by its truth that a label does not count; the others that `is_about_annotation` knows say so if false.
_AGAINST = re.compile(
    r"(^|_)(delete|reject|ignore|skip|exclude|uncertain|unsure|remove|duplicate|need|to_check|cancel|flag|negat|absent"
    r"|drop|error|corrupt|unreadable|bad_quality|holdout|synthetic|doubtful|not_assessable|blank)|^(is_?)?neg$|^isnegat|^not$"
)
# What says by its truth that a label does.
_FOR = re.compile(
    r"(is_)?(present|found|detected|seen|positive|confirmed|certain|sure|agreed?|truth|answer|choice|enabled)"
)
_DOUBTS = re.compile(
    r"reject(ed)?|declined|not_.*|wrong|bad|incorrect|to_?do|pending|draft|open|in_progress|skip(ped)?|incomplete|deleted?"
    r"|removed?|un(sure|certain|likely|confirmed)|maybe|probable|possible|failed|invalid|negat(ive|ed)|absent|ruled_out"
    r"|hypothetical|doubtful|disagree(d)?|false_positive"
)
_WEAK = re.compile(r"(very_)?(low|weak|medium|moderate|unlikely|doubtful)|guess(ed)?|0")
_BY = re.compile(r"source|origin|(created|annotated|labell?ed)_by|creator|author|annotator(_type)?|method")
_MACHINES = re.compile(r"auto(matic)?|model|machine|predict(ed|ion)|ai|inference|pre_?annotation|bot")
_LEVELS = re.compile(
    r"(very_)?(high|low|medium|mild|moderate|severe|strong|weak|(un)?likely|(un|not_)?sure|(un)?certain|good|fair|poor|none)"
)
_DATES = frozenset({"date", "timestamp", "created_at", "updated_at"})
_NUMBERS_OF_LABELS = re.compile(r"(class|category|label|target)_?(id|index|idx|no|num|number|code)")
_COUNTS = re.compile(r"(^|_)(n|count|counts|number|num|amount|quantity)(_|$)")
_LIKE_LABELS = re.compile(
    r"label|tag|category|categories|class|species|genus|family|finding|diagnos|attribute|keyword|object"
)
_PARTS = re.compile(r"\s*[;|,/]\s*")
_VALUES = frozenset({"value", "values", "present", "is_present", "answer", "response", "attribute_value"})
_FEW = 12  # different cells of a column that may say which rows count
_GEOMETRY = re.compile(
    r"(image_|img_|box_|bbox_)?(width|height|depth|w|h|x|y|area|size|resolution|orientation)(_?(min|max|\d))?"
)
# What an image is of, or lies in: rows that differ here are about different images.
_OWNERS = re.compile(
    r"(patient|subject|study|case|participant|series|visit|slide|site|hospital|camera|video|clip|sequence|folder|dir"
    r"|directory)(_?(id|no|nr|num|number|name|key|uid|instance_uid))?"
)
_OVERLAP = 0.5  # of the different words of a column that are labels


def check_other_columns(
    table: Table, profiles: Sequence[Profile], plan: Plan, options: LabelOptions, labels: Sequence[str], is_long: bool
) -> list[str]:
    """Warnings about columns that are left out; with `is_long` each row has one label, so a row may not count.

    Raises DataError for a column that contradicts the labels in all likelihood. `--ignore-columns` says that it does
    not.
    """
    warnings = list[str]()
    if plan.tool:
        return warnings
    _refuse_two_owners(table, profiles, plan, options)
    used = ", ".join(table.columns[i] or f"column {i + 1}" for i in plan.labels[:3])
    for i in plan.others:
        profile, name = profiles[i], plain_name(profiles[i].name)
        is_remark = name in REMARKS and not _are_states(_words(profile)) and not (is_long and name in _DATES)
        if not profile.filled or is_remark or name in READER_COLUMNS | SPLITS or _NUMBERS_OF_LABELS.fullmatch(name):
            continue
        _refuse_denials(table, profile, name, plan)
        _refuse_values(table, profile, options, labels)
        what = _says(profile, name, plan, is_long)
        if what and is_long:
            raise DataError(
                f"{table.file}: the column {profile.name!r} {what}, and each row counts as a label of its image.",
                f"call it `value` if it says whether, or how surely, the label is there; else leave it out by "
                f"--ignore-columns {profile.name}.",
            )
        if what:
            warnings.append(
                f"the column {profile.name!r} {what} and is left out: all rows count alike; --ignore-columns "
                f"{profile.name} says that this is right"
            )
        elif is_long and _differs(profile, name) and profile.name not in options.ignore_columns:
            warnings.append(
                f"the column {profile.name!r} ({_examples(profile)}) is left out: all rows count alike; call it "
                f"`value` if it says whether a label is there, or --ignore-columns {profile.name} says this is right"
            )
        elif plan.layout == "listed" and options.label_column is None:
            warnings += _as_labels(table, profile, name, set(labels), used)
    return warnings


def _words(profile: Profile) -> set[str]:
    """The different cells of a column as plain words, without blank ones; none if there are very many."""
    return {plain_name(str(cell)) or str(cell).strip() for cell in profile.distinct or ()} - {""}


def _are_states(words: Collection[str]) -> bool:
    """Whether words say which rows count, and nothing else."""
    return bool(words) and all(_STATES.fullmatch(word) or kind_of(word) == "word" for word in words)


def _refuse_two_owners(table: Table, profiles: Sequence[Profile], plan: Plan, options: LabelOptions) -> None:
    """Raise DataError if a name occurs in rows of two patients, studies or cameras: it would be two images."""
    owners = [i for i in plan.others if _OWNERS.fullmatch(plain_name(profiles[i].name))]
    owners = [i for i in owners if profiles[i].filled and profiles[i].name not in options.ignore_columns]
    seen = [dict[tuple[Any, ...], str]() for _ in owners]
    for block in table.blocks() if owners else ():
        names = list(zip(*(block.columns[i] for i in (*plan.folders, *plan.image)), strict=True))
        for i, of_name in zip(owners, seen, strict=True):
            for name, cell in zip(names, map(str, block.columns[i]), strict=True):
                other = of_name.setdefault(name, cell)
                if other != cell and other.strip() and cell.strip():
                    column = profiles[i].name
                    raise DataError(
                        f"{table.file}: {name[-1]!r} is in rows of two values of {column!r}, {other} and {cell}, "
                        "so it may name two images.",
                        f"write names with their folders, {cell}/{name[-1]}; --ignore-columns {column} says that it "
                        "is one image.",
                    )


def _refuse_denials(table: Table, profile: Profile, name: str, plan: Plan) -> None:
    """Raise DataError for a column that says of all rows that they do not count, or of each label yes and no."""
    if plan.layout != "listed":
        return
    words = _words(profile)
    is_against = _AGAINST.search(name) is not None
    is_denied = bool(words) and all(
        _DOUBTS.fullmatch(word) or (is_against and kind_of(word) == "word" and number_of(word) == 1) for word in words
    )
    if is_denied and profile.filled == profile.rows:
        raise DataError(
            f"{table.file}: the column {profile.name!r} says {min(words)!r} of all rows, which would count.",
            f"leave out the rows that do not count; --ignore-columns {profile.name} says that they do.",
        )
    lists = [cell for cell in profile.sample if isinstance(cell, list | tuple)]
    if lists and len(lists) == len(profile.sample) and all(map(is_vector, lists)):
        raise DataError(
            f"{table.file}: the column {profile.name!r} holds lists of yes and no, such as {str(lists[0])[:40]}, "
            "beside the labels.",
            f'write an object of them, as {{"cat": 1, "dog": 0}}; --ignore-columns {profile.name} leaves them out.',
        )


def _refuse_values(table: Table, profile: Profile, options: LabelOptions, labels: Sequence[str]) -> None:
    """Raise DataError for a column called like values of labels whose cells say neither yes nor no."""
    cells = [cell for cell in profile.sample if kind_of(cell) in ("text", "number")]
    if plain_name(profile.name) not in _VALUES or not cells or options.label_column is not None:
        return
    cell = cells[0]
    if kind_of(cell) == "number":
        raise DataError(
            f"{table.file}: the column {profile.name!r} holds numbers such as {cell}.",
            "say by --positive-from from which one a label is positive; "
            f"--ignore-columns {profile.name} says that all rows count.",
        )
    if str(cell).strip() in labels:
        return
    raise DataError(
        f"{table.file}: the column {profile.name!r} holds {str(cell)[:40]!r}, which is neither yes, no nor unknown.",
        f"if these words are the labels, give --label-column {profile.name}; if they say whether a label is there, "
        f"write 1, 0 or nan; else --ignore-columns {profile.name} leaves them out.",
    )


def _differs(profile: Profile, name: str) -> bool:
    """Whether rows fall into a few kinds by a column, such as votes up and down, so that some may not count."""
    if profile.distinct is None or _GEOMETRY.fullmatch(name) or name.startswith(("x", "y")):
        return False
    return 2 <= len(profile.distinct) <= _FEW


def _examples(profile: Profile) -> str:
    words = sorted({str(cell).strip() or "blank" for cell in profile.distinct or ()})
    return ", ".join(words[:3]) + (", ..." if len(words) > 3 else "")


def _says(profile: Profile, name: str, plan: Plan, is_long: bool) -> str:
    """What the cells of a column say about the labels of their rows, in words; nothing if they say nothing."""
    if _DELETED.fullmatch(name):
        return "says which rows were deleted"
    if profile.distinct is None:
        return f"may say how sure a label is ({profile.example})" if _is_measure(profile, name) else ""
    words, has_blanks = _words(profile), profile.filled < profile.rows
    if (len(words) > 1 or has_blanks) and words and all(_STATES.fullmatch(word) for word in words):
        shown = sorted(words)[:2] if len(words) > 1 else [*words, "nothing"]
        return f"holds states of rows such as {' and '.join(shown)}"
    if is_measure_name(name) and words and all(_LEVELS.fullmatch(word) for word in words):
        return f"may say how sure a label is ({', '.join(sorted(words)[:3])})"
    kinds = {kind_of(cell) for cell in profile.distinct} - {"blank", "missing"}
    values = {number_of(cell) for cell in profile.distinct if kind_of(cell) == "word"}
    is_about = is_about_annotation(name) or _AGAINST.search(name) is not None or _FOR.fullmatch(name) is not None
    if kinds == {"word"} and (values >= {0, 1} or has_blanks) and (is_about or (is_long and plan.layout == "listed")):
        return "says yes and no"
    if _is_measure(profile, name) and (len(profile.distinct) > 1 or profile.kinds["list"]):
        return f"may say how sure a label is ({profile.example})"
    if plan.layout == "listed" and _COUNTS.search(name) and 0 in values:
        return "counts something, and is 0 in some rows"
    return ""


def _is_measure(profile: Profile, name: str) -> bool:
    numbers = profile.kinds["number"] + profile.kinds["fraction"] + profile.kinds["word"]
    return is_measure_name(name) and (numbers == profile.filled or all(map(_are_numbers, profile.sample)))


def _are_numbers(cell: Any) -> bool:
    """Whether a cell is a number, or a list of them."""
    parts = cell if isinstance(cell, list | tuple) else _PARTS.split(str(cell).strip().strip("[]"))
    return all(kind_of(part) in ("word", "number", "fraction") for part in parts)


def _as_labels(table: Table, profile: Profile, name: str, labels: set[str], used: str) -> list[str]:
    """A warning if a column is called like one of labels. Raises DataError if it holds the same labels."""
    texts = {text for cell in profile.sample for text in _texts(cell)}
    if not texts:
        return []
    if len(texts & labels) >= _OVERLAP * len(texts):
        raise DataError(
            f"{table.file}: the columns {used!r} and {profile.name!r} may both hold labels ({min(texts & labels)!r}).",
            f"say by --label-column which one does, or leave the other out by --ignore-columns {profile.name}.",
        )
    if _LIKE_LABELS.search(name):
        return [
            f"the column {profile.name!r} ({profile.example!r}) may hold labels too and is left out; --label-column "
            "says which one does"
        ]
    return []


def _texts(cell: Any) -> Iterator[str]:
    """The words in a cell that may be labels."""
    if isinstance(cell, list | tuple):
        for item in cell:
            yield from _texts(item)
    elif isinstance(cell, str) and kind_of(cell) == "text":
        yield from {cell.strip(), *_PARTS.split(cell.strip())}


def check_beside(item: Mapping[Any, Any], where: str, known: Collection[str]) -> None:
    """Raise DataError if an object with a label says that it may not count, as `{"name": "cat", "verified": false}`.

    Objects and lists of words within it are looked at too. `known` are keys that say something else.
    """
    for key, value in item.items():
        name = plain_name(str(key))
        if name in known or key in known or value is None:
            continue
        if isinstance(value, dict):
            check_beside(value, where, known)
            continue
        words = [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
        if any(_DOUBTS.fullmatch(plain_name(word)) for word in words) if words else _is_doubt(name, value):
            raise DataError(
                f"{where}: {str(item)[:60]} has {key!r} beside its label, which would count in any case.",
                f"leave out what does not count; --ignore-columns {key} says that all count.",
            )


def _is_doubt(name: str, value: Any) -> bool:
    """Whether a value beside a label says that the label may not count."""
    if isinstance(value, str):
        word = plain_name(value)
        is_weak = is_measure_name(name) and _WEAK.fullmatch(word) is not None
        is_machine = _BY.fullmatch(name) is not None and _MACHINES.fullmatch(word) is not None
        if _DOUBTS.fullmatch(word) or is_weak or is_machine:
            return True
    elif isinstance(value, list):
        return False
    elif is_measure_name(name) and isinstance(value, int | float) and value != 1:
        return True
    if _COUNTS.search(name) and kind_of(value) == "word" and number_of(value) == 0:
        return True
    if _DELETED.fullmatch(name) and value:
        return True
    is_against = _AGAINST.search(name) is not None
    is_answer = is_against or is_flag(name) or _FOR.fullmatch(name) is not None
    return is_answer and kind_of(value) == "word" and (number_of(value) == 1) == is_against
