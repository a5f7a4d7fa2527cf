"""Join the labels of label files to images, by key and never by position.

Everything is held in columns: ten million images with their labels take a few hundred MB.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.errors import DataError

Array = np.ndarray[Any, Any]

_COLUMNS = ("key", "file", "Filename")
_CHUNK = 100_000
_EXTENSION = r"\.[^./]*$"


@dataclass(frozen=True)
class Annotations:
    """What label files say, before it is joined to images.

    `names` (M,) are the images as the files call them, each once; `file` and `line` (M,) say where each was first named
    (`file` numbers into `files`, line 0 is none). The marks (K,) are `image` (a number into `names`), `label` (one into
    `labels`) and `value`, 1 or -1 for unknown; a label without a mark is 0. `columns` holds further columns (M,) by
    name: `split` and `group`. With `by_label`, each label lists its images, so an image without labels is not named at
    all.
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
        digest = hashlib.sha256(repr(self.labels).encode())
        for column in (self.names, *(self.columns[name] for name in sorted(self.columns))):
            for buffer in column.take(pa.array(order)).buffers()[1:]:
                digest.update(buffer or b"")
        digest.update(np.ascontiguousarray(marks).data)
        return digest.hexdigest()[:32]


class Builder:
    """Collects annotations line by line, in columns."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._chunks: list[pa.Array] = []
        self._columns: dict[str, list[str]] = {name: [] for name in columns}
        self._files: dict[str, int] = {}
        self._file, self._line = array("i"), array("q")
        self._image, self._label, self._value = array("q"), array("i"), array("b")

    def __len__(self) -> int:
        """How many lines there were."""
        return len(self._line)

    def image(self, name: str, file: str, line: int, *extra: str) -> None:
        """Begin a line about an image; `extra` are its values in the further columns."""
        self._names.append(name)
        if len(self._names) == _CHUNK:
            self._chunks.append(pa.array(self._names, pa.large_string()))
            self._names = []
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._line.append(line)
        for values, value in zip(self._columns.values(), extra, strict=True):
            values.append(value)

    def label(self, name: str) -> int:
        """The number of a label by its name."""
        return self.numbers.setdefault(name, len(self.numbers))

    def mark(self, label: int, value: int) -> None:
        """Set a label of this line's image to 1 or -1."""
        self._image.append(len(self._line) - 1)
        self._label.append(label)
        self._value.append(value)

    def build(self, labels: tuple[str, ...], source: str, bare_numbers: bool = False, once: bool = True) -> Annotations:
        """The annotations. Raises DataError, with `once`, when an image has two lines."""
        names = pa.concat_arrays([*self._chunks, pa.array(self._names, pa.large_string())])
        self._chunks, self._names = [], []
        file, line = np.frombuffer(self._file, np.int32), np.frombuffer(self._line, np.int64)
        image = np.frombuffer(self._image, np.int64)
        if once:
            self._refuse_repeated(names, file, line)
            first = np.arange(len(names))
        else:
            encoded = names.dictionary_encode()
            code, names = encoded.indices.to_numpy(), encoded.dictionary
            first = np.full(len(names), -1, dtype=np.int64)
            first[code[::-1]] = np.arange(len(code))[::-1]
            image = code[image].astype(np.int64)
        label = np.frombuffer(self._label, np.int32)
        if self.numbers:
            order = {name: number for number, name in enumerate(labels)}
            label = np.array([order[name] for name in self.numbers], np.int32)[label]
        columns = {
            name: pa.array(values, pa.large_string()).take(pa.array(first)) for name, values in self._columns.items()
        }
        return Annotations(
            labels,
            names,
            tuple(self._files),
            file[first],
            line[first],
            image,
            label,
            np.frombuffer(self._value, np.int8),
            source,
            bare_numbers,
            columns,
        )

    def _refuse_repeated(self, names: pa.Array, file: Array, line: Array) -> None:
        """Raise DataError where an image has two lines; looks at a piece of the sorted names at a time."""
        order = pc.sort_indices(names).to_numpy().astype(np.int64)
        for start in range(0, len(order), 10 * _CHUNK):
            rows = order[start : start + 10 * _CHUNK + 1]
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


@dataclass(frozen=True)
class Joined:
    """Targets of N images: `targets` is int8 (N, L) with 1, 0 and -1 for unknown; `labelled` is bool (N,).

    `names` int64 (N,) is the number of each image's first name in the annotations, -1 if there is none. `missing` are
    the numbers of the names that match no image.
    """

    targets: Array
    labelled: Array
    names: Array
    missing: Array


def check_names(names: Sequence[str]) -> None:
    """Raise DataError for a label whose name prediction files could not hold: it has to be text, on one line, not a
    column's name of theirs and not the name of a score column."""
    for name in names:
        is_plain = name.isprintable() and name == name.strip() and name
        if not is_plain or name in _COLUMNS or name.endswith("_score"):
            raise DataError(
                f"{name!r} cannot be the name of a label: prediction files have columns key, file, Filename and "
                "LABEL_score, and names of one printed line.",
                "rename it in the label files.",
            )


def join(annotations: Annotations, paths: pa.Array) -> Joined:
    """Give each image its target.

    `paths` (N,) are the images' relative paths as bytes, all with different keys (the path without its extension). A
    name in a label file is compared in this order with: relative path, path without extension, file name, file name
    without extension, or bare number ("12" is im12.jpg). Lines that name no image are counted in `missing`.

    Raises DataError when a name could mean two images, when a line is not of the kind that its file holds, or when no
    line names an image.
    """
    image_of = resolve(annotations, paths)
    if annotations.bare_numbers:
        odd = np.flatnonzero((image_of < 0) & ~_are_numbers(annotations.names))
        if len(odd):
            raise DataError(
                f"{annotations.where(odd[0])}: {annotations.names[int(odd[0])].as_py()!r} is neither a number nor the "
                "name of an image.",
                "fix or delete that line.",
            )
    matched = np.flatnonzero(image_of >= 0)
    if len(annotations.names) and not len(matched):
        raise _nothing_found(annotations, paths)
    targets = np.zeros((len(paths), len(annotations.labels)), dtype=np.int8)
    marked = image_of[annotations.image]
    for value in (1, -1):
        chosen = (marked >= 0) & (annotations.value == value)
        before = targets[marked[chosen], annotations.label[chosen]]
        if (before == -value).any():
            raise _contradiction(annotations, paths, marked, int(np.flatnonzero(chosen)[before == -value][0]))
        targets[marked[chosen], annotations.label[chosen]] = value
    names = np.full(len(paths), -1, dtype=np.int64)
    names[image_of[matched][::-1]] = matched[::-1]
    return Joined(targets, names >= 0, names, np.flatnonzero(image_of < 0))


def as_paths(names: Sequence[str]) -> pa.Array:
    """Names of files as the column of bytes that `join` takes."""
    return pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.large_binary())


def case_differs(annotations: Annotations, missing: Array, paths: pa.Array) -> int:
    """How many of the missing names would be images if upper and lower case were the same."""
    if not len(missing):
        return 0
    lower = pc.utf8_lower(annotations.names.take(pa.array(missing)))
    known = [pc.utf8_lower(column) for column in (_as_text(paths), _file_names(_as_text(paths)))]
    return max(int(pc.sum(pc.is_in(lower, value_set=column)).as_py() or 0) for column in known)


def resolve(annotations: Annotations, paths: pa.Array) -> Array:
    """The image (M,) that each name means, -1 for none."""
    names = annotations.names
    if pc.any(pc.starts_with(names, "./")).as_py():
        names = pc.replace_substring_regex(names, r"^\./", "")
    names = names.cast(pa.large_binary())
    image_of = np.full(len(names), -1, dtype=np.int64)
    column = paths
    for level in range(4):  # the form of a path that names are compared with, the most specific first
        if (image_of >= 0).all():
            return image_of
        if level == 1:
            column = pc.replace_substring_regex(paths, _EXTENSION, b"")
        elif level == 2:
            column = _file_names(paths)
        elif level == 3:
            column = pc.replace_substring_regex(_file_names(paths), _EXTENSION, b"")
        open_ = np.flatnonzero(image_of < 0)
        image_of[open_] = _look_up(annotations, open_, names.take(pa.array(open_)), column, paths)
    open_ = np.flatnonzero((image_of < 0) & _are_numbers(annotations.names))
    if len(open_):
        numbers = _as_numbers(annotations.names.take(pa.array(open_)))
        stems = _as_text(pc.replace_substring_regex(_file_names(paths), _EXTENSION, b""))
        image_of[open_] = _look_up(annotations, open_, numbers, _as_numbers(stems), paths)
    return image_of


def _look_up(annotations: Annotations, asked: Array, names: pa.Array, column: pa.Array, paths: pa.Array) -> Array:
    """The row of `column` (N,) that equals each of `names`; `asked` are the names' numbers. Null equals nothing."""
    hit: Array = pc.index_in(names, value_set=column, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)
    hits = np.flatnonzero(hit >= 0)
    if not len(hits) or column is paths or pc.count_distinct(column).as_py() == len(column) - column.null_count:
        return hit
    encoded = column.dictionary_encode()
    code = encoded.indices.fill_null(-1).to_numpy()
    count = np.bincount(code[code >= 0])
    twice = hits[count[code[hit[hits]]] > 1]
    if len(twice):
        number = int(asked[twice[0]])
        a, b = (_show(paths[int(row)]) for row in np.flatnonzero(code == code[hit[twice[0]]])[:2])
        raise DataError(
            f"{annotations.where(number)}: {annotations.names[number].as_py()!r} could mean {a} or {b}.",
            "name the image by its path within the folder.",
        )
    return hit


def _file_names(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/", "" if pa.types.is_large_string(paths.type) else b"")


def _as_text(column: pa.Array) -> pa.Array:
    """Bytes as text; what is not UTF-8 becomes null, since no label file can name it."""
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [
            None if (text := value.decode("utf-8", "replace")).count("\ufffd") else text for value in column.to_pylist()
        ]
        return pa.array(texts, pa.large_string())


def _are_numbers(names: pa.Array) -> Array:
    numeric: Array = pc.match_substring_regex(names, r"^[0-9]+$").to_numpy(zero_copy_only=False)
    return numeric


def _as_numbers(texts: pa.Array) -> pa.Array:
    """The number at the end of each text as int64, null where there is none or it is too long to be one."""
    digits = pc.struct_field(pc.extract_regex(texts, r"(?s)^.*?(?P<digits>[0-9]+)$"), [0])
    digits = pc.utf8_ltrim(digits, characters="0")
    short = pc.less_equal(pc.utf8_length(digits), 18)
    return pc.if_else(short, pc.if_else(pc.equal(digits, ""), "0", digits), None).cast(pa.int64())


def is_number(name: str) -> bool:
    """Whether a name is a bare image number."""
    return name.isascii() and name.isdigit()


def _nothing_found(annotations: Annotations, paths: pa.Array) -> DataError:
    every = np.arange(len(annotations.names))
    hint = "check that the labels belong to this folder."
    if case_differs(annotations, every, paths):
        hint = "write the names in the same upper and lower case as the files."
    return DataError(
        f"none of the {len(every):,} annotated images is among the {len(paths):,} images "
        f"({annotations.names[0].as_py()!r} is the first; the images look like {_show(paths[0])!r}).",
        hint,
    )


def _contradiction(annotations: Annotations, paths: pa.Array, marked: Array, mark: int) -> DataError:
    name, row = int(annotations.image[mark]), int(marked[mark])
    value, label = int(annotations.value[mark]), int(annotations.label[mark])
    return DataError(
        f"{annotations.where(name)}: {annotations.names[name].as_py()!r} says {value} for "
        f"{annotations.labels[label]!r}, and another line for the same image ({_show(paths[row])}) says {-value}.",
        "keep one of the two lines.",
    )


def _show(path: Any) -> str:
    return str(path.as_py().decode("utf-8", "surrogateescape"))
