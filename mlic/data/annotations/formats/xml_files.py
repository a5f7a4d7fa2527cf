"""XML: a folder of Pascal VOC files, or one file of CVAT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

from mlic.data.image_labels import Annotations, Builder
from mlic.errors import DataError


def read_voc(folder: Path) -> Annotations:
    """Pascal VOC: an image has the labels of its objects; a label whose objects are all `difficult` is unknown."""
    builder = Builder()
    others = 0  # files that name another image than they are called after
    files = sorted(file for file in folder.rglob("*.xml") if not file.name.startswith("."))
    for file in files:
        root = _root(file)
        if root.tag == "annotations":
            raise DataError(f"{file} is CVAT's XML, among files of Pascal VOC.", "name that file by --labels.")
        name = (root.findtext("filename") or file.stem).strip()
        others += PureWindowsPath(name).stem != file.stem
        builder.image(name, str(file), 0)
        marks: dict[str, int] = {}
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise DataError(f"{file}: an object without a name.", "fix that file.")
            if (item.findtext("deleted") or "0").strip() == "1":  # of LabelMe's pages
                continue
            if item.find("score") is not None or item.find("confidence") is not None:
                raise DataError(
                    f"{file}: the object {label!r} has a score, so it is a prediction.", "give the annotated objects."
                )
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            if not difficult or marks.get(label) != 1:
                marks[label] = -1 if difficult else 1
        for label, value in marks.items():
            builder.mark(builder.label(label), value)
    annotations = _built(builder, f"{len(files):,} Pascal VOC files in {folder}", "Pascal VOC")
    warning = f"{others:,} of {len(files):,} files name an image by another name than their own; <filename> is taken"
    return replace(annotations, warnings=(warning,)) if others else annotations


def read_cvat(file: Path) -> Annotations:
    """CVAT for images: the tags and shapes of each image; an image without any has no label."""
    root = _root(file)
    if root.tag != "annotations":
        raise DataError(
            f"{file} has the root <{root.tag}>, and CVAT's XML has <annotations>.", "export as CVAT for images."
        )
    if root.find("image") is None:
        raise DataError(f"{file} has no <image>, as an export of a video has not.", "export as CVAT for images.")
    builder, attributes, automatic = Builder(), dict[str, str](), 0
    for image in root.iter("image"):
        builder.image(image.get("name") or "", str(file), 0)
        automatic += sum(item.get("source") == "auto" for item in image)
        for attribute in image.iterfind("tag/attribute"):
            attributes[attribute.get("name") or ""] = (attribute.text or "").strip()
        for label in dict.fromkeys(item.get("label") for item in image if item.get("label")):
            builder.mark(builder.label(str(label)), 1)
    labels = [(item.findtext("name") or "").strip() for item in root.findall("./meta//labels/label")]
    for label in labels:
        if label:
            builder.label(label)
    annotations = _built(builder, f"the images of {file}", "CVAT")
    shown = ", ".join(f"{name} ({value!r})" for name, value in list(attributes.items())[:3])
    warnings = list(annotations.warnings)
    if attributes:
        warnings.append(f"tags have attributes that are left out: {shown}; a tag counts whatever they say")
    if automatic:
        warnings.append(f"{automatic:,} tags or shapes are a model's (source auto), and count like those of people")
    return replace(annotations, warnings=tuple(warnings))


def root_of(file: Path) -> str:
    """The name of the root of an XML file. Raises DataError for a file that is none."""
    return _root(file).tag


def _root(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()  # noqa: S314 - expat itself stops entities that explode
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{file} is not valid XML: {error}.", "fix that file.") from None


def _built(builder: Builder, source: str, tool: str) -> Annotations:
    labels = tuple(sorted(builder.numbers))
    if not labels:
        raise DataError(f"no label at all in {source}.", "give each image its labels.")
    return replace(
        builder.build(labels, f"{len(labels)} labels from {source}", repeats="agree", format=tool, tool=tool)
    )
