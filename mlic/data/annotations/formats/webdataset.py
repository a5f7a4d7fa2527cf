"""WebDataset shards with labels beside each image, as webdataset and img2dataset write them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlic.data import storage
from mlic.data.annotations.cells import is_vector, target_of
from mlic.data.annotations.files.table_files import json_object
from mlic.data.annotations.options import LabelNames, LabelOptions, label_names
from mlic.data.image_labels import Annotations, Builder
from mlic.data.sources import image_sources, parquet_images
from mlic.data.sources.image_sources import is_image
from mlic.errors import DataError

_RECORDS = ("json", "cls", "npy")


def read_webdataset(path: Path, options: LabelOptions) -> Annotations:
    """Labels of WebDataset samples, whose key ends at the first dot of the file's name.

    A sample's labels are in KEY.json (a list of labels, or an object with `labels` and maybe `unknown`), KEY.cls (names
    or numbers, separated by commas or spaces) or KEY.npy (a vector of 0 and 1), in upper or lower case, also with a
    part's name as in KEY.meta.json. Raises DataError.
    """
    listing = image_sources.list_images(path)
    archives = [archive for archive in listing.archives if isinstance(archive, Path)]
    if not archives:
        raise DataError(f"the folder {path} holds no .tar shards alone.", "check --labels.")
    by_archive = listing.by_archive
    reader = _Reader(label_names(options.label_names), options)
    for archive in archives:
        for image, records in _samples(archive):
            name = f"{parquet_images.stem(path, archive)}/{image}" if by_archive else image
            reader.sample(name, records)
    if not len(reader.builder):
        raise DataError(f"the shards in {path} hold no KEY.json and no KEY.cls.", "give the labels by other files.")
    vocabulary = reader.vocabulary()
    if not vocabulary:
        raise DataError(f"no label at all in the shards in {path}.", "give each image its labels.")
    source = f"{len(vocabulary)} labels from the .json and .cls members of {len(archives)} shards in {path}"
    return reader.builder.build(vocabulary, source, format="WebDataset shards", tool="webdataset")


def _samples(archive: Path) -> Iterator[tuple[str, dict[str, tuple[str, bytes]]]]:
    """The name of each sample's image, and its records by their last extension, as (name, bytes).

    Of several images of a sample, the one with the shortest extension counts: `a.jpg` before `a.depth.png`.
    """
    from webdataset import tariterators  # here, because it imports PyTorch

    key, image, records, parts = None, "", dict[str, tuple[str, bytes]](), 0
    with storage.File(archive) as file:
        for name, size, offset, _, how in image_sources.members(archive):
            base, extension = tariterators.base_plus_ext(name)
            if base is None or how:
                continue
            if base != key:
                if image:
                    yield image, records
                key, image, records, parts = base, "", {}, 0
            last = extension.lower().rpartition(".")[2]
            if is_image(name):
                _check_name(archive, name)
                if not image or extension.count(".") < parts:
                    image, parts = name, extension.count(".")
            elif last in _RECORDS:
                if last in records:
                    raise DataError(
                        f"{archive}: the sample {base!r} has two members that end in .{last}, such as {name!r}.",
                        "a sample's name ends at its first dot: name the members of each image KEY.jpg and KEY.json.",
                    )
                records[last] = (f"{archive}:{name}", file.read_at(offset, size))
    if image:
        yield image, records


def _check_name(archive: Path, name: str) -> None:
    """Raise DataError for a name that is not UTF-8: labels are joined by text."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{archive}: the name {os.fsencode(name)!r} is not UTF-8.", "write the shards with other names."
        ) from None


class _Reader:
    """Labels of samples, one after another."""

    def __init__(self, names: LabelNames | None, options: LabelOptions) -> None:
        self.builder, self.names, self.options = Builder(), names, options
        self.is_vector = False

    def sample(self, image: str, records: dict[str, tuple[str, bytes]]) -> None:
        """Take the labels of one image; without a record it is not annotated."""
        content: Any = None
        if "json" in records:
            where, data = records["json"]
            content = _content(data, where)
            if isinstance(content, dict) and "labels" not in content:
                content = None  # what img2dataset says of an image
        if content is not None:
            self.builder.image(image, where, 0)
            self._json(content, where)
        elif "cls" in records:
            where, data = records["cls"]
            self.builder.image(image, where, 0)
            for name in _class_names(data, where):
                self._mark(name, 1, where)
        elif "npy" in records:
            where, data = records["npy"]
            self.builder.image(image, where, 0)
            self._values(_array(data, where), where)

    def vocabulary(self) -> tuple[str, ...]:
        if self.is_vector and self.names is not None:
            return self.names.in_order()
        return tuple(sorted(self.builder.numbers))

    def _json(self, content: Any, where: str) -> None:
        labels = content.get("labels") if isinstance(content, dict) else content
        unknown = content.get("unknown", []) if isinstance(content, dict) else []
        if isinstance(labels, str):
            labels = [labels]
        if isinstance(labels, list) and len(labels) > 1 and is_vector(labels):
            self._values(labels, where)
            return
        if isinstance(labels, list) and all(isinstance(v, str | int) and not isinstance(v, bool) for v in labels):
            labels = {str(label): 1 for label in labels}
        if not isinstance(labels, dict) or not isinstance(unknown, list):
            raise DataError(f"{where}: `labels` is neither a list nor a mapping.", "fix that file.")
        for label, value in {**labels, **dict.fromkeys(unknown, -1)}.items():
            try:
                self._mark(str(label), target_of(value, -1, self.options.positive_from), where)
            except ValueError:
                raise DataError(
                    f"{where}: {value!r} for the label {label!r} is not 1, 0 or -1.", "fix that file."
                ) from None

    def _values(self, values: Any, where: str) -> None:
        self.is_vector = True
        if self.names is None or len(values) != len(self.names.names):
            count = 0 if self.names is None else len(self.names.names)
            raise DataError(
                f"{where}: a vector of {len(values)} values, which do not name their labels ({count} names).",
                "name them in their order by --label-names cat,dog,... or --label-names FILE.",
            )
        for name, value in zip(self.names.in_order(), values, strict=True):
            self._mark(name, int(value), where)

    def _mark(self, label: str, value: int, where: str) -> None:
        name = label
        if self.names is not None and label not in self.names.names:
            name = self.names.of(label, where)
        number = self.builder.label(name)
        if value:
            self.builder.mark(number, value)


def _content(data: bytes, where: str) -> Any:
    text = data.decode("utf-8", "replace").strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}).", "fix that file.") from None
    return json_object(data, where)


def _class_names(data: bytes, where: str) -> list[str]:
    text = data.decode("utf-8", "replace").strip()
    if not text or "\ufffd" in text:
        raise DataError(f"{where}: {data[:20]!r} names no class.", "write the class's name or number as text.")
    parts = text.split(",") if "," in text else text.split() if text.replace(" ", "").isdigit() else [text]
    return [part.strip() for part in parts if part.strip()]


def _array(data: bytes, where: str) -> list[int]:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{where}: no array ({error}).", "write it by numpy.save.") from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{where}: several arrays (.npz).", "write one by numpy.save.")
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise DataError(f"{where}: an array {values.shape} that is no vector of 0 and 1.", "write one value per label.")
    return [int(value) for value in values]
