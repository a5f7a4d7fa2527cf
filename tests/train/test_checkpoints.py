"""What a run resumes from: whole or not there, of this run alone, and copied to where it is not lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlic.errors import ClusterError, ConfigError, RunError
from mlic.train import checkpoints, training_loop
from mlic.train.launch import finish
from tests.train.test_training_loop import fit_until, place, settings, weights, without_times


@pytest.mark.ray
def test_an_overtaken_attempt_writes_nothing(shards: Path, tmp_path: Path) -> None:
    here = place(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format": 1, "attempt": 2}))
    with pytest.raises(RunError, match="a newer attempt of this run is active"):
        training_loop.fit(settings(shards, epochs=1), here, lambda _: None)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json"], "not a line of a log either"


@pytest.mark.ray
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(shards, epochs=3)
    training_loop.fit(config, place(tmp_path / "straight"), lambda _: None)
    room = sum(path.stat().st_size for path in (tmp_path / "straight" / "checkpoints").iterdir()) * 3 // 2
    written, write = 0, checkpoints._Sink.write

    def write_within(self: Any, data: Any) -> int:
        """As a disk that is full in the middle of a file; PyTorch makes a RuntimeError of that."""
        nonlocal written
        written += len(data)
        if written > room:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._Sink, "write", write_within)
        with pytest.raises(ClusterError, match="No space left on device"):
            training_loop.fit(config, place(tmp_path / "full"), lambda _: None)
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))
    training_loop.fit(config, place(tmp_path / "full"), lambda _: None)
    assert "resumes after epoch 1 of 3" in (tmp_path / "full" / "log.txt").read_text()
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "full")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.ray
def test_a_lost_folder_is_taken_up_from_the_copy(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, epochs=2, checkpoint_copy=tmp_path / "copy")
    training_loop.fit(config, place(tmp_path / "straight"), lambda _: None)
    fit_until(config, place(tmp_path / "run"), 1)
    shutil.rmtree(tmp_path / "run")
    rows: list[dict[str, float]] = []
    training_loop.fit(config, place(tmp_path / "run"), rows.append)
    assert "resumes from the checkpoints" in (tmp_path / "run" / "log.txt").read_text()
    assert without_times(rows) == without_times(checkpoints.read_history(tmp_path / "straight"))
    assert checkpoints.read_history(tmp_path / "run") == rows
    assert checkpoints.read_best(tmp_path / "run").epoch == checkpoints.read_best(tmp_path / "straight").epoch
    shutil.rmtree(tmp_path / "run")
    other = config.model_copy(update={"lr": 0.5})
    with pytest.raises(ConfigError, match="are of a run with other settings or data"):
        training_loop.fit(other, place(tmp_path / "run"), lambda _: None)
    checkpoints.forget_copy(tmp_path / "copy", tmp_path / "run", tmp_path / "run")
    training_loop.fit(other, place(tmp_path / "run"), lambda _: None)


@pytest.mark.ray
def test_a_disk_that_is_full_when_the_model_is_written_is_said_so(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(shards, epochs=1, runs=tmp_path, name="run")
    training_loop.fit(config, place(tmp_path / "run"), lambda _: None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ClusterError, match="No space left on device"):
            finish(config, tmp_path / "run", tmp_path / "run", warn=False)
    assert not list((tmp_path / "run").glob(".model*"))
    assert finish(config, tmp_path / "run", tmp_path / "run", warn=False).model.is_dir()
