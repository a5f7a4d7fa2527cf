"""Settings of `mlic review`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from mlic.config.base import Model, setting
from mlic.config.types import AnyPath, LocalPath, Share


class ReviewConfig(Model):
    """Write a page, one file without a server, on which a person decides about labels of images with the keyboard."""

    table: LocalPath = setting(
        ...,
        "The suspects of mlic noise, the table of mlic select, or predictions with scores",
        cli="argument",
        runtime=True,
    )
    images: AnyPath = setting(
        ..., "The images that the table names: as they were given to mlic", cli="flag", runtime=True
    )
    out: LocalPath = setting(Path("review.html"), "Page to write", cli="flag", runtime=True, validate_default=True)
    count: int = setting(200, "Maximum number of images, from the top of the table", cli="flag", ge=1, runtime=True)
    below: Share = setting(
        0.8,
        "Of predictions: images with a label whose score is less sure than this (the larger of the score and its "
        "complement)",
        cli="flag",
        gt=0.5,
        le=1,
        runtime=True,
    )
    side: int = setting(768, "Longest side of an image on the page, in pixels", ge=64, le=4096, runtime=True)

    @model_validator(mode="after")
    def _is_a_page(self) -> Self:
        if self.out.suffix != ".html":
            raise ValueError(f"out should end in .html, not be {self.out.name}")
        return self
