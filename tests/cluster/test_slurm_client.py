"""What SLURM's programs print, as `mlic slurm status` and the others read it; the programs are scripts here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlic.cluster import slurm_client
from mlic.errors import ClusterError

SHOWN = (
    "JobId=12 JobName=mlic-train UserId=me(1000) Priority=1 JobState={state} Reason={reason} Dependency=(null) "
    "Requeue=1 Restarts={restarts} BatchFlag=1 ExitCode={code} RunTime=00:01:02 TimeLimit=00:30:00 TimeMin=N/A "
    "NodeList={nodes} BatchHost=node1 NumNodes=2 Command=/home/my folder/train.sbatch shards a=b "
    "WorkDir=/home/my folder StdErr=/home/my folder/mlic-train-12.log StdIn=/dev/null "
    "StdOut=/home/my folder/mlic-train-12.log Power= "
)
DONE = SHOWN.format(state="COMPLETED", reason="None", restarts=0, code="0:0", nodes="node1")
RUNNING = SHOWN.format(state="RUNNING", reason="None", restarts=2, code="0:0", nodes="node[1-2]")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, which is all that there is, and a record of submissions of the test's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    for name in ("sbatch", "scontrol", "sacct", "squeue", "scancel"):
        program(folder, name, "exit 1")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_a_running_job_is_read_whole(programs: Path) -> None:
    program(programs, "scontrol", f"echo '{RUNNING}'")
    assert slurm_client.jobs(["12"]) == [
        slurm_client.Job(
            "12", "mlic-train", "RUNNING", None, "00:01:02", 2, "node[1-2]", "", "/home/my folder/mlic-train-12.log"
        )
    ]


@pytest.mark.parametrize(
    ("state", "code", "read", "ends_with"),
    [
        ("COMPLETED", "0:0", 0, 0),
        ("FAILED", "3:0", 3, 3),
        ("CANCELLED", "0:15", 143, 143),
        ("TIMEOUT", "0:0", 0, 4),
        ("NODE_FAIL", "1:0", 1, 1),
        ("PENDING", "0:0", None, 4),
    ],
)
def test_exit_codes(programs: Path, state: str, code: str, read: int | None, ends_with: int) -> None:
    text = SHOWN.format(state=state, reason="None", restarts=0, code=code, nodes="(null)")
    program(programs, "scontrol", f"echo '{text}'")
    (job,) = slurm_client.jobs(["12"])
    assert (job.code, job.exit_code, job.has_ended, job.nodes) == (read, ends_with, state != "PENDING", "")


def test_tasks_of_an_array(programs: Path) -> None:
    lines = [
        RUNNING.replace("JobId=12", f"JobId={number} ArrayJobId=12 ArrayTaskId={task} ArrayTaskThrottle=2")
        for number, task in ((12, "3-4%2"), (13, 1), (14, 2))
    ]
    program(programs, "scontrol", "cat <<'TEXT'\n" + "\n".join(lines) + "\nTEXT")
    assert [job.id for job in slurm_client.jobs(["12"])] == ["12_3-4%2", "12_1", "12_2"]


def test_jobs_that_only_the_accounting_knows(programs: Path) -> None:
    program(
        programs,
        "sacct",
        'case "$*" in *--allocations*) echo "12|mlic-train|CANCELLED by 1000|0:15|00:10:00|node1" ;; esac',
    )
    (job,) = slurm_client.jobs(["12"])
    assert (job.state, job.code, job.elapsed, job.nodes) == ("CANCELLED", 143, "00:10:00", "node1")


def test_jobs_that_only_the_list_of_completed_jobs_knows(programs: Path) -> None:
    """On a site without accounting sacct fails, but for the list of completed jobs."""
    program(
        programs,
        "sacct",
        'case "$*" in *--completion*) echo "12|mlic-train|COMPLETED|0:0|node[1-2]" ;;\n'
        '*) echo "Slurm accounting storage is disabled" >&2; exit 1 ;; esac',
    )
    (job,) = slurm_client.jobs(["12"])
    assert (job.state, job.code, job.exit_code) == ("COMPLETED", 0, 0)


def test_a_controller_that_is_away(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of, and waited for: jobs continue without it."""
    away = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    program(programs, "scontrol", away)
    program(programs, "squeue", away)
    for ids in ([], ["12"]):
        with pytest.raises(ClusterError, match="SLURM does not answer: .*Unable to contact slurm controller"):
            slurm_client.jobs(ids)
    program(programs, "scontrol", f"n=$(cat count); echo $((n + 1)) >count; [ $n = 3 ] || {{ {away}; }}; echo '{DONE}'")
    Path("count").write_text("0\n")
    assert slurm_client.follow("12", print, every_s=0.01).state == "COMPLETED"
    monkeypatch.setattr(slurm_client, "_SILENT_AFTER_S", 0.05)
    program(programs, "scontrol", away)
    with pytest.raises(ClusterError, match="SLURM does not answer"):
        slurm_client.follow("12", print, every_s=0.01)


def test_a_job_that_nobody_knows(programs: Path) -> None:
    program(programs, "scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    with pytest.raises(ClusterError, match="SLURM knows no job 12"):
        slurm_client.jobs(["12"])
    assert slurm_client.jobs([]) == []


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no sbatch on this machine"):
        slurm_client.check("#!/bin/bash\n")


def test_a_submission_is_remembered(programs: Path, tmp_path: Path) -> None:
    """Also after one whose line was cut off; the id comes without the name of SLURM's cluster."""
    program(programs, "sbatch", 'echo "$*" >>given; echo "12;cluster"')
    record = tmp_path / "state" / "mlic" / "slurm.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text('{"id": "11", "na\n')
    assert slurm_client.submit("#!/bin/bash\n", "mlic-train", after="10") == "12"
    assert (tmp_path / "given").read_text() == "--parsable --dependency=afterok:10 --kill-on-invalid-dep=yes\n"
    assert json.loads(record.read_text().splitlines()[1]) == {"id": "12", "name": "mlic-train", "folder": str(tmp_path)}
    program(programs, "scontrol", f'[ "$4" = 12 ] && echo "{RUNNING}"')
    assert [job.id for job in slurm_client.jobs([])] == ["12"]


def test_what_slurm_says_against_a_job_is_told(programs: Path) -> None:
    program(
        programs,
        "sbatch",
        'echo "sbatch: error: Batch job submission failed: Requested node configuration is not available" >&2; exit 1',
    )
    for call in (slurm_client.check, lambda script: slurm_client.submit(script, "mlic-train")):
        with pytest.raises(ClusterError, match="job submission failed: Requested node configuration is not available"):
            call("#!/bin/bash\n")
    program(programs, "scancel", 'echo "scancel: error: Kill job error on job id 12: Invalid job id specified" >&2')
    with pytest.raises(ClusterError, match="Invalid job id"):
        slurm_client.cancel(["12"])


def test_the_log_of_a_job_that_only_the_accounting_knows(programs: Path, tmp_path: Path) -> None:
    program(programs, "sacct", 'echo "12|mlic-train|COMPLETED|0:0|00:10:00|node1"')
    program(programs, "sbatch", "echo 12")
    slurm_client.submit("#!/bin/bash\n", "mlic-train")
    (job,) = slurm_client.jobs(["12"])
    with pytest.raises(ClusterError, match="job 12 has no log"):
        slurm_client.log_of(job)
    (tmp_path / "mlic-train-12.log").write_text("done\n")
    assert slurm_client.log_of(job).read_text() == "done\n"


def test_a_job_is_followed_to_its_end_over_a_requeue(programs: Path, tmp_path: Path) -> None:
    """The log is told in whole lines, each once; a job that is queued again has not ended."""
    log = tmp_path / "job.log"
    log.write_text("one\ntwo\nthr")
    states = ["RUNNING", "PENDING", "COMPLETED"]
    text = RUNNING.replace("/home/my folder/mlic-train-12.log", str(log))
    looks = "".join(
        f'{n}) echo "{text.replace("JobState=RUNNING", f"JobState={state}")}" ;;\n' for n, state in enumerate(states)
    )
    program(programs, "scontrol", f"n=$(cat count); echo $((n + 1)) >count; case $((n > 2 ? 2 : n)) in\n{looks}esac")
    Path("count").write_text("0\n")
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            with log.open("a") as file:
                file.write("ee\nfour\n")

    ended = slurm_client.follow("12", say, every_s=0.01)
    assert (ended.state, told) == ("COMPLETED", ["one\ntwo", "three\nfour"])


def test_a_job_that_slurm_forgets(programs: Path) -> None:
    with pytest.raises(ClusterError, match="SLURM has forgotten job 12"):
        slurm_client.follow("12", print, every_s=0.01)


def test_a_record_elsewhere(programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    program(programs, "sbatch", "echo 12")
    slurm_client.submit("#!/bin/bash\n", "mlic-train")
    assert (tmp_path / "home" / ".local" / "state" / "mlic" / "slurm.jsonl").is_file()
    assert os.listdir(tmp_path / "home") == [".local"]  # noqa: PTH208
