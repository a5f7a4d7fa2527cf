"""What a person says about label files, for the readers of all formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa

from mlic.config.labels import LabelFormat, LabelSettings, Readers
from mlic.data.annotations.column_names import LABEL_COLUMNS
from mlic.data.label_join import ImageNames
from mlic.errors import DataError

_NAME_FILES = (".txt", ".csv", ".json", ".tsv", ".yaml", ".yml")
_HEADERS = frozenset({*LABEL_COLUMNS, "name", "names"})


@dataclass(frozen=True)
class LabelOptions:
    """The settings of `LabelSettings`, and the columns with the split and the group of an image.

    `image_names` looks names up among the images, where these are known. `of_splits` says that the file names the
    splits of images, and not labels.
    """

    format: LabelFormat = "auto"
    image_column: str | None = None
    label_columns: tuple[str, ...] = ()
    label_column: str | None = None
    ignore_columns: tuple[str, ...] = ()
    delimiter: str | None = None
    label_names: str | None = None
    minus_one: str | None = None
    blank: str | None = None
    positive_from: float | None = None
    no_label: tuple[str, ...] = ()
    readers: Readers = "agree"
    image_list: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    image_names: ImageNames | None = None
    of_splits: bool = False

    @property
    def needs_columns(self) -> str | None:
        """The name of an option that only tables have, if one is given."""
        names = ("split_column", "group_column", "image_column", "label_columns", "label_column", "ignore_columns")
        return next((name for name in names if getattr(self, name)), None)

    @property
    def extra(self) -> dict[str, str]:
        """The columns that are kept beside the labels, by what they are for."""
        named = {"split": self.split_column, "group": self.group_column}
        return {kind: column for kind, column in named.items() if column is not None}

    @property
    def is_image(self) -> Callable[[str], bool]:
        """Whether a cell is the name of an image, as far as is known."""
        names = self.image_names
        return (lambda _: False) if names is None else (lambda cell: names.share([cell]) == 1)


def options_of(
    config: LabelSettings, paths: pa.Array | None = None, split: str | None = None, group: str | None = None
) -> LabelOptions:
    """The options of a command; `paths` (N,) are the images' paths as bytes."""
    said = {field.name: getattr(config, field.name) for field in fields(LabelOptions) if hasattr(config, field.name)}
    names = None if paths is None else ImageNames(paths)
    return LabelOptions(**said | {"split_column": split, "group_column": group, "image_names": names})


class LabelNames:
    """Names of numbered labels: in the order of their numbers from 0 on, or by their ids."""

    def __init__(self, source: str, names: Sequence[str], by_id: dict[str, str]) -> None:
        self.source, self.names, self.by_id = source, tuple(names), by_id

    def in_order(self) -> tuple[str, ...]:
        """The names by their numbers from 0 on. Raises DataError where the ids are others."""
        if not self.by_id:
            return self.names
        if set(self.by_id) != {str(number) for number in range(len(self.by_id))}:
            raise DataError(
                f"the ids in {self.source} are not 0 to {len(self.by_id) - 1}, which number columns.",
                "give the names in the order of the columns, one per line.",
            )
        return tuple(self.by_id[str(number)] for number in range(len(self.by_id)))

    def of(self, label: str, where: str) -> str:
        """The name of a number or an id. Raises DataError where there is none."""
        if label in self.by_id:
            return self.by_id[label]
        if not self.by_id and label.isdecimal() and int(label) < len(self.names):
            return self.names[int(label)]
        raise DataError(
            f"{where}: the label {label!r} has no name in {self.source}, which has {len(self.names)}.",
            "name all labels by --label-names, in the order of their numbers from 0 on or as ID,NAME.",
        )


def _names_in_yaml(source: str, text: str) -> LabelNames:
    """The names in YAML: a list, or `names` of YOLO's data.yaml as a list or by number. Raises DataError."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{source} is no YAML ({str(error).splitlines()[0]}).", "fix the file.") from None
    names = content.get("names") if isinstance(content, dict) else content
    if isinstance(names, dict):
        return LabelNames(source, [str(name) for name in names.values()], {str(k): str(v) for k, v in names.items()})
    if isinstance(names, list):
        return LabelNames(source, [str(name) for name in names], {})
    raise DataError(f"{source} has no list `names`.", "give `names: [cat, dog]`, or a file with one name per line.")


def label_names(given: str | None) -> LabelNames | None:
    """The names that `--label-names` gives: NAME,NAME or a file. Raises DataError for a file that cannot be read."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if not path.is_file():
        if "/" in given or Path(given).suffix.lower() in _NAME_FILES:
            raise DataError(f"the label names {given} do not exist.", "check the path given to --label-names.")
        return LabelNames("--label-names", [name.strip() for name in given.split(",")], {})
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            if isinstance(found, dict) and all(isinstance(value, int) for value in found.values()):
                found = {str(number): name for name, number in found.items()}
            if isinstance(found, dict):
                return LabelNames(given, [str(name) for name in found.values()], {k: str(v) for k, v in found.items()})
            return LabelNames(given, [str(name) for name in found], {})
        if path.suffix.lower() in (".yaml", ".yml"):
            return _names_in_yaml(given, text)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read the label names {given}: {error}.", "give one name per line.") from None
    rows = [row for row in csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",") if row]
    if rows and all(len(row) == 2 for row in rows):
        return LabelNames(given, [row[1].strip() for row in rows], {row[0].strip(): row[1].strip() for row in rows})
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return LabelNames(given, lines[1:] if lines and lines[0].lower() in _HEADERS else lines, {})
