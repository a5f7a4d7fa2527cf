from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlic.config.data import DoctorConfig, PackConfig
from mlic.config.train import TrainConfig
from mlic.data import toy
from mlic.doctor import features
from mlic.doctor.doctor import DoctorReport, doctor
from mlic.errors import DataError
from mlic.pack.pack import pack
from mlic.train.launch import fit as train

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for a verdict."""
    folder = tmp_path_factory.mktemp("large")
    toy.generate(folder, num_samples=1500, num_unlabelled=0, seed=3, size=32)
    return folder


def checks(report: DoctorReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def test_features_are_finite_and_tell_images_apart(corpus: Path) -> None:
    paths = sorted((corpus / "images").iterdir())[:20]
    found = np.stack([features.extract(path.read_bytes(), 10**8) for path in paths])
    assert found.shape == (20, features.NUM_FEATURES)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == 20


def test_good_shards_pass(large: Path, ray_cluster: None, tmp_path: Path) -> None:
    pack(PackConfig(images=large / "images", labels=large / "annotations", out=tmp_path / "s"))
    report = doctor(DoctorConfig(shards=tmp_path / "s"))
    assert checks(report)["alignment"] == checks(report)["pixels"] == checks(report)["labels"] == "ok"
    stamp = (tmp_path / "s" / "doctor.json").stat().st_mtime_ns
    assert doctor(DoctorConfig(shards=tmp_path / "s")).checks[0] == report.checks[0]
    assert (tmp_path / "s" / "doctor.json").stat().st_mtime_ns == stamp
    assert "alignment" in report.text()
    shard = tmp_path / "s" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000001\.tar has .* bytes where index.json says"):
        doctor(DoctorConfig(shards=tmp_path / "s"))


def test_labels_joined_by_position_are_caught_before_training(large: Path, ray_cluster: None, tmp_path: Path) -> None:
    """The bug that cost a whole project: labels in numeric order, file names in the order of the directory."""
    paths = sorted(path.name for path in (large / "images").iterdir())
    labels = tmp_path / "labels"
    labels.mkdir()
    for file in (large / "annotations").iterdir():
        wrong = [paths[int(number) - 1] for number in file.read_text().split()]
        (labels / file.name).write_text("\n".join(wrong) + "\n")
    pack(PackConfig(images=large / "images", labels=labels, out=tmp_path / "s"))
    with pytest.raises(DataError, match="the labels do not belong to the images: they are predicted no better than"):
        doctor(DoctorConfig(shards=tmp_path / "s"))
    config = TrainConfig(shards=tmp_path / "s", runs=tmp_path / "runs", image_size=48, epochs=1)
    with pytest.raises(DataError, match="the labels do not belong to the images"):
        train(config)
    assert not (tmp_path / "runs" / "small" / "checkpoints").exists()


def test_labels_that_slip_by_a_line_are_caught_and_placed(large: Path, ray_cluster: None, tmp_path: Path) -> None:
    """From one image on, for a tenth of the data, every label belongs to the image before: the rest hides it from a
    test of the whole."""
    wrong = tmp_path / "labels"
    wrong.mkdir()
    for file in (large / "annotations").iterdir():
        numbers = [int(line) for line in file.read_text().split()]
        moved = [600 + (n - 599) % 150 if 600 <= n < 750 else n for n in numbers]
        (wrong / file.name).write_text("".join(f"{n}\n" for n in moved))
    pack(PackConfig(images=large / "images", labels=wrong, out=tmp_path / "s", split={"train": 1.0}))
    with pytest.raises(
        DataError, match=r"do not belong to the images from about 'im(\d+)' to about 'im(\d+)'"
    ) as error:
        doctor(DoctorConfig(shards=tmp_path / "s"))
    first, last = (int(n) for n in re.findall(r"'im(\d+)'", str(error.value)))
    assert first < 700
    assert last > 650


def test_a_label_order_that_does_not_match_is_caught(shards: Path, tmp_path: Path) -> None:
    """The vectors of the table are read by the order of the index; the records in the shards have the names."""
    copy = tmp_path / "s"
    shutil.copytree(shards, copy)
    index = json.loads((copy / "index.json").read_text())
    index["labels"] = index["labels"][::-1]
    (copy / "index.json").write_text(json.dumps(index))
    (copy / "doctor.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="records in the shards .* name other labels than the table"):
        doctor(DoctorConfig(shards=copy, fresh=True))


def test_names_of_no_image_are_told(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    """One in a hundred names in the label files has its letters turned round."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for file in (corpus / "annotations").iterdir():
        names = [f"im{number}.jpg" for number in file.read_text().split()]
        names[::50] = [name[::-1] for name in names[::50]]
        (labels / file.name).write_text("\n".join(names) + "\n")
    report = pack(PackConfig(images=corpus / "images", labels=labels, out=tmp_path / "s"))
    assert report.account.missing > 2
    found = {check.name: check for check in doctor(DoctorConfig(shards=tmp_path / "s")).checks}
    assert found["account"].status == "warning"
    assert "annotated names are no image" in found["account"].text


def test_small_sets_are_not_accused(shards: Path) -> None:
    assert checks(doctor(DoctorConfig(shards=shards)))["alignment"] in ("ok", "note")


def test_what_cannot_be_learnt_or_measured_is_named(corpus: Path, ray_cluster: None, tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    shutil.copytree(corpus / "images", images)
    shutil.copytree(corpus / "annotations", labels)
    (labels / "unicorn.txt").write_text("5\n")
    for number in range(1, 9):
        shutil.copy(images / "im9.jpg", images / f"im{1000 + number}.jpg")
    pack(PackConfig(images=images, labels=labels, out=tmp_path / "s", split_by="random"))
    report = doctor(DoctorConfig(shards=tmp_path / "s"))
    assert checks(report)["labels"] == "warning"
    assert checks(report)["leakage"] == "warning"
    assert "unicorn in " in next(check.text for check in report.checks if check.name == "labels")
    assert json.loads(report.model_dump_json())["checks"]


def test_shards_against_ranks(shards: Path) -> None:
    found = {}
    for ranks in (1, 4, 9, 200):
        (found[ranks],) = [c for c in doctor(DoctorConfig(shards=shards, ranks=ranks)).checks if c.name == "shards"]
    assert [check.status for check in found.values()] == ["ok", "ok", "note", "warning"]
    assert "--min-shards 9" in found[9].text
    assert "a rank needs two samples" in found[200].text


def test_records_that_do_not_read_are_no_match(shards: Path, tmp_path: Path) -> None:
    """A byte of each record is overwritten; the images, which come before, still read."""
    copy = tmp_path / "s"
    shutil.copytree(shards, copy)
    for path in copy.glob("train-*.tar"):
        path.write_bytes(path.read_bytes().replace(b'{"file"', b'["file"'))
    with pytest.raises(DataError, match="records in the shards .* name other labels than the table"):
        doctor(DoctorConfig(shards=copy, fresh=True))
