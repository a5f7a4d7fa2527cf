"""sbatch and the files of slurm/ on a real SLURM of two nodes, which `two_nodes.sh` starts on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlic.data.shards import read_split
from tests.golden import ROOT

_PROGRAMS = ("slurmctld", "slurmd", "munged", "unshare", "nsenter")
_MISSING = [name for name in _PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(_MISSING) or os.geteuid() != 0, reason="a SLURM of one's own needs root and slurm-wlm, munge and iproute2"
    ),
]
TWO_NODES = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0")
ONE_NODE = ("--nodes=1", "--cpus-per-task=2", "--gpus-per-node=0")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` says of a job."""

    state: str
    code: int
    restarts: int


@dataclass(frozen=True)
class Slurm:
    """The SLURM in a folder, and the one from which jobs are submitted, which both nodes see."""

    base: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "PATH": f"{self.base / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLIC_LOCAL_TMP": str(self.base / "local"),
            "MLIC_OBJECT_STORE_BYTES": "100000000",
        }
        return {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))} | own

    def call(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def submit(self, *words: object) -> str:
        return self.call("sbatch", "--parsable", *words).stdout.strip()

    def show(self, job: str) -> Job:
        text = self.call("scontrol", "-o", "show", "job", job).stdout
        found = {name: re.search(rf"\b{name}=(\S+)", text) for name in ("JobState", "ExitCode", "Restarts")}
        state, code, restarts = (match[1] if match else "" for match in found.values())
        return Job(state, int(code.partition(":")[0]), int(restarts))

    def log(self, job: str) -> str:
        found = list(self.folder.glob(f"*-{job}.log"))
        return found[0].read_text(errors="replace") if found else ""

    def wait_until(self, job: str, is_so: Callable[[], bool], seconds: float = 300) -> None:
        """Wait for something that a job does; fails when the job ends before it."""
        begun = time.monotonic()
        while not is_so():
            shown = self.show(job)
            assert shown.state not in _ENDED, (shown, self.log(job))
            assert time.monotonic() - begun < seconds, (shown, self.log(job))
            time.sleep(0.3)

    def end(self, job: str, seconds: float = 400) -> Job:
        """Wait for a job's end and see that nothing of it is left on any node."""
        begun = time.monotonic()
        while (shown := self.show(job)).state not in _ENDED:
            assert time.monotonic() - begun < seconds, (shown, self.log(job))
            time.sleep(0.3)
        self.assert_nothing_left(job)
        return shown

    def assert_nothing_left(self, job: str) -> None:
        """No process of the job's Ray; the nodes' processes are seen from here."""
        for _ in range(100):
            left = subprocess.run(["pgrep", "-af", f"/mlic-{job}/"], capture_output=True, text=True, check=False).stdout
            if not left:
                break
            time.sleep(0.2)
        assert left == ""
        assert not list(self.folder.glob(f".mlic/{job}.*/token"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    base = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
    script = Path(__file__).with_name("two_nodes.sh")
    try:
        subprocess.run(["bash", script, "start", base], check=True, timeout=60)
        yield Slurm(base, tmp_path_factory.mktemp("submitted"))
    finally:
        subprocess.run(["bash", script, "stop", base], check=True, timeout=60)
        shutil.rmtree(base, ignore_errors=True)


def sbatch(stage: str) -> Path:
    return ROOT / "slurm" / f"{stage}.sbatch"


@pytest.fixture(scope="module")
def packed(slurm: Slurm, corpus: Path) -> Path:
    """Shards that a job has packed."""
    job = slurm.submit(
        *ONE_NODE,
        sbatch("pack"),
        corpus / "images",
        "--labels",
        corpus / "annotations",
        "--out",
        slurm.folder / "shards",
    )
    assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    return slurm.folder / "shards"


def test_pack(slurm: Slurm, packed: Path) -> None:
    assert pq.read_metadata(packed / "samples.parquet").num_rows == 240
    assert sum(len(read_split(packed, name)) for name in ("train", "val", "test")) == 240
