"""Which columns of a table are the image, the labels, and neither: by options, by names, and by what the cells hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlic.data.annotations.column_names import (
    LABEL_COLUMNS,
    REMARKS,
    SPLITS,
    VALUE_COLUMNS,
    is_about_annotation,
    plain_name,
    tool_of,
)
from mlic.data.annotations.files.table_files import Table
from mlic.data.annotations.image_column import Columns, fallback_columns, folder_columns, image_columns, share
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import Profile
from mlic.errors import DataError

Layout = Literal["wide", "listed"]
_MOST = 0.7  # of the columns of 0 and 1, in the longest stretch of them
_PLACE = re.compile(r"path|folder|dir")
_METADATA = re.compile(
    r"photographer|camera(_\w+)?|site|device|licen[cs]e|annotator|reader|date|status|modality|notes?|url|sex|gender|operator"
    r"|location|country|city|owner|author|source|hospital|scanner|manufacturer"
)
_PREDICTED = re.compile(r"(model_)?(predict(ed|ions?)|preds?|outputs?|y_pred)(_(labels?|class(es)?|tags?))?")


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
    folders: tuple[int, ...] = ()  # columns of the folders that the images are in, the outermost first


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
        self.columns = Columns(self.where, profiles, self.lower, options, self.has_header)
        self.table = table
        self.tool, self.ignored, self.no_label = tool_of(set(self.lower))
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.not_binary: list[int] = []  # columns beside those of 0 and 1

    def plan(self) -> Plan:
        if len(self.profiles) < 2:
            raise DataError(
                f"{self.where}: a header with an image column and labels is needed.", "add the header line."
            )
        extra = {kind: self.columns.named(name) for kind, name in self.options.extra.items()}
        ignored = {self.columns.named(name) for name in self.options.ignore_columns if not self._is_key(name)}
        image = image_columns(self.columns, ignored | set(extra.values()), self.tool)
        fallbacks = fallback_columns(self.columns, image[0]) if self.options.image_column is None else ()
        taken = {*image, *fallbacks, *extra.values(), *ignored}
        taken |= {i for i, name in enumerate(self.lower) if name in self.ignored and not self.columns.is_asked_for(i)}
        rest = [i for i in range(len(self.profiles)) if i not in taken and not self.columns.is_index(i)]
        plan = self._labels(image, rest)
        used = {
            *plan.image,
            *fallbacks,
            *plan.labels,
            *extra.values(),
            *(i for i in (plan.value, plan.unknown) if i is not None),
        }
        no_folders = {*plan.image, *fallbacks, *plan.labels, plan.value, plan.unknown} | ignored
        others = [i for i in range(len(self.profiles)) if i not in no_folders]
        folders = folder_columns(self.columns, self.table, plan.image, others)
        used |= {*folders}
        left_out = tuple(
            (profile.name, profile.example)
            for i, profile in enumerate(self.profiles)
            if i not in used and (profile.name.strip() or profile.filled)
        )
        self._say_splits(used)
        self._warn_of_others([i for i in self.not_binary if i not in folders])
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
            folders,
        )

    def _is_key(self, name: str) -> bool:
        """Whether a name is no column, but may be a key of objects in cells, such as `{"name": "cat", "source": 1}`."""
        has_objects = any(profile.kinds["list"] or profile.kinds["mapping"] for profile in self.profiles)
        return has_objects and name.strip().lower() not in self.lower

    # The labels

    def _labels(self, image: tuple[int, ...], rest: list[int]) -> Plan:
        options, fractions = self.options, self.options.positive_from is not None
        if options.label_columns:
            return Plan("wide", image, self._checked([self.columns.named(name) for name in options.label_columns]), {})
        if options.label_column is not None:
            return self._listed(image, self.columns.named(options.label_column), rest)
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
            self._refuse_predictions(candidates[0])
            self._refuse_metadata(candidates[0])
            return candidates[0]
        if not candidates:
            numbers = [i for i in rest if self.profiles[i].kinds["number"] and self.lower[i] not in VALUE_COLUMNS]
            if len(rest) == 1 and numbers:
                return numbers[0]
            if len(rest) == 1 and not self.profiles[rest[0]].is_binary(True):
                self._refuse_metadata(rest[0])
                return rest[0]
            names = ", ".join(self.profiles[i].name for i in rest) or "none"
            raise DataError(
                f"{self.where}: no column holds labels (the others than the image: {names}).",
                "name it by --label-column, or the columns of 0 and 1 by --label-columns.",
            )
        candidates = sorted(candidates, key=lambda i: self.columns.looks_unique(i))
        shown = ", ".join(f"{self._called(i)!r} ({self.profiles[i].example!r})" for i in candidates[:4])
        raise DataError(
            f"{self.where}: several columns may hold the labels: {shown}.",
            f"say which one by --label-column {self._called(candidates[0])}; a column for each label holds 1 and "
            "0, or yes and no.",
        )

    def _refuse_metadata(self, i: int) -> None:
        """Raise DataError for a column that is called like one about how or by whom an image was made."""
        name = self.profiles[i].name
        if not self.columns.is_asked_for(i) and _METADATA.fullmatch(plain_name(name)):
            raise DataError(
                f"{self.where}: the only column of words is {name!r} ({self.profiles[i].example!r}), which hardly "
                "holds labels.",
                f"give a table with labels, or say by --label-column {name} that these are the labels.",
            )

    def _called(self, i: int) -> str:
        """The name of a column, or its place from 1 on where it has none."""
        return self.profiles[i].name or str(i + 1)

    def _refuse_predictions(self, i: int) -> None:
        """Raise DataError for a column that is called like a model's output."""
        if not self.columns.is_asked_for(i) and _PREDICTED.fullmatch(plain_name(self.profiles[i].name)):
            name = self.profiles[i].name
            raise DataError(
                f"{self.where}: the only column that may hold labels is {name!r}, which seems to be a model's output.",
                f"give the labels of people, or say by --label-column {name} that these are the labels.",
            )

    def _listed(self, image: tuple[int, ...], label: int, rest: Sequence[int]) -> Plan:
        if label in image:
            raise DataError(
                f"{self.where}: the column {self.profiles[label].name!r} is the images and the labels.",
                "name the images' column by --image-column.",
            )
        self._refuse_images(label)
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

    def _refuse_images(self, i: int) -> None:
        """Raise DataError for a column of labels whose cells are names of images."""
        if self.options.image_names is not None and share(self.columns, i) > 0.5 and self.profiles[i].kinds["text"]:
            raise DataError(
                f"{self.where}: the cells of {self._called(i)!r} are names of images ({self.profiles[i].example!r}), "
                "and no labels.",
                "name the column of the labels by --label-column; where each column lists the images of a label, write "
                "a file LABEL.txt of each.",
            )

    def _binary(self, binary: Sequence[int], rest: Sequence[int], fractions: bool) -> tuple[int, ...]:
        others = [i for i in rest if i not in binary and self.profiles[i].filled]
        blank = [i for i in rest if not self.profiles[i].filled and self.lower[i] not in ("", *REMARKS)]
        blank = [i for i in blank if not _PLACE.search(self.lower[i])]
        if blank:
            self.notes.append(f"the column {self.profiles[blank[0]].name!r} is blank: a label that no image has")
        flags = [i for i in binary if is_about_annotation(self.lower[i])]
        if flags and len(binary) > 1:
            name = self.profiles[flags[0]].name
            raise DataError(
                f"{self.where}: the column {name!r} holds 0 and 1 and may be no label.",
                f"leave it out by --ignore-columns {name}, or name all labels by --label-columns.",
            )
        self.not_binary = others
        self._warn_of_stretches(binary)
        if all(self.profiles[i].kinds["word"] == 0 for i in binary) and not fractions:
            first = self.profiles[binary[0]]
            raise DataError(
                f"{self.where}: the columns hold confidences, such as {first.example!r} for {first.name!r}.",
                "say by --positive-from 0.5 from which one a label is positive.",
            )
        return self._checked(sorted([*binary, *blank]))

    def _warn_of_stretches(self, binary: Sequence[int]) -> None:
        """Warn of columns of 0 and 1 apart from most: data about an image stands in front of its labels, or behind."""
        columns = [i for i in range(len(self.profiles)) if self.profiles[i].filled]
        stretches: list[list[int]] = [[]]
        for i in columns:
            if i in binary:
                stretches[-1].append(i)
            elif stretches[-1]:
                stretches.append([])
        longest = max(stretches, key=len)
        apart = [self.profiles[i].name for stretch in stretches if stretch is not longest for i in stretch]
        if apart and len(longest) >= _MOST * len(binary) and not self.tool:
            shown = ", ".join(map(repr, apart[:3])) + (" ..." if len(apart) > 3 else "")
            self.warnings.append(
                f"{shown} stand apart from the other labels and may be none; --ignore-columns {','.join(apart[:3])} "
                "leaves them out"
            )

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

    def _warn_of_others(self, others: Sequence[int]) -> None:
        shown = ", ".join(f"{self.profiles[i].name} ({self.profiles[i].example!r})" for i in others[:3])
        if others and not self.tool:
            self.warnings.append(
                f"{len(others)} columns do not hold 0 and 1 and are left out: {shown}"
                f"{' ...' if len(others) > 3 else ''}; --label-columns names the labels"
            )

    def _say_splits(self, used: set[int]) -> None:
        for i, name in enumerate(self.lower):
            if name in SPLITS and i not in used and self.profiles[i].filled:
                column = self.profiles[i].name
                self.notes.append(f"the column {column!r} may hold splits, which --split-column {column} keeps")
