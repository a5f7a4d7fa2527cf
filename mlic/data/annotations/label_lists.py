"""Several labels in one cell: lists, mappings, vectors and delimited text, and which of them a column holds."""

from __future__ import annotations

import csv
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlic.data.annotations.cells import MISSING, check_numbers, is_vector, kind_of, parse_list, target_of
from mlic.data.annotations.column_names import VALUE_COLUMNS
from mlic.data.annotations.columns import Plan
from mlic.data.annotations.files.table_files import Table
from mlic.data.annotations.options import LabelOptions, label_names
from mlic.data.annotations.other_columns import check_beside
from mlic.data.annotations.profiles import Profile
from mlic.data.image_labels import Builder
from mlic.errors import DataError

Marks = list[tuple[str, int]]
_DELIMITERS = "\n;|"  # label names hardly ever have these
_NEVER_A_LABEL = MISSING - {"none", "?", "unknown", "uncertain"}
_TOGETHER = 3  # images in which two words that may be one label stand side by side, and nowhere else apart
_DISTINCT = 5_000  # different cells that are looked at
_SINGULAR = ("label", "class", "category", "tag", "class_name", "classname", "label_name", "labelname", "species")
_STRUCT_KEYS = ("choices", "tagName", "displayName", "label", "labels", "class", "class_name", "name", "value")
_NAMED = {"space": " ", "tab": "\t", "none": ""}


class LabelLists:
    """How the cells of one column are read. `how` says it in words; `notes` and `warnings` are for the reader."""

    def __init__(
        self,
        table: Table,
        profiles: Sequence[Profile],
        column: int,
        plan: Plan,
        options: LabelOptions,
        layout: str | None,
    ) -> None:
        self.table, self.options, self.layout, self.column = table, options, layout, column
        self.name = table.columns[column]
        self.image = plan.image[0]
        self.notes = list[str]()
        self.warnings = list[str]()
        self.values = set[int]()  # those that stand beside labels
        self.is_split = False  # whether some cell holds several labels
        self.is_complete = False  # whether cells say of each label whether it is absent
        self.no_label = {word.lower() for word in (*options.no_label, *plan.no_label)}
        if plan.no_label:
            self.notes.append(f"{plan.no_label[0]!r} means that there is no label")
        self._names = label_names(options.label_names)
        self._class_names = table.class_names.get(self.name)
        kinds = profiles[column].kinds
        self.is_typed = any(not isinstance(cell, str) for cell in profiles[column].sample)
        self.vector = self.has_lists = False
        self.is_parsed = self.is_typed or kinds["list"] + kinds["mapping"] > 0
        self.delimiter, self.how = "", "one label per cell"
        if self.is_typed:
            self._look_at_lists()
            if table.by_words:
                self._warn_of_pairs(Counter(" ".join(cell) for cell in profiles[column].sample))
        elif self.is_parsed:
            self.how = "lists as text"
            self._look_at_lists()
        else:
            self._choose_delimiter(self._distinct())

    # One cell

    def marks(self, cell: Any, line: int) -> Marks | None:
        """The labels in a cell with their values; None where it holds no value at all. Raises DataError."""
        where = f"{self.table.file}:{line}"
        if self.is_parsed and isinstance(cell, str) and kind_of(cell) in ("list", "mapping"):
            try:
                cell = parse_list(cell)
            except ValueError:
                raise DataError(f"{where}: {cell[:60]!r} is no list of labels.", "fix that cell.") from None
        if isinstance(cell, dict):
            return self._mapping(cell, where)
        if isinstance(cell, list | tuple):
            return self._list(cell, where)
        if kind_of(cell) == "missing" and not isinstance(cell, str):
            return None
        text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
        if text.lower() in _NEVER_A_LABEL:
            return None
        parts = self._split(text) if text else []
        if self.vector:
            return self._vector([int(part) for part in parts], where)
        return self._named_marks((part for part in parts if part.lower() not in _NEVER_A_LABEL), where)

    def _list(self, values: Sequence[Any], where: str) -> Marks | None:
        if self.vector:
            return self._vector(values, where)
        texts = list[str]()
        marks: Marks = []
        check_numbers([] if self._class_names is not None else values, where)
        if self._class_names is not None and list(values) == [-1]:
            return None  # Hugging Face's way to say that the labels of a test split are not given
        for value in values:
            if isinstance(value, dict) and "tagName" in value and value.get("type") == "Negative":
                continue  # of Custom Vision: none of the tags
            if isinstance(value, dict) and any(name in value for name in VALUE_COLUMNS):
                marks.append(self._with_value(value, where))
                continue
            if isinstance(value, dict):
                key = next((key for key in _STRUCT_KEYS if isinstance(value.get(key), str | int)), None)
                check_beside(value, where, {str(key), "value", *self.options.ignore_columns})
                value = value.get(key) if key else value
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise DataError(
                    f"{where}: {str(value)[:40]!r} in the list {self.name!r} is no label.",
                    "give labels as text, or name the columns of a vector of 0 and 1 by --label-names.",
                )
            texts.append(str(value).strip())
        self.is_split = self.is_split or len(texts) + len(marks) > 1
        return marks + self._named_marks(texts, where)

    def _with_value(self, item: dict[str, Any], where: str) -> tuple[str, int]:
        """A label beside its score, as `{"label": "cat", "score": 0.9}`."""
        key = next((key for key in _STRUCT_KEYS if isinstance(item.get(key), str)), None)
        value = next(item[name] for name in VALUE_COLUMNS if name in item)
        try:
            return self.named(str(item[key or ""]), 0), target_of(value, -1, self.options.positive_from)
        except (KeyError, ValueError):
            raise DataError(
                f"{where}: {str(item)[:60]} in {self.name!r} is neither 0 nor 1 for a label.",
                "say by --positive-from 0.5 from which score a label is positive.",
            ) from None

    def _mapping(self, cell: dict[Any, Any], where: str) -> Marks | None:
        key = next((key for key in _STRUCT_KEYS if isinstance(cell.get(key), list)), None)
        if key is not None:
            return self._list(cell[key], where)
        if len(cell) == 1 and isinstance(cell.get("choices"), str):
            return self._named_marks([cell["choices"]], where)
        marks: Marks = []
        self.is_complete = True
        for label, value in cell.items():
            try:
                target = self.target(value)
            except ValueError:
                raise DataError(
                    f"{where}: {value!r} for the label {label!r} is not 1, 0 or -1.",
                    "fix that line, or say by --positive-from from which confidence a label is positive.",
                ) from None
            marks.append((self.named(str(label), 0), target))
        self.is_split = True
        return marks

    def target(self, value: Any) -> int:
        """1, 0 or -1 of a value beside a label. Raises ValueError for other values."""
        target = target_of(value, -1, self.options.positive_from)
        if target == -1 and kind_of(value) == "word":
            self.values.add(-1)
            return 0 if self.options.minus_one == "negative" else -1
        self.values.add(target)
        return target

    def check_values(self) -> None:
        """Raise DataError where values beside labels are 1 and -1 alone and nobody has said what -1 means."""
        if self.values == {1, -1} and self.options.minus_one is None:
            raise DataError(
                f"{self.table.file}: the values beside labels are 1 and -1 alone, so -1 may mean that it is absent "
                "or unknown.",
                "say it by --minus-one negative or --minus-one unknown.",
            )

    def _vector(self, values: Sequence[Any], where: str) -> Marks:
        names = self._vector_names()
        if not is_vector(values) or len(values) != len(names):
            raise DataError(
                f"{where}: {len(values)} values in {self.name!r} where {len(names)} labels have names.",
                "give one 0 or 1 for each name of --label-names.",
            )
        self.is_split = self.is_complete = True
        return [(name, int(value)) for name, value in zip(names, values, strict=True)]

    def _named_marks(self, texts: Iterable[str], where: str) -> Marks:
        marks: Marks = []
        for text in texts:
            if text and text.lower() not in self.no_label:
                marks.append((self.named(text, where), 1))
        return marks

    def named(self, label: str, where: Any) -> str:
        """The name of a label that may be a number."""
        if self._names is not None:
            if label in self._names.names:
                return label
            return self._names.of(
                label, f"{self.table.file}:{where}" if isinstance(where, int) and where else str(where)
            )
        if self._class_names is not None and label.lstrip("-").isdecimal():
            if 0 <= int(label) < len(self._class_names):
                return self._class_names[int(label)]
            raise DataError(
                f"{self.table.file}: {self.name!r} holds {label}, and names {len(self._class_names)} labels.",
                "name all labels by --label-names.",
            )
        return label

    def _split(self, text: str) -> list[str]:
        if not self.delimiter:
            return [text]
        if self.delimiter == " ":
            parts = text.split()
        elif '"' in text and len(self.delimiter) == 1:
            parts = [part.strip() for part in next(csv.reader([text], delimiter=self.delimiter, skipinitialspace=True))]
        else:
            parts = [part.strip() for part in text.split(self.delimiter)]
        self.is_split = self.is_split or len(parts) > 1
        return parts

    # The whole column

    def vocabulary(self, builder: Builder) -> tuple[str, ...]:
        """The labels in order: those of a list of names in its order, else all that occur, sorted."""
        if self.vector:
            return tuple(self._vector_names())
        if self._names is not None and not self._names.by_id:
            return self._all_of(self._names.names, builder)
        if self._class_names is not None:
            return self._all_of(self._class_names, builder)
        return tuple(sorted(builder.numbers))

    def _all_of(self, names: Sequence[str], builder: Builder) -> tuple[str, ...]:
        return (*dict.fromkeys(names), *sorted(set(builder.numbers) - set(names)))

    def is_long(self, builder: Builder) -> bool:
        """Whether each row has one label at most, so that an image has as many rows as labels."""
        if self.has_lists:
            return False
        return self.layout == "long" or (not self.is_split and self.layout != "delimited" and builder.has_repeats())

    def _vector_names(self) -> Sequence[str]:
        if self._names is not None:
            return self._names.in_order()
        if self._class_names is not None:
            return self._class_names
        raise DataError(
            f"{self.table.file}: the cells of {self.name!r} are vectors of 0 and 1, which do not name their labels.",
            "name them in their order by --label-names cat,dog,... or --label-names FILE.",
        )

    def _look_at_lists(self) -> None:
        """Tell vectors of 0 and 1 from lists of labels."""
        lengths, seen, vectors = set[int](), 0, True
        for block in self.table.blocks():
            for cell in block.columns[self.column]:
                if isinstance(cell, str) and kind_of(cell) in ("list", "mapping"):
                    try:
                        cell = parse_list(cell)
                    except ValueError:
                        vectors = False
                if isinstance(cell, list | tuple):
                    seen, self.has_lists = seen + 1, True
                    lengths.add(len(cell))
                    vectors = vectors and is_vector(cell)
                elif kind_of(cell) not in ("missing", "blank"):
                    vectors = False
            if not vectors:
                break
        self.how = self.how if self.how == "lists as text" else "lists"
        plain = {1} if self._class_names is None else {0}
        self.vector = vectors and seen > 0 and len(lengths) == 1 and lengths != plain and lengths != {0}
        if self.vector:
            self.how = "vectors of 0 and 1"
            self._vector_names()

    def _distinct(self) -> dict[str, int]:
        counts = dict[str, int]()  # of the first different cells, which are enough to see what separates labels
        for block in self.table.blocks():
            for cell in block.columns[self.column]:
                text = cell.strip() if isinstance(cell, str) else ""
                if text and text.lower() not in _NEVER_A_LABEL and text.lower() not in self.no_label:
                    counts[text] = counts.get(text, 0) + 1
            if len(counts) > _DISTINCT:
                break
        return counts

    def _choose_delimiter(self, counts: dict[str, int]) -> None:
        """What separates the labels of the column, by its distinct cells and how often each stands there."""
        if self.options.delimiter is not None:
            self.delimiter = _NAMED.get(self.options.delimiter, self.options.delimiter)
            self.how = f"by {self.delimiter!r}" if self.delimiter else "one label per cell"
        elif not self._are_vectors(counts) and self.layout != "long":
            self.delimiter = self._guessed(counts)
            if self.delimiter == " ":
                self._warn_of_pairs(counts)
            self.how = f"by {self.delimiter!r}" if self.delimiter else "one label per cell"

    def _are_vectors(self, counts: dict[str, int]) -> bool:
        """Whether the cells are vectors: of 0 and 1 alone, all with as many of them."""
        for delimiter in (",", " ", ";"):
            rows = [
                [part.strip() for part in (cell.split() if delimiter == " " else cell.split(delimiter))]
                for cell in counts
            ]
            same_length = len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
            if same_length and all(part in ("0", "1") for row in rows for part in row):
                self.delimiter, self.vector, self.how = delimiter, True, "vectors of 0 and 1"
                self._vector_names()
                return True
        return False

    def _guessed(self, counts: dict[str, int]) -> str:
        for delimiter in _DELIMITERS:
            if any(delimiter in cell for cell in counts):
                return delimiter
        if any("," in cell or " " in cell for cell in counts) and self._names_repeat():
            return ""  # an image has a row for each of its labels
        if any("," in cell for cell in counts):
            return self._comma(counts)
        if any(" " in cell for cell in counts):
            return self._space(counts)
        return ""

    def _comma(self, counts: dict[str, int]) -> str:
        """Whether commas separate labels, or are in the names of labels such as `Suit, two-piece`."""
        lists = {cell: {part.strip() for part in cell.split(",")} for cell in counts if "," in cell}
        single = set(counts) - set(lists)
        parts = set().union(*lists.values())
        as_in_prose = all(", " in cell and cell.count(",") == cell.count(", ") for cell in lists)
        rows, distinct = sum(counts.values()), len(counts)
        if self.layout == "delimited" or not as_in_prose or single & parts or len(parts | single) <= distinct:
            return ","
        if not single and not (rows >= 3 * distinct):
            return ","
        if sum(len(found) for found in lists.values()) == len(parts) and rows >= 4 * distinct and distinct >= 3:
            example = next(iter(lists))
            self.warnings.append(
                f"the labels have commas in their names, such as {example!r}; --delimiter , makes lists of them"
            )
            return ""
        raise self._ask(next(iter(lists)), ",")

    def _space(self, counts: dict[str, int]) -> str:
        """Whether spaces separate labels, or are in the names of labels such as `hot dog`."""
        lists = {cell: set(cell.split()) for cell in counts if " " in cell}
        words = set().union(*lists.values())
        single = set(counts) - set(lists)
        alone = {word for word in words if word.lower() in {cell.lower() for cell in single}}
        if self.layout == "delimited":
            return " "
        if len(words & single) >= 0.75 * len(words) or len(counts) >= 2 * len(words | single):
            return " "
        often = sum(1 for word in words if sum(word in cell_words for cell_words in lists.values()) > 1)
        longest = sorted(len(cell.split()) for cell in lists)[len(lists) // 2]
        is_one = self.name.strip().lower() in _SINGULAR and longest <= 4
        # Labels of several words recur as they are; two labels of an image stand beside others elsewhere.
        recur = sum(counts.values()) >= 3 * len(counts) and len(lists) > 2 and min(counts[cell] for cell in lists) > 1
        if not alone and often * 2 < len(words) and (is_one or recur):
            return ""
        raise self._ask(next(iter(lists)), "space")

    def _warn_of_pairs(self, counts: dict[str, int]) -> None:
        """Warn of two words that never stand apart, which may be one label such as `polar bear`."""
        cells = dict[str, int]()
        together = dict[tuple[str, str], int]()
        for cell, count in counts.items():
            words = cell.split()
            for word in set(words):
                cells[word] = cells.get(word, 0) + count
            for pair in set(itertools.pairwise(words)):
                together[pair] = together.get(pair, 0) + count
        always = [
            pair for pair, count in together.items() if count == cells[pair[0]] == cells[pair[1]] and count >= _TOGETHER
        ]
        if always:
            first, second = always[0]
            self.warnings.append(
                f"{first!r} and {second!r} are two labels, and stand side by side in each of their "
                f"{together[always[0]]:,} images; if they are one, write {first}_{second}"
            )

    def _names_repeat(self) -> bool:
        """Whether some image has several rows with different cells."""
        names, rows = array("q"), array("q")
        for block in self.table.blocks():
            for name, cell in zip(block.columns[self.image], block.columns[self.column], strict=True):
                names.append(hash(str(name).strip()))
                rows.append(hash((str(name).strip(), str(cell).strip())))
        return len(np.unique(np.frombuffer(names, np.int64))) < len(np.unique(np.frombuffer(rows, np.int64)))

    def _ask(self, example: str, delimiter: str) -> DataError:
        return DataError(
            f"{self.table.file}: it cannot be told whether {example[:60]!r} in {self.name!r} is one label or several.",
            f"say it by --delimiter none or --delimiter {delimiter}.",
        )
