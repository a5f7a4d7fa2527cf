"""The report of `mlic explore`."""

from __future__ import annotations

from pathlib import Path

from mlic.config.base import Model
from mlic.config.types import AnyPath


class ImplicationRow(Model):
    """Nearly all images with the label `first` have `second` too; `exceptions` are the first that do not."""

    first: str
    second: str
    support: int
    exceptions: int
    keys: tuple[str, ...]


class ExploreReport(Model):
    """What was found. Label counts are over all samples; for everything else, `looked_at` images were opened.

    `undecided` counts the images without a known label that may have one, because some of their labels are unknown.
    """

    data: AnyPath
    out: Path
    samples: int
    labels: dict[str, int]
    unknown: dict[str, int]
    cardinality: list[int]
    undecided: int
    label_sets: int
    label_sets_seen_once: int
    together: list[list[int]]
    implications: tuple[ImplicationRow, ...]
    splits: dict[str, dict[str, int]]
    looked_at: int
    bad: int
    color: dict[str, int]
    formats: dict[str, int]
    sizes: dict[str, int]
    brightness: list[int]
    duplicate_groups: int
    duplicates: tuple[tuple[str, ...], ...]
    page: Path

    def without(self) -> str:
        """How many images have no label, in words. Those whose labels are unknown in part may have one."""
        surely = self.cardinality[0] - self.undecided
        return f"{surely:,} images without any" + (
            f", {self.undecided:,} without a known one" if self.undecided else ""
        )

    def share(self, label: str) -> float | None:
        """The share of a label among the images of which it is known; None where it is known of none."""
        known = self.samples - self.unknown[label]
        return self.labels[label] / known if known else None

    def text(self) -> str:
        total = sum(count * number for number, count in enumerate(self.cardinality))
        unknown = "  ".join(f"{label} {count:,}" for label, count in self.unknown.items() if count)
        lines = [
            f"{self.samples:,} images, {len(self.labels)} labels, {total / self.samples:.2f} labels an image, "
            f"{self.without()}",
            "labels  " + "  ".join(f"{label} {count:,}" for label, count in self.labels.items()),
            *([f"unknown  {unknown}"] if unknown else []),
            "at a time  " + "  ".join(f"{number}: {count:,}" for number, count in enumerate(self.cardinality)),
            f"{self.label_sets:,} different sets of labels, {self.label_sets_seen_once:,} of them once",
        ]
        lines += [
            f"{row.first} => {row.second}: {row.exceptions:,} exceptions of {row.support:,}"
            for row in self.implications[:5]
        ]
        lines += [
            f"of {self.looked_at:,} images looked at: "
            + ", ".join(f"{count:,} {name}" for name, count in self.color.items())
            + f", {self.bad:,} unreadable; {self.duplicate_groups:,} groups of the same or nearly the same",
            "sizes  " + "  ".join(f"{size} {count:,}" for size, count in list(self.sizes.items())[:5]),
            f"page  {self.page}",
        ]
        return "\n".join(lines)
