"""Against a real S3 server on this machine."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlic.batch_predict.actor import Trail
from mlic.config.data import PackConfig
from mlic.config.remote_path import RemotePath
from mlic.config.train import TrainConfig
from mlic.data import storage
from mlic.data.shards import read_split
from mlic.data.sources import image_sources
from mlic.errors import DataError
from mlic.pack.inputs import find
from mlic.train.train import train
from tests.data.test_parquet_images import write
from tests.end_to_end.test_pipeline import FIT, NET


@pytest.fixture(scope="module")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a line for each request."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def bucket(server_log: Path) -> Iterator[RemotePath]:
    """An empty bucket, by a server that is named in the environment as AWS's tools know it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server_log.open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
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
        yield RemotePath("s3://photos")
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def test_locations() -> None:
    folder = RemotePath("s3://b/x/?scheme=http")
    assert folder / "a/b.jpg" == RemotePath("s3://b/x/a/b.jpg?scheme=http")
    assert str(folder / "a/b.jpg") == "s3://b/x/a/b.jpg?scheme=http"
    assert RemotePath("s3://b/x/list.txt").parent == RemotePath("s3://b/x")
    assert RemotePath("s3://b/x/LIST.TXT?scheme=http").suffix == ".TXT"
    assert RemotePath("s3://b/x/list.txt?scheme=http").name == "list.txt"
    assert len({folder, RemotePath(str(folder))}) == 1
    with pytest.raises(ValueError, match="'x/y' is no URL"):
        RemotePath("x/y")


def test_a_location_in_a_configuration_is_text_in_its_file() -> None:
    config = TrainConfig(shards="s3://b/shards", runs="runs")
    assert config.shards == RemotePath("s3://b/shards")
    assert config.runs == Path("runs").absolute()
    plain = config.model_dump(mode="json")
    assert plain["shards"] == "s3://b/shards"
    assert TrainConfig.model_validate(plain) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - as Ray does


def assert_keeps_files(folder: RemotePath, tmp_path: Path) -> None:
    """Files are written to, found in, read from and removed from an empty folder of a store."""
    assert not storage.is_folder(folder)
    assert storage.names(folder) == []
    storage.put(folder / "a.txt", b"hello")
    (tmp_path / "b").write_bytes(b"x" * 10_000_000)
    storage.upload(tmp_path / "b", folder / "sub/b.bin")
    storage.put(folder / ".hidden/c", b"")
    assert storage.is_folder(folder)
    assert storage.read(folder / "a.txt") == b"hello"
    assert storage.size(folder / "sub/b.bin") == 10_000_000
    assert storage.size(folder / "sub") is None
    assert sorted((name, size) for name, size, _ in storage.walk(folder)) == [("a.txt", 5), ("sub/b.bin", 10_000_000)]
    with storage.File(folder / "a.txt") as file:
        assert file.read_at(1, 3) == b"ell"
    storage.delete(folder / "a.txt")
    storage.delete(folder / "nothing")
    assert "a.txt" not in storage.names(folder)


def test_files_in_an_object_store(bucket: RemotePath, tmp_path: Path) -> None:
    assert_keeps_files(bucket / "t", tmp_path)


def test_copies_on_the_node(bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    url = bucket / "copied.bin"
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
        storage.here((bucket / "nothing"), "a")


def test_a_store_that_is_not_there(bucket: RemotePath) -> None:
    with pytest.raises(DataError, match="does not exist"):
        image_sources.list_images(bucket / "nowhere")
    with pytest.raises(DataError, match="no way to read ftp:// locations"):
        image_sources.list_images(RemotePath("ftp://host/x"))


@pytest.mark.ray
@pytest.mark.slow
def test_pack_from_and_to_an_object_store(
    bucket: RemotePath, corpus: Path, shards: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Byte for byte the shards of the same images on a disk; and again, and after a shard was lost."""
    for path in [*(corpus / "images").iterdir(), *(corpus / "annotations").iterdir()]:
        storage.upload(path, (bucket / f"corpus/{path.parent.name}/{path.name}"))
    out = bucket / "shards"
    command = ["pack", (bucket / "corpus/images"), "--labels", (bucket / "corpus/annotations"), "--out", out]
    first = mlic(*command)
    assert first.returncode == 0, first.stderr
    for path in shards.glob("*.tar"):
        assert storage.read(out / path.name) == path.read_bytes()
    assert not [name for name in storage.names(out) if name.startswith(".")]
    stamps = {name: stamp for name, _, stamp in storage.walk(out)}
    again = mlic(*command)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert {name: stamp for name, _, stamp in storage.walk(out)} == stamps
    storage.delete(out / "val-000000.tar")
    again = mlic(*command, "--verify")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert mlic(*command, "--seed", "1").returncode == 2
    remote, local = read_split(out, "val"), read_split(shards, "val")
    assert remote.keys == local.keys
    assert (remote.targets == local.targets).all()


@pytest.mark.ray
def test_few_samples_of_shards_are_read_where_they_lie(
    bucket: RemotePath, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at some samples of a large data set does not copy its shards; a look at all does."""
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    for path in shards.iterdir():
        if path.is_file() and not path.name.startswith("."):
            storage.upload(path, bucket / "few" / path.name)
    remote, local = (read_split(folder, "train") for folder in (bucket / "few", shards))
    with remote.take(np.array([3])).opened() as read, local.opened() as read_local:
        assert read(0) == read_local(3)
    assert not (tmp_path / "node").exists()
    with remote.opened() as read, local.opened() as read_local:
        assert read(3) == read_local(3)
    copies = [path for path in (tmp_path / "node" / "fetched").iterdir() if path.suffix != ".lock"]
    assert len(copies) == len(remote.shards)


@pytest.mark.ray
@pytest.mark.slow
def test_train_from_an_object_store(
    bucket: RemotePath, shards: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Shards are read from the store, and copies of checkpoints in it are taken by a run elsewhere."""
    out = bucket / "trained"
    for path in shards.iterdir():
        if path.is_file() and not path.name.startswith("."):
            storage.upload(path, out / path.name)
    copies = f"checkpoint_copy={bucket}/copies"
    training = ["train", out, "--epochs", "1", "--image-size", "32", "--arch", "a-cnn1", "--workers", "1"]
    trained = mlic(*training, "--set", copies)
    assert trained.returncode == 0, trained.stderr
    assert storage.names(bucket / "copies/a-cnn1/checkpoints") == ["best.pt", "last.pt"]
    taken = mlic(*training, "--set", copies, "--runs", "elsewhere")
    assert taken.returncode == 0, taken.stderr
    assert "resumes from the checkpoints" in taken.stderr
    fresh = mlic(*training, "--set", copies, "--runs", "elsewhere", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert "resumes from the checkpoints" not in fresh.stderr
    assert storage.size(out / "doctor.json")
    measured = mlic("evaluate", "runs/a-cnn1")
    assert measured.returncode == 0, measured.stderr
    assert f"against {out}" in measured.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_streamed_shards_are_fetched_once_an_epoch(
    bucket: RemotePath, server_log: Path, corpus: Path, mlic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """By one of two workers each, those for validation too; a node without room for all of them streams by itself."""
    out = bucket / "many"
    packed = mlic("pack", corpus / "images", "--labels", corpus / "annotations", "--out", out, "--min-shards", "16")
    assert packed.returncode == 0, packed.stderr
    before = server_log.stat().st_size
    training = ["train", out, "--epochs", "2", "--image-size", "32", "--arch", "a-cnn1", "--batch-size", "24"]
    trained = mlic(*training, "--workers", "2", "--no-doctor", "--stream", "always")
    assert trained.returncode == 0, trained.stderr
    assert "streams 16 training shards" in trained.stderr
    gets = Counter(re.findall(r"GET /photos/many/(\S+\.tar)\S* HTTP", server_log.read_text()[before:]))
    assert gets == {name: 2 for name in storage.names(out) if name.startswith(("train", "val"))}


@pytest.mark.ray
@pytest.mark.slow
def test_predictions_in_an_object_store(
    bucket: RemotePath,
    corpus: Path,
    shards: Path,
    tmp_path: Path,
    mlic: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Images from a store, parts and output in it: the bytes are those of files; what is there is not made again."""
    trained = TrainConfig(shards=shards, runs=tmp_path, workers=1, **(FIT | NET | {"epochs": 1}))
    run = train(trained).run
    images = corpus / "unlabelled"
    for path in images.iterdir():
        storage.upload(path, (bucket / f"wild/{path.name}"))
    storage.put((bucket / "wild/broken.jpg"), b"no image")
    command = ["batch-predict", str(run), (bucket / "wild"), "--set", "chunk=7", "--out"]
    assert mlic(*command, (bucket / "p.csv"), "--workers", "2").returncode == 0
    local = mlic("batch-predict", str(run), str(images), "--set", "chunk=7", "--out", str(tmp_path / "p.csv"))
    assert local.returncode == 0
    rows = storage.read(bucket / "p.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == sorted(path.stem for path in images.iterdir())
    found, expected = (
        np.array([[float(x) for x in row.split(",")[2:]] for row in lines[1:]])
        for lines in (rows, (tmp_path / "p.csv").read_text().splitlines())
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert b"broken.jpg\tnot an image" in storage.read(bucket / "p.csv.errors.tsv")
    parts = bucket / "p.csv.parts"
    before = storage.read(bucket / "p.csv")
    storage.delete(parts / "part-000001.parquet")
    storage.delete(bucket / "p.csv")
    assert mlic(*command, (bucket / "p.csv")).returncode == 0
    assert storage.read(bucket / "p.csv") == before
    assert not [name for name in storage.names(parts) if name.endswith(".trail")]
    storage.put((parts / "part-000001.trail"), b"begin begin +0 -0 +1")
    with Trail(parts / "part-000001.parquet") as trail:
        assert trail.careful
        assert trail.watched(3, lambda: "read") == "read"
        words = storage.read(parts / "part-000001.trail").split()
        assert words == [b"begin", b"begin", b"+0", b"-0", b"+1", b"begin", b"+3", b"-3"]
    assert storage.size(parts / "part-000001.trail") is None
    assert mlic(*command, (bucket / "folder")).returncode == 0
    assert len(storage.names(bucket / "folder")) == -(-len(rows) // 7)
    storage.upload(next(iter(sorted(images.iterdir()))), (bucket / "wild/again.jpg"))
    assert mlic(*command, (bucket / "p.csv"), "--update").returncode == 0
    assert len(storage.read(bucket / "p.csv").decode().splitlines()) == len(rows) + 1
    assert mlic(*command, (bucket / "whole.csv")).returncode == 0
    assert storage.read(bucket / "p.csv") == storage.read(bucket / "whole.csv")


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
    with storage.opened_here(RemotePath("s3://bucket/shard.tar"), "v") as file:
        assert file.read_at(0, 5) == b"whole"
    (tmp_path / "old").touch()
    paths = [tmp_path / "removed-meanwhile", tmp_path / "old", source]
    assert storage.longest_unused(paths) == sorted(paths[1:], key=lambda path: path.stat().st_mtime)


def test_images_and_labels_in_parquet_in_an_object_store(bucket: RemotePath, tmp_path: Path) -> None:
    """The label columns are fetched without the images, and the images once, by the node that reads them."""
    for name, numbers in (("train/0000", range(8)), ("test/0000", range(8, 12))):
        write(tmp_path / "set" / f"{name}.parquet", numbers, named=False)
        storage.upload(tmp_path / "set" / f"{name}.parquet", bucket / f"set/{name}.parquet")
    remote = find(PackConfig(images=bucket / "set", labels=bucket / "set"))
    local = find(PackConfig(images=tmp_path / "set", labels=tmp_path / "set"))
    assert remote.listing.paths == local.listing.paths
    assert (remote.targets == local.targets).all()
    assert [remote.splits[i] for i in remote.fixed] == [local.splits[i] for i in local.fixed]
    with remote.listing.opened() as read, local.listing.opened() as read_local:
        assert [read(i) for i in range(12)] == [read_local(i) for i in range(12)]
    alone = find(PackConfig(images=bucket / "set/train/0000.parquet", labels=bucket / "set/train/0000.parquet"))
    assert [alone.listing.path(i) for i in range(2)] == ["0000/000000", "0000/000001"]
