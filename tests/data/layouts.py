"""Label files in the layouts of data sets and tools, made up for a few toy images, and what they mean."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LABELS = ("cat", "dog")
COUNT = 16
_KINDS = (["cat"], ["cat", "dog"], ["dog"], [])
TRUTH = {f"p{i:02d}": list(_KINDS[i % 4]) for i in range(COUNT)}
POSITIVE = {key: found for key, found in TRUTH.items() if found}


def photos(folder: Path) -> Path:
    """The toy images p00.jpg to p15.jpg in `folder`/photos."""
    (folder / "photos").mkdir()
    rng = np.random.default_rng(3)
    for key in TRUTH:
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "photos" / f"{key}.jpg")
    return folder / "photos"


def write(folder: Path, name: str) -> None:
    """Write the label files that are called `name` below `folder`."""
    LAYOUTS[name](folder / name)


def _bits(found: Iterable[str]) -> list[int]:
    return [int(label in found) for label in LABELS]


def _lines(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def _rows(path: Path, header: list[Any] | None, rows: Iterable[Iterable[Any]], delimiter: str = ",") -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    if header is not None:
        writer.writerow(header)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())


def _wide(path: Path) -> None:
    _rows(path, ["image", *LABELS], ([f"{key}.jpg", *_bits(found)] for key, found in TRUTH.items()))


def _lists(path: Path) -> None:
    for label in LABELS:
        _lines(path / f"{label}.txt", (f"{key}.jpg" for key, found in TRUTH.items() if label in found))


def _gz(path: Path) -> None:
    _wide(path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


def _excel_csv(path: Path) -> None:
    lines = ["sep=;", "image;cat;dog", *(f"{key}.jpg;{a};{b}" for key, v in TRUTH.items() for a, b in [_bits(v)])]
    _lines(path, lines, "utf-16")


def _workbook(path: Path) -> None:
    rows = [[f"{key}.jpg", *_bits(found)] for key, found in TRUTH.items()]
    pd.DataFrame(rows, columns=["image", *LABELS]).to_excel(path, index=False)


def _indexed(path: Path) -> None:
    rows = [[f"{key}.jpg", *("yes" if bit else "no" for bit in _bits(found))] for key, found in TRUTH.items()]
    pd.DataFrame(rows, columns=["image", *LABELS]).to_csv(path)


def _without_header(path: Path) -> None:
    _rows(path, None, ([f"{key}.jpg", *_bits(found)] for key, found in TRUTH.items()))


def _path_bits(path: Path) -> None:
    _lines(path, (" ".join([f"images/{key}.jpg", *map(str, _bits(found))]) for key, found in TRUTH.items()))


def _delimited(path: Path) -> None:
    _rows(path, ["image", "labels"], ([f"{key}.jpg", "|".join(found)] for key, found in TRUTH.items()))


def _planet(path: Path) -> None:
    _rows(path, ["image_name", "tags"], ([key, " ".join(found)] for key, found in TRUTH.items()))


def _python_lists(path: Path) -> None:
    pd.DataFrame({"image": [f"{key}.jpg" for key in TRUTH], "labels": list(TRUTH.values())}).to_csv(path, index=False)


def _long(path: Path) -> None:
    _rows(path, ["image", "label"], ([f"{key}.jpg", label] for key, found in TRUTH.items() for label in found))


def _parquet(path: Path) -> None:
    pd.DataFrame({"file": [f"{key}.jpg" for key in TRUTH], "labels": list(TRUTH.values())}).to_parquet(path)


def _dataset(path: Path) -> None:
    """Two files of a Hugging Face data set, with the images in their cells and numbered labels."""
    path.mkdir()
    rows = [
        {
            "image": {"bytes": (path.parent / "photos" / f"{key}.jpg").read_bytes(), "path": f"{key}.jpg"},
            "labels": [LABELS.index(label) for label in labels],
        }
        for key, labels in TRUTH.items()
    ]
    feature = {"labels": {"feature": {"names": LABELS, "_type": "ClassLabel"}, "_type": "Sequence"}}
    about = {"huggingface": json.dumps({"info": {"features": feature}})}
    for name, part in (("train-00000-of-00001", rows[:12]), ("test-00000-of-00001", rows[12:])):
        pq.write_table(pa.Table.from_pylist(part).replace_schema_metadata(about), path / f"{name}.parquet")


def _vectors(path: Path) -> None:
    _lines(path, (json.dumps({"file_name": f"{key}.jpg", "labels": _bits(found)}) for key, found in TRUTH.items()))


def _jsonl(path: Path) -> None:
    _lines(path, (json.dumps({"image": f"{key}.jpg", "labels": found}) for key, found in TRUTH.items()))


def _doccano(path: Path) -> None:
    records = (
        {"id": i, "filename": f"{key}.jpg", "label": found, "Comments": []}
        for i, (key, found) in enumerate(TRUTH.items())
    )
    _lines(path, (json.dumps(record) for record in records))


def _azure(path: Path) -> None:
    base = "azureml://subscriptions/x/datastores/y/paths/img"
    _lines(path, (json.dumps({"image_url": f"{base}/{key}.jpg", "label": found}) for key, found in TRUTH.items()))


def _vertex(path: Path) -> None:
    _lines(
        path,
        (
            json.dumps(
                {
                    "imageGcsUri": f"gs://bucket/img/{key}.jpg",
                    "classificationAnnotations": [{"displayName": label} for label in found],
                    "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": "training"},
                }
            )
            for key, found in TRUTH.items()
        ),
    )


def _vertex_csv(path: Path) -> None:
    _lines(path, (",".join(["training", f"gs://bucket/img/{key}.jpg", *found]) for key, found in POSITIVE.items()))


def _sagemaker(path: Path) -> None:
    classes = {str(i): label for i, label in enumerate(LABELS)}
    _lines(
        path,
        (
            json.dumps(
                {
                    "source-ref": f"s3://bucket/img/{key}.jpg",
                    "tags": [LABELS.index(label) for label in found],
                    "tags-metadata": {"class-map": classes, "type": "groundtruth/image-classification-multilabel"},
                }
            )
            for key, found in TRUTH.items()
        ),
    )


def _coco(path: Path) -> None:
    images = [{"id": i, "file_name": f"{key}.jpg"} for i, key in enumerate(TRUTH)]
    found = [(i, LABELS.index(label)) for i, labels in enumerate(TRUTH.values()) for label in labels]
    annotations = [{"id": n, "image_id": i, "category_id": label} for n, (i, label) in enumerate(found)]
    categories = [{"id": i, "name": label} for i, label in enumerate(LABELS)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _lvis(path: Path) -> None:
    images = [
        {
            "id": i,
            "coco_url": f"http://images.example.org/{key}.jpg",
            "neg_category_ids": [j for j, label in enumerate(LABELS) if label not in found],
            "not_exhaustive_category_ids": [],
        }
        for i, (key, found) in enumerate(TRUTH.items())
    ]
    found = [(i, LABELS.index(label)) for i, labels in enumerate(TRUTH.values()) for label in labels]
    annotations = [{"id": n, "image_id": i, "category_id": label} for n, (i, label) in enumerate(found)]
    categories = [{"id": i, "name": label} for i, label in enumerate(LABELS)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _voc(path: Path) -> None:
    for key, found in TRUTH.items():
        objects = "".join(f"<object><name>{label}</name></object>" for label in found)
        _lines(path / f"{key}.xml", [f"<annotation><filename>{key}.jpg</filename>{objects}</annotation>"])


def _image_sets(path: Path) -> None:
    keys = list(TRUTH)
    for split, chosen in (("train", keys[:11]), ("val", keys[11:])):
        _lines(path / f"{split}.txt", chosen)
        for label in LABELS:
            _lines(path / f"{label}_{split}.txt", (f"{key} {1 if label in TRUTH[key] else -1:2d}" for key in chosen))


def _cvat(path: Path) -> None:
    labels = "".join(f"<label><name>{label}</name></label>" for label in LABELS)
    images = "".join(
        f'<image id="{i}" name="{key}.jpg">' + "".join(f'<tag label="{label}"/>' for label in found) + "</image>"
        for i, (key, found) in enumerate(TRUTH.items())
    )
    _lines(path, [f"<annotations><meta><job><labels>{labels}</labels></job></meta>{images}</annotations>"])


def _labelme(path: Path) -> None:
    for key, found in TRUTH.items():
        content = {
            "imagePath": f"..\\img\\{key}.jpg",
            "shapes": [{"label": label, "points": []} for label in found],
            "flags": {},
        }
        _lines(path / f"{key}.json", [json.dumps(content)])


def _bigearthnet(path: Path) -> None:
    for key, found in TRUTH.items():
        _lines(path / key / f"{key}_labels_metadata.json", [json.dumps({"labels": found, "acquisition_date": "2017"})])


def _label_studio(path: Path) -> None:
    tasks = [
        {
            "id": i,
            "annotations": [{"result": [{"value": {"choices": found}, "type": "choices"}] if found else []}],
            "data": {"image": f"/data/upload/1/0a1b2c{i:02d}-{key}.jpg"},
        }
        for i, (key, found) in enumerate(TRUTH.items())
    ]
    path.write_text(json.dumps(tasks))


def _label_studio_min(path: Path) -> None:
    rows = [
        {"image": f"/data/upload/1/{key}.jpg", "id": i, "choice": {"choices": found}, "annotator": 1}
        for i, (key, found) in enumerate(TRUTH.items())
    ]
    path.write_text(json.dumps(rows))


def _label_studio_csv(path: Path) -> None:
    rows = ([f"/data/upload/1/{key}.jpg", i, json.dumps({"choices": v}), 1] for i, (key, v) in enumerate(TRUTH.items()))
    _rows(path, ["image", "id", "choice", "annotator"], rows)


def _fiftyone(path: Path) -> None:
    labels = {key: [LABELS.index(label) for label in found] for key, found in TRUTH.items()}
    path.write_text(json.dumps({"classes": list(LABELS), "labels": labels}))


def _fiftyone_samples(path: Path) -> None:
    def classes(found: Iterable[str]) -> dict[str, Any]:
        items = [{"_cls": "Classification", "label": label} for label in found]
        return {"_cls": "Classifications", "classifications": items}

    samples = [{"filepath": f"/data/{key}.jpg", "tags": [], "truth": classes(found)} for key, found in TRUTH.items()]
    path.write_text(json.dumps({"samples": samples}))


def _via(path: Path) -> None:
    """Images whose one question is answered by check boxes; nobody has ticked anything in the last kind of image."""
    images = {
        f"{key}.jpg99": {
            "filename": f"{key}.jpg",
            "size": 99,
            "regions": [],
            "file_attributes": {"tags": dict.fromkeys(found, True)},
        }
        for key, found in TRUTH.items()
    }
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}}))


def _prodigy(path: Path) -> None:
    options = [{"id": label, "text": label} for label in LABELS]
    lines = (
        {"image": f"{key}.jpg", "options": options, "accept": found, "answer": "accept"} for key, found in TRUTH.items()
    )
    _lines(path, map(json.dumps, lines))


def _labelbox(path: Path) -> None:
    def line(key: str, found: list[str]) -> str:
        answers = [{"name": label, "value": label} for label in found]
        annotations = {"objects": [], "classifications": [{"name": "tags", "checklist_answers": answers}]}
        project = {"name": "p", "labels": [{"label_kind": "Default", "annotations": annotations}]}
        return json.dumps({"data_row": {"external_id": f"{key}.jpg"}, "projects": {"c1": project}})

    _lines(path, (line(key, found) for key, found in TRUTH.items()))


def _kili(path: Path) -> None:
    def asset(key: str, found: list[str]) -> dict[str, Any]:
        answers = {"TAGS": {"categories": [{"name": label, "confidence": 100} for label in found]}}
        return {"externalId": key, "content": f"https://k/{key}.jpg", "labels": [{"jsonResponse": answers}]}

    path.write_text(json.dumps([asset(key, found) for key, found in TRUTH.items()]))


def _encord(path: Path) -> None:
    def row(key: str, found: list[str]) -> dict[str, Any]:
        answers = [{"name": label, "value": label} for label in found]
        chosen = {"c": {"classifications": [{"name": "tags", "answers": answers}]}} if found else {}
        units = {"u": {"labels": {"objects": [], "classifications": [{"name": "tags"}]}}}
        return {"data_title": f"{key}.jpg", "data_units": units, "classification_answers": chosen}

    path.write_text(json.dumps([row(key, found) for key, found in TRUTH.items()]))


def _datumaro(path: Path) -> None:
    def item(key: str, found: list[str]) -> dict[str, Any]:
        marks = [{"id": 0, "type": "label", "label_id": LABELS.index(label)} for label in found]
        return {"id": key, "annotations": marks, "image": {"path": f"{key}.jpg"}}

    names = {"label": {"labels": [{"name": label, "parent": ""} for label in LABELS]}}
    path.write_text(json.dumps({"categories": names, "items": [item(key, found) for key, found in TRUTH.items()]}))


def _custom_vision(path: Path) -> None:
    def image(key: str, found: list[str]) -> dict[str, Any]:
        tags = [{"tagId": f"t{label}", "tagName": label} for label in found]
        return {"id": f"aaaa{key}", "originalImageUri": f"https://x/{key}.jpg?sv=1", "tags": tags}

    path.write_text(json.dumps([image(key, found) for key, found in TRUTH.items()]))


def _superannotate(path: Path) -> None:
    path.mkdir()
    for key, found in TRUTH.items():
        content = {"metadata": {"name": f"{key}.jpg"}, "instances": [], "tags": found}
        (path / f"{key}.jpg___objects.json").write_text(json.dumps(content))


def _supervisely(path: Path) -> None:
    path.mkdir()
    for key, found in TRUTH.items():
        content = {"description": "", "tags": [{"name": v, "value": None} for v in found], "objects": []}
        (path / f"{key}.jpg.json").write_text(json.dumps(content))


def _by_label(path: Path) -> None:
    path.write_text(json.dumps({v: [f"{key}.jpg" for key, found in TRUTH.items() if v in found] for v in LABELS}))


def _by_image(path: Path) -> None:
    path.write_text(json.dumps({f"{key}.jpg": {v: v in found for v in LABELS} for key, found in TRUTH.items()}))


def _records(path: Path) -> None:
    path.write_text(
        json.dumps(
            [{"image": f"{key}.jpg", "annotations": [{"label": v} for v in found]} for key, found in TRUTH.items()]
        )
    )


def _mmpretrain(path: Path) -> None:
    images = [{"img_path": f"{key}.jpg", "gt_label": [LABELS.index(v) for v in found]} for key, found in TRUTH.items()]
    path.write_text(json.dumps({"metainfo": {"classes": list(LABELS)}, "data_list": images}))


def _mmpretrain_list(path: Path) -> None:
    _lines(path, (f"img/{key}.jpg {','.join(str(LABELS.index(v)) for v in found)}" for key, found in POSITIVE.items()))


def _celeba(path: Path) -> None:
    values = (" ".join(f"{1 if bit else -1:2d}" for bit in _bits(found)) for found in TRUTH.values())
    _lines(path, [str(COUNT), "cat dog", *(f"{key}.jpg {row}" for key, row in zip(TRUTH, values, strict=True))])


def _celeba_csv(path: Path) -> None:
    rows = ([f"{key}.jpg", *(1 if bit else -1 for bit in _bits(found))] for key, found in TRUTH.items())
    _rows(path, ["image_id", *LABELS], rows)


def _chexpert(path: Path) -> None:
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
    rows = (
        [f"CheXpert-v1.0-small/train/{key}.jpg", "Female", 60, "Frontal", "AP", *(["", "1.0"][bit] for bit in _bits(v))]
        for key, v in TRUTH.items()
    )
    _rows(path, header, rows)


def _chestxray14(path: Path) -> None:
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "OriginalImage[Width", "Height]", ""]
    rows = (
        [f"{key}.jpg", "|".join(v) or "No Finding", i % 2, i // 2, 9, 9, ""] for i, (key, v) in enumerate(TRUTH.items())
    )
    _rows(path, header, rows)


def _vindr(path: Path) -> None:
    rows = ([key, reader, *_bits(found)] for key, found in TRUTH.items() for reader in ("R8", "R9", "R10"))
    _rows(path, ["image_id", "rad_id", *LABELS], rows)


def _vindr_long(path: Path) -> None:
    header = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    rows = ([key, label, 0, "R8", 1, 1, 9, 9] for key, found in TRUTH.items() for label in found or ["No finding"])
    _rows(path, header, rows)


def _padchest(path: Path) -> None:
    header = ["", "ImageID", "StudyDate_DICOM", "Projection", "Labels", "LabelsLocalizationsBySentence"]
    rows = ([i, f"{key}.jpg", 2014, "PA", str(v), "[]"] for i, (key, v) in enumerate(TRUTH.items()))
    _rows(path, header, rows)


def _open_images(path: Path) -> None:
    rows = (
        [key, "verification", f"/m/{label}", bit]
        for key, v in TRUTH.items()
        for label, bit in zip(LABELS, _bits(v), strict=True)
    )
    _rows(path, ["ImageID", "Source", "LabelName", "Confidence"], rows)
    _rows(path.parent / "class-descriptions.csv", None, ([f"/m/{label}", label] for label in LABELS))


def _nus_wide(path: Path) -> None:
    for label in LABELS:
        _lines(path / f"Labels_{label}.txt", (str(int(label in found)) for found in TRUTH.values()))
    _lines(path.parent / "ImageList" / "Imagelist.txt", (f"actor\\{key}.jpg" for key in TRUTH))


def _sidecars(path: Path) -> None:
    for key, found in TRUTH.items():
        _lines(path / f"{key}.txt", [", ".join(found)])


def _yolo(path: Path) -> None:
    for key, found in TRUTH.items():
        _lines(path / f"{key}.txt", (f"{LABELS.index(label)} 0.5 0.5 0.25 0.25" for label in found))


def _roboflow(path: Path) -> None:
    keys = list(TRUTH)
    for split, chosen in (("train", keys[:10]), ("valid", keys[10:13]), ("test", keys[13:])):
        rows = ([f"{key}.jpg", *(f" {bit}" for bit in _bits(TRUTH[key]))] for key in chosen)
        _rows(path / split / "_classes.csv", ["filename", " cat", " dog"], rows)
        for key in chosen:
            shutil.copy(path.parent / "photos" / f"{key}.jpg", path / split)
    _lines(path / "README.roboflow.txt", ["my-dataset - v1", "", "This dataset was exported via roboflow.com"])


def _folders(path: Path) -> None:
    for key, found in TRUTH.items():
        for label in found:
            (path / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path.parent / "photos" / f"{key}.jpg", path / label)


def _shards(path: Path, extension: str, content: Callable[[list[str]], bytes]) -> None:
    path.mkdir()
    with tarfile.open(path / "000000.tar", "w") as tar:
        for key, found in TRUTH.items():
            image = (path.parent / "photos" / f"{key}.jpg").read_bytes()
            records = [(f"{key}.{extension}", data)] if (data := content(found)) else []
            for name, data in ((f"{key}.image.JPG", image), *records):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _array(found: list[str]) -> bytes:
    data = io.BytesIO()
    np.save(data, np.array(_bits(found), np.int64))
    return data.getvalue()


def _mimic(path: Path) -> None:
    """One row per study, whose images lie in its folder."""
    rows = ([f"10{i:02d}", f"50{i:02d}", *(["", "1.0"][bit] for bit in _bits(v))] for i, v in enumerate(TRUTH.values()))
    _rows(path, ["subject_id", "study_id", *LABELS], rows)
    for i, key in enumerate(TRUTH):
        study = path.parent / "files" / f"p10{i:02d}" / f"s50{i:02d}"
        study.mkdir(parents=True)
        shutil.copy(path.parent / "photos" / f"{key}.jpg", study)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "annotations": _lists,
    "wide.csv": _wide,
    "wide.csv.gz": _gz,
    "excel.csv": _excel_csv,
    "labels.xlsx": _workbook,
    "pandas.csv": _indexed,
    "no-header.csv": _without_header,
    "path-bits.txt": _path_bits,
    "delimited.csv": _delimited,
    "train_v2.csv": _planet,
    "lists.csv": _python_lists,
    "long.csv": _long,
    "lists.parquet": _parquet,
    "dataset": _dataset,
    "metadata.jsonl": _vectors,
    "labels.jsonl": _jsonl,
    "doccano.jsonl": _doccano,
    "azure.jsonl": _azure,
    "vertex.jsonl": _vertex,
    "vertex.csv": _vertex_csv,
    "output.manifest": _sagemaker,
    "instances.json": _coco,
    "lvis_v1.json": _lvis,
    "voc": _voc,
    "Main": _image_sets,
    "annotations.xml": _cvat,
    "labelme": _labelme,
    "bigearthnet": _bigearthnet,
    "project.json": _label_studio,
    "project-min.json": _label_studio_min,
    "project.csv": _label_studio_csv,
    "fiftyone.json": _fiftyone,
    "samples.json": _fiftyone_samples,
    "via.json": _via,
    "prodigy.jsonl": _prodigy,
    "labelbox.ndjson": _labelbox,
    "kili.json": _kili,
    "encord.json": _encord,
    "datumaro.json": _datumaro,
    "custom-vision.json": _custom_vision,
    "superannotate": _superannotate,
    "supervisely": _supervisely,
    "by-label.json": _by_label,
    "by-image.json": _by_image,
    "records.json": _records,
    "mmpretrain.json": _mmpretrain,
    "mmpretrain.txt": _mmpretrain_list,
    "list_attr_celeba.txt": _celeba,
    "list_attr_celeba.csv": _celeba_csv,
    "chexpert.csv": _chexpert,
    "mimic.csv": _mimic,
    "Data_Entry_2017.csv": _chestxray14,
    "vindr.csv": _vindr,
    "vindr-boxes.csv": _vindr_long,
    "padchest.csv": _padchest,
    "human-imagelabels.csv": _open_images,
    "AllLabels": _nus_wide,
    "tags": _sidecars,
    "yolo": _yolo,
    "roboflow": _roboflow,
    "tree": _folders,
    "shards-json": lambda path: _shards(path, "meta.json", lambda v: json.dumps({"labels": v}).encode()),
    "shards-cls": lambda path: _shards(path, "cls", lambda v: ",".join(str(LABELS.index(x)) for x in v).encode()),
    "shards-npy": lambda path: _shards(path, "npy", _array),
}
