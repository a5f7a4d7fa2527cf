"""Two nodes train on shards that only an object store has."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlic.config.remote_path import RemotePath
from mlic.data import storage
from tests.data.test_storage import bucket, server_log  # noqa: F401 - fixtures
from tests.end_to_end.test_kill import run, same_result
from tests.end_to_end.test_kill_nodes import command, nodes, told, workers_of  # noqa: F401 - a fixture among them

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def many(bucket: RemotePath, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RemotePath:  # noqa: F811
    """The toy corpus at the store, in so many shards that they are streamed in two groups."""
    packing = ["pack", corpus / "images", "--labels", corpus / "annotations", "--out", bucket / "many"]
    code, _, err = run(tmp_path_factory.mktemp("packed"), *packing, "--min-shards", 16)
    assert code == 0, err
    return bucket / "many"


@pytest.mark.timeout(600)
def test_two_nodes_fetch_each_shard_once_an_epoch(
    many: RemotePath,
    server_log: Path,  # noqa: F811
    nodes: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    """And a run that loses a node ends with the same weights, to the last bit."""
    epochs = 4
    training = command(nodes, many, "--epochs", epochs, "--arch", "b-final", "--set", "color=rgb", "--stream", "always")
    for name in ("straight", "lost"):
        (tmp_path / name).mkdir()
    before = server_log.stat().st_size
    used = set[int]()
    with told(tmp_path / "straight", *training) as process:
        while process.poll() is None:
            used |= {number for number, node in enumerate(sorted(nodes.worker_nodes, key=id)) if workers_of(node)}
            time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "straight" / "stderr").read_text()
    assert used == {0, 1}, "both nodes have trained"
    gets = Counter(re.findall(r"GET /photos/many/(\S+\.tar)\S* HTTP", server_log.read_text()[before:]))
    assert gets == {name: epochs for name in storage.names(many) if name.startswith(("train", "val"))}
    metrics = tmp_path / "lost" / "runs" / "b-final" / "metrics.jsonl"
    with told(tmp_path / "lost", *training) as process:
        while not metrics.exists() or metrics.read_text().count("\n") < 2:
            assert process.poll() is None, (tmp_path / "lost" / "stderr").read_text()
            time.sleep(0.1)
        nodes.remove_node(sorted(nodes.worker_nodes, key=id)[0], allow_graceful=False)
        nodes.add_node(num_cpus=1)
        process.wait(timeout=300)
    assert process.returncode == 0, (tmp_path / "lost" / "stderr").read_text()
    assert "resumes after epoch" in (tmp_path / "lost" / "stderr").read_text()
    same_result(tmp_path / "straight" / "runs" / "b-final", tmp_path / "lost" / "runs" / "b-final")
