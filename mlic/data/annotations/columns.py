"""Which columns of a table are the image, the labels, and neither: by options, by names, and by what the cells hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlic.data.annotations.column_names import (
    INDEX,
    LABEL_COLUMNS,
    NAME_COLUMNS,
    REMARKS,
    SPLITS,
    VALUE_COLUMNS,
    is_about_annotation,
    tool_of,
)
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile
from mlic.data.annotations.table_files import Table
from mlic.errors import DataError

_IMAGE_WORD = re.compile(r"image|img|file|photo|picture")
Layout = Literal["wide", "listed"]


@dataclass(frozen=True)
class Plan:
    """The columns of a table by what they are for, as numbers.

    In a `wide` table each of `labels` is a label; in a `listed` one the single one of them holds labels, and `value`
    how sure each is. `left_out` are the others, as (name, example). `image` has two columns where they name a study.
    """

    layout: Layout
    image: tuple[int, ...]
    labels: tuple[int, ...]
    extra: dict[str, int]
    value: int | None = None
    unknown: int | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    tool: str = ""
    no_label: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    one_per_row: bool = False
    fallbacks: tuple[int, ...] = ()  # columns that name the image where the first one does not
    others: tuple[int, ...] = ()  # columns that are left out, but for those that the options ignore


def choose(table: Table, profiles: Sequence[Profile], options: LabelOptions, layout: Layout | None) -> Plan:
    """Choose the columns. Raises DataError where the options do not fit, or where it cannot be told."""
    chooser = _Chooser(table, profiles, options, layout)
    return chooser.plan()


class _Chooser:
    """The columns of one table while they are chosen."""

    def __init__(self, table: Table, profiles: Sequence[Profile], options: LabelOptions, layout: Layout | None) -> None:
        self.class_names = table.class_names
        self.file, self.profiles, self.options, self.layout = table.file, profiles, options, layout
        self.lower = [profile.name.strip().lower() for profile in profiles]
        self.has_header = table.has_header
        is_text = table.has_header and table.file.suffix.lower() in (".csv", ".tsv", ".txt")
        self.where = f"{table.file}:1" if is_text else str(table.file)
        self.tool, self.ignored, self.no_label = tool_of(set(self.lower))
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def plan(self) -> Plan:
        if len(self.profiles) < 2:
            raise DataError(
                f"{self.where}: a header with an image column and labels is needed.", "add the header line."
            )
        extra = {kind: self._named(name) for kind, name in self.options.extra.items()}
        ignored = {self._named(name) for name in self.options.ignore_columns}
        image = self._image(ignored | set(extra.values()))
        fallbacks = self._fallbacks(image[0]) if self.options.image_column is None else ()
        taken = {*image, *fallbacks, *extra.values(), *ignored}
        taken |= {i for i, name in enumerate(self.lower) if name in self.ignored and not self._is_asked_for(i)}
        rest = [i for i in range(len(self.profiles)) if i not in taken and not self._is_index(i)]
        plan = self._labels(image, rest)
        used = {
            *plan.image,
            *fallbacks,
            *plan.labels,
            *extra.values(),
            *(i for i in (plan.value, plan.unknown) if i is not None),
        }
        left_out = tuple(
            (profile.name, profile.example)
            for i, profile in enumerate(self.profiles)
            if i not in used and (profile.name.strip() or profile.filled)
        )
        self._say_splits(used)
        return Plan(
            plan.layout,
            plan.image,
            plan.labels,
            extra,
            plan.value,
            plan.unknown,
            left_out,
            self.tool,
            self.no_label,
            tuple(self.notes),
            tuple(self.warnings),
            plan.one_per_row,
            fallbacks,
            tuple(i for i in rest if i not in used),
        )

    def _named(self, name: str) -> int:
        """The number of a column by its name, or by its place from 1 on where columns have no names."""
        names = [profile.name for profile in self.profiles]
        if name in names:
            return names.index(name)
        if name.strip().lower() in self.lower:
            return self.lower.index(name.strip().lower())
        if not self.has_header and name.isdecimal() and 1 <= int(name) <= len(names):
            return int(name) - 1
        raise DataError(f"{self.where}: no column {name!r}.", f"its columns are {', '.join(names)}.")

    def _is_asked_for(self, i: int) -> bool:
        name = self.profiles[i].name
        return name in self.options.label_columns or name == self.options.label_column

    def _is_index(self, i: int) -> bool:
        profile = self.profiles[i]
        if self._is_asked_for(i):
            return False
        if not profile.filled and not profile.name.strip():
            return True
        return self.lower[i] in INDEX and (profile.counted or profile.kinds["number"] > 0) and self.has_header

    # The image

    def _image(self, taken: set[int]) -> tuple[int, ...]:
        if self.options.image_column is not None:
            return (self._named(self.options.image_column),)
        if self.tool == "MIMIC-CXR" and "dicom_id" not in self.lower:
            return self.lower.index("subject_id"), self.lower.index("study_id")
        open_ = [i for i in range(len(self.profiles)) if i not in taken and not self._is_asked_for(i)]
        scored = {i: self._image_score(i) for i in open_}
        best = max(scored, key=lambda i: (scored[i], -i), default=0)
        self._refuse_two_images(scored, best)
        if not open_ or (scored[best] <= 0.5 and self.has_header and best != 0):
            best = next(iter(open_), 0)
        if self._is_index(best) and self.options.image_names is not None and self._share(best) < 1:
            raise DataError(
                f"{self.where}: no column names the images; the first one numbers the rows.",
                "write a column of the images' names, or name the column by --image-column.",
            )
        return (best,)

    def _share(self, i: int) -> float:
        """How many of the sampled cells of a column look like names of images."""
        cells = [str(cell) for cell in self.profiles[i].sample if isinstance(cell, str | int)]
        return 0.0 if self.options.image_names is None else self.options.image_names.share(cells)

    def _is_number(self, i: int) -> bool:
        return all(str(cell).strip().isdecimal() for cell in self.profiles[i].sample)

    def _names_elsewhere(self, i: int) -> bool:
        """Whether another column is called like the images, or ends like them, and names some."""
        return any(
            other != i
            and not self._is_index(other)
            and (profile.endings > 0 or (self.lower[other] in NAME_COLUMNS and self._share(other) > 0))
            for other, profile in enumerate(self.profiles)
        )

    def _refuse_two_images(self, scored: dict[int, float], best: int) -> None:
        """Raise DataError where two columns name images as well, and neither is called so."""
        rivals = [i for i, score in scored.items() if i != best and score >= 2 and scored[best] - score <= 0.5]
        if rivals and self.lower[best] not in NAME_COLUMNS and self.lower[rivals[0]] not in NAME_COLUMNS:
            one, two = (self.profiles[i].name for i in sorted((best, rivals[0])))
            raise DataError(
                f"{self.where}: the columns {one!r} and {two!r} may both name the images.",
                f"say which one by --image-column {one}.",
            )

    def _fallbacks(self, image: int) -> tuple[int, ...]:
        """Columns of the images' names in rows of JSON where the first of them is missing."""
        if not self.profiles[image].kinds["missing"]:
            return ()
        return tuple(
            i
            for i, name in enumerate(self.lower)
            if i != image
            and name in NAME_COLUMNS
            and self.profiles[i].kinds["text"]
            and self.profiles[i].kinds["missing"]
        )

    def _image_score(self, i: int) -> float:
        """How much a column looks like the images' names: by its values, by its name, and by how different they are."""
        profile = self.profiles[i]
        if not profile.filled:
            return 0
        if profile.kinds["bytes"]:
            return 3
        if self._is_index(i):
            return 0
        score = 0.5 if profile.distinct is None or len(profile.distinct) == profile.filled else 0.0
        texts = [cell for cell in profile.sample if isinstance(cell, str)]
        numbers = [str(cell) for cell in profile.sample if isinstance(cell, int) and not isinstance(cell, bool)]
        is_answer = profile.distinct is not None and {str(cell) for cell in profile.distinct} <= {"0", "1", ""}
        if self.options.image_names is not None and (texts or numbers) and not is_answer:
            share = self._share(i)
            is_other = self._is_number(i) and self.lower[i] not in NAME_COLUMNS and self._names_elsewhere(i)
            score += 4 * share if share >= 0.2 and not is_other else 0
        score += 2 * profile.endings / max(1, profile.filled)
        if self.lower[i] in NAME_COLUMNS:
            score += 1 + (len(NAME_COLUMNS) - NAME_COLUMNS.index(self.lower[i])) / 100
        elif _IMAGE_WORD.search(self.lower[i]):
            score += 0.5
        if profile.kinds["list"] or profile.kinds["mapping"]:
            return 0
        return score

    # The labels

    def _labels(self, image: tuple[int, ...], rest: list[int]) -> Plan:
        options, fractions = self.options, self.options.positive_from is not None
        if options.label_columns:
            return Plan("wide", image, self._checked([self._named(name) for name in options.label_columns]), {})
        if options.label_column is not None:
            return self._listed(image, self._named(options.label_column), rest)
        if self.layout == "listed":
            return self._listed(image, self._only_list(rest), rest)
        if self.layout == "wide":
            rest = [i for i in rest if self.lower[i] not in self.ignored]
            return Plan("wide", image, self._checked(rest), {})
        named = self._named_list(rest)
        binary = [i for i in rest if self.profiles[i].is_binary(True) and self.lower[i] not in SPLITS]
        if named is None and len(binary) == 1 and self.lower[binary[0]] in VALUE_COLUMNS:
            texts = [i for i in rest if self.profiles[i].kinds["text"] and self.lower[i] not in (*SPLITS, *REMARKS)]
            named = texts[0] if len(texts) == 1 else None
        if named is not None and len([i for i in binary if i != named and self._varies(i)]) >= 2 and not self.tool:
            a, b = (self.profiles[i].name for i in binary[:2])
            raise DataError(
                f"{self.where}: the column {self.profiles[named].name!r} and columns of 0 and 1 such as {a!r} and "
                f"{b!r} may both be the labels.",
                f"say which by --label-column {self.profiles[named].name} or --label-columns {a},{b},...",
            )
        if named is not None:
            return self._listed(image, named, rest)
        if len(binary) == 1 and self.lower[binary[0]] in LABEL_COLUMNS:
            return self._numbered(image, binary[0], rest)
        texts = [i for i in rest if i not in binary and self.profiles[i].kinds["text"] and self.lower[i] not in SPLITS]
        if len(binary) == 1 and texts and not self.tool:
            one, two = self.profiles[binary[0]].name, self.profiles[texts[0]]
            raise DataError(
                f"{self.where}: the column {one!r} of 0 and 1 and the column {two.name!r} ({two.example!r}) may both "
                "be the labels.",
                f"say which by --label-columns {one} or --label-column {two.name}.",
            )
        if binary:
            return Plan("wide", image, self._binary(binary, rest, fractions), {})
        return self._listed(image, self._only_list(rest), rest)

    def _numbered(self, image: tuple[int, ...], i: int, rest: Sequence[int]) -> Plan:
        """A column that is called `label` and holds 0 and 1: numbers of labels, where they have names."""
        name = self.profiles[i].name
        if self.options.label_names is None and name not in self.class_names:
            raise DataError(
                f"{self.where}: the column {name!r} holds 0 and 1, which may be numbers of labels, or no and yes.",
                f"name the labels by --label-names NAME,NAME, or say by --label-columns {name} that it is a label.",
            )
        return self._listed(image, i, rest)

    def _varies(self, i: int) -> bool:
        distinct = self.profiles[i].distinct
        return distinct is not None and len(distinct) > 1 and self.lower[i] not in VALUE_COLUMNS

    def _named_list(self, rest: Sequence[int]) -> int | None:
        """The column that is called labels, or the like, and holds texts, lists or numbers of labels."""
        for name in LABEL_COLUMNS:
            for i in rest:
                if self.lower[i] == name and not self._is_answers(i):
                    if self.lower.count(name) > 1:
                        raise DataError(f"{self.where}: two columns are called {name!r}.", "give each its own name.")
                    return i
        return None

    def _is_answers(self, i: int) -> bool:
        """Whether a column holds nothing but yes, no and unknown, so that it is a label itself."""
        profile = self.profiles[i]
        return profile.is_binary(True) and profile.kinds["word"] + profile.kinds["fraction"] == profile.filled

    def _only_list(self, rest: Sequence[int]) -> int:
        candidates = [
            i
            for i in rest
            if any(self.profiles[i].kinds[kind] for kind in ("text", "list", "mapping"))
            and self.lower[i] not in (*SPLITS, *VALUE_COLUMNS, *REMARKS)
        ]
        named = self._named_list(rest)
        if named is not None:
            return named
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            numbers = [i for i in rest if self.profiles[i].kinds["number"] and self.lower[i] not in VALUE_COLUMNS]
            if len(rest) == 1 and numbers:
                return numbers[0]
            if len(rest) == 1 and not self.profiles[rest[0]].is_binary(True):
                return rest[0]
            names = ", ".join(self.profiles[i].name for i in rest) or "none"
            raise DataError(
                f"{self.where}: no column holds labels (the others than the image: {names}).",
                "name it by --label-column, or the columns of 0 and 1 by --label-columns.",
            )
        shown = ", ".join(f"{self.profiles[i].name!r} ({self.profiles[i].example!r})" for i in candidates[:4])
        raise DataError(
            f"{self.where}: several columns may hold the labels: {shown}.",
            f"say which one by --label-column {self.profiles[candidates[0]].name}; a column for each label holds 1 and "
            "0, or yes and no.",
        )

    def _listed(self, image: tuple[int, ...], label: int, rest: Sequence[int]) -> Plan:
        if label in image:
            raise DataError(
                f"{self.where}: the column {self.profiles[label].name!r} is the images and the labels.",
                "name the images' column by --image-column.",
            )
        value = next(
            (
                i
                for name in VALUE_COLUMNS
                for i in rest
                if i != label
                and self.lower[i] == name
                and all(self.profiles[i].kinds[kind] == 0 for kind in ("text", "list"))
                and (self.profiles[i].kinds["number"] == 0 or self.options.positive_from is not None)
            ),
            None,
        )
        unknown = next((i for i in rest if self.lower[i] == "unknown" and self.profiles[i].kinds["list"]), None)
        return Plan("listed", image, (label,), {}, value, unknown, one_per_row=value is not None)

    def _binary(self, binary: Sequence[int], rest: Sequence[int], fractions: bool) -> tuple[int, ...]:
        others = [i for i in rest if i not in binary and self.profiles[i].filled]
        blank = [i for i in rest if not self.profiles[i].filled and self.lower[i] not in ("", *REMARKS)]
        if blank:
            self.notes.append(f"the column {self.profiles[blank[0]].name!r} is blank: a label that no image has")
        flags = [i for i in binary if is_about_annotation(self.lower[i])]
        if flags and len(binary) > 1:
            name = self.profiles[flags[0]].name
            raise DataError(
                f"{self.where}: the column {name!r} holds 0 and 1 and may be no label.",
                f"leave it out by --ignore-columns {name}, or name all labels by --label-columns.",
            )
        shown = ", ".join(f"{self.profiles[i].name} ({self.profiles[i].example!r})" for i in others[:3])
        if others and not self.tool:
            self.warnings.append(
                f"{len(others)} columns do not hold 0 and 1 and are left out: {shown}"
                f"{' ...' if len(others) > 3 else ''}; --label-columns names the labels"
            )
        if all(self.profiles[i].kinds["word"] == 0 for i in binary) and not fractions:
            first = self.profiles[binary[0]]
            raise DataError(
                f"{self.where}: the columns hold confidences, such as {first.example!r} for {first.name!r}.",
                "say by --positive-from 0.5 from which one a label is positive.",
            )
        return self._checked(sorted([*binary, *blank]))

    def _checked(self, labels: Sequence[int]) -> tuple[int, ...]:
        if not labels:
            raise DataError(f"{self.where}: no column is a label.", "name the labels by --label-columns.")
        names = [self.profiles[i].name.strip() for i in labels]
        if self.has_header:
            twice = {name for name in names if names.count(name) > 1 or not name}
            if twice:
                raise DataError(
                    f"{self.where}: the label {min(twice)!r} stands twice or is empty.",
                    "give each column one name; of two lines of names, delete the first.",
                )
        return tuple(labels)

    def _say_splits(self, used: set[int]) -> None:
        for i, name in enumerate(self.lower):
            if name in SPLITS and i not in used and self.profiles[i].filled:
                column = self.profiles[i].name
                self.notes.append(f"the column {column!r} may hold splits, which --split-column {column} keeps")
