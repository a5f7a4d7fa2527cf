"""`mlic batch-predict --update`: new and changed images come into an output that is then that of the whole folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from mlic.batch_predict import predict as stage
from mlic.batch_predict.inference import Network
from mlic.batch_predict.predict import PredictReport, predict
from mlic.config.load import build
from mlic.config.predict import PredictConfig
from mlic.errors import ConfigError, PartialError

pytestmark = pytest.mark.ray


@pytest.fixture
def images(corpus: Path, tmp_path: Path) -> list[Path]:
    """The images of a folder that grows, in the order of their names; the last third is not there yet."""
    folder, later = tmp_path / "images", tmp_path / "later"
    shutil.copytree(corpus / "unlabelled", folder)
    later.mkdir()
    paths = sorted(folder.iterdir())
    for path in paths[1::3]:
        path.rename(later / path.name)
    return paths


def run(model: Path, folder: Path, out: Path | str, **settings: Any) -> PredictReport:
    return predict(
        build(PredictConfig, {"model": model, "images": folder, "out": out, "chunk": 4, "values": "both", **settings})
    )


def grown(images: list[Path]) -> None:
    """The later images come, another image takes the place of the first, and the second is broken."""
    later = images[0].parent.parent / "later"
    for path in later.iterdir():
        path.rename(images[0].parent / path.name)
    images[0].write_bytes(images[5].read_bytes())
    images[2].write_bytes(b"broken")


def content(out: Path) -> dict[str, bytes]:
    """The bytes of an output and of its list of bad images by name."""
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    errors = out.with_name(f"{out.name}.errors.tsv")
    return {path.name if path != out else "": path.read_bytes() for path in files} | (
        {"errors": errors.read_bytes()} if errors.exists() else {}
    )


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl", "p.parquet", "folder"])
def test_the_output_is_that_of_the_whole_folder(
    trained_run: Path, images: list[Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    run(trained_run, images[0].parent, out)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / f"{name}.parts").glob("part-*")}
    grown(images)
    report = run(trained_run, images[0].parent, out, update=True, max_bad=1)
    assert (report.found, report.bad) == (len(images), 1)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / f"{name}.parts").glob("part-*")}
    assert all(after[part] == stamp for part, stamp in before.items())
    rows = sum(pq.read_metadata(tmp_path / f"{name}.parts" / part).num_rows for part in after.keys() - before.keys())
    assert rows == len(images[1::3]) + 2  # those that came, and those that changed
    whole = run(trained_run, images[0].parent, tmp_path / "whole" / name, max_bad=1)
    assert content(out) == content(tmp_path / "whole" / name)
    assert report.model_dump(exclude={"out", "errors"}) == whole.model_dump(exclude={"out", "errors"})


def test_an_output_that_is_up_to_date(trained_run: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    first = run(trained_run, images[0].parent, out, update=True)  # there is none yet
    assert run(trained_run, images[0].parent, out, update=True) == first
    later = tmp_path / "later"
    for path in later.iterdir():
        path.rename(images[0].parent / path.name)
    with pytest.raises(ConfigError, match="different images") as error:
        run(trained_run, images[0].parent, out)
    assert error.value.hint.endswith("p.csv.parts holds, or --update to take in what is new.")
    second = run(trained_run, images[0].parent, out, update=True)
    assert (first.found, second.found) == (20, 30)
    written = out.read_bytes()
    for settings in ({}, {"update": True}):
        assert run(trained_run, images[0].parent, out, **settings) == second
        out.unlink()
        assert run(trained_run, images[0].parent, out, **settings).sha256 == second.sha256
        assert out.read_bytes() == written


def test_rows_of_images_that_are_gone(trained_run: Path, images: list[Path], tmp_path: Path) -> None:
    out, folder = tmp_path / "p.csv", images[0].parent
    run(trained_run, folder, out)
    before = pd.read_csv(out)
    there = [path for path in images if path.exists()]
    there[0].unlink()
    there[7].unlink()
    with pytest.raises(ConfigError, match=rf"2 images of the output are gone from {folder}, such as") as error:
        run(trained_run, folder, out, update=True)
    assert error.value.hint == "--update --gone drop removes their rows, --update --gone keep keeps them."
    assert pd.read_csv(out).equals(before)
    kept = run(trained_run, folder, out, update=True, gone="keep")
    assert kept.found == 20
    assert pd.read_csv(out).equals(before)
    dropped = run(trained_run, folder, out, update=True, gone="drop")
    assert dropped.found == 18
    left = before[~before["file"].isin([there[0].name, there[7].name])].reset_index(drop=True)
    assert pd.read_csv(out).equals(left)
    assert run(trained_run, folder, tmp_path / "whole.csv").sha256 == dropped.sha256


def test_a_touched_image_is_predicted_again(trained_run: Path, images: list[Path], tmp_path: Path) -> None:
    out, folder = tmp_path / "p.csv", images[0].parent
    first = run(trained_run, folder, out)
    os.utime(images[0], ns=(1, 1))
    assert run(trained_run, folder, out, update=True).sha256 == first.sha256
    assert len(list((tmp_path / "p.csv.parts").glob("part-*.parquet"))) == 6
    for path in images:
        if path.exists():
            os.utime(path, ns=(2, 2))
    assert run(trained_run, folder, out, update=True).sha256 == first.sha256
    names = sorted(path.name for path in (tmp_path / "p.csv.parts").glob("part-*.parquet"))
    assert names == [f"part-{number:06d}.parquet" for number in range(6, 11)]  # the others hold nothing of use


def test_a_stopped_update_keeps_its_parts(
    trained_run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "p.csv", images[0].parent
    run(trained_run, folder, out)
    grown(images)
    make_here = stage._make_here

    def stopped(*arguments: Any) -> Any:
        parts = make_here(*arguments)
        yield next(parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_make_here", stopped)
    for done in (1, 1):
        with pytest.raises(PartialError, match=rf"stopped after {done} of \d parts"):
            run(trained_run, folder, out, update=True, max_bad=1)
    monkeypatch.undo()
    (tmp_path / "p.csv.parts" / "part-000007.trail").write_text("begin\n+1\nbegin\n+1\nbegin\n+1\n")
    report = run(trained_run, folder, out, update=True, max_bad=1)
    assert run(trained_run, folder, tmp_path / "whole.csv", max_bad=1).sha256 == report.sha256
    assert not list((tmp_path / "p.csv.parts").glob("*.trail"))


def test_another_engine_predicts_all(
    trained_run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run over the whole folder would, which has so many images that it takes another engine."""
    out, folder = tmp_path / "p.csv", images[0].parent
    run(trained_run, folder, out)
    grown(images)
    monkeypatch.setattr(stage, "_best_backend", lambda *_: "compile")
    monkeypatch.setattr(stage, "_backend", lambda *_: "torch")
    report = run(trained_run, folder, out, update=True, max_bad=1)
    assert len(list((tmp_path / "p.csv.parts").glob("part-*.parquet"))) == 8
    assert run(trained_run, folder, tmp_path / "whole.csv", max_bad=1).sha256 == report.sha256


def test_what_cannot_be_updated(trained_run: Path, images: list[Path], shards: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "p.csv", images[0].parent
    run(trained_run, folder, out)
    for part in (tmp_path / "p.csv.parts").glob("part-*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(["size", "stamp"]), part)
    (tmp_path / "later").joinpath(images[1].name).rename(images[1])
    with pytest.raises(ConfigError, match="part-000004.parquet was written by an earlier version"):
        run(trained_run, folder, out, update=True)
    with pytest.raises(ConfigError, match="holds shards"):
        run(trained_run, shards, tmp_path / "q.csv", update=True)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, "images")
    with pytest.raises(ConfigError, match="archives in .* do not tell them"):
        run(trained_run, tmp_path / "images.tar", tmp_path / "q.csv", update=True)
    with pytest.raises(ConfigError, match="gone is for an update"):
        run(trained_run, folder, out, gone="drop")
    with pytest.raises(ConfigError, match="update is for an output in a file"):
        run(trained_run, folder, "-", update=True)
    with pytest.raises(ConfigError, match="one image is printed"):
        predict(build(PredictConfig, {"model": trained_run, "images": images[0], "update": True}))


PROGRAM = """
import os
import sys
from pathlib import Path
import numpy as np
from mlic.batch_predict.inference import Network
from mlic.config.predict import PredictConfig

pixels, seen = None, {number: set() for number in range(40)}
for threads, batch_size in ((1, "auto"), (2, 8), (3, 64)):
    os.environ["OMP_NUM_THREADS"] = str(threads)
    config = PredictConfig(model=Path(sys.argv[1]), images=Path("x"), out=Path("p.csv"), batch_size=batch_size)
    network = Network(config, "torch", "cpu")
    prep = network.bundle.preprocessing
    shape = (40, prep.image_size, prep.image_size, prep.channels)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for first, last in ((0, 1), (0, 7), (0, 16), (3, 12), (8, 24), (24, 40), (31, 40), (5, 40)):
        for number, scores in zip(range(first, last), network(pixels[first:last]), strict=True):
            seen[number].add(scores.tobytes())
print(max(map(len, seen.values())))
"""


def test_a_score_depends_on_its_image_alone(trained_run: Path) -> None:
    """Not on the images beside it, nor on the number of threads: else an update would not be the whole, bit for bit."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, trained_run], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_threads_of_the_process_are_set_back(trained_run: Path, images: list[Path]) -> None:
    network = Network(PredictConfig(model=trained_run, images=images[0].parent), "torch", "cpu")
    prep, before = network.bundle.preprocessing, torch.get_num_threads()
    network(np.zeros((40, prep.image_size, prep.image_size, prep.channels), np.uint8))
    assert torch.get_num_threads() == before
