"""sbatch text as a pure function of SlurmConfig."""

from __future__ import annotations

import shlex
from pathlib import Path

from mlic.config import SlurmConfig
from mlic.errors import ClusterError


def launcher() -> Path:
    """Where with-ray.sh is: beside this file in an installed package, in cluster/ in a clone.

    Raises ClusterError when it is in neither place.
    """
    here = Path(__file__).resolve()
    for path in (here.with_name("with-ray.sh"), here.parents[2] / "cluster" / "with-ray.sh"):
        if path.is_file():
            return path
    raise ClusterError(f"with-ray.sh is missing beside {here.parent}.", "install mlic again.")


def render(config: SlurmConfig) -> str:
    """The sbatch file of a stage; whatever follows its name on sbatch's command line goes to the stage."""
    options = {
        "job-name": config.job_name or f"mlic-{config.stage}",
        "nodes": str(config.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(config.cpus_per_task),
        "gpus-per-node": str(config.gpus_per_node) if config.gpus_per_node else None,
        "mem": config.mem,
        "time": config.time,
        "partition": config.partition,
        "account": config.account,
        "output": "%x-%j.log",
    }
    head = [f"#SBATCH --{name}={_quoted(value)}" for name, value in options.items() if value is not None]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *head,
            "#SBATCH --requeue",
            "",
            "set -euo pipefail",
            f"# Ray over the whole allocation, and mlic {config.stage} on it with the arguments of this script.",
            f'srun --kill-on-bad-exit=0 bash "$(mlic slurm --launcher)" mlic {config.stage} "$@" &',
            "wait $!  # in the background, so that bash sees a signal at once",
            "",
        ]
    )


def _quoted(value: str) -> str:
    """A value for an #SBATCH line, which SLURM splits at spaces and quotes as a shell does."""
    return shlex.quote(value) if "%" not in value else value
