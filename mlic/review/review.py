"""Write a page on which a person decides about labels: images, questions and the script are in one file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mlic.batch_predict.predict import list_items
from mlic.config.base import Model
from mlic.config.review import ReviewConfig
from mlic.data.pixels import deep_images, images
from mlic.errors import DataError
from mlic.html import page
from mlic.review import questions
from mlic.runs.files import fingerprint, write_atomic

_QUALITY = 88


class ReviewReport(Model):
    """A page with `questions` about `images` images; `bad` could not be decoded."""

    out: Path
    images: int
    questions: int
    bad: int
    corrects: bool

    def text(self) -> str:
        bad = f"; {self.bad:,} cannot be decoded" if self.bad else ""
        what = "--corrections suspects.tsv" if self.corrects else "--labels labels.csv"
        return "\n".join(
            [
                f"{self.questions:,} questions about {self.images:,} images{bad}",
                f"page   {self.out}",
                f"next   open it in a browser, and save its answers: mlic pack PHOTOS {what} reads them",
            ]
        )


def review(config: ReviewConfig) -> ReviewReport:
    """Write the page. Raises DataError for a table of another kind, and for images that are not there."""
    asked = questions.read(config.table, config.count, config.below)
    if not asked.images:
        raise DataError(f"{config.table} has nothing open to decide.", "name another table, or raise --below.")
    pictures = dict(_pictures(config, list(asked.images)))
    content = asked.plain() | {
        "id": fingerprint(str(config.table), sorted(asked.images)),
        "title": f"Review of {config.table.name}",
        "pictures": pictures,
        "saved_as": "suspects.tsv" if asked.corrects else "labels.csv",
    }
    write_atomic(config.out, page.review(content["title"], json.dumps(content, ensure_ascii=False)).encode())
    return ReviewReport(
        out=config.out,
        images=len(asked.images),
        questions=sum(map(len, asked.images.values())),
        bad=sum(not picture for picture in pictures.values()),
        corrects=asked.corrects,
    )


def _pictures(config: ReviewConfig, wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The images, small enough for a page, as data: URLs; empty for one that cannot be decoded."""
    items = list_items(config.images, None)
    names = {name.decode(errors="surrogateescape"): row for row, name in enumerate(items.files.to_pylist())}
    missing = [file for file in wanted if file not in names]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(wanted):,} images are not in {config.images} ({missing[0]!r} is the first; they "
            f"look like {next(iter(names))!r}).",
            "give --images the folder, archive or shards that the table was made from.",
        )
    rows = items.rows
    with items.source.opened() as read:
        for file in wanted:
            try:
                pixels = deep_images.picture(read(int(rows[names[file]])), "rgb", images.MAX_PIXELS)
            except images.BadImage:
                yield file, ""
                continue
            picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
            picture.thumbnail((config.side, config.side))
            sink = io.BytesIO()
            picture.save(sink, "JPEG", quality=_QUALITY)
            yield file, "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
