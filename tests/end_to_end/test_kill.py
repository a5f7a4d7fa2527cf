"""Real processes, killed and interrupted: what is written stays, and the same command ends with the same result."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.ray, pytest.mark.slow]

KILLS = int(os.environ.get("MLIC_KILLS", "6"))  # `make soak` kills twenty times
EPOCHS = 10  # enough that a run is still at it when its second epoch has been read about on a busy machine


def start(
    folder: Path, *arguments: object, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlic", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=stdout, stderr=stderr, text=True, start_new_session=True)


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """Read the process's story until a line matches; fails when it ends before.

    Not a byte more is read: `communicate` would not give what is in a buffer, such as the traceback of a crash.
    """
    assert process.stderr is not None
    seen = b""
    while byte := os.read(process.stderr.fileno(), 1):
        seen += byte
        if byte == b"\n" and re.search(pattern, seen.decode(errors="replace").splitlines()[-1]):
            return seen.decode(errors="replace")
    raise AssertionError(f"ended before {pattern!r}: {seen.decode(errors='replace')}")


def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    table = [line.split(None, 2) for line in listed.splitlines()]
    below, found = {pid}, []
    for _ in range(8):
        new = [int(row[0]) for row in table if int(row[1]) in below and int(row[0]) not in below]
        below |= set(new)
        found += new
    return found


def same_result(one: Path, two: Path) -> None:
    rows: list[Any] = []
    for folder in (one, two):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines])
    assert rows[0] == rows[1]
    a, b = (torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["net"] for folder in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)
    specs = [json.loads((folder / "model" / "model.json").read_text()) for folder in (one, two)]
    assert specs[0]["weights_sha256"] == specs[1]["weights_sha256"]
    assert specs[0]["thresholds"] == specs[1]["thresholds"]


def _training(shards: Path, workers: int) -> list[object]:
    settings = f"--arch b-final --epochs {EPOCHS} --image-size 64 --batch-size 32 --workers {workers} --set color=rgb"
    return ["train", shards, *settings.split()]


@pytest.fixture(scope="module")
def training(shards: Path) -> list[object]:
    return [*_training(shards, workers=2)]


@pytest.fixture(scope="module")
def straight(training: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    code, _, err = run(folder, *training)
    assert code == 0, err
    return folder / "runs" / "b-final"


def training_workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train for a command."""
    return [pid for pid in children(process.pid) if b"ray::Worker.fit" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_killed_driver(training: list[object], straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *training)
    wait_for(process, "epoch 2/")
    process.kill()
    process.communicate()
    code, out, err = run(tmp_path, *training)
    assert code == 0, err
    assert "resumes after epoch" in err
    assert "best epoch" in out
    same_result(straight, tmp_path / "runs" / "b-final")


def test_a_killed_worker_is_replaced(training: list[object], straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *training)
    wait_for(process, "epoch 2/")
    victims = training_workers(process)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "a worker was lost" in err
    assert "resumes after epoch" in err
    same_result(straight, tmp_path / "runs" / "b-final")


def test_one_worker_alone(shards: Path, tmp_path: Path) -> None:
    """It is replaced when it is killed, and stops in good order when it is told to; the result is the same."""
    command = [*_training(shards, workers=1), "--no-doctor"]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    code, _, err = run(tmp_path / "straight", *command)
    assert code == 0, err
    process = start(tmp_path / "killed", *command)
    wait_for(process, "epoch 1/")
    (worker,) = training_workers(process)
    os.kill(worker, signal.SIGKILL)
    wait_for(process, "a worker was lost")
    wait_for(process, "resumes after epoch")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    code, _, err = run(tmp_path / "killed", *command)
    assert code == 0, err
    same_result(*(tmp_path / name / "runs" / "b-final" for name in ("straight", "killed")))


def test_streamed_training_killed_at_random_points(corpus: Path, tmp_path: Path) -> None:
    """Shards are read in sequence, and a run resumes in the middle of them."""
    shards, folders = tmp_path / "shards", [tmp_path / "straight", tmp_path / "killed"]
    packing = ["pack", corpus / "images", "--labels", corpus / "annotations", "--out", shards, "--min-shards", "16"]
    code, _, err = run(tmp_path, *packing)
    assert code == 0, err
    options = "--arch b-final --epochs 12 --image-size 64 --batch-size 24 --workers 1 --checkpoint-minutes 0.001"
    command = ["train", shards, *options.split(), "--stream", "always", "--no-doctor"]
    for folder in folders:
        folder.mkdir()
    code, _, err = run(folders[0], *command)
    assert code == 0, err
    assert "streams 16 training shards" in err
    rng, killed, log = random.Random(5), 0, folders[1] / "runs" / "b-final" / "log.txt"
    kills = int(os.environ.get("MLIC_KILLS", "4"))  # each of them while it trains
    while True:
        lines = log.read_text().count("\n") if log.exists() else 0
        process = start(folders[1], *command)
        if killed < kills:
            while process.poll() is None and not (log.exists() and log.read_text().count("\n") > lines):
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.9))
            process.kill()
            killed += process.wait() < 0
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert killed, err
    assert killed > 0
    same_result(*(folder / "runs" / "b-final" for folder in folders))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_training(
    training: list[object], straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a scheduler does it; the other stages are interrupted by SIGINT, which goes the way of SIGTERM."""
    process = start(tmp_path, *training)
    wait_for(process, "epoch 1/")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert ("stops on request after epoch" in err) == (number == signal.SIGUSR1)
    assert re.search(
        rf"Error: stopped; \d+ of {EPOCHS} epochs are done and kept\.\nHint: run the same command again", err
    )
    assert json.loads((tmp_path / "runs" / "b-final" / "run.json").read_text())["status"] == "stopped"
    code, _, err = run(tmp_path, *training)
    assert code == 0, err
    same_result(straight, tmp_path / "runs" / "b-final")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_pack(corpus: Path, shards: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = ["pack", corpus / "images", "--labels", corpus / "annotations"]
    process = start(tmp_path, *command)
    wait_for(process, "on this machine, without Ray")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 6, err
        assert "Error: stopped" in err
    assert not (tmp_path / "shards" / "index.json").exists()
    code, _, err = run(tmp_path, *command)
    assert code == 0, err
    for path in shards.glob("*.tar"):
        assert (tmp_path / "shards" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "shards" / "index.json").read_bytes() == (shards / "index.json").read_bytes()
    assert not list((tmp_path / "shards").glob(".*.part"))


def test_pack_killed_at_random_points(corpus: Path, tmp_path: Path) -> None:
    """The driver or one of its workers, by kill -9, again and again on the same folder until it is done."""
    command = [
        "pack",
        corpus / "images",
        "--labels",
        corpus / "annotations",
        "--shard-mb",
        "0.01",
        "--expand",
        "1",
        "--workers",
        "2",
    ]
    (tmp_path / "straight").mkdir()
    started = time.monotonic()
    code, _, err = run(tmp_path / "straight", *command)
    assert code == 0, err
    took = time.monotonic() - started
    rng = random.Random(5)
    turn, killed, finished = 0, 0, 0
    while killed < KILLS or not finished:
        folder = tmp_path / f"turn{turn}"
        folder.mkdir(exist_ok=True)
        process = start(folder, *command)
        if killed < KILLS:
            time.sleep(rng.uniform(0.3, took))
            below = children(process.pid)
            workers = [pid for pid in below if is_worker(pid)]
            victim = rng.choice(workers) if workers and rng.random() < 0.5 else process.pid
            killed += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:
            finished += 1
            turn += 1
            same_shards(folder / "shards", tmp_path / "straight" / "shards")
        else:
            assert process.returncode == -signal.SIGKILL, err
    assert len(list((tmp_path / "straight" / "shards").glob("*.tar"))) > 40


def is_worker(pid: int) -> bool:
    """Whether a process is a worker: new, idle or at a task. Ray's own agents take their node down with them."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    is_new = len(words) > 1 and words[1].endswith(b"default_worker.py")
    return is_new or (words[0].startswith(b"ray::") and b"Agent" not in words[0])


def same_shards(one: Path, two: Path) -> None:
    names = sorted(path.name for path in two.iterdir() if path.name not in ("run.json", "config.json", "report.json"))
    found = sorted(path.name for path in one.iterdir() if path.name not in ("run.json", "config.json", "report.json"))
    assert found == names
    for name in names:
        if name != ".lock":
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search(shards: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = ["tune", shards, "--num-samples", "4", "--epochs", "4", "--image-size", "64", "--batch-size", "32"]
    process = start(tmp_path, *command)
    wait_for(process, r"epoch 1 \|")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 6, err
        assert "trials are done; the others keep their epochs" in err
    code, out, err = run(tmp_path, *command)
    assert code == 0, err
    assert "4 trials" in out
    for folder in (tmp_path / "runs" / "tune" / "trials").iterdir():
        rows = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_prediction(straight: Path, corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = ["batch-predict", straight, corpus / "images", "--out", "p.csv", "--set", "chunk=8", "--batch-size", "8"]
    process = start(tmp_path, *command)
    parts = tmp_path / "p.csv.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 6, err
        assert "Error: stopped after" in err
    assert not (tmp_path / "p.csv").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    code, _, err = run(tmp_path, *command)
    assert code == 0, err
    assert all((parts / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    command[4] = "q.csv"
    assert run(tmp_path, *command)[0] == 0
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()


def test_an_update_killed_at_random_points(straight: Path, corpus: Path, tmp_path: Path) -> None:
    """Again and again until it is done: the output is that of a run over the whole folder, byte for byte."""
    options = ["--values", "scores", "--set", "chunk=8", "--batch-size", "8"]
    images, later = tmp_path / "images", tmp_path / "later"
    shutil.copytree(corpus / "images", later)
    code, _, err = run(tmp_path, "batch-predict", straight, later, "--out", "whole.csv", *options)
    assert code == 0, err
    images.mkdir()
    for path in sorted(later.iterdir())[::2]:
        path.rename(images / path.name)
    command = ["batch-predict", straight, images, "--out", "p.csv", *options]
    code, _, err = run(tmp_path, *command)
    assert code == 0, err
    for path in sorted(later.iterdir()):
        path.rename(images / path.name)
    rng, killed, took = random.Random(7), 0, 60.0
    shutil.copytree(tmp_path / "p.csv.parts", tmp_path / "before.parts")
    shutil.copy(tmp_path / "p.csv", tmp_path / "before.csv")
    while killed < KILLS:
        started = time.monotonic()
        process = start(tmp_path, *command, "--update")
        if killed:
            time.sleep(rng.uniform(0.5, 1) * took)
            process.kill()
            killed += process.poll() is None
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:
            took, killed = time.monotonic() - started, max(killed, 1)
            assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
            shutil.rmtree(tmp_path / "p.csv.parts")
            shutil.copytree(tmp_path / "before.parts", tmp_path / "p.csv.parts")
            shutil.copy(tmp_path / "before.csv", tmp_path / "p.csv")
    code, _, err = run(tmp_path, *command, "--update")
    assert code == 0, err
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_output_folders_that_cannot_be_written(corpus: Path, shards: Path, straight: Path, tmp_path: Path) -> None:
    """A file where a folder should be stands for every place that refuses to be written to, root or not."""
    (tmp_path / "file").touch()
    for arguments in (
        ["pack", corpus / "images", "--labels", corpus / "annotations", "--out", "file/shards"],
        ["train", shards, "--runs", "file/runs"],
        ["tune", shards, "--runs", "file/runs"],
        ["batch-predict", straight, corpus / "unlabelled", "--out", "file/p.tsv"],
        ["evaluate", straight, "--out", "file/eval"],
    ):
        code, out, err = run(tmp_path, *arguments)
        assert (code, out) == (2, ""), err
        assert "Error: cannot write to " in err
        assert "Not a directory" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = ["pack", corpus / "images", "--labels", corpus / "annotations", "--out", small / "shards"]
        code, _, err = run(tmp_path, *command)
        assert code == 4, err
        assert "No space left on device" in err
        assert "free some space and run the same command again" in err
        assert not (small / "shards" / "index.json").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        code, _, err = run(tmp_path, *command)
        assert code == 0, err
    finally:
        subprocess.run(["umount", small], check=True)
