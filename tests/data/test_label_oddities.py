"""Label files as people write them by hand or export them: labels over several columns, words, signs and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations
from mlic.data.label_join import ImageNames, as_paths, join
from mlic.errors import DataError
from tests.data.test_label_json import workbook

NAMES = [f"p{i:02d}.jpg" for i in range(12)]
MEANT = [["cat"], ["cat", "dog"], ["dog"]] * 4


def read(path: Path, **options: Any) -> Annotations:
    return read_annotations(path, LabelOptions(image_names=ImageNames(as_paths(NAMES)), **options))


def positives(path: Path, **options: Any) -> list[list[str]]:
    annotations = read(path, **options)
    targets = join(annotations, as_paths(NAMES)).targets
    return [[annotations.labels[i] for i in (row == 1).nonzero()[0]] for row in targets]


def refused(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as error:
        read(path, **options)
    return error.value


def table(folder: Path, header: str, line: Any, name: str = "l.csv") -> Path:
    """A table with `line(name, labels)` for each image."""
    rows = [line(name, meant) for name, meant in zip(NAMES, MEANT, strict=True)]
    (folder / name).write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("yes", "no"),
    [("ja", "nein"), ("Oui", "non"), ("T", "F"), ("pos", "neg"), ("✓", ""), ("✔", "✗"), ("+", "-"), ("x", "-")],
)
def test_words_of_other_people(tmp_path: Path, yes: str, no: str) -> None:
    path = table(
        tmp_path, "image,cat,dog", lambda name, m: ",".join([name, *(yes if v in m else no for v in ("cat", "dog"))])
    )
    assert positives(path) == MEANT


def test_cells_that_repeat_the_name_of_their_column(tmp_path: Path) -> None:
    path = table(tmp_path, "image,Cat,dog", lambda name, m: ",".join([name, *(v * (v in m) for v in ("cat", "dog"))]))
    assert positives(path) == [[label.replace("cat", "Cat") for label in meant] for meant in MEANT]
    assert "repeat the name of their column mean yes: Cat, dog" in read(path).notes[0]


def test_percentages_need_a_limit(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "image,cat,dog",
        lambda name, m: ",".join([name, *("85%" if v in m else "10 %" for v in ("cat", "dog"))]),
    )
    assert refused(path).hint == "say by --positive-from 0.5 from which one a label is positive."
    assert positives(path, positive_from=0.5) == MEANT


@pytest.mark.parametrize("header", ["image,label1,label2", "image,Tag 1,Tag 2", "image,class_1,class_2"])
def test_one_label_in_each_of_several_columns(tmp_path: Path, header: str) -> None:
    path = table(tmp_path, header, lambda name, m: ",".join([name, *m, *[""] * (2 - len(m))]))
    assert positives(path) == MEANT
    assert read(path).notes[-1].startswith("labels from the columns ")


def test_lines_of_an_image_and_its_labels(tmp_path: Path) -> None:
    path = table(tmp_path, "", lambda name, m: ",".join([name, *m]))
    assert positives(path) == MEANT
    assert read(path).notes == ("no line of column names: each line has an image and its labels",)


def test_the_csv_of_vgg_image_annotator(tmp_path: Path) -> None:
    def lines(name: str, meant: list[str]) -> str:
        def line(region: int, of_image: Any, of_region: Any) -> str:
            texts = (json.dumps(of_image).replace('"', '""'), json.dumps(of_region).replace('"', '""'))
            return f'{name},1200,"{texts[0]}",2,{region},"{{}}","{texts[1]}"'

        boxes = {"cat": {"what": "cat"}} if "cat" in meant else {}
        tags = {"tags": {"dog": "dog" in meant}}
        return "\n".join([line(0, tags, boxes.get("cat", {})), line(1, tags, boxes.get("cat", {}))])

    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    path = table(tmp_path, header, lines)
    assert positives(path) == MEANT
    path.write_text(path.read_text().replace('"{""tags', '"{tags', 1))
    assert "l.csv:2: the attributes '{tags" in refused(path).message


def test_an_attribute_of_rekognition_for_each_label(tmp_path: Path) -> None:
    def line(name: str, meant: list[str]) -> str:
        record: dict[str, Any] = {"source-ref": f"s3://b/{name}"}
        for label in meant:
            record |= {f"set_{label}": 1, f"set_{label}-metadata": {"class-name": label, "confidence": 1}}
        return json.dumps(record)

    assert positives(table(tmp_path, "", line, "output.manifest")) == MEANT


def test_questions_of_label_studio(tmp_path: Path) -> None:
    def task(name: str, meant: list[str]) -> dict[str, Any]:
        tags = {"from_name": "tags", "value": {"choices": meant}}
        quality = {"from_name": "quality", "value": {"choices": ["good"]}}
        return {"data": {"image": name}, "annotations": [{"result": [tags, quality]}]}

    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task(name, meant) for name, meant in zip(NAMES, MEANT, strict=True)]))
    assert read(path).warnings == (
        "labels are answers to 2 questions (quality, tags); --label-column takes one of them",
    )
    assert positives(path, label_column="tags") == MEANT
    error = refused(path, label_column="tgas")
    assert error.message.endswith("tasks.json has no question 'tgas'.")
    assert error.hint == "name one of its own: tags, quality."


def test_several_people_with_a_label_per_row(tmp_path: Path) -> None:
    path = table(
        tmp_path, "image,annotator,label", lambda name, m: "\n".join(f"{name},{who},{m[-1]}" for who in ("ann", "eve"))
    )
    assert read(path).warnings == ("an image has each label that anyone in the column 'annotator' gave it",)
    assert "does not say who has seen an image without it" in refused(path, readers="majority").message


@pytest.mark.parametrize(
    ("between", "options", "error"),
    [
        (" + ", {"delimiter": "space"}, "signs without a letter: '+'"),
        (" - ", {"delimiter": "space"}, "signs without a letter: '-'"),
        (" + ", {"delimiter": "+"}, None),
        (" and ", {"delimiter": " and "}, None),
        ("__", {"delimiter": "__"}, None),
        ("<br>", {"delimiter": "<br>"}, None),
    ],
)
def test_what_stands_between_labels(tmp_path: Path, between: str, options: dict[str, Any], error: str | None) -> None:
    path = table(tmp_path, "image,labels", lambda name, m: f"{name},{between.join(m)}")
    if error is None:
        assert positives(path, **options) == MEANT
    else:
        assert error in refused(path, **options).message


@pytest.mark.parametrize(
    ("texts", "warning"),
    [
        (
            ["cat and dog", "cat", "dog", "bird", "bird and dog"],
            "'and' may stand between labels; --delimiter 'and' separates them",
        ),
        (["cat__dog", "cat", "dog"], "labels consist of other labels: 'cat__dog'; --delimiter separates them"),
        (["cat<br>dog", "cat", "dog"], "labels consist of other labels: 'cat<br>dog'; --delimiter separates them"),
        (["cat;TODO", "TODO", "dog"], "'TODO' may mean that an image is not annotated; delete these rows"),
        (
            ["cat;no dog", "no cat;dog", "dog"],
            "'no cat', 'no dog' may say that a label is absent or in doubt; delete these words, or",
        ),
        (["cat?;dog", "cat", "dog"], "labels differ in case, signs and spaces alone: cat, cat?"),
        (["Cat;dog", "cat", "dog"], "labels differ in upper and lower case alone: Cat, cat"),
        (["cat;dog", "-", "dog"], "'-' may mean that an image has no label; --no-label '-' says so"),
    ],
)
def test_words_that_are_hardly_labels(tmp_path: Path, texts: list[str], warning: str) -> None:
    lines = [f"{name},{texts[i % len(texts)]}" for i, name in enumerate(NAMES)]
    (tmp_path / "l.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    assert any(said.startswith(warning) for said in read(tmp_path / "l.csv").warnings), read(
        tmp_path / "l.csv"
    ).warnings


@pytest.mark.parametrize("form", ["{} (0.9{})", "{}:0.9{}", "{}=9{} %"])
def test_scores_in_the_names_of_labels(tmp_path: Path, form: str) -> None:
    path = tmp_path / "l.csv"
    lines = [
        f"{name},{';'.join(form.format(v, i % 4) for v in m)}"
        for i, (name, m) in enumerate(zip(NAMES, MEANT, strict=True))
    ]
    path.write_text("\n".join(["image,labels", *lines]) + "\n")
    error = refused(path)
    assert "have scores in them: 'cat" in error.message
    assert "--positive-from" in error.hint


def test_confidences_by_image_in_json(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    content = {n: {v: 0.9 if v in m else 0.2 for v in ("cat", "dog")} for n, m in zip(NAMES, MEANT, strict=True)}
    path.write_text(json.dumps(content))
    assert "--positive-from" in refused(path).hint
    assert positives(path, positive_from=0.5) == MEANT
    path.write_text(
        json.dumps({"version": 1, "rows": [{"SourceFile": n, "Subject": m} for n, m in zip(NAMES, MEANT, strict=True)]})
    )
    assert positives(path) == MEANT


def test_hidden_columns_and_formulas_of_workbooks(tmp_path: Path) -> None:
    path = tmp_path / "labels.xlsx"
    rows = [["image", "cat", "old", "dog"]]
    rows += [[name, int("cat" in m), 1, int("dog" in m)] for name, m in zip(NAMES, MEANT, strict=True)]
    book = workbook(path, labels=rows)
    book["labels"].column_dimensions["C"].hidden = True
    book.save(path)
    assert positives(path) == MEANT
    book["labels"]["B4"] = "=1+0"
    book.save(path)
    assert "the cell B4 of 'labels' is a formula without its value" in refused(path).message
    book["labels"]["B4"] = "perhaps"
    book.save(path)
    assert "labels.xlsx:4: 'perhaps' for the label 'cat'" in refused(path).message


def test_yes_and_no_beside_the_name_of_a_label(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "image,attribute,value",
        lambda name, m: "\n".join(f"{name},{v},{'yes' if v in m else 'no'}" for v in ("cat", "dog")),
    )
    assert positives(path) == MEANT


def test_answers_of_a_form(tmp_path: Path) -> None:
    path = table(tmp_path, "Timestamp,image,Comments,What?", lambda name, m: f'2024/03/01,{name},nice,"{", ".join(m)}"')
    assert positives(path) == MEANT


def test_annotations_that_differ_are_refused(tmp_path: Path) -> None:
    def line(name: str, meant: list[str], *others: str) -> str:
        def label(answers: list[str]) -> dict[str, Any]:
            chosen = {"name": "what", "checklist_answers": [{"name": answer} for answer in answers]}
            return {"annotations": {"classifications": [chosen], "objects": []}}

        project = {"labels": [label(meant), *(label([other]) for other in others)]}
        return json.dumps({"data_row": {"external_id": name}, "projects": {"p": project}})

    path = tmp_path / "export.ndjson"
    lines = [line(name, meant) for name, meant in zip(NAMES, MEANT, strict=True)]
    lines[0] = json.dumps({"data_row": {"external_id": NAMES[0]}, "projects": {"p": {"labels": []}}})
    path.write_text("\n".join(lines) + "\n")
    assert positives(path) == [[], *MEANT[1:]]
    assert read(path).notes == ("1 rows have no value in 'labels': not annotated",)
    path.write_text("\n".join([*lines[:-1], line(NAMES[-1], ["cat"], "dog")]) + "\n")
    assert refused(path).message == "the image 'p11.jpg' has 2 annotations that differ."


def lines_of(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_one_label_that_prodigy_asks_about(tmp_path: Path) -> None:
    def answer(name: str, label: str, meant: list[str]) -> dict[str, Any]:
        return {"image": name, "label": label, "answer": "accept" if label in meant else "reject"}

    records = [answer(name, v, m) for name, m in zip(NAMES, MEANT, strict=True) for v in ("cat", "dog")]
    records[0]["answer"] = "ignore"
    annotations = read(lines_of(tmp_path / "answers.jsonl", records))
    targets = join(annotations, as_paths(NAMES)).targets
    assert targets[:3].tolist() == [[-1, 0], [1, 1], [0, 1]]


def labelbox(name: str, *questions: dict[str, Any], **label: Any) -> dict[str, Any]:
    annotations = {"objects": [], "classifications": list(questions)}
    project = {"labels": [{"annotations": annotations, **label}]}
    return {"data_row": {"external_id": name}, "projects": {"p": project}}


def test_questions_of_labelbox(tmp_path: Path) -> None:
    def tags(meant: list[str]) -> dict[str, Any]:
        """Questions below the first one, as `mammal: cat or dog`, and free text, which is no label."""
        below = {"name": "which", "checklist_answers": [{"name": label} for label in meant]}
        note = {"name": "note", "text_answer": {"content": "nice"}}
        return {"name": "tags", "radio_answer": {"name": "mammal", "classifications": [below, note]}}

    path = tmp_path / "export.ndjson"
    records = [labelbox(name, tags(meant)) for name, meant in zip(NAMES, MEANT, strict=True)]
    records[-1] = labelbox(NAMES[-1], performance_details={"skipped": True})
    assert positives(lines_of(path, records)) == [*([*meant, "mammal"] for meant in MEANT[:-1]), []]
    assert read(path).notes == ("1 rows have no value in 'labels': not annotated",)
    reviewed = {"name": "reviewed", "radio_answer": {"name": "later"}}
    lines_of(path, [labelbox(name, tags(meant), reviewed) for name, meant in zip(NAMES, MEANT, strict=True)])
    error = refused(path)
    assert error.message.endswith("labels are answers to 2 questions: tags, reviewed.")
    assert error.hint == "say which by --label-column tags."
    assert positives(path, label_column="reviewed") == [["later"]] * 12


def test_what_a_machine_said_and_what_nobody_has_begun(tmp_path: Path) -> None:
    def asset(name: str, meant: list[str], kind: str) -> dict[str, Any]:
        answers = {"TAGS": {"categories": [{"name": label} for label in meant]}}
        return {"externalId": name, "labels": [{"jsonResponse": answers, "labelType": kind}]}

    assets = [asset(name, meant, "DEFAULT") for name, meant in zip(NAMES, MEANT, strict=True)]
    assets[0] = asset(NAMES[0], ["dog"], "PREDICTION")
    assets[1]["skipped"] = True
    (tmp_path / "kili.json").write_text(json.dumps(assets))
    assert positives(tmp_path / "kili.json") == [[], [], *MEANT[2:]]
    folder = tmp_path / "superannotate"
    folder.mkdir()
    for name, meant in zip(NAMES, MEANT, strict=True):
        content: dict[str, Any] = {"metadata": {"name": name}, "instances": [{"className": v} for v in meant]}
        if name == NAMES[0]:
            content["metadata"]["status"] = "NotStarted"
        (folder / f"{name}___objects.json").write_text(json.dumps(content))
    assert positives(folder) == [[], *MEANT[1:]]
    content["tags"] = ["train"]
    (folder / f"{NAMES[-1]}___objects.json").write_text(json.dumps(content))
    assert refused(folder).message.endswith("has labels of two kinds: tags, instances.")
    assert positives(folder, label_column="instances") == [[], *MEANT[1:]]


def test_confidences_of_fiftyone(tmp_path: Path) -> None:
    def sample(name: str, meant: list[str]) -> dict[str, Any]:
        items = [{"label": v, "confidence": 0.9 if v in meant else 0.1} for v in ("cat", "dog")]
        return {"filepath": name, "predictions": {"_cls": "Polylines", "polylines": items}}

    path = tmp_path / "samples.json"
    path.write_text(json.dumps({"samples": [sample(n, m) for n, m in zip(NAMES, MEANT, strict=True)]}))
    assert "'cat' has a confidence of 0.9: these are predictions" in refused(path).message
    assert positives(path, positive_from=0.5) == MEANT


@pytest.mark.parametrize("header", ["image,label,label.1", "image,labels,Unnamed: 2", "image,tags,", "image,Tag,Tag2"])
def test_labels_in_columns_after_the_first(tmp_path: Path, header: str) -> None:
    path = table(tmp_path, header, lambda name, m: ",".join([name, *m, *["-"] * (2 - len(m))]))
    assert positives(path) == MEANT


def test_answers_are_no_labels(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label", lambda name, m: f"{name},{'yes' if 'cat' in m else 'maybe'}")
    assert positives(path)[0] == ["yes"]
    path.write_text(path.read_text().replace("maybe", "no"))
    assert "the column 'label' holds 0 and 1" in refused(path).message
    content = {name: ["yes" if "cat" in meant else "no"] for name, meant in zip(NAMES, MEANT, strict=True)}
    (tmp_path / "l.json").write_text(json.dumps(content))
    error = refused(tmp_path / "l.json")
    assert "are answers: 'no', 'yes'" in error.message
    content["p00.jpg"] = ["cat"]
    (tmp_path / "l.json").write_text(json.dumps(content))
    assert read(tmp_path / "l.json").warnings == ("'no', 'yes' may be answers to a question, and no labels",)
    by_label = {n: {v: "yes" if v in m else "no" for v in ("cat", "dog")} for n, m in zip(NAMES, MEANT, strict=True)}
    (tmp_path / "l.json").write_text(json.dumps(by_label))
    assert positives(tmp_path / "l.json") == MEANT


def test_splits_among_labels_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "", lambda name, m: ",".join([name, "train", *m]))
    with pytest.raises(DataError):
        read(path)


def test_negative_of_custom_vision(tmp_path: Path) -> None:
    images = [
        {"originalImageUri": n, "tags": [{"tagName": v, "type": "Regular"} for v in m]}
        for n, m in zip(NAMES, MEANT, strict=True)
    ]
    images[0]["tags"] = [{"tagName": "Negative", "type": "Negative"}]
    (tmp_path / "cv.json").write_text(json.dumps(images))
    assert positives(tmp_path / "cv.json") == [[], *MEANT[1:]]


def test_workbooks_without_names_of_columns_and_hidden_sheets(tmp_path: Path) -> None:
    path = tmp_path / "labels.xlsx"
    rows: list[list[Any]] = [[name, int("cat" in m), int("dog" in m)] for name, m in zip(NAMES, MEANT, strict=True)]
    book = workbook(path, labels=[["image", "cat", "dog"], *rows], old=[["image", "cat"], ["p00.jpg", 1]])
    book["old"].sheet_state = "hidden"
    book["labels"].column_dimensions["B"].hidden = True
    book.save(path)
    assert read(path).notes == ("hidden columns left out: B",)
    workbook(path, labels=rows)
    assert refused(path).message.endswith("the first line is about an image.")


def test_choices_of_one_name_at_two_places_of_a_taxonomy(tmp_path: Path) -> None:
    def task(name: str, meant: list[str]) -> dict[str, Any]:
        paths = [["animal", "cat"] if label == "cat" else ["animal", "other"] for label in meant] + [["plant", "other"]]
        return {"data": {"image": name}, "annotations": [{"result": [{"value": {"taxonomy": paths}}]}]}

    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task(name, meant) for name, meant in zip(NAMES, MEANT, strict=True)]))
    assert positives(path)[:2] == [["cat", "plant/other"], ["animal/other", "cat", "plant/other"]]


def test_tags_of_supervisely_with_a_value(tmp_path: Path) -> None:
    for name, meant in zip(NAMES, MEANT, strict=True):
        tags = [{"name": "kind", "value": label} for label in meant]
        (tmp_path / f"{name}.json").write_text(json.dumps({"tags": tags, "objects": []}))
    assert positives(tmp_path) == MEANT


def test_dates_and_html_as_labels(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels", lambda name, m: f"{name},{';'.join([*m, '2024-03-01 00:00:00'])}")
    assert read(path).warnings[-1].startswith("'2024-03-01 00:00:00' are dates, and hardly labels")
    path = table(tmp_path, "image,labels", lambda name, m: f"{name},{'|'.join([*m, 'black &amp; white'])}")
    assert refused(path).message.endswith("hold '&amp', which is HTML.")


def test_a_word_in_another_case_alone(tmp_path: Path) -> None:
    """`Cat dog` is not surely one label where `cat` is one."""
    lines = [f"{name},{'Cat dog' if i == 11 else 'cat'}" for i, name in enumerate(NAMES)]
    (tmp_path / "l.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    assert (
        "it cannot be told whether 'Cat dog' in 'labels' is one label or several" in refused(tmp_path / "l.csv").message
    )


def test_a_column_of_splits_alone(tmp_path: Path) -> None:
    path = table(tmp_path, "image,SPLIT", lambda name, _: f"{name},0")
    assert refused(path).message.endswith("no column holds labels (the others than the image: SPLIT).")


def test_questions_and_columns_that_do_not_exist(tmp_path: Path) -> None:
    tags = {"name": "tags", "radio_answer": {"name": "cat"}}
    path = lines_of(tmp_path / "export.ndjson", [labelbox(name, tags) for name in NAMES])
    assert refused(path, label_column="tgas").hint == "say which by --label-column tags."
    coco = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    error = refused(tmp_path / "coco.json", label_column="tags")
    assert error.message.endswith("coco.json looks like COCO, which has no columns.")
    assert error.hint == "leave --label-column out."
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "p00.json").write_text(json.dumps({"tags": ["cat"]}))
    assert refused(tmp_path / "ann", label_column="labels").message.endswith("p00.json has no key 'labels'.")


@pytest.mark.parametrize(
    ("header", "line", "foot"),
    [
        ("| image | cat | dog |\n|:------|----:|-----|", "| {name} | {cat} | {dog} |", ""),
        ("  image  | cat | dog \n---------+-----+-----", " {name} |   {cat} |   {dog}", "(12 rows)\n\n"),
        ("+---+---+---+\n| image | cat | dog |\n+---+---+---+", "| {name} | {cat} | {dog} |", "+---+---+---+\n"),
        ("image    cat  dog\n-------  ---  ---", "{name}  {cat}    {dog}", ""),
        ("image    cat  dog\n=======  ===  ===", "{name}  {cat}    {dog}", "=======  ===  ===\n"),
    ],
    ids=["markdown", "psql", "mysql", "sqlite", "rst"],
)
@pytest.mark.parametrize("ending", [".txt", ".csv"])
def test_tables_drawn_with_characters(tmp_path: Path, header: str, line: str, foot: str, ending: str) -> None:
    path = table(
        tmp_path,
        header,
        lambda name, m: line.format(name=name, cat=int("cat" in m), dog=int("dog" in m)),
        "l" + ending,
    )
    path.write_text(path.read_text() + foot)
    assert positives(path) == MEANT
    assert "a table that is drawn with characters" in read(path).notes


def test_drawn_tables_of_lists(tmp_path: Path) -> None:
    path = table(tmp_path, "| image | labels |\n|---|---|", lambda name, m: f"| {name} | {', '.join(m)} |")
    assert positives(path) == MEANT


@pytest.mark.parametrize("header", [",labels,labels\nimage,cat,dog", "image,labels,labels\n,cat,dog"])
def test_two_lines_of_column_names(tmp_path: Path, header: str) -> None:
    path = table(tmp_path, header, lambda name, m: f"{name},{int('cat' in m)},{int('dog' in m)}")
    error = refused(path)
    assert "l.csv:2: the first two lines both seem to name columns" in error.message
    assert error.hint == "keep one line of names."
