"""Folders of text files: a list of images per label, VOC's image sets, 0 and 1 per image, and tags beside images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mlic.data.annotations.files.table_files import TABLES
from mlic.data.annotations.files.text_files import text_lines
from mlic.data.annotations.options import LabelNames, LabelOptions, label_names
from mlic.data.image_labels import Annotations, Builder
from mlic.data.name_rules import is_number
from mlic.data.pixels.images import EXTENSIONS
from mlic.errors import DataError

SPLITS = ("train", "val", "test", "trainval", "valid", "validation")
_OTHER_FILES = re.compile(r"(?i)(readme|licen[sc]e|changelog|requirements)\b.*|classes|obj\.names|notes?")
_SET_LINE = re.compile(r"(\S+)\s+(-1|0|1)")
_YOLO_LINE = re.compile(r"\d+(\s+-?[\d.]+([eE][+-]?\d+)?){4,}")
_SPLIT_SUFFIX = re.compile(r"_(train|val|test|trainval)$")
_LINES = 200  # of a file that are looked at


def text_files(folder: Path) -> list[Path]:
    """The .txt files of a folder that can hold labels, without README files and their kind."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt" and not file.name.startswith("."))
    return [file for file in files if not _OTHER_FILES.fullmatch(file.stem)] or files


def head(file: Path) -> list[str]:
    """The first lines of a text file that are not blank."""
    lines: list[str] = []
    for _, line in text_lines(file):
        if line.strip():
            lines.append(line.strip())
        if len(lines) == _LINES:
            break
    return lines


def are_image_sets(folder: Path) -> bool:
    """Whether files have lines `NAME 1`, `NAME -1` and `NAME 0`, as VOC's ImageSets/Main has them."""
    files = [file for file in text_files(folder) if file.stem not in SPLITS]
    heads = [lines for file in files if (lines := head(file))]
    return bool(heads) and all(all(_SET_LINE.fullmatch(line) for line in lines) for lines in heads)


def are_columns(folder: Path) -> bool:
    """Whether files have lines of 0 and 1 alone, one per image, as NUS-WIDE has them."""
    heads = [lines for file in text_files(folder) if (lines := head(file))]
    return bool(heads) and all(len(lines) > 2 and set(lines) <= {"0", "1"} for lines in heads)


def are_sidecars(folder: Path, options: LabelOptions) -> bool:
    """Whether most text files are called like an image."""
    stems = [file.stem for file in folder.rglob("*.txt")][:_LINES]
    return options.image_names is not None and len(stems) > 1 and options.image_names.share(stems) > 0.5


def read_lists(folder: Path, options: LabelOptions) -> Annotations:
    """One list of images per label, LABEL.txt: a bare number, a name or a relative path on each line."""
    files = text_files(folder)
    if any(file.stem not in SPLITS for file in files):  # else they are lists of splits, for --split-files
        files = [file for file in files if file.stem not in SPLITS]
    builder = Builder()
    numbers = 0
    for label, file in enumerate(files):
        before = len(builder)
        for line, text in text_lines(file):
            name = text.strip()
            if not name:
                continue
            if any(ord(char) < 32 for char in name):
                raise DataError(f"{file}:{line}: {name!r} is not one image's name.", "write one image per line.")
            builder.image(name, str(file), line)
            builder.mark(label, 1)
            numbers += is_number(name)
        _check_list(file, len(builder) - before, options)
    if not len(builder):
        raise DataError(f"the {len(files)} lists in {folder} are all empty.", "write one image per line.")
    source = f"{len(files)} labels from per-label lists in {folder}" + _passed_over(folder, files)
    names = tuple(file.stem for file in files)
    annotations = builder.build(
        names, source, bare_numbers=numbers * 2 > len(builder), repeats="union", format="a list of images per label"
    )
    return replace(annotations, by_label=True, positives_only=True)


def _check_list(file: Path, count: int, options: LabelOptions) -> None:
    """Raise DataError for a file that is no list of images."""
    lines = head(file)
    if len(lines) > 2 and len(set(lines)) <= 2 and set(lines) <= {"0", "1"}:
        raise DataError(
            f"{file} holds lines of 0 and 1 alone, which name no image.",
            "give the images in the order of the lines by --image-list FILE.",
        )
    if any(_SET_LINE.fullmatch(line) and not Path(line).suffix for line in lines[:1]) and len(lines) > 1:
        raise DataError(f"{file}: {lines[0]!r} is a name and a number, not a name.", "give --format imagesets.")
    if options.image_names is None or not count:
        return
    if options.image_names.share(lines) == 0 and not any(is_number(line) for line in lines):
        prose = sum(" " in line and not Path(line).suffix for line in lines)
        if prose * 2 > len(lines):
            raise DataError(
                f"{file} is no list of images: {lines[0][:60]!r}.", "move it out of the folder of the labels."
            )


def _passed_over(folder: Path, used: Sequence[Path]) -> str:
    passed = sorted(
        file.name
        for file in folder.iterdir()
        if file not in used
        and not file.name.startswith(".")
        and (file.name.lower().endswith((".jsonl", ".json", ".txt", *TABLES)))
    )
    return f" (passed over {', '.join(passed[:3])}{' ...' if len(passed) > 3 else ''})" if passed else ""


def read_image_sets(folder: Path) -> Annotations:
    """VOC's image sets: LABEL_train.txt with `NAME 1`, -1 for absent and 0 for difficult, and train.txt, val.txt."""
    files = [file for file in text_files(folder) if file.stem not in SPLITS]
    parts = {file: _SPLIT_SUFFIX.sub("", file.stem) for file in files}
    if any(file.stem.endswith("_train") for file in files):
        files = [file for file in files if not file.stem.endswith("_trainval")]
    labels = sorted({parts[file] for file in files})
    splits = _image_splits(folder)
    has_absent = any(text.split()[-1:] == ["-1"] for file in files for _, text in text_lines(file))
    builder = Builder(("split",) if splits else ())
    for file in files:
        for line, text in text_lines(file):
            if not text.strip():
                continue
            match = _SET_LINE.fullmatch(text.strip())
            if match is None:
                raise DataError(f"{file}:{line}: {text.strip()!r} is not NAME 1, -1 or 0.", "fix that line.")
            name = match[1]
            builder.image(name, str(file), line, *((splits.get(name, ""),) if splits else ()))
            builder.mark(labels.index(parts[file]), {1: 1, -1: 0, 0: -1 if has_absent else 0}[int(match[2])])
    annotations = builder.build(
        tuple(labels),
        f"{len(labels)} labels from the image sets in {folder}",
        repeats="union",
        fill=-1,
        format="VOC image sets",
        tool="Pascal VOC",
    )
    notes: tuple[str, ...] = ("1 is present, 0 absent: no line has -1",)
    if has_absent:
        notes = ("1 is present, -1 absent, 0 difficult and so unknown, as Pascal VOC defines them",)
    if splits:
        notes += (f"splits from {', '.join(sorted(set(splits.values())))}.txt",)
    return replace(annotations, notes=notes)


def _image_splits(folder: Path) -> dict[str, str]:
    """The split of each image by train.txt, val.txt and test.txt. Raises DataError for an image in two of them."""
    splits = dict[str, str]()
    for name in ("train", "val", "test"):
        file = folder / f"{name}.txt"
        if file.is_file():
            for line, text in text_lines(file):
                image = text.split()[0] if text.strip() else ""
                if image and splits.setdefault(image, name) != name:
                    raise DataError(f"{file}:{line}: {image} is in {splits[image]}.txt, too.", "keep one of the two.")
    return splits


def read_columns(folder: Path, options: LabelOptions) -> Annotations:
    """NUS-WIDE's files, LABEL.txt with 0 or 1 per image, in the order of a list of the images."""
    listing = _image_list(folder, options)
    images = [text.strip() for _, text in text_lines(listing) if text.strip()]
    files = text_files(folder)
    prefix = "Labels_" if all(file.stem.startswith("Labels_") for file in files) else ""
    values = list[list[str]]()
    for file in files:
        lines = [text.strip() for _, text in text_lines(file) if text.strip()]
        if len(lines) != len(images):
            raise DataError(
                f"{file} has {len(lines):,} lines, and {listing} has {len(images):,} images.",
                "give the list that these lines belong to by --image-list.",
            )
        odd = next((line for line in lines if line not in ("0", "1")), None)
        if odd is not None:
            raise DataError(f"{file}: {odd!r} is neither 0 nor 1.", "fix that line.")
        values.append(lines)
    builder = Builder()
    for i, name in enumerate(images):
        builder.image(name.replace("\\", "/"), str(listing), i + 1)
        for label, lines in enumerate(values):
            if lines[i] == "1":
                builder.mark(label, 1)
    names = tuple(file.stem.removeprefix(prefix) for file in files)
    source = f"{len(names)} labels from lines of 0 and 1 in {folder}, in the order of {listing}"
    return builder.build(names, source, repeats="agree", format="lines of 0 and 1", tool="NUS-WIDE" if prefix else "")


def _image_list(folder: Path, options: LabelOptions) -> Path:
    if options.image_list is not None:
        path = Path(options.image_list).expanduser()
        if not path.is_file():
            raise DataError(f"the image list {path} does not exist.", "check the path given to --image-list.")
        return path
    for place in (folder, folder.parent, folder.parent / "ImageList", folder.parent.parent / "ImageList"):
        if place.is_dir():
            for file in sorted(place.iterdir()):
                if file.name.lower() in ("imagelist.txt", "image_list.txt", "images.txt"):
                    return file
    raise DataError(
        f"the files in {folder} have lines of 0 and 1 alone, which name no image.",
        "give the images in the order of the lines by --image-list FILE.",
    )


def read_sidecars(folder: Path, options: LabelOptions) -> Annotations:
    """A text file beside each image: tags separated by commas or lines, or YOLO's lines of a class and a box."""
    files = sorted(file for file in folder.rglob("*.txt") if not file.name.startswith("."))
    if options.image_names is not None:
        files = [file for file in files if options.image_names.share([file.stem]) == 1]
    heads = [head(file) for file in files]
    is_yolo = any(heads) and all(_YOLO_LINE.fullmatch(line) for lines in heads for line in lines)
    names = label_names(options.label_names) if options.label_names or not is_yolo else _yolo_names(folder)
    if is_yolo and names is None:
        raise DataError(
            f"the text files in {folder} have YOLO's lines, which number their classes.",
            "name the classes in their order by --label-names cat,dog,... or --label-names FILE.",
        )
    builder = Builder()
    for file, lines in zip(files, heads, strict=True):
        builder.image(file.relative_to(folder).with_suffix("").as_posix(), str(file), 0)
        if len(lines) == _LINES:
            lines = [text.strip() for _, text in text_lines(file) if text.strip()]
        if not is_yolo and any(_YOLO_LINE.fullmatch(line) for line in lines):
            raise DataError(f"{file} has YOLO's lines, and other files beside it do not.", "fix or remove that file.")
        for tag in _tags(lines, is_yolo, options):
            builder.mark(builder.label(names.of(tag, str(file)) if names is not None else tag), 1)
    if not builder.numbers:
        raise DataError(f"the text files in {folder} hold no tags.", "write tags separated by commas.")
    labels = (
        tuple(names.by_id.values() or names.names) if is_yolo and names is not None else tuple(sorted(builder.numbers))
    )
    labels = (*labels, *sorted(set(builder.numbers) - set(labels)))
    source = f"{len(labels)} labels from {len(files):,} text files beside the images in {folder}"
    return builder.build(labels, source, repeats="union", format="YOLO" if is_yolo else "tags beside images")


def _tags(lines: Iterable[str], is_yolo: bool, options: LabelOptions) -> list[str]:
    if is_yolo:
        scored = next((line for line in lines if len(line.split()) == 6), None)
        if scored is not None:
            raise DataError(
                f"YOLO's line {scored!r} has six numbers: the last is a confidence, so this is a prediction.",
                "give the files of people, which have five numbers in a line.",
            )
        return list(dict.fromkeys(line.split()[0] for line in lines))
    delimiter = {"space": None, "none": "\n", "tab": "\t"}.get(options.delimiter or ",", options.delimiter or ",")
    tags = [part.strip() for line in lines for part in line.split(delimiter)]
    none = {word.lower() for word in options.no_label}
    return list(dict.fromkeys(tag for tag in tags if tag and tag.lower() not in none))


def _yolo_names(folder: Path) -> LabelNames | None:
    for place in (folder, folder.parent):
        for name in ("classes.txt", "obj.names", "labels.txt"):
            if (place / name).is_file():
                return label_names(str(place / name))
    return None


def image_files(folder: Path) -> list[Path]:
    """The images below a folder."""
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in EXTENSIONS]
