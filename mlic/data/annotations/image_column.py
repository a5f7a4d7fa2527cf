"""Which column of a table names the images, and which ones name the folders that they are in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlic.data.annotations.column_names import INDEX, LABEL_COLUMNS, NAME_COLUMNS, SPLITS, VALUE_COLUMNS
from mlic.data.annotations.files.table_files import Table
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile
from mlic.data.label_join import ImageNames
from mlic.errors import DataError

_IMAGE_WORD = re.compile(r"image|img|file|photo|picture")
_LEVELS = 3  # folders above an image that columns may name


@dataclass(frozen=True)
class Columns:
    """The columns of a table: what their cells are like, and their names in lower case; `where` is for messages."""

    where: str
    profiles: Sequence[Profile]
    lower: Sequence[str]
    options: LabelOptions
    has_header: bool

    def named(self, name: str) -> int:
        """The number of a column by its name, or by its place from 1 on where columns have no names."""
        names = [profile.name for profile in self.profiles]
        if name in names:
            return names.index(name)
        if name.strip().lower() in self.lower:
            return self.lower.index(name.strip().lower())
        if not self.has_header and name.isdecimal() and 1 <= int(name) <= len(names):
            return int(name) - 1
        raise DataError(f"{self.where}: no column {name!r}.", f"its columns are {', '.join(names)}.")

    def is_asked_for(self, i: int) -> bool:
        name = self.profiles[i].name
        return name in self.options.label_columns or name == self.options.label_column

    def looks_unique(self, i: int) -> bool:
        """Whether all cells of a column differ, as those of an id do."""
        distinct = self.profiles[i].distinct
        return distinct is None or len(distinct) == self.profiles[i].filled

    def is_index(self, i: int) -> bool:
        profile = self.profiles[i]
        if self.is_asked_for(i):
            return False
        if not profile.filled and not profile.name.strip():
            return True
        return self.lower[i] in INDEX and (profile.counted or profile.kinds["number"] > 0) and self.has_header


def image_columns(columns: Columns, taken: set[int], tool: str) -> tuple[int, ...]:
    """The column that names the images, or two of MIMIC-CXR; `taken` are columns for other purposes.

    Raises DataError where it cannot be told.
    """
    if columns.options.image_column is not None:
        return (columns.named(columns.options.image_column),)
    if tool == "MIMIC-CXR" and "dicom_id" not in columns.lower:
        return columns.lower.index("subject_id"), columns.lower.index("study_id")
    open_ = [i for i in range(len(columns.profiles)) if i not in taken and not columns.is_asked_for(i)]
    scored = {i: _image_score(columns, i) for i in open_}
    best = max(scored, key=lambda i: (scored[i], -i), default=0)
    _refuse_two_images(columns, scored, best)
    if not open_ or (scored[best] <= 0.5 and columns.has_header and best != 0):
        best = next(iter(open_), 0)
        _refuse_two_numbers(columns, best, open_)
    if columns.is_index(best) and columns.options.image_names is not None and share(columns, best) < 1:
        raise DataError(
            f"{columns.where}: no column names the images; the first one numbers the rows.",
            "write a column of the images' names, or name the column by --image-column.",
        )
    _refuse_joined(columns, best)
    _refuse_folders(columns, best)
    return (best,)


def _refuse_joined(columns: Columns, image: int) -> None:
    """Raise DataError where cells join an image's name and a label: `ID_1_epidural`, as in RSNA's hemorrhages."""
    names, cells = columns.options.image_names, [str(cell).strip() for cell in columns.profiles[image].sample]
    if names is None or not cells or names.share(cells) > 0:
        return
    parts = [cell.rpartition("_") for cell in cells]
    labels = {label for _, _, label in parts}
    if names.share([image for image, _, _ in parts]) == 1 and len(labels) * 2 <= len(cells):
        raise DataError(
            f"{columns.where}: the column {columns.profiles[image].name!r} joins images and words such as "
            f"{parts[0][2]!r} ({cells[0]!r}).",
            "write two columns, `image` and `label`; a column of 0 and 1 beside them is then to be called `value`.",
        )


def share(columns: Columns, i: int) -> float:
    """How many of the sampled cells of a column look like names of images."""
    cells = [str(cell) for cell in columns.profiles[i].sample if isinstance(cell, str | int)]
    return 0.0 if columns.options.image_names is None else columns.options.image_names.share(cells)


def _is_number(columns: Columns, i: int) -> bool:
    return all(str(cell).strip().isdecimal() for cell in columns.profiles[i].sample)


def _names_elsewhere(columns: Columns, i: int) -> bool:
    """Whether another column is called like the images, or ends like them, and names some."""
    return any(
        other != i
        and not columns.is_index(other)
        and (profile.endings > 0 or (columns.lower[other] in NAME_COLUMNS and share(columns, other) > 0))
        for other, profile in enumerate(columns.profiles)
    )


def _refuse_two_images(columns: Columns, scored: dict[int, float], best: int) -> None:
    """Raise DataError where two columns name images as well, and neither is called so."""
    rivals = [i for i, score in scored.items() if i != best and score >= 2 and scored[best] - score <= 0.5]
    if rivals and columns.lower[best] not in NAME_COLUMNS and columns.lower[rivals[0]] not in NAME_COLUMNS:
        one, two = (columns.profiles[i].name for i in sorted((best, rivals[0])))
        raise DataError(
            f"{columns.where}: the columns {one!r} and {two!r} may both name the images.",
            f"say which one by --image-column {one}.",
        )


def _refuse_two_numbers(columns: Columns, best: int, open_: Sequence[int]) -> None:
    """Raise DataError where `best` and another column hold numbers of images, and neither is called so."""
    names, profiles = columns.options.image_names, columns.profiles
    if names is None or not _is_number(columns, best) or columns.lower[best] in NAME_COLUMNS:
        return
    known, distinct = _share_of_numbers(names, profiles[best]), _different(profiles[best])
    for i in open_:
        is_other = columns.lower[i] in {*LABEL_COLUMNS, *VALUE_COLUMNS, *SPLITS} or columns.is_index(i)
        if i == best or is_other or not profiles[i].filled or not _is_number(columns, i) or profiles[i].is_binary(True):
            continue
        if known and _share_of_numbers(names, profiles[i]) >= known and _different(profiles[i]) >= distinct:
            raise DataError(
                f"{columns.where}: the columns {profiles[best].name!r} and {profiles[i].name!r} both hold numbers of "
                "images.",
                "name the one that names the images by --image-column, or write a column with their paths.",
            )


def _refuse_folders(columns: Columns, best: int) -> None:
    """Raise DataError where the column that would name the images holds numbers of their folders, such as patients."""
    names, profile = columns.options.image_names, columns.profiles[best]
    if names is None or not _is_number(columns, best) or columns.lower[best] in NAME_COLUMNS or not profile.sample:
        return
    cells = [str(cell) for cell in profile.sample]
    if names.share_of_folder_numbers(cells) >= max(0.5, names.share_of_numbers(cells)):
        raise DataError(
            f"{columns.where}: the numbers in {profile.name!r} may be those of images or of their folders.",
            "write a column `image` with the paths of the images.",
        )


def _share_of_numbers(names: ImageNames, profile: Profile) -> float:
    return names.share_of_numbers([str(cell) for cell in profile.sample])


def _different(profile: Profile) -> int:
    """How many different cells a column has, as far as they are counted."""
    return profile.filled if profile.distinct is None else len(profile.distinct)


def fallback_columns(columns: Columns, image: int) -> tuple[int, ...]:
    """Columns of the images' names in rows of JSON where the first of them is missing."""
    if not columns.profiles[image].kinds["missing"]:
        return ()
    return tuple(
        i
        for i, name in enumerate(columns.lower)
        if i != image
        and name in NAME_COLUMNS
        and columns.profiles[i].kinds["text"]
        and columns.profiles[i].kinds["missing"]
    )


def _image_score(columns: Columns, i: int) -> float:
    """How much a column looks like the images' names: by its values, by its name, and by how different they are."""
    profile = columns.profiles[i]
    if not profile.filled:
        return 0
    if profile.kinds["bytes"]:
        return 3
    if columns.is_index(i):
        return 0
    score = 0.5 if profile.distinct is None or len(profile.distinct) == profile.filled else 0.0
    texts = [cell for cell in profile.sample if isinstance(cell, str)]
    numbers = [str(cell) for cell in profile.sample if isinstance(cell, int) and not isinstance(cell, bool)]
    is_answer = profile.distinct is not None and {str(cell) for cell in profile.distinct} <= {"0", "1", ""}
    if columns.options.image_names is not None and (texts or numbers) and not is_answer:
        known = share(columns, i)
        is_other = _is_number(columns, i) and columns.lower[i] not in NAME_COLUMNS and _names_elsewhere(columns, i)
        score += 4 * known if known >= 0.2 and not is_other else 0
    score += 2 * profile.endings / max(1, profile.filled)
    if columns.lower[i] in NAME_COLUMNS:
        score += 1 + (len(NAME_COLUMNS) - NAME_COLUMNS.index(columns.lower[i])) / 100
    elif _IMAGE_WORD.search(columns.lower[i]):
        score += 0.5
    if profile.kinds["list"] or profile.kinds["mapping"]:
        return 0
    return score


# Folders of the images


def folder_columns(columns: Columns, table: Table, image: tuple[int, ...], others: Sequence[int]) -> tuple[int, ...]:
    """The columns, of `others`, whose cells are the folders of the images that the column `image` names.

    A column is one if its cells and the images' names are the ends of images' paths together, and if all its cells are
    folders, or if the same name stands beside several of them. Returns them with the outermost first.
    """
    names = columns.options.image_names
    block = next(iter(table.blocks()), None)
    if names is None or block is None or len(image) != 1 or not others:
        return ()
    ends = [str(cell).strip() for cell in block.columns[image[0]]]
    if any("/" in end or "\\" in end or not end for end in ends):
        return ()
    folders: tuple[int, ...] = ()
    for _ in range(_LEVELS):
        for i in others:
            cells = [str(cell).strip() for cell in block.columns[i]]
            if i not in folders and _are_folders(names, columns.profiles[i], cells, ends):
                folders, ends = (i, *folders), [f"{cell}/{end}" for cell, end in zip(cells, ends, strict=True)]
                break
        else:
            break
    return folders


def _are_folders(names: ImageNames, profile: Profile, cells: Sequence[str], ends: Sequence[str]) -> bool:
    """Whether cells (n,) of a column are the folders of the images whose paths have the ends (n,)."""
    if not all(cells) or any("/" in cell for cell in cells) or profile.kinds["list"] or profile.kinds["mapping"]:
        return False
    words, level = {*cells, *map(str, profile.distinct or ())}, ends[0].count("/") + 1
    share = names.share_of_folders(words, level)
    if not share or not names.end_in([f"{cell}/{end}" for cell, end in zip(cells, ends, strict=True)]).any():
        return False
    if share == 1:
        return True
    beside = dict[str, set[str]]()
    for cell, end in zip(cells, ends, strict=True):
        beside.setdefault(end, set()).add(cell)
    return any(len(different) > 1 for different in beside.values())
