from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlic.cluster import runs
from mlic.cluster.runs import Run
from mlic.config import TrainConfig
from mlic.errors import ClusterError, ConfigError, PartialError
from mlic.schema import Model

CONFIG = TrainConfig(shards=Path("s"), epochs=3)


class Report(Model):
    value: int


def opened(
    folder: Path, config: TrainConfig = CONFIG, kind: str = "train", data: str = "d", fresh: bool = False
) -> Run:
    return Run.open(folder, kind, config, {"shards": data}, fresh)


def test_a_run_is_stopped_gone_on_with_and_finished(tmp_path: Path) -> None:
    run = opened(tmp_path)
    (tmp_path / "kept").touch()
    run.__exit__(PartialError, PartialError("stopped.", ""), None)
    state = json.loads((tmp_path / "run.json").read_text())
    assert (state["format"], state["status"], state["attempt"]) == (1, "stopped", 1)
    with opened(tmp_path) as run:
        assert (run.finished, run.attempt) == (False, 2)
        assert runs.is_current(tmp_path, 2)
        assert not runs.is_current(tmp_path, 1)
        run.finish(Report(value=7))
    with opened(tmp_path) as run:
        assert run.finished
        assert Report(**run.report) == Report(value=7)
    assert (tmp_path / "kept").exists()
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3


def test_provenance(tmp_path: Path) -> None:
    with opened(tmp_path):
        state = json.loads((tmp_path / "run.json").read_text())
    assert state["argv"] == sys.argv
    assert state["versions"]["ray"]
    assert state["inputs"] == {"shards": "d"}
    assert state["started"].endswith("+00:00")


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(None, None, None)
    with pytest.raises(ConfigError, match=r"other settings: epochs \(was 3, now 4\)") as caught:
        opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}))
    assert "--name" in caught.value.hint
    assert "--fresh" in caught.value.hint
    with pytest.raises(ConfigError, match="made from other shards"):
        opened(tmp_path, data="e")
    with pytest.raises(ConfigError, match="made by mlic train, not by mlic tune"):
        opened(tmp_path, kind="tune")
    opened(tmp_path, CONFIG.model_copy(update={"workers": 7, "address": "x:1"})).__exit__(None, None, None)


def test_a_start_that_failed_before_it_made_anything_binds_nobody(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(ConfigError, ConfigError("no.", ""), None)
    run = opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}))
    assert run.attempt == 1
    (tmp_path / "checkpoints").mkdir()
    run.__exit__(ConfigError, ConfigError("no.", ""), None)
    with pytest.raises(ConfigError, match="other settings"):
        opened(tmp_path)


def test_fresh_throws_away(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(None, None, None)
    (tmp_path / "checkpoints").mkdir()
    with opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}), fresh=True) as run:
        assert run.attempt == 1
        assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="did not write \\('notes.txt'\\)"):
        opened(tmp_path, fresh=True)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_strangers_folder_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"files that mlic did not write \('thesis.tex'\)"):
        opened(tmp_path, fresh=fresh)
    assert (tmp_path / "thesis.tex").exists()


def test_the_second_writer_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with opened(tmp_path):
        code = (
            "from pathlib import Path; from mlic.cluster.runs import Run; from mlic.config import TrainConfig\n"
            f"Run.open(Path({str(tmp_path)!r}), 'train', TrainConfig(shards='s', epochs=3), {{'shards': 'd'}}, False)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()} on" in done.stderr
    assert "PartialError" in done.stderr
    opened(tmp_path).__exit__(None, None, None)  # and the lock goes with its owner


def test_a_kept_run_json_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match="not of format 1"):
        opened(tmp_path)


def test_atomic_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    runs.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClusterError, match=r"cannot write to .*a: No space left on device"):
        runs.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to .*file/run: Not a directory"):
        opened(tmp_path / "file" / "run")


def test_fingerprints_tell_values_apart() -> None:
    assert runs.fingerprint("a", "b") == runs.fingerprint("a", "b")
    assert (
        len({runs.fingerprint("ab"), runs.fingerprint("a", "b"), runs.fingerprint("b", "a"), runs.fingerprint(1)}) == 4
    )


def test_the_temporary_folder_of_a_ray_job_is_no_place_for_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in the temporary folder of a Ray job") as caught:
        opened(tmp_path / "working_dir_files" / "_ray_pkg_1" / "runs" / "x")
    assert "absolute paths" in caught.value.hint


def test_a_finished_run_holds_nothing_half_written(tmp_path: Path) -> None:
    """A worker that was killed leaves its temporary file, and another one does its work."""
    with opened(tmp_path) as run:
        (tmp_path / "checkpoints").mkdir()
        for name in (".train-000000.tar.0a1b2c3d.part", "checkpoints/.last.pt.0a1b2c3d.part", "log.txt"):
            (tmp_path / name).touch()
        run.finish(Report(value=7))
    assert not list(tmp_path.rglob(".*.part"))
    assert (tmp_path / "log.txt").exists()
