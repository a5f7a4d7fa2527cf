"""List and fetch the published weights of architectures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mlic.config.base import Model
from mlic.errors import ConfigError
from mlic.model import published, zoo

logger = logging.getLogger(__name__)

_MOST = 200  # rows of a list


class Row(Model):
    """An architecture, where its weights are published, and their file on this machine, if it has been fetched."""

    arch: str
    source: str
    file: Path | None
    bytes: int | None


class WeightsReport(Model):
    """What `mlic weights` tells; `more` says that there are more than are listed."""

    weights: tuple[Row, ...]
    more: bool = False

    def text(self) -> str:
        lines = [
            f"{row.arch}  {row.file or row.source}" + ("" if row.bytes is None else f"  {row.bytes / 1e6:,.1f} MB")
            for row in self.weights
        ]
        return "\n".join([*lines, *["and more: give a longer part of the name"] * self.more])


def list_weights(pattern: str) -> WeightsReport:
    """The architectures whose names contain a text, up to 200. Raises ConfigError if there are none."""
    names = list(islice(published.names(pattern.removeprefix(zoo.TIMM)), _MOST + 1))
    if not names:
        raise ConfigError(
            f"no architecture with published weights has {pattern!r} in its name.",
            "give another part of a name; those of timm need pip install 'mlic[timm]'.",
        )
    return WeightsReport(weights=tuple(map(_row, names[:_MOST])), more=len(names) > _MOST)


def fetch_weights(archs: Sequence[str]) -> WeightsReport:
    """Fetch the weights of architectures that are not on this machine. Raises ConfigError and DataError."""
    for arch in _apart(archs):
        zoo.check(arch)
        path = published.fetch(arch)
        logger.info("%s is in %s", arch, path)
    return WeightsReport(weights=tuple(map(_row, _apart(archs))))


def find_weights(archs: Sequence[str]) -> WeightsReport:
    """The files of architectures on this machine. Raises ConfigError for one that has not been fetched."""
    for arch in _apart(archs):
        zoo.check(arch)
        published.cached(arch)
    return WeightsReport(weights=tuple(map(_row, _apart(archs))))


def _apart(archs: Sequence[str]) -> list[str]:
    """The single architectures of joined ones."""
    return [name for arch in archs for name in arch.split(zoo.JOINT)]


def _row(arch: str) -> Row:
    sources = published.sources(arch)
    file = next((path for source in sources if (path := source.cached) is not None), None)
    return Row(arch=arch, source=str(sources[0]), file=file, bytes=None if file is None else file.stat().st_size)
