from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mlic.cluster.slurm import launcher, render
from mlic.config import STAGES, SlurmConfig
from mlic.errors import ConfigError
from mlic.settings import build


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
