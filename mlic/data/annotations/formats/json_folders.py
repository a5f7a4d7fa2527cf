"""A folder with a JSON file for each image, as LabelMe, BigEarthNet and others have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic.data.annotations.column_names import NAME_COLUMNS
from mlic.data.annotations.files.table_files import records
from mlic.data.annotations.files.text_files import document, parsed_json
from mlic.data.annotations.formats.json_files import kind_of_content, read_json
from mlic.data.annotations.formats.json_labels import labels_of, marks_of, names_of
from mlic.data.annotations.formats.json_tools import named
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.tables import read_table
from mlic.data.image_labels import Annotations, Builder
from mlic.errors import DataError


def read_json_folder(folder: Path, options: LabelOptions) -> Annotations:
    """One JSON file per image, as LabelMe and BigEarthNet have them; its image is what it names, else its own name.

    One file of all images is read as that file. Raises DataError for several of them.
    """
    files = sorted(file for file in folder.rglob("*.json") if not file.name.startswith("."))
    first = parsed_json(document(files[0]), str(files[0]))
    kind = kind_of_content(first, options)
    if kind not in ("one image", "unknown"):
        if len(files) == 1:
            return read_json(files[0], options)
        raise DataError(
            f"the label folder {folder} holds {len(files)} JSON files, and {files[0].name} looks like {kind}.",
            "name one of them.",
        )
    labels_by_file = {file: read for file in files if (read := _of_one_image(file, options)) is not None}
    if options.label_column is None:
        _refuse_two_kinds(folder, labels_by_file)
    images = {file: _image_of(folder, file, content, options) for file, (content, _) in labels_by_file.items()}
    if any(isinstance(labels, str) for _, labels in labels_by_file.values()):
        rows = [{"image": images[file], "labels": labels} for file, (_, labels) in labels_by_file.items()]
        return read_table(records(folder, lambda: rows, ("one JSON file per image",)), options)
    builder = Builder()
    for file, (_, labels) in labels_by_file.items():
        builder.image(images[file], str(file), 0)
        for label, value in marks_of(file, file.name, labels):
            builder.mark(builder.label(str(label)), value)
    return named(builder, tuple(sorted(builder.numbers)), folder, "one JSON file per image", "")


def _of_one_image(file: Path, options: LabelOptions) -> tuple[Any, Any] | None:
    """The content of a file about one image, and the labels in it; None for one that nobody has begun to annotate.

    Raises DataError where there is no key of labels, or where several keys have some.
    """
    content = parsed_json(document(file), str(file))
    if isinstance(content, dict) and (content.get("metadata") or {}).get("status") == "NotStarted":  # SuperAnnotate
        return None
    try:
        labels = labels_of(content, file, options) if isinstance(content, dict) else content
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} lacks something of LabelMe's ({error}).", "export it again.") from None
    if labels is content and not isinstance(content, list):
        keys = f" in its keys {', '.join(list(content)[:6])}" if isinstance(content, dict) else ""
        raise DataError(f"{file} has no labels{keys}.", "give `labels`, `shapes`, `tags` or `flags` in each file.")
    return content, names_of(labels, str(file), options.ignore_columns)


def _refuse_two_kinds(folder: Path, labels_by_file: Mapping[Path, tuple[Any, Any]]) -> None:
    """Raise DataError where some files of LabelMe have shapes, and others flags of the image."""
    kinds = dict[str, Path]()
    for file, (content, labels) in labels_by_file.items():
        if isinstance(content, dict) and isinstance(content.get("shapes"), list) and labels:
            kinds.setdefault("shapes" if content["shapes"] else "flags", file)
    if len(kinds) == 2:
        raise DataError(
            f"in {folder}, {kinds['shapes'].name} has shapes, and {kinds['flags'].name} flags of the image.",
            "say by --label-column shapes or --label-column flags which ones are the labels.",
        )


def _image_of(folder: Path, file: Path, content: Any, options: LabelOptions) -> str:
    """The image of a file. Raises DataError if it names one image and is called after another."""
    named = content.get("imagePath") if isinstance(content, dict) else None
    if not isinstance(named, str):
        found = (
            [content.get(key) for key in NAME_COLUMNS if key not in ("id", "key", "name")]
            if isinstance(content, dict)
            else []
        )
        named = next((name for name in found if isinstance(name, str)), None)
    relative = file.relative_to(folder)
    if named is not None:
        name = named.replace("\\", "/").rpartition("/")[2]
        stem = Path(name).stem
        if stem != file.stem and options.is_image(file.stem) and options.is_image(stem):
            raise DataError(
                f"{file} is called after the image {file.stem!r}, and names {name!r} in it, which is there too.",
                "rename the file, or fix the image's name in it.",
            )
        return name
    return relative.with_name(
        relative.stem.removesuffix("_labels_metadata").removesuffix("_metadata").removesuffix("___objects")
    ).as_posix()
