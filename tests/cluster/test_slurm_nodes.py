"""sbatch and the files of slurm/ on a real SLURM of two nodes, which `two_nodes.sh` starts on this machine."""

from __future__ import annotations

import contextlib
import json
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
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mlic.cluster.sbatch import render
from mlic.config.jobs import SlurmConfig
from mlic.data.shards import read_split
from tests.golden import ROOT
from tests.readme import FEW, commands

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


def processes_with_files_in(folder: str) -> Iterator[str]:
    """The processes that have an open file below a folder; each with its number and name."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(folder in str(link.readlink()) for link in (process / "fd").iterdir()):
                yield f"{process.name} {(process / 'comm').read_text().strip()}"


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
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        return {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))} | own

    def start(self, *command: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *command: object, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        started = self.start(*command)
        try:
            out, err = started.communicate(timeout=timeout)
        finally:
            started.kill()
        assert not check or started.returncode == 0, err
        return subprocess.CompletedProcess(command, started.returncode, out, err)

    def status(self, *jobs: str) -> dict[str, dict[str, Any]]:
        """What `mlic slurm status` says, by the jobs' ids."""
        told = json.loads(self.call("mlic", "slurm", "status", *jobs, "--json").stdout)
        return {job["id"]: job for job in told["jobs"]}

    def printed(self, job: str) -> Any:
        """The JSON object in a job's log, where its story is, too."""
        return json.loads(next(line for line in self.log(job).splitlines() if line.startswith("{")))

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

    def wait_until_gone(self, *jobs: str) -> None:
        """Wait until none of the jobs is in the queue, without having run."""
        for _ in range(100):
            left = self.call("squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}", check=False).stdout
            if not left:
                break
            time.sleep(0.3)
        assert left == ""
        assert not [self.log(job) for job in jobs if self.log(job)]

    def assert_nothing_left(self, job: str) -> None:
        """No process of the job's Ray, under whatever name; the nodes' processes are seen from here."""
        for _ in range(100):
            left = list(processes_with_files_in(f"/mlic-{job}/"))
            if not left:
                break
            time.sleep(0.2)
        assert not left
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


TRAINING = (
    "--arch",
    "b-final",
    "--image-size",
    "48",
    "--batch-size",
    "32",
    "--no-doctor",
    "--set",
    "color=rgb",
)


def trained(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The report of a run and the weights of its bundle, as its checkpoint has them."""
    last = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return json.loads((folder / "report.json").read_text()), last["net"]


def assert_same(one: Path, two: Path) -> None:
    (first, a), (second, b) = trained(one), trained(two)
    assert first["measurement"] == second["measurement"]
    assert all(torch.equal(a[name], b[name]) for name in a)


def epochs(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@dataclass(frozen=True)
class Training:
    """A training over both nodes that nobody disturbs, and the command that repeats it under another name."""

    epochs: int
    run: Path
    log: str
    command: tuple[object, ...]


@pytest.fixture(scope="module")
def straight(slurm: Slurm, packed: Path) -> Training:
    command = (packed, *TRAINING, "--epochs", "28", "--workers", "2", "--runs", slurm.folder / "runs")
    job = slurm.submit(*TWO_NODES, sbatch("train"), *command, "--name", "straight")
    assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    return Training(28, slurm.folder / "runs" / "straight", slurm.log(job), command)


def test_train_over_both_nodes(straight: Training) -> None:
    assert "a Ray cluster of 2 nodes: 2 CPUs, 0 GPUs" in straight.log
    assert "workers: 2, each with 1 CPUs and 0 GPUs" in straight.log
    assert epochs(straight.run) == straight.epochs
    assert json.loads((straight.run / "run.json").read_text())["attempt"] == 1


def test_a_failing_command_is_a_failed_job_with_its_code(slurm: Slurm) -> None:
    job = slurm.submit(*ONE_NODE, sbatch("train"), slurm.folder / "nowhere")
    assert slurm.end(job) == Job("FAILED", 3, 0), slurm.log(job)
    assert "nowhere does not exist" in slurm.log(job)


_SLOW_DISK = """
import pathlib, time
plain = pathlib.Path.replace
def replace(self, target):
    if pathlib.Path(target).name == "last.pt" and pathlib.Path({marker!r}).exists():
        time.sleep(2)
    return plain(self, target)
pathlib.Path.replace = replace
"""


def test_too_little_time(slurm: Slurm, straight: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's own warning, which comes up to half a minute early: a checkpoint, the queue again, and the rest.

    Until then the disk is slow, so that epochs are left.
    """
    run, hook = slurm.folder / "runs" / "short", slurm.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_SLOW_DISK.format(marker=str(hook / "slow")))
    (hook / "slow").touch()
    monkeypatch.setenv("PYTHONPATH", str(hook))
    job = slurm.submit(
        *TWO_NODES, "--time=2", "--signal=B:USR1@60", sbatch("train"), *straight.command, "--name", run.name
    )
    slurm.wait_until(job, lambda: slurm.show(job).restarts == 1)
    assert epochs(run) < straight.epochs
    (hook / "slow").unlink()
    slurm.call("scontrol", "update", f"jobid={job}", "timelimit=60")  # on a slow machine it would take many starts
    assert slurm.end(job) == Job("COMPLETED", 0, 1), slurm.log(job)
    assert json.loads((run / "run.json").read_text())["attempt"] == 2
    assert slurm.log(job).count("stops on request after epoch") == 1
    assert_same(straight.run, run)


def test_a_warning_while_it_trains(slurm: Slurm, straight: Training) -> None:
    """As `scancel --batch --signal` and preemption give it."""
    run = slurm.folder / "runs" / "warned"
    job = slurm.submit(*TWO_NODES, sbatch("train"), *straight.command, "--name", "warned")
    slurm.wait_until(job, lambda: epochs(run) >= 2)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until(job, lambda: slurm.show(job).restarts == 1)
    begun = epochs(run)
    assert 2 <= begun < straight.epochs
    assert slurm.end(job) == Job("COMPLETED", 0, 1), slurm.log(job)
    assert f"stops on request after epoch {begun}" in slurm.log(job)
    assert f"resumes after epoch {begun} of {straight.epochs}" in slurm.log(job)
    assert_same(straight.run, run)


def test_a_node_goes_down(slurm: Slurm, straight: Training) -> None:
    run = slurm.folder / "runs" / "down"
    job = slurm.submit(*TWO_NODES, sbatch("train"), *straight.command, "--name", "down")
    slurm.wait_until(job, lambda: epochs(run) >= 2)
    try:
        slurm.call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        slurm.wait_until(job, lambda: slurm.show(job).restarts == 1)
    finally:
        slurm.call("scontrol", "update", "nodename=node2", "state=resume", check=False)  # it may be back by itself
    assert slurm.end(job) == Job("COMPLETED", 0, 1), slurm.log(job)
    assert_same(straight.run, run)


def test_a_cancelled_job_leaves_nothing_and_goes_on_later(slurm: Slurm, straight: Training) -> None:
    run = slurm.folder / "runs" / "cancelled"
    command = (*TWO_NODES, sbatch("train"), *straight.command, "--name", "cancelled")
    job = slurm.submit(*command)
    slurm.wait_until(job, lambda: epochs(run) >= 2)
    slurm.call("mlic", "slurm", "cancel", job)
    assert slurm.end(job).state == "CANCELLED"
    assert epochs(run) < straight.epochs
    again = slurm.submit(*command)
    assert slurm.end(again) == Job("COMPLETED", 0, 0), slurm.log(again)
    assert "resumes after epoch" in slurm.log(again)
    assert_same(straight.run, run)


def hosts(folder: Path) -> set[str]:
    return set(re.findall(r"^on (\w+)", "\n".join(path.read_text() for path in folder.glob("trials/*/log.txt")), re.M))


def test_tune_on_both_nodes_and_over_a_warning(slurm: Slurm, packed: Path) -> None:
    """A search that is queued again ends with the table of one that nobody disturbed."""
    command = (
        packed,
        "--num-samples",
        "10",
        "--epochs",
        "9",
        "--runs",
        slurm.folder / "runs",
        "--set",
        "arch=b-final",
        "--set",
        "image_size=64",
        "--no-doctor",
        "--set",
        "space={lr: {loguniform: [1e-4, 1e-2]}}",
    )
    one, two = (slurm.folder / "runs" / name for name in ("search", "warned-search"))
    job = slurm.submit(*TWO_NODES, sbatch("tune"), *command, "--name", one.name)
    assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    assert hosts(one) == {"node1", "node2"}
    job = slurm.submit(*TWO_NODES, sbatch("tune"), *command, "--name", two.name)
    slurm.wait_until(job, lambda: len(list(two.glob("trials/*/metrics.jsonl"))) >= 3)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    assert slurm.end(job) == Job("COMPLETED", 0, 1), slurm.log(job)
    tables = [pq.read_table(folder / "trials.parquet").to_pydict() for folder in (one, two)]
    assert tables[0] == tables[1]


def test_the_readmes_search(slurm: Slurm, packed: Path) -> None:
    ((program, script, *stage),) = commands("SLURM")
    assert (program, slurm.folder / stage[0]) == ("sbatch", packed)
    job = slurm.submit(*TWO_NODES, ROOT / script, *stage, *FEW)
    assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    assert "a Ray cluster of 2 nodes: 2 CPUs" in slurm.log(job)
    assert (slurm.folder / "runs" / "tune" / "best.yaml").is_file()


def test_batch_predict(slurm: Slurm, straight: Training, corpus: Path) -> None:
    out = slurm.folder / "preds.tsv"
    job = slurm.submit(
        *TWO_NODES,
        sbatch("batch-predict"),
        straight.run,
        corpus / "unlabelled",
        "--out",
        out,
        "--set",
        "chunk=10",
        "--workers",
        "2",
    )
    assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    alone = slurm.folder / "alone.tsv"
    slurm.call("mlic", "batch-predict", straight.run, corpus / "unlabelled", "--out", alone)
    first, second = (path.read_text().splitlines() for path in (out, alone))
    assert len(first) == 31
    assert [line.split("\t")[0] for line in first] == [line.split("\t")[0] for line in second]


def test_two_jobs_on_one_node(slurm: Slurm, packed: Path) -> None:
    command = (sbatch("train"), packed, *TRAINING, "--epochs", "3", "--runs", slurm.folder / "runs")
    ids = [slurm.submit(*ONE_NODE, "--nodelist=node1", *command, "--name", f"side{number}") for number in (1, 2)]
    slurm.wait_until(ids[1], lambda: all(slurm.show(job).state == "RUNNING" for job in ids))
    for job in ids:
        assert slurm.end(job) == Job("COMPLETED", 0, 0), slurm.log(job)
    assert_same(*(slurm.folder / "runs" / f"side{number}" for number in (1, 2)))


_RESOURCES = (
    "import ray; ray.init(log_to_driver=False); total = ray.cluster_resources(); "
    "seen = ray.get(ray.remote(num_gpus=1)(lambda: __import__('os').environ['CUDA_VISIBLE_DEVICES']).remote()); "
    "print('resources', int(total['GPU']), int(total['CPU']), len(ray.nodes()), seen in ('0', '1')); "
    "raise SystemExit(7)"
)


@pytest.mark.parametrize("exclusive", [False, True])
def test_gpus_reach_ray(slurm: Slurm, exclusive: bool) -> None:
    """In both forms; and in both the exit code is that of the command."""
    script = slurm.folder / f"gpus-{exclusive}.sbatch"
    text = render(SlurmConfig(stage="train", nodes=2, cpus_per_task=2, gpus_per_node=2, exclusive=exclusive))
    script.write_text(text.replace('mlic train "$@"', 'python -c "$@"'))
    job = slurm.submit(script, _RESOURCES)
    assert slurm.end(job) == Job("FAILED", 7, 0), slurm.log(job)
    assert "resources 4 4 2 True" in slurm.log(job)


def test_a_ray_that_does_not_start_is_a_failed_job(slurm: Slurm) -> None:
    """ray symmetric-run itself ends with 0 then."""
    script = slurm.folder / "broken.sbatch"
    text = render(SlurmConfig(stage="train", nodes=1, cpus_per_task=2, exclusive=True))
    script.write_text(text.replace("export MLIC_EXCLUSIVE=1", "export MLIC_EXCLUSIVE=1 MLIC_OBJECT_STORE_BYTES=1"))
    job = slurm.submit(script, slurm.folder / "nowhere")
    assert slurm.end(job) == Job("FAILED", 4, 0), slurm.log(job)
    assert "Ray did not start" in slurm.log(job)


def test_another_user_is_refused(slurm: Slurm, packed: Path) -> None:
    """Who has no token cannot connect, list or submit, nor read the token."""
    script = slurm.folder / "hold.sbatch"
    text = render(SlurmConfig(stage="train", cpus_per_task=2))
    script.write_text(text.replace('mlic train "$@"', "bash -c 'echo $RAY_ADDRESS >address; sleep 600'"))
    job = slurm.submit("--nodelist=node1", script)
    address = slurm.folder / "address"
    try:
        slurm.wait_until(job, address.is_file)
        token = next(slurm.folder.glob(f".mlic/{job}.0/token"))
        assert token.stat().st_mode & 0o777 == 0o600
        at = address.read_text().strip()
        port = int(at.rpartition(":")[2])
        found = subprocess.run(["pgrep", "-of", "slurmd -N node1"], capture_output=True, text=True, check=True)
        node = found.stdout.strip()
        dashboard = f"http://127.0.0.1:{port + 2}"
        tries = {
            "connect": ["python", "-c", f"import ray; ray.init('{at}')"],
            "list": ["ray", "job", "list", "--address", dashboard],
            "submit": ["ray", "job", "submit", "--address", dashboard, "--", "true"],
            "status": ["ray", "status", "--address", at],
            "read": ["cat", token],
        }
        home = slurm.base / "other"
        home.mkdir(mode=0o777, exist_ok=True)
        home.chmod(0o777)
        other = [
            "nsenter",
            "-t",
            node,
            "-n",
            "-u",
            "-m",
            "-p",
            f"--wdns={home}",
            "--",
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "env",
            f"HOME={home}",
            f"RAY_TMPDIR={home}",
        ]
        for name, command in tries.items():
            words = [*other, "RAY_AUTH_MODE=disabled", *map(str, command)]
            if name != "read":  # Python itself may be installed where only root may look
                words[words.index("--clear-groups") + 1 : 1 + words.index("--clear-groups")] = [
                    "--inh-caps=+dac_read_search",
                    "--ambient-caps=+dac_read_search",
                ]
            done = subprocess.run(
                words, env=slurm.environment, capture_output=True, text=True, check=False, timeout=120
            )
            said = done.stdout + done.stderr
            assert done.returncode != 0, (name, said)
            refused = "Permission denied" if name == "read" else "uthentication"
            assert refused in said, (name, said)
    finally:
        slurm.call("scancel", job)
    slurm.end(job)


SMALL = ("--cpus-per-task", "2", "--time", "30")


def test_a_chain_over_a_warning(slurm: Slurm, corpus: Path) -> None:
    """One command from photographs to predictions; its search is warned, queued again, and the others wait for it."""
    out, own = slurm.folder / "work", slurm.folder / "my jobs"
    own.mkdir()
    space = "{lr: {loguniform: [1e-4, 1e-2]}}"
    (own / "tune.yaml").write_text(f"arch: b-final\nimage_size: 48\nepochs: 9\ndoctor: false\nspace: {space}\n")
    given = (corpus / "images", "--labels", corpus / "annotations", "--test", corpus / "unlabelled", "--out", out)
    chain = slurm.start("mlic", "slurm", "pipeline", *given, "--jobs", own, "--num-samples", "4", *SMALL, "--wait")
    assert chain.stdout is not None
    pack, tune, train, predict = (chain.stdout.readline().strip() for _ in range(4))
    while not list((out / "runs" / "tune").glob("trials/*/metrics.jsonl")):
        assert chain.poll() is None, chain.communicate()
        time.sleep(0.3)
    assert slurm.status(train, predict).keys() == {train, predict}
    slurm.call("scancel", "--batch", "--signal=USR1", tune)
    _, said = chain.communicate(timeout=600)
    assert chain.returncode == 0, said
    found = slurm.status(pack, tune, train, predict)
    assert [(job["state"], job["code"], job["restarts"]) for job in found.values()] == [
        ("COMPLETED", 0, number) for number in (0, 1, 0, 0)
    ]
    assert "trials" in said  # the logs, as the jobs continued
    assert len((out / "preds.tsv").read_text().splitlines()) == 31
    for job in found:
        slurm.assert_nothing_left(job)


def test_a_chain_ends_where_it_breaks(slurm: Slurm, corpus: Path) -> None:
    labels = slurm.folder / "no labels"
    labels.mkdir()
    done = slurm.call(
        "mlic",
        "slurm",
        "pipeline",
        corpus / "images",
        "--labels",
        labels,
        "--out",
        slurm.folder / "broken",
        *SMALL,
        "--wait",
        check=False,
    )
    assert done.returncode == 3, done.stderr
    first, *others = done.stdout.split()
    assert slurm.status(first)[first]["code"] == 3
    slurm.wait_until_gone(*others)


def test_an_array_of_seeds(slurm: Slurm, packed: Path) -> None:
    """Submitted with what the site's file says, and looked at by its id."""
    site = slurm.folder / "config" / "mlic" / "site.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("time: '30'\ncpus_per_task: 1\noptions: {comment: of the site}\ntrain: {cpus_per_task: 2}\n")
    stage = (packed, *TRAINING, "--epochs", "1", "--runs", slurm.folder / "runs", "--name", "many")
    done = slurm.call("mlic", "slurm", "train", "--array", "seed=1-2", "--submit", "--", *stage)
    job = done.stdout.strip()
    assert "--cpus-per-task=2" in done.stderr
    assert slurm.call("mlic", "slurm", "logs", "-f", job, timeout=300).returncode == 0
    tasks = slurm.status(job)
    assert tasks.keys() == {f"{job}_1", f"{job}_2"}
    assert {task["state"] for task in tasks.values()} == {"COMPLETED"}
    for seed in (1, 2):
        run = slurm.folder / "runs" / f"many-seed{seed}"
        assert json.loads((run / "config.json").read_text())["seed"] == seed
        assert str(run) in slurm.call("mlic", "slurm", "logs", f"{job}_{seed}").stdout


def test_what_slurm_cannot_run_is_refused_before_it_is_queued(slurm: Slurm, packed: Path) -> None:
    before = slurm.call("squeue", "--noheader").stdout
    done = slurm.call("mlic", "slurm", "train", "--nodes", "9", "--submit", "--", packed, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Error: SLURM refuses this job" in done.stderr
    for stage, *wrong in (("train", packed, "--epoch", "3"), ("train", packed, "--set", "lr=-1"), ("batch-predict",)):
        done = slurm.call("mlic", "slurm", stage, "--submit", "--", *wrong, check=False)
        assert (done.returncode, done.stdout) == (2, "")
    assert slurm.call("squeue", "--noheader").stdout == before


def test_a_job_is_cancelled(slurm: Slurm, packed: Path) -> None:
    stage = (packed, *TRAINING, "--epochs", "1000", "--runs", slurm.folder / "runs", "--name", "long-one")
    job = slurm.call("mlic", "slurm", "train", *SMALL, "--submit", "--", *stage).stdout.strip()
    slurm.wait_until(job, lambda: epochs(slurm.folder / "runs" / "long-one") >= 1)
    assert slurm.status()[job]["state"] == "RUNNING"
    slurm.call("mlic", "slurm", "cancel", job)
    assert slurm.end(job).state == "CANCELLED"
    assert slurm.status(job)[job]["state"] == "CANCELLED"
    done = slurm.call("mlic", "slurm", "status", "99999", check=False)
    assert done.returncode == 4
    assert "SLURM knows no job 99999" in done.stderr


def test_the_nodes_of_a_job_are_checked(slurm: Slurm) -> None:
    """Both see the folder of submission; a node's own scratch they do not share."""
    script = slurm.folder / "check.sbatch"
    script.write_text(
        render(SlurmConfig(stage="train", nodes=2, cpus_per_task=1)).replace("mlic train", "mlic cluster check")
    )
    job = slurm.submit(script, slurm.folder, "--json")
    slurm.end(job)
    nodes = slurm.printed(job)["nodes"]
    assert [(node["host"], node["cpus"], node["sees"]) for node in nodes] == [("node1", 1, True), ("node2", 1, True)]
    assert all(node["mb_per_s"] > 0 and abs(node["skew_s"]) < 1 for node in nodes)
    job = slurm.submit(script, slurm.base / "local", "--json")
    assert slurm.end(job).code == 4
    found = slurm.printed(job)
    assert [node["sees"] for node in found["nodes"]] == [False, False]
    assert "node1 does not share the folder: use storage that all nodes mount at one path." in found["problems"]
