"""What one cell of a label file means: yes, no, unknown, a number, or several labels."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from mlic.errors import DataError

# One set of words for CSV, JSON and Parquet. A blank cell is "no", as in CheXpert; a missing value is unknown.
_YES = (
    "1",
    "true",
    "t",
    "yes",
    "y",
    "x",
    "present",
    "positive",
    "pos",
    "+",
    "✓",
    "✔",
    "☑",
    "ja",
    "oui",
    "si",
    "sí",
    "sim",
    "да",
    "是",
    "有",
    "はい",
    "○",
    "✅",
    "on",
    "checked",
    "wahr",  # TRUE and FALSE as spreadsheets write them in other languages
    "vrai",
    "verdadero",
    "vero",
    "waar",
)
_NO = ("0", "false", "f", "no", "n", "absent", "negative", "neg", "-", "–", "✗", "✘", "☐", "nein", "non", "não")
_FALSE = ("нет", "否", "无", "無", "いいえ", "❌", "off", "unchecked", "falsch", "faux", "falso", "onwaar")
WORDS = {**dict.fromkeys(_YES, 1), **dict.fromkeys((*_NO, *_FALSE), 0), "-1": -1}
MISSING = frozenset({"nan", "na", "n/a", "<na>", "null", "none", "?", "unknown", "uncertain"})
NO_LABEL = frozenset(
    {
        "none",
        "no finding",
        "no findings",
        "no_finding",
        "nofinding",
        "no label",
        "nothing",
        "background",
        "empty",
        "blank",
        "0",
        "n",
        "set()",
        "(none)",
        "none.",
        "none of the above",
        "no tags",
        "nil",
        "unremarkable",
        "keine",
        "keines",
        "kein befund",
        "k.a.",
        "aucun",
        "aucune",
        "ninguno",
        "なし",
        "无",
        "無",
        "нет",
        "-",
        "--",
        "–",
    }
)

Kind = Literal["word", "blank", "missing", "fraction", "number", "text", "list", "mapping", "bytes"]
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_PERCENT = re.compile(r"(\d+(\.\d*)?) ?%")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_SCALAR = re.compile(r"[+-]?\d+(\.\d*)?|True|False")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def kind_of(cell: Any) -> Kind:
    """What sort of value a cell holds."""
    if isinstance(cell, str):
        return _kind_of_text(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "missing"
    if isinstance(cell, bool | int | float):
        if cell in (0, 1, -1):
            return "word"
        return "fraction" if 0 < cell < 1 else "number"
    if isinstance(cell, dict):
        return "bytes" if isinstance(cell.get("bytes"), bytes) else "mapping"
    if isinstance(cell, bytes):
        return "bytes"
    return "list" if isinstance(cell, list | tuple) else "text"


@functools.lru_cache(1_000)
def _kind_of_text(cell: str) -> Kind:
    text = cell.strip().lower()
    if not text:
        return "blank"
    if text in WORDS:
        return "word"
    if text in MISSING:
        return "missing"
    if _NUMBER.fullmatch(text):
        value = float(text)
        if value in (0, 1, -1):
            return "word"
        return "fraction" if 0 < value < 1 else "number"
    if match := _PERCENT.fullmatch(text):
        return "fraction" if float(match[1]) <= 100 else "text"
    if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] and (text[0] != "(" or text[1] in "'\""):
        return "mapping" if text[0] == "{" and ":" in text else "list"
    return "text"


def number_of(cell: Any) -> float:
    """The value of a word or a number; blank is 0 and missing is not a number. Raises ValueError for other cells."""
    if isinstance(cell, str):
        text = cell.strip().lower()
        if text in WORDS:
            return WORDS[text]
        if not text:
            return 0
        if text in MISSING:
            return math.nan
        if match := _PERCENT.fullmatch(text):
            return float(match[1]) / 100
        if not _NUMBER.fullmatch(text):
            raise ValueError(cell)
        return float(text)
    if cell is None:
        return math.nan
    if isinstance(cell, bool | int | float):
        return float(cell)
    raise ValueError(cell)


def target_of(cell: Any, minus_one: int = -1, positive_from: float | None = None) -> int:
    """1, 0 or -1 for unknown, of a cell of a label's column. Raises ValueError for a cell that is none of these."""
    value = number_of(cell)
    if math.isnan(value):
        return -1
    if value == -1:
        return minus_one
    if positive_from is not None:
        return int(value >= positive_from)
    if isinstance(cell, str) and "%" in cell:
        raise ValueError(cell)
    if value not in (0, 1):
        raise ValueError(cell)
    return int(value)


def parse_list(text: str) -> list[Any] | dict[Any, Any]:
    """The elements of a cell such as `["cat"]`, `['cat', 'dog']`, `['cat' 'dog']`, `{cat,dog}` or `{"cat": 1}`.

    These are lists as JSON, Python, NumPy and PostgreSQL write them. Raises ValueError for anything else.
    """
    text = text.strip()
    inner = text[1:-1].strip()
    if not inner:
        return []
    try:
        value = json.loads(text)
    except ValueError:
        value = _python_list(text, inner)
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
    raise ValueError(text)


def _python_list(text: str, inner: str) -> Any:
    quoted = _QUOTED.findall(inner)
    rest = _QUOTED.sub("", inner)
    if quoted and not rest.strip(", \n\t") and ("," not in rest):
        return [one or two for one, two in quoted]  # NumPy, whose elements have spaces between them
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass  # the last form has no quotes
    if quoted and text[0] != "{":
        raise ValueError(text)
    separator = "," if "," in inner or text[0] == "{" else None
    if all(_SCALAR.fullmatch(token) for token in inner.replace(",", " ").split()):  # of NumPy
        return [_scalar(token) for token in inner.replace(",", " ").split()]
    names = [name.strip().strip('"') for name in inner.split(separator)]
    if any(set(name) & set("[]{}") for name in names):
        raise ValueError(text)
    return [name for name in names if name]


def _scalar(text: str) -> float | bool:
    return text == "True" if text in ("True", "False") else float(text)


def check_numbers(values: Sequence[Any], where: str) -> None:
    """Raise DataError for a list of numbers that cannot be numbers of labels: one is negative, or stands twice."""
    numbers = [int(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if any(number < 0 for number in numbers) or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{where}: {str(list(values))[:60]} is no list of labels: a number in it is negative or stands twice.",
            "name the columns of a vector of 0 and 1 by --label-names, or write the labels' names.",
        )


def is_vector(values: Sequence[Any]) -> bool:
    """Whether a list holds 0 and 1 or true and false alone, one for each label."""
    return bool(values) and all(
        isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)) for value in values
    )
