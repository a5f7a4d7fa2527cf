"""The HTML page of `mlic explore`."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from PIL import Image

from mlic.explore.result import ExploreReport
from mlic.html import page, plots

_SIZES = 12


def render(report: ExploreReport, pictures: Mapping[str, bytes], grids: Mapping[str, Image.Image | None]) -> str:
    """The page as text; `pictures` are PNG files by name, `grids` samples of each label."""

    def figure(name: str, description: str) -> Markup:
        return page.figure(pictures[name], description) if name in pictures else Markup("")

    total = sum(count * number for number, count in enumerate(report.cardinality))
    head = page.paragraph(
        f"{report.samples:,} images, {len(report.labels)} labels, {total / report.samples:.2f} labels an image; "
        f"{report.label_sets:,} different sets of labels, {report.label_sets_seen_once:,} of them seen once."
    )
    empty = [label for label, count in report.labels.items() if not count]
    if empty:
        head += page.warning(f"No image has the label {', '.join(empty[:10])}.")
    parts = [
        head,
        page.section("Labels", "Images with each label.", figure("labels", "images by label") + _labels(report)),
        page.section("Labels at a time", f"{report.without()}.", figure("cardinality", "by number")),
        page.section(
            "Labels together",
            "Of 100 images with the label of the row, so many have that of the column.",
            figure("together", "matrix of labels that occur together"),
        ),
        _implications(report),
        page.section("Splits", "Where each label's samples are.", figure("splits", "shares of labels by split"))
        if report.splits
        else "",
        _images(report, figure("brightness", "images by mean brightness")),
        _duplicates(report),
        page.section("Samples", "At random.", _samples(grids)),
    ]
    return page.page(f"{report.data}", page.join(parts))


def _labels(report: ExploreReport) -> Markup:
    splits = list(report.splits)
    most = max(1, *report.labels.values())
    unknown = any(report.unknown.values())
    rows = []
    for label, count in sorted(report.labels.items(), key=lambda item: -item[1]):
        share = report.share(label)
        said = "-" if share is None else f"{share:.2%}"
        cells: list[str | page.Cell] = [label, f"{count:,}", said, page.bar(count / most)]
        cells += [f"{report.unknown[label]:,}"] if unknown else []
        rows.append([*cells, *(f"{report.splits[split][label]:,}" for split in splits)])
    return page.table(["Label", "Images", "Share", "", *(["Unknown"] if unknown else []), *splits], rows)


def _implications(report: ExploreReport) -> Markup:
    if not report.implications:
        return Markup("")
    rows: list[page.Row] = [
        [
            f"{row.first} ⇒ {row.second}",
            f"{1 - row.exceptions / row.support:.2%}",
            f"{row.support:,}",
            f"{row.exceptions:,}",
            page.Cell(", ".join(row.keys[:8]) + (" …" if row.exceptions > 8 else ""), "text long"),
        ]
        for row in report.implications
    ]
    text = "Labels that nearly always bring another one. The exceptions are the first suspects of wrong labels."
    return page.section("Implications", text, page.table(["Rule", "Holds", "Images", "Exceptions", "Which"], rows))


def _images(report: ExploreReport, brightness: Markup) -> Markup:
    groups = {"Channels": report.color, "Format": report.formats, "Size in pixels": report.sizes}
    rows = [
        [f"{kind}: {name}", f"{count:,}", f"{count / max(1, report.looked_at):.2%}"]
        for kind, counts in groups.items()
        for name, count in list(counts.items())[:_SIZES]
    ]
    more = len(report.sizes) - _SIZES
    text = f"{report.looked_at:,} images were opened, {report.bad:,} of them do not read."
    if more > 0:
        text += f" {more:,} more sizes are not listed."
    return page.section("Images", text, page.table(["", "Images", "Share"], rows) + brightness)


def _duplicates(report: ExploreReport) -> Markup:
    if not report.duplicate_groups:
        return page.section("Duplicates", "No two of the images looked at are the same or nearly the same.", "")
    rows: list[page.Row] = [
        [str(i), page.Cell(", ".join(keys), "text long")] for i, keys in enumerate(report.duplicates, 1)
    ]
    text = f"{report.duplicate_groups:,} groups of images that are the same or nearly the same."
    return page.section("Duplicates", text, page.table(["Group", "Images"], rows))


def _samples(grids: Mapping[str, Image.Image | None]) -> Markup:
    return page.join(
        page.subheading(label) + page.picture(plots.jpeg(grid), "jpeg", f"samples of {label}")
        for label, grid in grids.items()
        if grid is not None
    )
