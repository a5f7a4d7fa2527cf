"""Settings of the label files: their format, their columns, and what their cells mean."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from mlic.config.base import Settings, setting
from mlic.config.types import Names

LabelFormat = Literal[
    "auto",
    "lists",
    "wide",
    "delimited",
    "long",
    "jsonl",
    "json",
    "coco",
    "voc",
    "cvat",
    "imagesets",
    "folders",
    "sidecars",
    "webdataset",
]
NotAnnotated = Literal["auto", "leave-out", "negative", "unknown", "fail"]
Readers = Literal["agree", "majority", "all", "any", "unknown"]


class LabelSettings(Settings):
    """How label files are read; shared by all commands that read them."""

    format: LabelFormat = setting("auto", "Format of the label files; auto: recognise it", cli="flag", group="labels")
    image_column: str | None = setting(
        None, "Column with the images' names; default: by its name and its values", cli="flag", group="labels"
    )
    label_columns: Names = setting(
        (), "Columns that are labels, separated by commas; all others are left out", cli="flag", group="labels"
    )
    label_column: str | None = setting(
        None, "Column that holds the labels of an image, or one of them per row", cli="flag", group="labels"
    )
    ignore_columns: Names = setting((), "Columns that are no labels, separated by commas", cli="flag", group="labels")
    delimiter: str | None = setting(
        None, "What separates the labels in a cell: a character, space, or none", cli="flag", group="labels"
    )
    label_names: str | None = setting(
        None,
        "Names of numbered labels or of the columns of a vector: NAME,NAME,... or a file with one name per line or "
        "with rows ID,NAME",
        cli="flag",
        group="labels",
    )
    minus_one: Literal["negative", "unknown"] | None = setting(
        None, "Meaning of -1; needed where a table has 1 and -1 only", cli="flag", group="labels"
    )
    blank: Literal["negative", "unknown"] | None = setting(
        None,
        "Meaning of a blank cell of labels; default: negative, with a warning where others say no in words",
        cli="flag",
        group="labels",
    )
    positive_from: float | None = setting(
        None, "Confidence from which a label is positive; smaller ones are negative", cli="flag", group="labels"
    )
    no_label: Names = setting(
        (), "Words that mean that an image has no label, such as 'No Finding,none'", cli="flag", group="labels"
    )
    readers: Readers = setting(
        "agree",
        "Several rows of one image: they have to agree, or majority, all, any, or unknown where they differ",
        cli="flag",
        group="labels",
    )
    image_list: str | None = setting(
        None, "File with the images in the order of label files that name none", cli="flag", group="labels"
    )

    @model_validator(mode="after")
    def _columns_are_said_once(self) -> LabelSettings:
        if self.label_column is not None and self.label_columns:
            raise ValueError("label_column and label_columns both say where the labels are; give one of them")
        both = sorted(set(self.label_columns) & set(self.ignore_columns))
        if both:
            raise ValueError(f"{both[0]!r} is in label_columns and in ignore_columns; leave it out of one")
        if self.delimiter == "":
            raise ValueError("delimiter should be some characters, space, tab or none, not nothing")
        return self
