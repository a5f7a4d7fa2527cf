"""Large JSON documents, decoded piece by piece: the elements of a list or an object, and of those one level below.

A decoded document takes about ten times the size of its file. These views take the text and a few bytes an element.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\n\r]*")
_MANY = 1_000  # elements from which on a list or an object below the top keeps where they are


class Elements(Sequence[Any]):
    """The elements of a JSON list, or the values of an object; each is decoded when it is asked for."""

    def __init__(self, text: str, starts: array[int]) -> None:
        self._text, self._starts = text, starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self, i: slice) -> list[Any]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [_decoded(self._text, at) for at in self._starts[i]]
        return _decoded(self._text, self._starts[i])

    def __iter__(self) -> Iterator[Any]:
        for at in self._starts:
            yield _decoded(self._text, at)


class Members(Mapping[str, Any]):
    """A JSON object. Lists and objects in it are `Elements` and `Members`; other values are decoded when asked for."""

    def __init__(self, text: str, keys: array[int], values: array[int]) -> None:
        """`keys` and `values` are where each begins in the text. Raises ValueError for a key that stands twice."""
        self._text, self._keys = text, keys
        self._hashes = np.fromiter(map(hash, self), np.int64, len(keys))
        self._hashes.sort()
        self._opened = dict[int, Elements | Members]()
        self.elements = Elements(text, values)
        self.starts = values
        if (self._hashes[1:] == self._hashes[:-1]).any() and len(set(self)) < len(self):
            seen = set[str]()
            twice = next(key for key in self if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {twice!r} stands twice")

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        for at in self._keys:
            yield _decoded(self._text, at)

    def __contains__(self, key: object) -> bool:
        at = int(np.searchsorted(self._hashes, hash(key)))
        return at < len(self) and self._hashes[at] == hash(key) and any(key == other for other in self)

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        i = next(i for i, other in enumerate(self) if other == key)
        if i not in self._opened and self.is_list(i) | self.is_object(i):
            self.keep(i, _scanned(self._text, self.starts[i], deep=False).view)
        return self._opened[i] if i in self._opened else self.elements[i]

    def is_list(self, i: int) -> bool:
        """Whether value `i` is a list."""
        return self._text[self.starts[i]] == "["

    def is_object(self, i: int) -> bool:
        """Whether value `i` is an object."""
        return self._text[self.starts[i]] == "{"

    def keep(self, i: int, view: Elements | Members) -> None:
        """Keep where the elements of value `i` are."""
        self._opened[i] = view

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Keys with their decoded values, in order."""
        yield from zip(self, self.elements, strict=True)


class _Scanned(NamedTuple):
    """A list or an object of a text, and where it ends."""

    view: Elements | Members
    end: int


def view(text: str) -> Any:
    """What a JSON text holds; a list or an object at the top is a view of it.

    Raises ValueError for a text that is not JSON, a key that stands twice, or half of a character, and RecursionError.
    """
    begin = _after_blanks(text, 0)
    if text[begin : begin + 1] not in ("[", "{"):
        return json.loads(text)
    scanned = _scanned(text, begin, deep=True)
    if _after_blanks(text, scanned.end) < len(text):
        raise json.JSONDecodeError("Extra data", text, scanned.end)
    if "\\ud" in text or "\\uD" in text:
        for value in scanned.view if isinstance(scanned.view, Elements) else scanned.view.pairs():
            json.dumps(value, ensure_ascii=False).encode()
    return scanned.view


def _scanned(text: str, at: int, deep: bool) -> _Scanned:
    """The list or object that begins at a place of the text; if `deep`, lists and objects in it are scanned as well."""
    is_object, end_mark = text[at] == "{", "}" if text[at] == "{" else "]"
    size = "I" if len(text) < 1 << 32 else "Q"
    keys, starts = array(size), array(size)
    opened = dict[int, Elements | Members]()
    at = _after_blanks(text, at + 1)
    while text[at : at + 1] != end_mark or starts:
        if is_object:
            keys.append(at)
            at = _after_key(text, at)
        starts.append(at)
        if deep and is_object and text[at : at + 1] in ("[", "{"):
            inner, at = _scanned(text, at, deep=False)
            if len(inner) >= _MANY:
                opened[len(starts) - 1] = inner
        else:
            at = _DECODER.raw_decode(text, at)[1]
        at = _after_blanks(text, at)
        if text[at : at + 1] == end_mark:
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _after_blanks(text, at + 1)
    if not is_object:
        return _Scanned(Elements(text, starts), at + 1)
    members = Members(text, keys, starts)
    for i, inner in opened.items():
        members.keep(i, inner)
    return _Scanned(members, at + 1)


def _after_key(text: str, at: int) -> int:
    """Where the value of a key begins."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    at = _after_blanks(text, _DECODER.raw_decode(text, at)[1])
    if text[at : at + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
    return _after_blanks(text, at + 1)


def _after_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return at if match is None else match.end()


def _decoded(text: str, at: int) -> Any:
    return _DECODER.raw_decode(text, at)[0]
