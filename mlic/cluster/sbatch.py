"""The text of an sbatch file, as a pure function of SlurmConfig."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mlic.config.jobs import SlurmConfig
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
    """The sbatch file of a stage; arguments after the file's name on sbatch's command line go to the stage."""
    lines = [
        "#!/usr/bin/env bash",
        *_directives(config),
        "",
        "set -euo pipefail",
        *_environment(config),
        "",
        *_BEFORE,
        *([] if config.container else ["launcher=$(mlic slurm --launcher)"]),
        "# Ray over the whole allocation, and the command on its first node.",
        f"srun {' '.join(_STEP)} {_launch(config)} \\",
        f"  {_command(config)} &",
        *_AFTER,
    ]
    return "\n".join(lines) + "\n"


def _directives(config: SlurmConfig) -> list[str]:
    name, _, indices = (config.array or "").partition("=")
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
        "array": indices if name else None,
        "exclusive": "" if config.exclusive else None,
        "output": "%x-%A_%a.log" if name else "%x-%j.log",
        "open-mode": "append",  # a job that is queued again continues with its log
        "signal": f"B:USR1@{config.grace}",
        "requeue": "",
        **config.options,
    }
    return [
        f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")  # SLURM splits these lines as a shell does
        for name, value in options.items()
        if value is not None
    ]


def _environment(config: SlurmConfig) -> list[str]:
    lines = [f"module load {shlex.join(config.modules)}"] if config.modules else []
    if config.venv is not None:
        lines.append(f"source {shlex.quote(str(config.venv / 'bin' / 'activate'))}")
    if config.scratch is not None:
        lines.append(f"export MLIC_LOCAL_TMP={shlex.quote(str(config.scratch))}")
    if config.exclusive:
        lines.append("export MLIC_EXCLUSIVE=1")
    return lines


# The step runs in the background, so that bash handles a signal at once. After each signal, bash waits for it again.
_BEFORE = (
    "# Before the time limit SLURM sends USR1. The command then writes a checkpoint and exits with 6, and the job is",
    "# queued again. The command is told by a file, because a signal to the job step would also end Ray.",
    'export MLIC_JOB_DIR="$SLURM_SUBMIT_DIR/.mlic/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
    "signals=0",
    'trap \'signals=$((signals + 1)); mkdir -p "$MLIC_JOB_DIR"; touch "$MLIC_JOB_DIR/stop"\' USR1',
)
_STEP = ("--kill-on-bad-exit=0", '--cpus-per-task="$SLURM_CPUS_PER_TASK"')
_AFTER = (
    "heard=-1",
    "while [ $heard != $signals ]; do heard=$signals code=0; wait $! || code=$?; done",
    "if [ $signals != 0 ] && { [ $code = 6 ] || [ $code = 138 ]; }; then  # 138: it was not ready for the signal",
    '  scontrol requeue "$SLURM_JOB_ID" || echo "Error: cannot requeue here; submit the same job again to resume." >&2',
    "fi",
    "exit $code",
)


def _launch(config: SlurmConfig) -> str:
    """What starts with-ray.sh on each node."""
    if config.container is None:
        return 'bash "$launcher"'
    gpus = ["--nv"] if config.gpus_per_node else []
    words = ["apptainer", "exec", *gpus, *config.container_options, str(config.container)]
    return f'{shlex.join(words)} bash -c \'exec bash "$(mlic slurm --launcher)" "$@"\' with-ray'


def _command(config: SlurmConfig) -> str:
    name, _, _ = (config.array or "").partition("=")
    return shlex.join(["mlic", config.stage, *config.arguments]) + "".join(_of_task(config, name)) + ' "$@"'


def _of_task(config: SlurmConfig, name: str) -> Sequence[str]:
    """The arguments of one array task in addition to the common arguments: its fold or seed, and a name of its own."""
    if not name:
        return ()
    words = list(config.arguments)
    run = words[words.index("--name") + 1] if "--name" in words[:-1] else config.stage
    return f' --{name} "$SLURM_ARRAY_TASK_ID"', f' --name {shlex.quote(run)}-{name}"$SLURM_ARRAY_TASK_ID"'
