"""What label files say, in columns: images by name, and their labels as marks.

Ten million images with their labels take a few hundred MB.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.config.labels import Readers
from mlic.errors import DataError

Array = np.ndarray[Any, Any]
Repeats = Literal["refuse", "union"] | Readers
_CHUNK = 10_000


@dataclass(frozen=True)
class Annotations:
    """What label files say, before it is joined to images.

    `names` (M,) are the images as the files call them, each once; `file` and `line` (M,) say where each was first named
    (`file` numbers into `files`, line 0 is none). The marks (K,) are `image` (a number into `names`), `label` (one into
    `labels`) and `value`: 1, 0 or -1 for unknown. A label of an image without a mark is `fill`, 0 or -1. `columns`
    holds further columns (M,) by name: `split` and `group`. With `by_label`, the files list images with a label, so an
    image without labels need not be named at all; `positives_only` says that this may be so. With `in_folders`, a name
    is never an image in another folder. `source` says in words what was read; `tool` is the data set or program whose
    layout was recognised. `left_out` are columns that are no labels, with an example. `notes` are things that were
    assumed, and `warnings` those that may be wrong.
    """

    labels: tuple[str, ...]
    names: pa.Array
    files: tuple[str, ...]
    file: Array
    line: Array
    image: Array
    label: Array
    value: Array
    source: str
    bare_numbers: bool = False
    columns: dict[str, pa.Array] = field(default_factory=dict)
    by_label: bool = False
    in_folders: bool = False
    positives_only: bool = False
    fill: int = 0
    format: str = ""
    tool: str = ""
    used: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def where(self, i: int) -> str:
        """Where the image was first named, as file:line."""
        line = int(self.line[i])
        return f"{self.files[self.file[i]]}:{line}" if line else self.files[self.file[i]]

    def renamed(self, old: str, new: str) -> Annotations:
        """The same annotations, with another name of their source."""
        files = tuple(name.replace(old, new) for name in self.files)
        return replace(self, files=files, source=self.source.replace(old, new))

    def fingerprint(self) -> str:
        """Changes with the content of the files, but not with the order of their lines."""
        order = pc.sort_indices(self.names).to_numpy()
        rank_of = np.empty(len(order), np.int64)
        rank_of[order] = np.arange(len(order))
        marks = np.stack([rank_of[self.image], self.label, self.value])
        marks = marks[:, np.lexsort(marks)]
        digest = hashlib.sha256(repr((self.labels, self.fill) if self.fill else self.labels).encode())
        for column in (self.names, *(self.columns[name] for name in sorted(self.columns))):
            for buffer in column.take(pa.array(order)).buffers()[1:]:
                digest.update(buffer or b"")
        digest.update(np.ascontiguousarray(marks).data)
        return digest.hexdigest()[:32]


class Builder:
    """Collects annotations line by line, in columns."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.numbers: dict[str, int] = {}
        self._text, self._ends = bytearray(), array("q", [0])  # the names' bytes, and where each name ends
        self._columns: dict[str, list[str]] = {name: [] for name in columns}
        self._files: dict[str, int] = {}
        self._file, self._line, self._hash = array("i"), array("I"), array("q")
        self._image, self._label, self._value = array("i"), array("i"), array("b")

    def __len__(self) -> int:
        """How many lines there were."""
        return len(self._line)

    def has_repeats(self) -> bool:
        """Whether an image has several lines, almost surely: two names may have one hash."""
        hashes = np.sort(np.frombuffer(self._hash, np.int64))
        return bool((hashes[1:] == hashes[:-1]).any())

    def image(self, name: str, file: str, line: int, *extra: str) -> None:
        """Begin a line about an image; `extra` are its values in the further columns."""
        self._text += name.encode()
        self._ends.append(len(self._text))
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._line.append(line)
        self._hash.append(hash(name))
        for values, value in zip(self._columns.values(), extra, strict=True):
            values.append(value)

    def label(self, name: str) -> int:
        """The number of a label by its name."""
        return self.numbers.setdefault(name, len(self.numbers))

    def mark(self, label: int, value: int) -> None:
        """Set a label of this line's image to 1, 0 or -1."""
        self._image.append(len(self._line) - 1)
        self._label.append(label)
        self._value.append(value)

    def rows(self, names: Sequence[str], file: str, lines: Sequence[int], values: Array, *extra: Sequence[str]) -> None:
        """Add lines about images with the values int8 (n, L) of all labels; 0 is left without a mark."""
        before = len(self._line)
        number = self._files.setdefault(file, len(self._files))
        encoded = [name.encode() for name in names]
        self._ends.frombytes((np.cumsum([len(name) for name in encoded], dtype=np.int64) + len(self._text)).tobytes())
        self._text += b"".join(encoded)
        self._file.extend([number] * len(names))
        self._line.extend(lines)
        self._hash.extend(map(hash, names))
        image, label = np.nonzero(values)
        self._image.frombytes((image + before).astype(np.int32).tobytes())
        self._label.frombytes(label.astype(np.int32).tobytes())
        self._value.frombytes(values[image, label].astype(np.int8).tobytes())
        for column, added in zip(self._columns.values(), extra, strict=True):
            column.extend(added)

    def build(
        self,
        labels: tuple[str, ...],
        source: str,
        bare_numbers: bool = False,
        repeats: Repeats = "refuse",
        fill: int = 0,
        **more: Any,
    ) -> Annotations:
        """The annotations; `more` are other fields of theirs.

        `repeats` says what becomes of several lines of one image: an error, all their labels, or what the readers who
        wrote them agree on. Raises DataError for an error of this kind.
        """
        repeated, first = self.has_repeats(), None
        if not repeated:
            self._hash = array("q")
        text, ends = self._text, self._ends
        self._text, self._ends = bytearray(), array("q", [0])
        names = _column(text, ends)
        file, line = np.frombuffer(self._file, np.int32), np.frombuffer(self._line, np.uint32)
        image, label, value = self._cells(labels)
        if repeats == "refuse" and repeated:
            self._refuse_repeated(names, file, line)
        elif repeated:
            code, first = self._numbered(names)
            del names
            names = _moved_together(text, ends, first)
            votes = _Votes(code[image].astype(np.int32), label, value)
            if repeats == "union" or repeats == "refuse":
                image = votes.image
            else:
                image, label, value = self._agreed(votes, code, repeats, fill, names, labels)
        columns = {name: pa.array(values, pa.large_string()) for name, values in self._columns.items()}
        if first is not None:
            for kind, column in columns.items():
                self._refuse_differing(kind, column, first[code], file, line)
            columns = {name: column.take(pa.array(first)) for name, column in columns.items()}
            file, line = file[first], line[first]
        return Annotations(
            labels,
            names,
            tuple(self._files),
            file,
            line,
            image,
            label,
            value,
            source,
            bare_numbers,
            columns,
            fill=fill,
            **more,
        )

    def _cells(self, labels: Sequence[str]) -> tuple[Array, Array, Array]:
        """Image, label and value of each cell; labels are numbered as in `labels`."""
        image, label = np.frombuffer(self._image, np.int32), np.frombuffer(self._label, np.int32)
        if self.numbers:
            order = {name: number for number, name in enumerate(labels)}
            label = np.array([order[name] for name in self.numbers], np.int32)[label]
        return image, label, np.frombuffer(self._value, np.int8)

    def _agreed(
        self, votes: _Votes, codes: Array, rule: Readers, fill: int, names: pa.Array, labels: Sequence[str]
    ) -> tuple[Array, Array, Array]:
        """The marks that several lines of an image make together by a rule; `codes` is the image of each line."""
        if not len(votes.image):
            return votes.image, votes.label, votes.value
        key = votes.image.astype(np.int64) * max(1, len(labels)) + votes.label
        kinds, of = np.unique(key, return_inverse=True)
        yes, no, unknown = (np.bincount(of, weights=votes.value == value).astype(int) for value in (1, 0, -1))
        image, label = (kinds // max(1, len(labels))).astype(np.int32), (kinds % max(1, len(labels))).astype(np.int32)
        if fill == 0:
            no = np.bincount(codes, minlength=len(names))[image] - yes - unknown  # lines without a mark say no
        value = decided(rule, yes, no, unknown)
        if rule == "agree" and (value == _DIFFERS).any():
            at = int(np.flatnonzero(value == _DIFFERS)[0])
            row = int(np.flatnonzero(codes == image[at])[-1])
            where = f"{list(self._files)[self._file[row]]}:{self._line[row]}"
            raise DataError(
                f"{where}: the image {names[int(image[at])].as_py()!r} has several rows, which differ in "
                f"{labels[int(label[at])]!r}.",
                "keep one of the rows, or say by --readers majority|all|any|unknown what they mean together.",
            )
        return image, label, value

    def _numbered(self, names: pa.Array) -> tuple[Array, Array]:
        """Equal names (n,) by one number: that of each, int32 (n,), and each number's first place, int64, ascending.

        As `dictionary_encode`, whose table of all names is as large as a label file; arrays go as soon as they can.
        """
        hashes = np.frombuffer(self._hash, np.int64)
        self._hash = array("q")
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        hashes = hashes[order]
        same = hashes[1:] == hashes[:-1]
        del hashes
        for start in range(0, len(order), _CHUNK):
            piece = names.take(pa.array(order[start : start + _CHUNK + 1]))
            equal = pc.equal(piece[1:], piece[:-1]).to_numpy(zero_copy_only=False)
            if (same[start : start + len(equal)] > equal).any():  # two names have one hash
                encoded = names.dictionary_encode()
                code = encoded.indices.to_numpy()
                place = np.full(len(encoded.dictionary), -1, dtype=np.int64)
                place[code[::-1]] = np.arange(len(code))[::-1]
                return code, place
        begins = np.concatenate(([True], ~same)) if len(order) else np.zeros(0, bool)
        first = order[begins]  # the sort is stable
        number = np.empty(len(first), np.int32)
        number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
        code = np.empty(len(order), np.int32)
        code[order] = number[np.cumsum(begins, dtype=np.int32) - 1]
        del order, begins, same, number
        return code, np.sort(first).astype(np.int64)

    def _refuse_differing(self, kind: str, column: pa.Array, first: Array, file: Array, line: Array) -> None:
        """Raise DataError where lines of one image differ in a further column; `first` is the first line of each."""
        same = pc.equal(column, column.take(pa.array(first))).to_numpy(zero_copy_only=False)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            raise DataError(
                f"{list(self._files)[file[row]]}:{line[row]}: the image has the {kind} {column[row].as_py()!r}, and "
                f"{column[int(first[row])].as_py()!r} in line {line[int(first[row])]}.",
                f"give each image one {kind}.",
            )

    def _refuse_repeated(self, names: pa.Array, file: Array, line: Array) -> None:
        """Raise DataError where an image has two lines; looks at a piece of the sorted names at a time."""
        order = pc.sort_indices(names).to_numpy().astype(np.int64)
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK + 1]
            piece = names.take(pa.array(rows))
            same = pc.equal(piece[1:], piece[:-1]).to_numpy(zero_copy_only=False)
            if same.any():
                at = int(np.flatnonzero(same)[0])
                before, again = sorted(rows[at : at + 2].tolist())
                where, other = (list(self._files)[file[row]] for row in (again, before))
                where, other = (f"{where}:{line[again]}", "") if line[again] else (where, f" ({other})")
                raise DataError(
                    f"{where}: the image {names[again].as_py()!r} has a line already{other}.",
                    "keep one of the two lines.",
                )


def _column(text: bytearray, ends: array[int]) -> pa.LargeStringArray:
    """Texts as a column, without a copy: the names are the largest part of what a label file says."""
    return pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text))


def _moved_together(text: bytearray, ends: array[int], rows: Array) -> pa.LargeStringArray:
    """The texts with the ascending numbers `rows`, moved within their memory: a copy would be as large as they are."""
    sizes = np.diff(np.frombuffer(ends, np.int64))[rows]
    new_ends = array("q", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64).tobytes())
    column = _column(text, ends)
    for start in range(0, len(rows), _CHUNK):
        piece = column.take(pa.array(rows[start : start + _CHUNK]))
        begin, end = new_ends[start], new_ends[start + len(piece)]
        text[begin:end] = memoryview(piece.buffers()[2])[: end - begin]  # the texts behind `end` are not read again
    del column
    del text[new_ends[-1] :]
    return _column(text, new_ends)


@dataclass(frozen=True)
class _Votes:
    """Marks (K,) of several lines: the image, the label and the value."""

    image: Array
    label: Array
    value: Array


_DIFFERS = -2


def decided(rule: Readers, yes: Array, no: Array, unknown: Array) -> Array:
    """The value int8 (K,) that readers give together: 1, 0, -1 for unknown, or -2 where they have to agree and do not.

    `yes`, `no` and `unknown` (K,) count the readers. `majority` leaves out those who do not know, and a tie is unknown;
    `all` and `any` say how many of the others have to see the label.
    """
    known = yes + no
    if rule in ("agree", "unknown"):
        differs = (np.minimum(yes, 1) + np.minimum(no, 1) + np.minimum(unknown, 1)) > 1
        value = np.where(yes > 0, 1, np.where(no > 0, 0, -1))
        return np.where(differs, _DIFFERS if rule == "agree" else -1, value).astype(np.int8)
    if rule == "majority":
        value = np.where(yes > no, 1, np.where(no > yes, 0, -1))
    elif rule == "all":
        value = (yes == known).astype(int)
    else:
        value = (yes > 0).astype(int)
    return np.where(known == 0, -1, value).astype(np.int8)
