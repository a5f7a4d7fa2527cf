"""`mlic weights`, against a server on this machine that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mlic.errors import DataError
from mlic.model import published, zoo

pytest.importorskip("timm")

ARCH = "timm/vit_small_patch16_dinov3"
_REPOSITORY = "/timm/vit_small_patch16_dinov3.lvd1689m/resolve/main/model.safetensors"


class _Hub(http.server.BaseHTTPRequestHandler):
    """One repository with one file; counts what is asked for."""

    content = save({"weight": torch.arange(8.0)})
    asked: list[str] = []  # noqa: RUF012 - shared by the requests of a server on purpose

    def do_HEAD(self) -> None:
        self.respond(False)

    def do_GET(self) -> None:
        self.respond(True)

    def respond(self, whole: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        found = self.path == _REPOSITORY
        self.send_response(200 if found else 404)
        if found:
            self.send_header("Content-Length", str(len(self.content)))
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        else:
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if found and whole:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of the server."""
    _Hub.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def weights(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment["TORCH_HOME"] = str(tmp_path / "torch")
    command = [sys.executable, "-m", "mlic", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_weights_of_the_hub(hub: str, tmp_path: Path) -> None:
    missing = weights(tmp_path, hub, "weights", "where", ARCH)
    assert missing.returncode == 2
    assert f"mlic weights fetch {ARCH}" in missing.stderr
    assert _Hub.asked == []  # nothing is fetched unless that is asked for
    fetched = weights(tmp_path, hub, "weights", "fetch", ARCH, "--json")
    assert fetched.returncode == 0, fetched.stderr
    (row,) = json.loads(fetched.stdout)["weights"]
    assert Path(row["file"]).read_bytes() == _Hub.content
    assert row["bytes"] == len(_Hub.content)
    count = len(_Hub.asked)
    again = weights(tmp_path, hub, "weights", "fetch", ARCH)
    assert again.returncode == 0, again.stderr
    found = weights(tmp_path, "http://127.0.0.1:9", "weights", "where", ARCH)  # without a network
    assert row["file"] in found.stdout
    assert len(_Hub.asked) == count
    listed = weights(tmp_path, hub, "weights", "list", "patch16_dinov3")
    assert f"{ARCH}.lvd1689m  {row['file']}" in listed.stdout
    assert "timm/vit_base_patch16_dinov3.lvd1689m  hf://timm/vit_base_patch16_dinov3.lvd1689m" in listed.stdout


def test_what_cannot_be_fetched(hub: str, tmp_path: Path) -> None:
    for arch, words in (
        ("timm/vit_base_patch16_dinov3", "the weights of timm/vit_base_patch16_dinov3 cannot be fetched"),
        ("b-final", "b-final has no published weights"),
        ("timm/vit_smal_patch16_dinov3", "did you mean timm/vit_small_patch16_dinov3?"),
    ):
        done = weights(tmp_path, hub, "weights", "fetch", arch)
        assert done.returncode in (2, 3), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert "no architecture" in weights(tmp_path, hub, "weights", "list", "nosuchname").stderr


def test_weights_of_a_server_have_the_checksum_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    folder = tmp_path / "server"
    folder.mkdir()
    right = folder / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    wrong = folder / "resnet18-00000000.pth"
    for path in (right, wrong):
        path.write_bytes(content)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "torchvision_weights_url", lambda _: right.as_uri())
    assert published.fetch("resnet18").read_bytes() == content
    monkeypatch.setattr(zoo, "torchvision_weights_url", lambda _: wrong.as_uri())
    with pytest.raises(DataError, match="invalid hash value"):
        published.fetch("resnet18")
    assert [path.name for path in (tmp_path / "cache" / "checkpoints").iterdir()] == [right.name]
