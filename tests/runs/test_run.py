from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlic.batch_predict.predict import predict
from mlic.config.base import Model
from mlic.config.evaluate import ReportConfig, ThresholdConfig
from mlic.config.predict import PredictConfig
from mlic.config.train import TrainConfig
from mlic.errors import ClusterError, ConfigError, PartialError
from mlic.model import bundle
from mlic.report.report import report as write_report
from mlic.runs import files, lock
from mlic.runs import run as runs
from mlic.runs.run import Run
from mlic.threshold.threshold import threshold
from mlic.train.launch import TrainReport
from mlic.tune import run_trials

OLD = Path(__file__).parents[1] / "fixtures" / "old-run"
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
    with pytest.raises(ConfigError, match=r"different settings: epochs \(was 3, now 4\)") as caught:
        opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}))
    assert "--name" in caught.value.hint
    assert "--fresh" in caught.value.hint
    with pytest.raises(ConfigError, match="made from different shards"):
        opened(tmp_path, data="e")
    with pytest.raises(ConfigError, match="made by mlic train, not by mlic tune"):
        opened(tmp_path, kind="tune")
    opened(tmp_path, CONFIG.model_copy(update={"workers": 7, "address": "x:1"})).__exit__(None, None, None)


def test_a_start_that_failed_before_it_made_anything_binds_nobody(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(ConfigError, ConfigError("no.", ""), None)
    run = opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}))
    assert run.attempt == 2
    (tmp_path / "checkpoints").mkdir()
    run.__exit__(ConfigError, ConfigError("no.", ""), None)
    with pytest.raises(ConfigError, match="different settings"):
        opened(tmp_path)


def test_fresh_throws_away(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(None, None, None)
    (tmp_path / "checkpoints").mkdir()
    with opened(tmp_path, CONFIG.model_copy(update={"epochs": 4}), fresh=True) as run:
        assert run.attempt == 2
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
            "from pathlib import Path; from mlic.runs.run import Run; from mlic.config.train import TrainConfig\n"
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
    files.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClusterError, match=r"cannot write to .*a: No space left on device"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to .*file/run: Not a directory"):
        opened(tmp_path / "file" / "run")


def test_fingerprints_tell_values_apart() -> None:
    assert files.fingerprint("a", "b") == files.fingerprint("a", "b")
    assert (
        len({files.fingerprint("ab"), files.fingerprint("a", "b"), files.fingerprint("b", "a"), files.fingerprint(1)})
        == 4
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


def test_a_setting_that_did_not_exist_had_its_value_in_effect(tmp_path: Path) -> None:
    """A run of an earlier version: its report is printed, and another value than that in effect is refused."""
    opened(tmp_path).finish(Report(value=3))
    state = json.loads((tmp_path / "run.json").read_text())
    for name in ("shuffle", "ema", "augment", "thin_labels"):
        del state["settings"][name]
    (tmp_path / "run.json").write_text(json.dumps(state))
    with opened(tmp_path) as run:
        assert run.finished
        assert run.report == {"value": 3}
    with pytest.raises(ConfigError, match=r"different settings: ema \(was 0\.99, now 0\.5\)"):
        opened(tmp_path, CONFIG.model_copy(update={"ema": 0.5}))


def test_earlier_versions_resized_bilinearly_whatever_the_weights_ask_for(tmp_path: Path) -> None:
    resnet = CONFIG.model_copy(update={"arch": "resnet18"})
    opened(tmp_path, resnet).finish(Report(value=3))
    state = json.loads((tmp_path / "run.json").read_text())
    del state["settings"]["interpolation"]
    (tmp_path / "run.json").write_text(json.dumps(state))
    with opened(tmp_path, resnet.model_copy(update={"interpolation": "bilinear"})) as run:
        assert run.finished
    with pytest.raises(ConfigError, match=r"interpolation \(was 'bilinear', now 'auto'\)"):
        opened(tmp_path, resnet)


def test_a_run_of_an_earlier_version_is_still_one(tmp_path: Path, corpus: Path) -> None:
    """`data/old-run` was trained by a version without many of today's settings; everything that reads runs takes it."""
    shutil.copytree(OLD, tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(settings | {"shards": str(tmp_path / "shards")}))
    inputs = json.loads((tmp_path / "old" / "run.json").read_text())["inputs"]
    config = TrainConfig(
        shards=tmp_path / "shards", arch="c-dummy", image_size=8, epochs=2, name="old", doctor=False, runs=tmp_path
    )
    with Run.open(tmp_path / "old", "train", config, inputs, False) as run:
        assert run.finished
        report = TrainReport(**run.report)
    assert report.best_epoch == bundle.read(tmp_path / "old").provenance["epoch"]
    assert "f1_micro" in report.text()
    page = write_report(ReportConfig(runs=tmp_path / "old"))
    assert page.measurement == report.measurement
    predicted = predict(PredictConfig(model=tmp_path / "old", images=corpus / "unlabelled", out=tmp_path / "p.tsv"))
    assert predicted.predicted == 30
    assert threshold(ThresholdConfig(model=tmp_path / "old", policy="global")).policy == "global"


@pytest.mark.parametrize(
    "extra",
    ["population.json", "ensemble", "export-onnx", "export-openvino-int8", "search.json", run_trials._SCRATCH],
)
def test_fresh_knows_what_mlic_itself_wrote(tmp_path: Path, extra: str) -> None:
    opened(tmp_path).__exit__(None, None, None)
    (tmp_path / extra).mkdir() if "." not in extra else (tmp_path / extra).touch()
    with opened(tmp_path, fresh=True):
        assert not (tmp_path / extra).exists()


def test_a_worker_of_a_start_that_was_thrown_away_may_write_nowhere(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stale = run.attempt
        (tmp_path / "checkpoints").mkdir()
    with opened(tmp_path, fresh=True) as run:
        assert run.attempt != stale
        assert not runs.is_current(tmp_path, stale)
    state = json.loads((tmp_path / "run.json").read_text())
    runs._clear(tmp_path, "train", state)  # killed in the middle of throwing away
    with opened(tmp_path, CONFIG.model_copy(update={"epochs": 9})) as run:
        assert run.attempt == 3
        assert not run.finished


def test_folders_are_locked_where_there_is_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre, mounted without it: two at once are refused, and one that was killed is waited out."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock, "_LEASE_S", 1.0)
    monkeypatch.setattr(fcntl, "flock", none)
    with opened(tmp_path), pytest.raises(PartialError, match=f"{tmp_path} is in use by"):
        opened(tmp_path)
    killed = (
        "import errno, fcntl, os, signal, sys\n"
        "def none(*_): raise OSError(errno.ENOSYS, 'none')\n"
        "fcntl.flock = none\n"
        "from pathlib import Path\n"
        "from mlic.runs import lock\n"
        "lock._LEASE_S = 1.0\n"
        "lock.lock_folder(Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert ended.returncode == -9
    with opened(tmp_path) as run:
        assert run.attempt == 2


def test_what_was_decided_for_a_run_holds_after_every_restart(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.note(dtype="bf16", backend="onnx", workers=3)
    run.__exit__(PartialError, PartialError("stopped.", ""), None)
    with opened(tmp_path):
        state = json.loads((tmp_path / "run.json").read_text())
    assert (state["dtype"], state["backend"]) == ("bf16", "onnx")
    assert "workers" not in state
    opened(tmp_path, fresh=True).__exit__(None, None, None)
    assert "dtype" not in json.loads((tmp_path / "run.json").read_text())


def test_fresh_knows_what_a_killed_prediction_left(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(None, None, None)
    for name in ("part-000003.trail", "part-1000000.parquet"):
        (tmp_path / name).touch()
    with opened(tmp_path, fresh=True):
        assert not list(tmp_path.glob("part-*"))
