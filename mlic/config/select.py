"""Settings of `mlic select`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from mlic.config.base import Settings, setting
from mlic.config.types import AnyPath, LocalPath

Rule = Literal["mixture", "uncertain", "rare", "diverse", "random"]


class SelectConfig(Settings):
    """Choose the images without labels whose labels would teach a model most, as a table to label."""

    model: LocalPath = setting(..., "Run folder, or the bundle inside one", cli="argument", runtime=True)
    images: AnyPath = setting(
        ..., "Images without labels: a folder, an archive, a list, or shards", cli="argument", runtime=True
    )
    count: int = setting(200, "How many images to choose", cli="flag", ge=1, runtime=True)
    out: LocalPath = setting(
        Path("batch.tsv"), "Table to write (.tsv)", cli="flag", runtime=True, validate_default=True
    )
    by: Rule = setting(
        "mixture",
        "uncertain: scores near the model's own thresholds; rare: the same, with rare labels counted more; diverse: "
        "far from each other; mixture: rare and diverse together; random",
        cli="flag",
        runtime=True,
    )
    features: LocalPath | None = setting(
        None, "Model whose features say which images are alike; default: MODEL", cli="flag", runtime=True
    )
    duplicates: float = setting(
        0.95,
        "Cosine of the standardised features from which two images count as one",
        cli="flag",
        gt=0,
        le=1,
        runtime=True,
    )
    seed: int = setting(42, "Seed of the random rule", ge=0, le=2**31 - 1, runtime=True)

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if self.out.suffix != ".tsv":
            raise ValueError(f"out should end in .tsv, not be {self.out.name}")
        return self
