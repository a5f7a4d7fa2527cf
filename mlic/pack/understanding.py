"""What `mlic pack` has understood of images and label files, before it writes anything."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mlic.config.base import Model
from mlic.config.types import AnyPath
from mlic.data.image_labels import Annotations, Array
from mlic.data.label_join import Joined
from mlic.data.name_rules import EXACT
from mlic.data.sources.image_listing import Listing

Treatment = Literal["leave-out", "negative", "unknown"]
_FEW_IMAGES = 10  # annotated ones; with fewer it may be chance that no image or every image has a label
_EXAMPLES, _SHOWN_LABELS, _SHOWN = 3, 30, 5


class LabelCount(Model):
    """In how many annotated images a label is present, absent and unknown."""

    label: str
    positive: int
    negative: int
    unknown: int


class Understanding(Model):
    """What was understood: the format, the columns, the images by how they are annotated, and how names were matched.

    `annotated_positive` images have a label, `annotated_negative` ones have none, and `annotated_unknown` ones have
    none and some unknown. `treatment` says what becomes of images that are not annotated. `matched` counts the names by
    the rule that matched them; `missing` names are of no image. `examples` are images in words.
    """

    images_in: AnyPath
    source: str
    format: str
    tool: str
    columns_used: tuple[str, ...]
    columns_left_out: dict[str, str]
    images: int
    annotated_positive: int
    annotated_negative: int
    annotated_unknown: int
    not_annotated: int
    treatment: Treatment
    names: int
    matched: dict[str, int]
    missing: int
    missing_examples: tuple[str, ...]
    labels: tuple[LabelCount, ...]
    examples: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        return "\n".join([*self.lines(), *(f"Warning: {warning}" for warning in self.warnings)])

    def lines(self) -> list[str]:
        """What was understood, without the warnings."""
        tool = f" ({self.tool})" if self.tool and self.tool != self.format else ""
        lines = [f"labels   {self.source}", f"format   {self.format}{tool}"]
        if self.columns_used:
            lines.append(f"columns  used: {', '.join(self._shown(self.columns_used))}")
        if self.columns_left_out:
            left = [f"{name} ({example!r})" if example else name for name, example in self.columns_left_out.items()]
            lines.append(f"         left out: {', '.join(self._shown(left))}")
        unknown = f", {self.annotated_unknown:,} with none and some unknown" if self.annotated_unknown else ""
        lines.append(
            f"images   {self.images:,}: {self.annotated_positive:,} annotated with a label, "
            f"{self.annotated_negative:,} annotated without one{unknown}, {self.not_annotated:,} not annotated"
            + (f" ({_TREATMENTS[self.treatment]})" if self.not_annotated else "")
        )
        rules = [f"{count:,} by {rule}" for rule, count in self.matched.items()]
        lines.append(f"names    {self.names:,}: {', '.join(rules)}, {self.missing:,} of no image")
        if self.missing:
            lines.append(
                f"         of no image: {', '.join(self.missing_examples)}{' ...' if self.missing > 3 else ''}"
            )
        lines += self._table()
        lines += [f"example  {example}" for example in self.examples]
        return [*lines, *(f"note     {note}" for note in self.notes)]

    def _shown(self, names: tuple[str, ...] | list[str]) -> list[str]:
        more = [f"and {len(names) - 2 * _SHOWN:,} more"] if len(names) > 2 * _SHOWN else []
        return [*names[: 2 * _SHOWN], *more]

    def _table(self) -> list[str]:
        shown = self.labels[:_SHOWN_LABELS]
        width = max((len(item.label) for item in shown), default=5)
        lines = [f"         {'label':<{width}}  {'present':>9}  {'absent':>9}  {'unknown':>9}"]
        lines += [
            f"         {item.label:<{width}}  {item.positive:>9,}  {item.negative:>9,}  {item.unknown:>9,}"
            for item in shown
        ]
        more = len(self.labels) - len(shown)
        return [*lines, f"         and {more:,} more labels"] if more else lines


_TREATMENTS = {
    "leave-out": "left out",
    "negative": "count as without any label",
    "unknown": "all their labels are unknown",
}


def understanding(
    images_in: AnyPath, annotations: Annotations, joined: Joined, listing: Listing, treatment: Treatment
) -> Understanding:
    """Count what was understood; `joined` are the annotations of the images in `listing`."""
    targets = joined.targets[joined.annotated]
    positive, unknown = (targets == 1).any(axis=1), (targets == -1).any(axis=1)
    warnings = list(annotations.warnings)
    not_annotated = int((~joined.annotated).sum())
    if not_annotated and treatment == "negative" and annotations.positives_only and not_annotated > 0.01 * len(listing):
        warnings.append(
            f"{not_annotated:,} of {len(listing):,} images are named nowhere in the label files and count as without "
            "any label; --not-annotated leave-out|negative|unknown|fail says what they are"
        )
    missing = [annotations.names[int(i)].as_py() for i in joined.missing[:3]]
    if len(joined.missing) * 2 > len(annotations.names):
        warnings.append(f"{len(joined.missing):,} of {len(annotations.names):,} annotated names are of no image")
    warnings += _of_all_or_none(annotations.labels, targets)
    return Understanding(
        images_in=images_in,
        source=annotations.source,
        format=annotations.format,
        tool=annotations.tool,
        columns_used=annotations.used,
        columns_left_out=dict(annotations.left_out),
        images=len(listing),
        annotated_positive=int(positive.sum()),
        annotated_negative=int((~positive & ~unknown).sum()),
        annotated_unknown=int((~positive & unknown).sum()),
        not_annotated=not_annotated,
        treatment=treatment,
        names=len(annotations.names),
        matched=joined.rules or {EXACT: 0},
        missing=len(joined.missing),
        missing_examples=tuple(missing),
        labels=tuple(_counts(annotations.labels, targets)),
        examples=tuple(_in_words(annotations, joined, listing)),
        notes=annotations.notes,
        warnings=tuple(warnings),
    )


def _of_all_or_none(labels: tuple[str, ...], targets: Array) -> list[str]:
    """Warnings of labels that nothing can be learnt about: no annotated image has them, or every one has."""
    none, every = ~(targets == 1).any(axis=0), (targets == 1).all(axis=0)
    warnings = []
    for chosen, what in ((none, "no image has"), (every, "every image has")):
        names = [labels[i] for i in np.flatnonzero(chosen)]
        if names and len(targets) >= _FEW_IMAGES:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            warnings.append(f"labels that {what}: {', '.join(map(repr, names[:_SHOWN]))}{more}")
    return warnings


def _counts(labels: tuple[str, ...], targets: Array) -> list[LabelCount]:
    counts = [(targets == value).sum(axis=0) for value in (1, 0, -1)]
    return [
        LabelCount(label=label, positive=int(counts[0][i]), negative=int(counts[1][i]), unknown=int(counts[2][i]))
        for i, label in enumerate(labels)
    ]


def _in_words(annotations: Annotations, joined: Joined, listing: Listing) -> list[str]:
    """Three images with their labels, such as `p07.jpg: cat, not dog, bird unknown`."""
    rows = np.flatnonzero(joined.annotated)
    chosen = rows[np.linspace(0, len(rows) - 1, min(_EXAMPLES, len(rows))).round().astype(int)] if len(rows) else rows
    sentences = []
    for row in dict.fromkeys(chosen.tolist()):
        words = {1: list[str](), 0: list[str](), -1: list[str]()}
        for label, value in zip(annotations.labels, joined.targets[row].tolist(), strict=True):
            words[value].append(label)
        said = words[1][:_SHOWN] + [f"not {label}" for label in words[0][:_SHOWN]]
        said += [f"{label} unknown" for label in words[-1][:_SHOWN]]
        left = sum(max(0, len(found) - _SHOWN) for found in words.values())
        sentences.append(f"{listing.path(row)}: {', '.join(said)}{f' and {left:,} more' if left else ''}")
    return sentences
