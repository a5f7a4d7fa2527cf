"""What programs and notebooks get by `import mlic`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mlic
from mlic.data.shards import read_split

pytestmark = pytest.mark.ray

# The contract: a name that is missing, or a new one, is a change for the programs of others.
NAMES = """
__version__ average batch_predict card distill doctor embed evaluate explore export log noise pack report review
select threshold train tune
ClusterError ConfigError DataError Dataset IterableDataset MlicError Model PartialError RunError
load read_predictions read_trials
"""


@pytest.fixture(scope="module")
def model(trained_run: Path) -> mlic.Model:
    return mlic.load(trained_run)


def test_the_names() -> None:
    assert sorted(mlic.__all__) == sorted(NAMES.split())
    assert all(getattr(mlic, name) is not None for name in mlic.__all__)
    assert set(mlic.__all__) <= set(dir(mlic))
    with pytest.raises(AttributeError, match="no attribute 'predictt'"):
        _ = mlic.predictt


def test_nothing_heavy_is_imported_until_it_is_used() -> None:
    code = "import mlic, sys; print(sorted({'torch', 'ray', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_predictions_are_those_of_the_command(
    model: mlic.Model, trained_run: Path, corpus: Path, tmp_path: Path
) -> None:
    """To the last bit, from a folder, its files and shards of them."""
    folder = corpus / "unlabelled"
    report = mlic.batch_predict(trained_run, folder, out=tmp_path / "p.parquet")
    assert report.predicted == 30
    expected = mlic.read_predictions(tmp_path / "p.parquet")
    names = ["key", *model.labels, *(f"{label}_score" for label in model.labels)]
    found = model.predict(folder)
    assert list(found.columns) == names
    pd.testing.assert_frame_equal(found, expected[names], check_dtype=False)
    files = [folder / file for file in expected["file"]]
    pd.testing.assert_frame_equal(model.predict(files), found)
    pd.testing.assert_frame_equal(model.predict(str(files[4])), found[4:5].reset_index(drop=True))
    assert set(model.thresholds) == set(model.labels)
    for label, cut in model.thresholds.items():
        assert (found[label] == (found[f"{label}_score"] >= cut)).all()


def test_images_in_memory(model: mlic.Model, corpus: Path, tmp_path: Path) -> None:
    """A Pillow image, its bytes, arrays and tensors of the same pixels have the same scores."""
    files = sorted((corpus / "unlabelled").iterdir())[:3]
    pictures = [Image.open(path).convert("RGB") for path in files]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    expected = model.predict([tmp_path / f"{i}.png" for i in range(3)])
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for inputs in (
        pictures,
        list(arrays),
        arrays,
        tensors,
        list(tensors),
        tensors / 255,
        [(tmp_path / f"{i}.png").read_bytes() for i in range(3)],
        (picture for picture in pictures),
    ):
        pd.testing.assert_frame_equal(model.predict(inputs), expected)
    one = model.predict(pictures[1])
    assert one["key"].tolist() == ["0"]
    pd.testing.assert_frame_equal(one.drop(columns="key"), expected[1:2].drop(columns="key").reset_index(drop=True))
    gray = pictures[0].convert("L")
    pd.testing.assert_frame_equal(model.predict(np.asarray(gray)), model.predict(gray))


def test_pillow_images_are_decoded_as_their_files_are(model: mlic.Model, corpus: Path, tmp_path: Path) -> None:
    """Upright by their EXIF tag, and with all of their bits."""
    path = next((corpus / "unlabelled").iterdir())
    turned = Image.open(path)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        expected = model.predict(tmp_path / name).drop(columns="key")
        pd.testing.assert_frame_equal(model.predict(Image.open(tmp_path / name)).drop(columns="key"), expected)
        with (tmp_path / name).open("rb") as file:
            pd.testing.assert_frame_equal(model.predict(file).drop(columns="key"), expected)
        pd.testing.assert_frame_equal(
            model.predict(bytearray((tmp_path / name).read_bytes())).drop(columns="key"), expected
        )
    assert (
        not model.predict(tmp_path / "turned.png").drop(columns="key").equals(model.predict(path).drop(columns="key"))
    )
    with pytest.raises(mlic.DataError, match="has the mode F"):
        model.predict(Image.fromarray(np.zeros((8, 8), np.float32)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((8, 8, 3), np.float32) - 2, "values from -2 to -2"),
        (np.zeros((8, 8, 7), np.uint8), r"has the shape \(8, 8, 7\)"),
        (torch.zeros(8, 8, 3), "channels first"),
        (np.zeros((8, 8, 3), np.int64), "is of int64"),
        ([], "there is no image"),
        (7, "int is no image"),
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        (b"no image", "cannot be decoded"),
        ("", "is empty"),
        ({"a": "b.jpg"}, "dict is no image"),
        (np.zeros((0, 0, 3), np.uint8), r"has the shape \(0, 0, 3\)"),
        (np.full((8, 8, 3), 1.00001, np.float32), "values from 1.00001 to 1.00001"),
        ([Path(__file__).parent], "is a folder among images"),
    ],
)
def test_what_is_no_image(model: mlic.Model, inputs: object, words: str) -> None:
    with pytest.raises(mlic.DataError) as caught:
        model.predict(inputs)
    text = f"{caught.value.message} {caught.value.hint}"
    assert re.search(words, text), text


def test_bad_images_are_kept_when_that_is_asked_for(model: mlic.Model, corpus: Path, tmp_path: Path) -> None:
    good = next((corpus / "unlabelled").iterdir())
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(mlic.DataError, match="1 of 2 images cannot be decoded; bad: "):
        model.predict([good, bad])
    table = model.predict([good, bad], bad="keep")
    assert table["error"].isna().tolist() == [True, False]
    scores = table[[f"{label}_score" for label in model.labels]]
    assert scores.isna().all(axis=1).tolist() == [False, True]
    assert not table.loc[1, list(model.labels)].any()
    pd.testing.assert_frame_equal(table[:1].drop(columns="error"), model.predict(good))


def test_embeddings(model: mlic.Model, trained_run: Path, corpus: Path, tmp_path: Path) -> None:
    report = mlic.embed(trained_run, corpus / "unlabelled", out=tmp_path / "e.parquet")
    vectors = model.embed(corpus / "unlabelled")
    assert vectors.shape == (30, report.width)
    table = pd.read_parquet(tmp_path / "e.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"]), vectors)


def test_commands_are_functions(shards: Path, trained_run: Path, tmp_path: Path) -> None:
    report = mlic.evaluate(trained_run, labels=shards, out=tmp_path / "out")
    assert 0 <= report.measurement.values["f1_micro"] <= 1
    assert "<pre>" in report._repr_html_()
    with pytest.raises(mlic.ConfigError, match="unknown setting 'epoch'") as caught:
        mlic.train(shards, epoch=3)
    assert caught.value.hint == "did you mean epochs?"
    with pytest.raises(TypeError, match=r"takes 1 positional arguments \(shards\), not 2"):
        mlic.train(shards, 3)
    with pytest.raises(mlic.DataError, match="has no table of trials"):
        mlic.read_trials(trained_run)


def test_a_model_shows_itself(model: mlic.Model, trained_run: Path) -> None:
    assert str(trained_run) in repr(model)
    html = model._repr_html_()
    assert all(label in html for label in model.labels)
    with pytest.raises(mlic.DataError, match="does not exist") as caught:
        mlic.load("nowhere")
    assert caught.value.__notes__ == [f"Hint: {caught.value.hint}"], "a traceback shows it"
    with pytest.raises(mlic.ConfigError, match="tta is 'both'"):
        mlic.load(trained_run, tta="both")  # type: ignore[arg-type]
    with pytest.raises(mlic.ConfigError, match="bad is 'kep'"):
        model.predict(["a.jpg"], bad="kep")  # type: ignore[arg-type]
    with pytest.raises(mlic.ConfigError, match="3 is no path"):
        mlic.load(3)  # type: ignore[arg-type]
    assert mlic.load(SimpleNamespace(run=trained_run)).labels == model.labels, "the report of a training"  # type: ignore[arg-type]


def test_a_data_set_of_shards(shards: Path) -> None:
    samples = mlic.Dataset(shards, "val")
    split = read_split(shards, "val")
    assert (len(samples), samples.labels) == (len(split), split.labels)
    image, targets = samples[3]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 64, 64))
    assert targets.tolist() == split.targets[3].tolist()
    assert samples[-1][1].tolist() == split.targets[-1].tolist()
    assert sum(1 for _ in samples) == len(samples)
    loader = DataLoader(
        mlic.Dataset(shards, "val", transform=lambda image: image.float().mean()), batch_size=8, num_workers=2
    )
    means, seen = zip(*loader, strict=True)
    assert torch.cat(seen).tolist() == split.targets.tolist()
    assert torch.cat(means)[3] == pytest.approx(float(image.float().mean()))
    small, _ = next(iter(DataLoader(mlic.Dataset(shards, "val", size=20), batch_size=5)))
    assert (small.shape, small.dtype) == ((5, 3, 20, 20), torch.uint8)
    assert "24 samples of val, 6 labels" in repr(samples)


def test_a_data_set_that_is_iterated(shards: Path) -> None:
    """Each sample once an epoch over all processes, in an order of the epoch."""
    samples = mlic.IterableDataset(shards, "val", transform=lambda image: image.sum())
    expected = sorted(int(image.sum()) for image, _ in mlic.Dataset(shards, "val"))
    epochs = []
    for epoch in (0, 0, 1):
        samples.set_epoch(epoch)
        loader = DataLoader(samples, batch_size=None, num_workers=2)
        epochs.append([int(total) for total, _ in loader])
    assert all(sorted(sums) == expected for sums in epochs)
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(samples) == len(expected)
    plain = mlic.IterableDataset(shards, "val", shuffle=False)
    assert [t.tolist() for _, t in plain] == read_split(shards, "val").targets.tolist()
