"""Join the labels of label files to images, by key and never by position."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.data import name_rules
from mlic.data.image_labels import Annotations
from mlic.data.name_rules import Matches, Names, show
from mlic.errors import DataError

Array = np.ndarray[Any, Any]

_COLUMNS = ("key", "file", "Filename")
_SAMPLE = 200  # cells of a column that are looked up among the images


@dataclass(frozen=True)
class Joined:
    """Targets of N images: `targets` is int8 (N, L) with 1, 0 and -1 for unknown; `annotated` is bool (N,).

    The targets of an image that is not annotated are 0. `names` int64 (N,) is the number of each image's first name in
    the annotations, -1 if there is none. `missing` are the numbers of the names that match no image. `rules` counts the
    names by the rule that matched them.
    """

    targets: Array
    annotated: Array
    names: Array
    missing: Array
    rules: dict[str, int] = field(default_factory=dict)


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

    `paths` (N,) are the images' relative paths as bytes, all with different keys (the path without its extension).
    `name_rules.match` says how names are compared. Lines that name no image are counted in `missing`.

    Raises DataError when a name could mean two images, when two lines about an image differ, when a line is not of the
    kind that its file holds, or when no line names an image.
    """
    matches = resolve(annotations, paths)
    image_of = matches.image
    if annotations.bare_numbers:
        odd = np.flatnonzero((image_of < 0) & ~name_rules.are_numbers(annotations.names))
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
    targets[image_of[matched]] = annotations.fill
    if not annotations.by_label:
        _refuse_contradictions(annotations, paths, image_of)
    image, label, value = image_of[annotations.image], annotations.label, annotations.value
    for mark in (0, -1, 1):  # of several marks for one label, as lists of a label and folders may have, yes wins
        chosen = (image >= 0) & (value == mark)
        targets[image[chosen], label[chosen]] = mark
    names = np.full(len(paths), -1, dtype=np.int64)
    names[image_of[matched][::-1]] = matched[::-1]
    return Joined(targets, names >= 0, names, np.flatnonzero(image_of < 0), matches.rules)


def resolve(annotations: Annotations, paths: pa.Array) -> Matches:
    """The image that each name of the annotations means."""
    return name_rules.match(
        Names(annotations.names, annotations.where, annotations.by_label, annotations.in_folders), paths
    )


class ImageNames:
    """Looks up cells of label files among the names of images, before it is known which column names them."""

    def __init__(self, paths: pa.Array) -> None:
        """`paths` (N,) are the images' paths as bytes."""
        self.paths = paths
        self._stems: pa.Array | None = None
        self._numbers: pa.Array | None = None
        self._folders: dict[int, pa.Array] = {}

    def share(self, cells: Sequence[str]) -> float:
        """The fraction of some cells that look like an image's name: its file name without folders and extension."""
        if self._stems is None:
            self._stems = pc.utf8_lower(name_rules.as_text(name_rules.stems(self.paths)))
        asked = pa.array([cell.strip().replace("\\", "/") for cell in cells[:_SAMPLE]], pa.large_string())
        if not len(asked):
            return 0.0
        bare = pc.utf8_lower(name_rules.file_names(asked))
        plain = pc.utf8_lower(name_rules.stems(asked))
        is_known = [pc.is_in(form, value_set=self._stems).to_numpy(zero_copy_only=False) for form in (bare, plain)]
        return float(np.mean(is_known[0] | is_known[1]))

    def share_of_numbers(self, cells: Sequence[str]) -> float:
        """The fraction of some cells, which are numbers, that stand at the end of an image's stem."""
        if self._numbers is None:
            self._numbers = pc.unique(name_rules.as_numbers(name_rules.as_text(name_rules.stems(self.paths))))
        asked = name_rules.as_numbers(pa.array([cell.strip() for cell in cells[:_SAMPLE]], pa.large_string()))
        if not len(asked):
            return 0.0
        return float(np.mean(pc.is_in(asked, value_set=self._numbers.drop_null()).to_numpy(zero_copy_only=False)))

    def share_of_folder_numbers(self, cells: Sequence[str]) -> float:
        """The fraction of some cells, which are numbers, that stand at the end of a folder's name."""
        folders = pc.replace_substring_regex(self._lower_parts(1), r"/.*$", "").drop_null()
        numbers = pc.unique(name_rules.as_numbers(folders)).drop_null()
        asked = name_rules.as_numbers(pa.array([cell.strip() for cell in cells[:_SAMPLE]], pa.large_string()))
        known = pc.is_in(asked, value_set=numbers).to_numpy(zero_copy_only=False)
        return float(np.mean(known)) if len(asked) else 0.0

    def share_of_folders(self, words: Collection[str], level: int) -> float:
        """The fraction of words that are folders of images, `level` above them: 1 is the folder that an image is in."""
        if level not in self._folders:
            folders = pc.replace_substring_regex(self._lower_parts(level), r"/.*$", "")
            self._folders[level] = pc.unique(folders.drop_null())
        asked = pc.utf8_lower(pa.array(sorted(words), pa.large_string()))
        known = pc.is_in(asked, value_set=self._folders[level]).to_numpy(zero_copy_only=False)
        return float(np.mean(known)) if len(words) else 0.0

    def end_in(self, ends: Sequence[str]) -> Array:
        """Whether each of some ends of paths, bool (K,), all of the same depth, is one of an image.

        `a/im1.jpg`, `a/im1` and, by its number, `a/1` are ends of `b/a/im1.jpg`; upper and lower case are the same.
        """
        paths = self._lower_parts(ends[0].count("/") if ends else 0)
        asked = pc.utf8_lower(pa.array(ends, pa.large_string()))
        known = np.zeros(len(ends), bool)
        for form in (paths, name_rules.without_extension(paths), name_rules.numbered(paths)):
            known |= pc.is_in(asked, value_set=form, skip_nulls=True).to_numpy(zero_copy_only=False)
        return known

    def _lower_parts(self, depth: int) -> pa.Array:
        return name_rules.last_parts(pc.utf8_lower(name_rules.as_text(self.paths)), depth)


def as_paths(names: Sequence[str]) -> pa.Array:
    """Names of files as the column of bytes that `join` takes."""
    return pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.large_binary())


def _nothing_found(annotations: Annotations, paths: pa.Array) -> DataError:
    return DataError(
        f"none of the {len(annotations.names):,} annotated images is among the {len(paths):,} images "
        f"({annotations.names[0].as_py()!r} is the first; the images look like {show(paths[0])!r}).",
        "check that the labels belong to this folder, or name the column with the images by --image-column.",
    )


def _refuse_contradictions(annotations: Annotations, paths: pa.Array, image_of: Array) -> None:
    """Raise DataError where two names mean one image and their lines differ, such as im1.jpg and im1."""
    matched = np.flatnonzero(image_of >= 0)
    order = matched[np.argsort(image_of[matched], kind="stable")]
    for i in np.flatnonzero(image_of[order][1:] == image_of[order][:-1]).tolist():
        first, second = (_marks_of(annotations, int(order[j])) for j in (i, i + 1))
        if first != second:
            label = min(label for label, _ in first ^ second)
            one, two = int(order[i]), int(order[i + 1])
            values = [dict(marks).get(label, annotations.fill) for marks in (first, second)]
            raise DataError(
                f"{annotations.where(two)}: {annotations.names[two].as_py()!r} says {values[1]} for "
                f"{annotations.labels[label]!r}, and another line for the same image "
                f"({show(paths[int(image_of[one])])}) says {values[0]}.",
                "keep one of the two lines.",
            )


def _marks_of(annotations: Annotations, name: int) -> set[tuple[int, int]]:
    chosen = annotations.image == name
    return set(zip(annotations.label[chosen].tolist(), annotations.value[chosen].tolist(), strict=True))
