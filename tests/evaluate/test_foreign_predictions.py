"""Predictions that another program wrote, and data sets as they come, from their label files to `mlic evaluate`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from mlic.config.data import PackConfig
from mlic.config.evaluate import EvaluateConfig
from mlic.config.load import build
from mlic.errors import DataError
from mlic.evaluate.evaluate import EvaluateReport, evaluate
from mlic.pack.pack import pack
from mlic.pack.summary import PackReport
from tests.data import layouts
from tests.data.test_layouts import COMMANDS, settings


def predictions(path: Path, header: str, row: str) -> Path:
    """A table of perfect scores 0.9 and 0.1, or of lists of labels."""
    lines = [
        row.format(i=i, key=key, cat=0.9 if "cat" in v else 0.1, dog=0.9 if "dog" in v else 0.1, labels=" ".join(v))
        for i, (key, v) in enumerate(layouts.TRUTH.items())
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",file,cat,dog", "{i},{key}.jpg,{cat},{dog}"),
        ("file,cat,dog", "{key},{cat},{dog}"),
        ("cat,dog,image_name", "{cat},{dog},/content/img/{key}.jpg"),
        ("Unnamed: 0,dog,cat,id", "{i},{dog},{cat},{key}"),
    ],
)
def test_scores_of_another_program(tmp_path: Path, header: str, row: str) -> None:
    layouts.write(tmp_path, "wide.csv")
    file = predictions(tmp_path / "p.csv", header, row)
    report = evaluate(EvaluateConfig(predictions=file, labels=tmp_path / "wide.csv", threshold=0.5))
    assert report.measurement.values["f1_micro"] == 1
    assert report.measurement.samples == 16


def test_the_column_of_images_is_that_of_the_label_file(tmp_path: Path) -> None:
    """The predictions may call theirs otherwise."""
    rows = [f"{i},{key}.jpg,{int('cat' in v)},{int('dog' in v)}" for i, (key, v) in enumerate(layouts.TRUTH.items())]
    (tmp_path / "l.csv").write_text("\n".join(["code,picture,cat,dog", *rows]))
    file = predictions(tmp_path / "p.csv", "name,cat,dog", "{key},{cat},{dog}")
    config = {"predictions": file, "labels": tmp_path / "l.csv", "threshold": 0.5, "image_column": "picture"}
    report = evaluate(build(EvaluateConfig, config | {"ignore_columns": "code"}))
    assert isinstance(report, EvaluateReport)
    assert report.measurement.values["f1_micro"] == 1


def test_lists_of_labels_are_decisions(tmp_path: Path) -> None:
    layouts.write(tmp_path, "wide.csv")
    file = predictions(tmp_path / "p.csv", "image_name,tags", "{key},{labels}")
    report = evaluate(EvaluateConfig(predictions=file, labels=tmp_path / "wide.csv"))
    assert report.measurement.values["f1_micro"] == 1


def test_logits_have_to_be_said(tmp_path: Path) -> None:
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{3.2 if 'cat' in v else -2},{4 if 'dog' in v else -1.5}" for key, v in layouts.TRUTH.items()]
    (tmp_path / "p.csv").write_text("\n".join(["file,cat,dog", *rows]))
    config = EvaluateConfig(predictions=tmp_path / "p.csv", labels=tmp_path / "wide.csv", threshold=0.5)
    with pytest.raises(DataError, match="3.2 for 'cat' is neither 0, 1 nor a score between 0 and 1") as error:
        evaluate(config)
    assert "--logits" in error.value.hint
    assert evaluate(config.model_copy(update={"logits": True})).measurement.values["f1_micro"] == 1


@pytest.mark.parametrize(("cat", "top"), [("0.93", 1), ("1", 1), ("93.0", 100)])
def test_what_are_no_logits(tmp_path: Path, cat: str, top: int) -> None:
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{cat if 'cat' in v else 0},0" for key, v in layouts.TRUTH.items()]
    (tmp_path / "p.csv").write_text("\n".join(["file,cat,dog", *rows]))
    config = EvaluateConfig(predictions=tmp_path / "p.csv", labels=tmp_path / "wide.csv", threshold=0.5, logits=True)
    with pytest.raises(DataError, match=f"all values are from 0 to {top}, so they are no log-odds"):
        evaluate(config)


def test_cells_without_a_prediction_are_refused(tmp_path: Path) -> None:
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{key}.jpg,{'1,0' if i else ','}" for i, key in enumerate(layouts.TRUTH)]
    (tmp_path / "p.csv").write_text("\n".join(["file,cat,dog", *rows]))
    with pytest.raises(DataError, match="1 cells of 'cat' hold no prediction"):
        evaluate(EvaluateConfig(predictions=tmp_path / "p.csv", labels=tmp_path / "wide.csv"))


def test_scores_beside_lists_of_labels_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write(tmp_path, "wide.csv")
    rows = [json.dumps({"image": key, "labels": ["cat", "dog"], "scores": [0.9, 0.1]}) for key in layouts.TRUTH]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    evaluate(EvaluateConfig(predictions=tmp_path / "p.jsonl", labels=tmp_path / "wide.csv"))
    assert "the column 'scores' may say how sure a label is" in caplog.text


def test_an_index_is_no_column_of_images(tmp_path: Path) -> None:
    layouts.write(tmp_path, "wide.csv")
    rows = [f"{i},{int('cat' in v)},{int('dog' in v)}" for i, v in enumerate(layouts.TRUTH.values())]
    (tmp_path / "p.csv").write_text("\n".join([",cat,dog", *rows]))
    labels = "\n".join([",cat,dog", *rows])
    (tmp_path / "labels.csv").write_text(labels)
    layouts.photos(tmp_path)
    with pytest.raises(DataError, match="no column names the images; the first one numbers the rows"):
        pack(PackConfig(images=tmp_path / "photos", labels=tmp_path / "labels.csv", dry_run=True))


def test_a_file_that_is_no_table_of_predictions(tmp_path: Path) -> None:
    layouts.write(tmp_path, "wide.csv")
    (tmp_path / "p.csv").write_text("a,b,c\none,two,three\n")
    with pytest.raises(DataError, match="cannot be read as predictions") as error:
        evaluate(EvaluateConfig(predictions=tmp_path / "p.csv", labels=tmp_path / "wide.csv"))
    assert "give a column of image names" in error.value.hint


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("Filename\tcat\na.gif\t1\na.webp\t0\n")
    (tmp_path / "l.csv").write_text("image,cat\na.gif,1\na.webp,0\n")
    report = evaluate(EvaluateConfig(predictions=tmp_path / "p.tsv", labels=tmp_path / "l.csv"))
    assert (report.measurement.samples, report.measurement.values["f1_micro"]) == (2, 1)


def test_a_label_that_is_unknown_everywhere(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,cat,dog\n" + "".join(f"p{i}.jpg,{i % 2},-1\n" for i in range(8)))
    (tmp_path / "p.csv").write_text("file,cat,dog\n" + "".join(f"p{i}.jpg,{i % 2 * 0.8},0.5\n" for i in range(8)))
    report = evaluate(EvaluateConfig(predictions=tmp_path / "p.csv", labels=tmp_path / "l.csv", threshold=0.5))
    rows = {row["label"]: row for row in report.measurement.model_dump()["labels"]}
    assert (rows["cat"]["ap"], rows["dog"]["ap"]) == (1, None)
    assert not any(math.isnan(end) for end in report.measurement.intervals["map"])


SETS = ("chexpert", "Data_Entry_2017", "list_attr_celeba.txt", "human-imagelabels", "Main", "AllLabels", "train_v2")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", SETS)
def test_a_data_set_from_its_label_file_to_evaluate(tmp_path: Path, name: str) -> None:
    """CheXpert, ChestX-ray14, CelebA, Open Images, VOC, NUS-WIDE and Planet: one command to pack, one to evaluate."""
    command = next(command for command in COMMANDS if f"--labels {name}" in command)
    layouts.photos(tmp_path)
    layouts.write(tmp_path, re.findall(r"--labels (\S+)", command)[0])
    given = settings(command, tmp_path)
    report = pack(build(PackConfig, given))
    assert isinstance(report, PackReport)
    assert report.images == 16
    assert {label: report.label_counts[label] for label in layouts.LABELS} == {"cat": 8, "dog": 8}
    file = predictions(tmp_path / "p.csv", "file,cat,dog", "{key}.jpg,{cat},{dog}")
    labels = {key: value for key, value in given.items() if key not in ("images", "out", "group_column")}
    measured = evaluate(build(EvaluateConfig, labels | {"predictions": str(file), "threshold": 0.5}))
    assert isinstance(measured, EvaluateReport)
    assert (measured.measurement.samples, measured.measurement.values["f1_micro"]) == (16, 1)
