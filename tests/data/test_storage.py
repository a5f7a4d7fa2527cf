"""Against a real S3 server on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlic.batch_predict.actor import Trail
from mlic.config.train import TrainConfig
from mlic.data import image_sources, storage
from mlic.data.shards import read_split
from mlic.errors import DataError
from mlic.train.train import train
from tests.end_to_end.test_pipeline import FIT, NET


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket, by a server that is named in the environment as AWS's tools know it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{given['AWS_ENDPOINT_URL']}/photos", method="PUT")  # noqa: S310
                urllib.request.urlopen(request, timeout=5)  # noqa: S310
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError("the S3 server does not answer")
        yield "s3://photos"
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def test_locations() -> None:
    assert storage.join("s3://b/x/?scheme=http", "a/b.jpg") == "s3://b/x/a/b.jpg?scheme=http"
    assert storage.join(Path("/x"), "a/b.jpg") == Path("/x/a/b.jpg")
    assert storage.parent("s3://b/x/list.txt") == "s3://b/x"
    assert storage.suffix("s3://b/x/LIST.TXT?scheme=http") == ".txt"
    assert storage.name("s3://b/x/list.txt?scheme=http") == "list.txt"


def test_files_in_an_object_store(bucket: str, tmp_path: Path) -> None:
    folder = storage.join(bucket, "t")
    assert not storage.is_folder(folder)
    assert storage.names(folder) == []
    storage.put(storage.join(folder, "a.txt"), b"hello")
    (tmp_path / "b").write_bytes(b"x" * 10_000_000)
    storage.upload(tmp_path / "b", str(storage.join(folder, "sub/b.bin")))
    storage.put(storage.join(folder, ".hidden/c"), b"")
    assert storage.is_folder(folder)
    assert storage.read(storage.join(folder, "a.txt")) == b"hello"
    assert storage.size(storage.join(folder, "sub/b.bin")) == 10_000_000
    assert storage.size(storage.join(folder, "sub")) is None
    assert sorted((name, size) for name, size, _ in storage.walk(folder)) == [("a.txt", 5), ("sub/b.bin", 10_000_000)]
    with storage.File(storage.join(folder, "a.txt")) as file:
        assert file.read_at(1, 3) == b"ell"
    storage.delete(storage.join(folder, "a.txt"))
    storage.delete(storage.join(folder, "nothing"))
    assert "a.txt" not in storage.names(folder)


def test_copies_on_the_node(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    url = f"{bucket}/copied.bin"
    storage.put(url, b"one")
    first = storage.here(url, "a")
    assert isinstance(first, Path)
    assert first.read_bytes() == b"one"
    storage.put(url, b"two")
    assert storage.here(url, "a") == first
    assert first.read_bytes() == b"one"
    second = storage.here(url, "b")
    assert storage.read(second) == b"two"
    assert storage.here(tmp_path, "a") == tmp_path
    monkeypatch.setattr(storage, "KEEP_FREE", 2**60)
    assert storage.here(url, "c") == url
    assert not first.exists()
    monkeypatch.setattr(storage, "KEEP_FREE", 0)
    with pytest.raises(FileNotFoundError):
        storage.here(f"{bucket}/nothing", "a")


def test_a_store_that_is_not_there(bucket: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        image_sources.list_images(f"{bucket}/nowhere")
    with pytest.raises(DataError, match="no way to read ftp:// locations"):
        image_sources.list_images("ftp://host/x")


@pytest.mark.ray
def test_pack_from_and_to_an_object_store(
    bucket: str, corpus: Path, shards: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Byte for byte the shards of the same images on a disk; and again, and after a shard was lost."""
    for path in [*(corpus / "images").iterdir(), *(corpus / "annotations").iterdir()]:
        storage.upload(path, f"{bucket}/corpus/{path.parent.name}/{path.name}")
    out = f"{bucket}/shards"
    command = ["pack", f"{bucket}/corpus/images", "--labels", f"{bucket}/corpus/annotations", "--out", out]
    first = mlic(*command)
    assert first.returncode == 0, first.stderr
    for path in shards.glob("*.tar"):
        assert storage.read(storage.join(out, path.name)) == path.read_bytes()
    assert not [name for name in storage.names(out) if name.startswith(".")]
    stamps = {name: stamp for name, _, stamp in storage.walk(out)}
    again = mlic(*command)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert {name: stamp for name, _, stamp in storage.walk(out)} == stamps
    storage.delete(storage.join(out, "val-000000.tar"))
    again = mlic(*command, "--verify")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert mlic(*command, "--seed", "1").returncode == 2
    remote, local = read_split(out, "val"), read_split(shards, "val")
    assert remote.keys == local.keys
    assert (remote.targets == local.targets).all()
    copies = f"checkpoint_copy={bucket}/copies"
    training = ["train", out, "--epochs", "1", "--image-size", "32", "--arch", "a-cnn1", "--workers", "1"]
    trained = mlic(*training, "--set", copies)
    assert trained.returncode == 0, trained.stderr
    assert storage.names(f"{bucket}/copies/a-cnn1/checkpoints") == ["best.pt", "last.pt"]
    taken = mlic(*training, "--set", copies, "--runs", "elsewhere")
    assert taken.returncode == 0, taken.stderr
    assert "resumes from the checkpoints" in taken.stderr
    fresh = mlic(*training, "--set", copies, "--runs", "elsewhere", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert "resumes from the checkpoints" not in fresh.stderr
    assert storage.size(storage.join(out, "doctor.json"))
    measured = mlic("evaluate", "runs/a-cnn1")
    assert measured.returncode == 0, measured.stderr
    assert f"against {out}" in measured.stdout


@pytest.mark.ray
def test_predictions_in_an_object_store(
    bucket: str, corpus: Path, shards: Path, tmp_path: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Images from a store, parts and output in it: the bytes are those of files; what is there is not made again."""
    trained = TrainConfig(shards=shards, runs=tmp_path, workers=1, **(FIT | NET | {"epochs": 1}))
    run = train(trained).run
    images = corpus / "unlabelled"
    for path in images.iterdir():
        storage.upload(path, f"{bucket}/wild/{path.name}")
    storage.put(f"{bucket}/wild/broken.jpg", b"no image")
    command = ["batch-predict", str(run), f"{bucket}/wild", "--set", "chunk=7", "--out"]
    assert mlic(*command, f"{bucket}/p.csv", "--workers", "2").returncode == 0
    local = mlic("batch-predict", str(run), str(images), "--set", "chunk=7", "--out", str(tmp_path / "p.csv"))
    assert local.returncode == 0
    rows = storage.read(f"{bucket}/p.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == sorted(path.stem for path in images.iterdir())
    found, expected = (
        np.array([[float(x) for x in row.split(",")[2:]] for row in lines[1:]])
        for lines in (rows, (tmp_path / "p.csv").read_text().splitlines())
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert b"broken.jpg\tnot an image" in storage.read(f"{bucket}/p.csv.errors.tsv")
    parts = f"{bucket}/p.csv.parts"
    before = storage.read(f"{bucket}/p.csv")
    storage.delete(f"{parts}/part-000001.parquet")
    storage.delete(f"{bucket}/p.csv")
    assert mlic(*command, f"{bucket}/p.csv").returncode == 0
    assert storage.read(f"{bucket}/p.csv") == before
    assert not [name for name in storage.names(parts) if name.endswith(".trail")]
    storage.put(f"{parts}/part-000001.trail", b"begin begin +0 -0 +1")
    with Trail(f"{parts}/part-000001.parquet") as trail:
        assert trail.careful
        assert trail.watched(3, lambda: "read") == "read"
        words = storage.read(f"{parts}/part-000001.trail").split()
        assert words == [b"begin", b"begin", b"+0", b"-0", b"+1", b"begin", b"+3", b"-3"]
    assert storage.size(f"{parts}/part-000001.trail") is None
    assert mlic(*command, f"{bucket}/folder").returncode == 0
    assert len(storage.names(f"{bucket}/folder")) == -(-len(rows) // 7)


def test_a_copy_that_another_process_removes_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being told where the copy is and opening it, and while others are sorted to make room."""
    source = tmp_path / "shard.tar"
    source.write_bytes(b"whole")
    calls = 0

    def here(*_: object) -> Path:
        nonlocal calls
        calls += 1
        return tmp_path / "gone" if calls < 3 else source

    monkeypatch.setattr(storage, "here", here)
    with storage.opened_here("s3://bucket/shard.tar", "v") as file:
        assert file.read_at(0, 5) == b"whole"
    (tmp_path / "old").touch()
    paths = [tmp_path / "removed-meanwhile", tmp_path / "old", source]
    assert storage.longest_unused(paths) == sorted(paths[1:], key=lambda path: path.stat().st_mtime)
