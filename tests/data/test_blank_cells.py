"""What blank cells of labels mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.errors import DataError

MIXED = "image,cat,dog\na.jpg,1,0\nb.jpg,,1\nc.jpg,1,\nd.jpg,0,1\n"
TICKS = "image,cat,dog\na.jpg,x,\nb.jpg,,x\nc.jpg,x,x\n"
CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,Edema,Fracture\na.jpg,F,60,Frontal,AP,1.0,\nb.jpg,M,50,Frontal,AP,,0.0\n"
MERGED = "label,image\ncat,a.jpg\n,b.jpg\n,c.jpg\ndog,d.jpg\n,e.jpg\n,f.jpg\n"


def read(folder: Path, text: str, **options: str) -> Annotations:
    (folder / "labels.csv").write_text(text)
    return read_annotations(folder / "labels.csv", LabelOptions(**options))  # type: ignore[arg-type]


def targets(annotations: Annotations) -> list[list[int]]:
    rows = np.full((len(annotations.names), len(annotations.labels)), annotations.fill)
    rows[annotations.image, annotations.label] = annotations.value
    return rows.tolist()


def test_blank_beside_words_for_no_is_warned_of(tmp_path: Path) -> None:
    annotations = read(tmp_path, MIXED)
    assert targets(annotations) == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert len(annotations.warnings) == 1
    assert annotations.warnings[0].startswith("2 cells of labels are blank")
    assert "--blank unknown" in annotations.warnings[0]


@pytest.mark.parametrize(("blank", "value"), [("negative", 0), ("unknown", -1)])
def test_somebody_says_what_blank_means(tmp_path: Path, blank: str, value: int) -> None:
    annotations = read(tmp_path, MIXED, blank=blank)
    assert targets(annotations) == [[1, 0], [value, 1], [1, value], [0, 1]]
    assert annotations.warnings == ()
    assert f"2 blank cells of labels mean {blank}" in annotations.notes


def test_boxes_that_are_ticked(tmp_path: Path) -> None:
    annotations = read(tmp_path, TICKS)
    assert targets(annotations) == [[1, 0], [0, 1], [1, 1]]
    assert annotations.warnings == ()


def test_ticks_with_unknown_blanks_have_no_negative(tmp_path: Path) -> None:
    annotations = read(tmp_path, TICKS, blank="unknown")
    assert targets(annotations) == [[1, -1], [-1, 1], [1, 1]]
    assert any("says that a label is absent" in warning for warning in annotations.warnings)


def test_the_custom_of_a_data_set_is_noted(tmp_path: Path) -> None:
    annotations = read(tmp_path, CHEXPERT)
    assert targets(annotations) == [[1, 0], [0, 0]]
    assert annotations.warnings == ()
    assert any("as is the custom for CheXpert" in note for note in annotations.notes)


def test_merged_cells_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stands once, above 4 blank cells") as caught:
        read(tmp_path, MERGED)
    assert "--blank negative" in str(caught.value.hint)
    negative = read(tmp_path, MERGED, blank="negative")
    assert len(negative.names) == 6
    assert sum(map(sum, targets(negative))) == 2
    unknown = read(tmp_path, MERGED, blank="unknown")
    assert len(unknown.names) == 2
    assert not unknown.positives_only


@pytest.mark.parametrize(
    "rows",
    [
        ["cat,a.jpg", ",b.jpg", "cat,c.jpg", "dog,d.jpg", ",e.jpg", ",f.jpg"],  # a label that comes again
        ["cat,a.jpg", "dog,b.jpg", ",c.jpg", ",d.jpg", ",e.jpg", ",f.jpg"],  # a label with nothing below it
        [",a.jpg", "cat,b.jpg", ",c.jpg", "dog,d.jpg", ",e.jpg", ",f.jpg"],  # nothing above the first ones
    ],
)
def test_images_without_labels_are_no_merged_cells(tmp_path: Path, rows: list[str]) -> None:
    annotations = read(tmp_path, "\n".join(["label,image", *rows]) + "\n")
    assert len(annotations.names) == 6
