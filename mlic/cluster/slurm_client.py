"""SLURM's programs: submit a job, show its state and its log, cancel it; with accounting and without."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlic.errors import ClusterError

_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_LISTED = 20  # jobs that are shown when the user names none
_GONE_AFTER = 5  # consecutive queries in which SLURM does not know the job
_SILENT_AFTER_S = 900.0  # seconds without an answer; a controller may be down for minutes while jobs continue
_FIELDS = "JobID,JobName,State,ExitCode,Elapsed,NodeList"


@dataclass(frozen=True)
class Job:
    """A job or a task of an array. `code` is the exit code of an ended job; `log` is empty if it is unknown."""

    id: str
    name: str
    state: str
    code: int | None
    elapsed: str
    restarts: int
    nodes: str
    reason: str
    log: str

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def exit_code(self) -> int:
        """The exit code of a command that waited for the job: the job's own code, or 4 if SLURM ended the job."""
        return 0 if self.state == "COMPLETED" else self.code or ClusterError.exit_code


def check(script: str) -> None:
    """Raise ClusterError with SLURM's message if SLURM would never run the job."""
    done = _call("sbatch", "--test-only", stdin=script)
    if done.returncode != 0:
        raise ClusterError(
            f"SLURM refuses this job: {_said(done)}.", "ask for what the site has: sinfo -o '%P %D %c %m %G %l'."
        )


def submit(script: str, name: str, after: str | None = None) -> str:
    """Queue a job and return its id; with `after`, it begins when that job has succeeded. Raises ClusterError."""
    options = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    done = _call("sbatch", "--parsable", *options, stdin=script)
    if done.returncode != 0:
        raise ClusterError(f"SLURM did not take the job: {_said(done)}.", "fix that, and submit it again.")
    job = done.stdout.strip().partition(";")[0]
    record = _record()
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": job, "name": name, "folder": str(Path.cwd())}) + "\n")
    return job


def jobs(ids: Sequence[str]) -> list[Job]:
    """The state of jobs, one per array task; without ids: those in the queue and the last ones submitted from here.

    Raises ClusterError for an id that neither the queue nor the accounting knows, and when SLURM does not answer.
    """
    states = []
    for job in ids or _known():
        tasks = _from_queue(job) or _from_accounts(job)
        if not tasks and ids:
            raise ClusterError(f"SLURM knows no job {job} (any more).", "mlic slurm status lists those it knows.")
        states += tasks
    return states


def log_of(job: Job) -> Path:
    """Where a job's output is. Raises ClusterError when SLURM has forgotten it or the file is not there yet."""
    path = Path(job.log) if job.log else None
    if path is None:
        folders = [Path(row["folder"]) for row in _submitted() if row["id"] == job.id.partition("_")[0]]
        path = next((log for folder in folders for log in folder.glob(f"*-{job.id}.log")), None)
    if path is None or not path.is_file():
        raise ClusterError(
            f"job {job.id} has no log{f' at {path}' if path else ''} ({job.state}, {job.reason}).",
            "it appears when the job begins.",
        )
    return path


def follow(job: str, say: Callable[[str], None], every_s: float = 2.0) -> Job:
    """Wait for the end of a job and print its log meanwhile; returns its final state. A requeued job has not ended.

    Raises ClusterError when SLURM forgets the job, or does not answer for a long time. An array is waited for as a
    whole, without its logs.
    """
    position, unknown, answered = 0, 0, time.monotonic()
    while True:
        try:
            tasks = _from_queue(job) or _from_accounts(job)
        except ClusterError:
            if time.monotonic() - answered > _SILENT_AFTER_S:
                raise
            time.sleep(every_s)
            continue
        answered = time.monotonic()
        unknown = 0 if tasks else unknown + 1
        if unknown > _GONE_AFTER:
            raise ClusterError(f"SLURM has forgotten job {job}.", "look at its log.")
        if len(tasks) == 1 and tasks[0].log and Path(tasks[0].log).is_file():  # of a job that has ended, all of it
            with Path(tasks[0].log).open("rb") as file:
                file.seek(position)
                text = file.read()
            complete_lines = text[: text.rfind(b"\n") + 1]
            position += len(complete_lines)
            if complete_lines:
                say(complete_lines.decode("utf-8", "replace").rstrip("\n"))
        if tasks and all(task.has_ended for task in tasks):
            return max(tasks, key=lambda task: task.exit_code)
        time.sleep(every_s)


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs. Raises ClusterError if SLURM refuses."""
    done = _call("scancel", *ids)
    if done.returncode != 0 or "error" in done.stderr:
        raise ClusterError(f"scancel: {_said(done)}.", "mlic slurm status lists the jobs.")


def _known() -> list[str]:
    queue = _call("squeue", "--me", "--noheader", "--format=%F %j")
    _raise_silence(queue)
    named = [line.split(None, 1) for line in queue.stdout.splitlines() if " " in line]
    recent = [row["id"] for row in _submitted()[-_LISTED:]]
    return list(dict.fromkeys([*(job for job, name in named if name.startswith("mlic")), *reversed(recent)]))


def _from_queue(job: str) -> list[Job]:
    """What slurmctld knows: jobs that wait, run, or ended a short while ago. Raises ClusterError when it is silent."""
    done = _call("scontrol", "--oneliner", "show", "job", job)
    _raise_silence(done)
    return [_shown(line) for line in done.stdout.splitlines() if line.startswith("JobId=")]


def _shown(line: str) -> Job:
    def field(name: str) -> str:
        match = re.search(rf"(?:^|\s){name}=(.*?)(?=\s\w[\w/:]*=|$)", line)
        return "" if match is None or match[1] in ("(null)", "None") else match[1]

    task = field("ArrayTaskId")
    state = field("JobState")
    return Job(
        id=f"{field('ArrayJobId')}_{task}" if task else field("JobId"),
        name=field("JobName"),
        state=state,
        code=_code(field("ExitCode")) if state in _ENDED else None,
        elapsed=field("RunTime"),
        restarts=int(field("Restarts") or 0),
        nodes=field("NodeList"),
        reason=field("Reason"),
        log=field("StdOut"),
    )


def _code(text: str) -> int:
    """SLURM's CODE:SIGNAL as a shell exit code."""
    code, _, signal = text.partition(":")
    return int(code or 0) or (128 + int(signal) if signal not in ("", "0") else 0)


def _from_accounts(job: str) -> list[Job]:
    """The jobs that the accounting knows; without accounting, those in the list of completed jobs."""
    for extra in ((), ("--completion",)):
        fields = _FIELDS if not extra else "JobID,JobName,State,ExitCode,NodeList"
        options = extra or ("--allocations",)
        done = _call("sacct", *options, "--noheader", "--parsable2", f"--jobs={job}", f"--format={fields}")
        rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") >= fields.count(",")]
        if done.returncode == 0 and rows:
            return [_accounted(dict(zip(fields.split(","), row, strict=False))) for row in rows]
    return []


def _accounted(row: dict[str, str]) -> Job:
    state = row["State"].partition(" ")[0]  # "CANCELLED by 1000"
    return Job(
        id=row["JobID"],
        name=row["JobName"],
        state=state,
        code=_code(row["ExitCode"]) if state in _ENDED else None,
        elapsed=row.get("Elapsed", ""),
        restarts=0,
        nodes=row["NodeList"],
        reason="",
        log="",
    )


def _record() -> Path:
    """The file that lists the jobs that this user submitted from this machine."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlic" / "slurm.jsonl"


def _submitted() -> list[dict[str, str]]:
    try:
        return list(_rows(_record().read_text(encoding="utf-8")))
    except OSError:
        return []


def _rows(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # of a submission that was cut off
            continue


def _call(program: str, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        raise ClusterError(f"there is no {program} on this machine.", "do this on a login node of the SLURM cluster.")
    try:
        return subprocess.run(  # noqa: S603 - SLURM's own program
            [program, *words], input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{program} did not answer for two minutes.", "try again.") from None


def _raise_silence(done: subprocess.CompletedProcess[str]) -> None:
    """Raise ClusterError where a program failed for another reason than that it does not know the job."""
    if done.returncode != 0 and done.stderr.strip() and "Invalid job id" not in done.stderr:
        raise ClusterError(f"SLURM does not answer: {_said(done)}.", "see whether sinfo works here, and try again.")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if "rror" in line or "ailed" in line or "nvalid" in line), "")
    return re.sub(r"^\w+: (error: )?", "", text or (lines[-1] if lines else f"exit code {done.returncode}")).rstrip(".")


def plain(job: Job) -> dict[str, object]:
    """A job as plain values."""
    return dataclasses.asdict(job)
