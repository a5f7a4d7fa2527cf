from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mlic.cluster.sbatch import launcher, render
from mlic.config.jobs import STAGES, SlurmConfig
from mlic.config.load import build
from mlic.errors import ConfigError


@pytest.mark.parametrize("stage", STAGES)
def test_scripts_are_valid_bash(stage: str) -> None:
    script = render(SlurmConfig(stage=stage))  # type: ignore[arg-type]
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f'mlic {stage} "$@"' in script


def test_launcher_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", launcher()], check=True)


@pytest.mark.parametrize("value", ["a b", "a;b", "it's", '"x"', "$(true)"])
def test_values_are_quoted(value: str) -> None:
    line = next(line for line in render(SlurmConfig(stage="train", account=value)).splitlines() if "account" in line)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.removeprefix('#SBATCH ')}"], capture_output=True, text=True, check=True
    )
    assert words.stdout == f"--account={value}\n"


@pytest.mark.parametrize("field", ["account", "partition", "job_name", "time"])
def test_a_value_is_one_line(field: str) -> None:
    with pytest.raises(ConfigError, match="one line of text"):
        build(SlurmConfig, {"stage": "train", field: "a\n#SBATCH --nodes=100"})


def test_launcher_refuses_to_run_outside_of_a_job(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([bash, launcher(), "true"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "inside a SLURM job" in done.stderr
    done = subprocess.run([bash, launcher()], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2


class Job:
    """A rendered script run by bash, where srun, scontrol and the rest are scripts that tell what they were given."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder, self.script = folder, folder / "job.sbatch"
        self.script.write_text(script)
        tools = {
            "mlic": 'case "$*" in "slurm --launcher") echo "$HERE/the launcher.sh" ;; esac',
            "srun": 'printf "%s\\0" "$@" >"$HERE/step"; touch "$HERE/began"; eval "${STEP:-true}"',
            "scontrol": 'echo "$*" >"$HERE/scontrol"; exit ${SCONTROL_CODE:-0}',
        }
        (folder / "bin").mkdir()
        for name, text in tools.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        own = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HERE": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_PER_TASK": "4",
            **environment,
        }
        return subprocess.Popen(
            ["bash", self.script, *arguments],
            env=own,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> list[str]:
        """What srun was given after its own options."""
        started = self.start(*arguments, **environment)
        _, said = started.communicate(timeout=60)
        assert started.returncode == 0, said
        words = (self.folder / "step").read_text().split("\0")[:-1]
        assert words[:2] == ["--kill-on-bad-exit=0", "--cpus-per-task=4"]
        return words[2:]


AWKWARD = '/data/it\'s a "test"\nof $HOME; `true`'


def test_arguments_reach_the_stage_as_they_are(tmp_path: Path) -> None:
    """Those of the rendered text, and those of sbatch's command line behind them."""
    job = Job(tmp_path, render(SlurmConfig(stage="train", arguments=(AWKWARD, "--name", "a b"))))
    given = job.run("--out", AWKWARD)
    assert given == ["bash", f"{tmp_path}/the launcher.sh", "mlic", "train", AWKWARD, "--name", "a b", "--out", AWKWARD]


def test_a_site_with_everything(tmp_path: Path) -> None:
    venv = tmp_path / "my venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text("export VENV_IS=active\n")
    script = render(
        SlurmConfig(
            stage="tune",
            nodes=3,
            cpus_per_task=6,
            gpus_per_node=2,
            mem="64G",
            time="1-00",
            grace=300,
            partition="gpu",
            account="abc",
            job_name="my search",
            exclusive=True,
            modules=("cuda/12.4", "gcc"),
            venv=venv,
            scratch=Path("/local"),
            options={"qos": "high", "constraint": "a100&ib"},
        )
    )
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        "--job-name='my search'",
        "--nodes=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=6",
        "--gpus-per-node=2",
        "--mem=64G",
        "--time=1-00",
        "--signal=B:USR1@300",
        "--partition=gpu",
        "--account=abc",
        "--exclusive",
        "--qos=high",
        "--constraint='a100&ib'",
        "--requeue",
        "--open-mode=append",
    }
    job = Job(tmp_path, script)
    module = tmp_path / "bin" / "module"
    module.write_text('#!/bin/bash\necho "$*" >"$HERE/modules"\n')
    module.chmod(0o755)
    tell = 'echo "$VENV_IS $MLIC_LOCAL_TMP $MLIC_EXCLUSIVE $MLIC_JOB_DIR" >"$HERE/environment"'
    job.run(STEP=tell, SLURM_RESTART_COUNT="2")
    assert (tmp_path / "modules").read_text() == "load cuda/12.4 gcc\n"
    assert (tmp_path / "environment").read_text() == f"active /local 1 {tmp_path}/.mlic/7.2\n"


def test_options_of_the_site_take_the_place_of_ours() -> None:
    script = render(SlurmConfig(stage="pack", options={"output": "my logs/%j.txt", "requeue": ""}))
    assert script.count("--output=") == script.count("--requeue") == 1
    assert "#SBATCH --output='my logs/%j.txt'" in script


def test_each_task_of_an_array_has_its_fold_and_its_run(tmp_path: Path) -> None:
    script = render(SlurmConfig(stage="train", array="fold=0-4%2", arguments=("shards", "--name", "my run")))
    assert "#SBATCH --array=0-4%2" in script
    assert "#SBATCH --output=%x-%A_%a.log" in script
    given = Job(tmp_path, script).run(SLURM_ARRAY_TASK_ID="3")
    assert given[2:] == ["mlic", "train", "shards", "--name", "my run", "--fold", "3", "--name", "my run-fold3"]


def test_a_container_starts_the_launcher_inside(tmp_path: Path) -> None:
    config = SlurmConfig(
        stage="train", gpus_per_node=1, container=Path("/images/my mlic.sif"), container_options=("--bind=/data set",)
    )
    given = Job(tmp_path, render(config)).run("shards dir")
    inner = 'exec bash "$(mlic slurm --launcher)" "$@"'
    assert given == [
        "apptainer",
        "exec",
        "--nv",
        "--bind=/data set",
        "/images/my mlic.sif",
        "bash",
        "-c",
        inner,
        "with-ray",
        "mlic",
        "train",
        "shards dir",
    ]


@pytest.mark.parametrize(
    ("code", "warned", "queued"),
    [(6, True, True), (138, True, True), (6, False, False), (0, True, False), (3, True, False)],
)
def test_only_what_was_warned_and_stopped_is_queued_again(
    tmp_path: Path, code: int, warned: bool, queued: bool
) -> None:
    """A step that waits for the file `stop` ends with the code; the job keeps it, whatever else it does."""
    job = Job(tmp_path, render(SlurmConfig(stage="train")))
    wait = f'until [ -e "$MLIC_JOB_DIR/stop" ]; do sleep 0.05; done; exit {code}' if warned else f"exit {code}"
    started = job.start("shards", STEP=wait)
    while warned and not (tmp_path / "began").exists():
        time.sleep(0.05)
    if warned:
        started.send_signal(signal.SIGUSR1)
    started.communicate(timeout=60)
    assert started.returncode == code
    assert (tmp_path / "scontrol").exists() == queued
    assert not queued or (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_a_site_that_queues_nothing_again(tmp_path: Path) -> None:
    job = Job(tmp_path, render(SlurmConfig(stage="train")))
    started = job.start(STEP='until [ -e "$MLIC_JOB_DIR/stop" ]; do sleep 0.05; done; exit 6', SCONTROL_CODE="1")
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    started.send_signal(signal.SIGUSR1)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 6
    assert "submit the same job again to resume" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time": "soon"}, "time should be minutes"),
        ({"mem": "a lot"}, "mem should be a number"),
        ({"array": "fold"}, "array should look like fold=0-4"),
        ({"array": "fold=0-4", "stage": "pack"}, "an array is of train or tune"),
        ({"options": {"--qos": "high"}}, "options should be named as sbatch names them"),
        ({"options": {"qos": "a\n#SBATCH --nodes=9"}}, "one line of text"),
        ({"scratch": "/a/very/long/path/on/a/node"}, "at most 20 characters"),
        ({"grace": 5}, "grace"),
    ],
)
def test_impossible_requests(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(SlurmConfig, {"stage": "train", **given})
