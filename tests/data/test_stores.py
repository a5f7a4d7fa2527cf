"""Google's and Azure's object stores, by their emulators where they are installed, and shards at https://."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlic.config.data import PackConfig
from mlic.config.remote_path import RemotePath
from mlic.config.train import TrainConfig
from mlic.data import storage
from mlic.data.shards import read_split
from mlic.errors import ConfigError, DataError
from mlic.pack.pack import pack
from mlic.train.checkpoints import read_history
from mlic.train.train import train
from tests.data.test_storage import assert_keeps_files
from tests.end_to_end.test_pipeline import FIT, NET
from tests.train.test_training_loop import without_times

# Azurite's account, which its documentation names.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def google(port: int) -> tuple[list[str], str, dict[str, str]]:
    command = ["gcp-storage-emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{port}"}
    return [*command, "--in-memory", "--default-bucket=photos"], "gs://photos/t", environment


def azure(port: int) -> tuple[list[str], str, dict[str, str]]:
    command = ["azurite-blob", "--silent", "--skipApiVersionCheck", "--blobPort", str(port), "--inMemoryPersistence"]
    server = "&".join(f"{api}_storage_authority=127.0.0.1:{port}&{api}_storage_scheme=http" for api in ("blob", "dfs"))
    environment = {"AZURE_STORAGE_ACCOUNT": _ACCOUNT, "AZURE_STORAGE_KEY": _KEY}
    return command, f"az://photos/t?{server}", environment


@pytest.fixture(params=[google, azure], ids=["gs", "az"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RemotePath]:
    """An empty folder in a store."""
    port = free_port()
    command, url, environment = request.param(port)
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        if request.param is azure:
            storage._store(RemotePath(url))[0].create_dir("photos")
        yield RemotePath(url)
    finally:
        server.kill()
        server.wait()


def test_files_in_a_store(folder: RemotePath, tmp_path: Path) -> None:
    assert_keeps_files(folder, tmp_path)
    storage.delete(folder / "sub")
    assert storage.size(folder / "sub/b.bin") is None
    with pytest.raises(FileNotFoundError):
        storage.read(folder / "nothing")


@pytest.mark.ray
@pytest.mark.slow
def test_training_on_shards_in_a_store(
    folder: RemotePath, shards: Path, mlic: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for path in shards.iterdir():
        if path.is_file() and not path.name.startswith("."):
            storage.upload(path, folder / path.name)
    training = ["--epochs", "1", "--image-size", "32", "--arch", "a-cnn1", "--workers", "1"]
    for name, data in (("remote", folder), ("disk", shards)):
        trained = mlic("train", data, *training, "--name", name)
        assert trained.returncode == 0, trained.stderr
    one, two = (without_times(read_history(tmp_path / "runs" / name)) for name in ("remote", "disk"))
    assert one == two


@pytest.fixture
def site(shards: Path) -> Iterator[RemotePath]:
    """The shards behind a web server, which knows no ranges."""
    handler = functools.partial(_Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield RemotePath(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/broken/"):
            self.send_error(503)
        else:
            super().do_GET()


@pytest.mark.ray
@pytest.mark.slow
def test_training_on_shards_of_a_web_server(
    site: RemotePath, shards: Path, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    for name, folder in (("remote", site), ("disk", shards)):
        config = TrainConfig(
            shards=folder, runs=tmp_path / "runs", name=name, workers=1, doctor=False, **(FIT | NET | {"epochs": 1})
        )
        train(config)
    one, two = (without_times(read_history(tmp_path / "runs" / name)) for name in ("remote", "disk"))
    assert one == two


def test_errors_of_a_web_server_are_those_of_a_disk(site: RemotePath) -> None:
    assert storage.size(site / "nothing.txt") is None
    with pytest.raises(FileNotFoundError):
        storage.read(site / "nothing.txt")
    with pytest.raises(OSError, match="503"):
        storage.read(site / "broken/index.json")
    with pytest.raises(OSError, match="NotImplementedError"):
        storage.put(site / "new.txt", b"")
    with pytest.raises(DataError, match="does not exist|holds no index.json"):
        read_split(site / "nowhere", "train")


def test_a_location_of_azure_names_its_account() -> None:
    """As Hadoop writes it, or by a variable."""
    files, path = storage._store(RemotePath("abfss://photos@myaccount.dfs.core.windows.net/shards/"))
    assert (files.type_name, path) == ("abfs", "photos/shards")
    os.environ["AZURE_STORAGE_ACCOUNT"] = "other"
    try:
        assert storage._store(RemotePath("az://photos/shards"))[1] == "photos/shards"
    finally:
        del os.environ["AZURE_STORAGE_ACCOUNT"]


def test_samples_of_a_web_server_are_those_on_disk(site: RemotePath, shards: Path) -> None:
    one, two = (read_split(folder, "val") for folder in (site, shards))
    assert np.array_equal(one.targets, two.targets)
    with one.take(np.array([3, 1])).opened() as far, two.opened() as near:
        assert [far(0), far(1)] == [near(3), near(1)]


def test_shards_are_not_written_to_a_web_server(site: RemotePath) -> None:
    with pytest.raises(ConfigError, match="only read"):
        pack(PackConfig(images="photos", labels="labels", out=site))
