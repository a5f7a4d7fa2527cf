"""Files that tests compare whole. `make golden` rewrites them; look at the diff before you commit it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from mlic.cli.main import cli
from mlic.cluster.sbatch import render
from mlic.config.jobs import STAGES, SlurmConfig
from mlic.config.tune import TuneConfig

ROOT = Path(__file__).parents[1]
COMMANDS = (*sorted(cli.commands), "")

# What the checked-in files ask for; everything else is SlurmConfig's default.
SBATCH = {
    "pack": SlurmConfig(stage="pack", cpus_per_task=16, time="02:00:00"),
    "train": SlurmConfig(stage="train", nodes=2, cpus_per_task=16, gpus_per_node=4, time="12:00:00"),
    "tune": SlurmConfig(stage="tune", nodes=4, cpus_per_task=16, gpus_per_node=4, time="12:00:00"),
    "noise": SlurmConfig(stage="noise", nodes=2, cpus_per_task=16, gpus_per_node=4, time="12:00:00"),
    "batch-predict": SlurmConfig(stage="batch-predict", nodes=2, cpus_per_task=16, gpus_per_node=4),
    "evaluate": SlurmConfig(stage="evaluate", time="01:00:00"),
}
assert set(SBATCH) == set(STAGES)


def help_text(command: str) -> str:
    """What `mlic COMMAND --help` prints."""
    arguments = [command, "--help"] if command else ["--help"]
    return CliRunner().invoke(cli, arguments, prog_name="mlic", terminal_width=100).output


def expected() -> dict[Path, str]:
    """Every golden file with what it should hold."""
    files = {ROOT / "tests" / "golden" / f"help-{name or 'mlic'}.txt": help_text(name) for name in COMMANDS}
    schema = TuneConfig.model_json_schema() | {"required": []}  # what a file leaves out is given on the command line
    files[ROOT / "jobs" / "tune.schema.json"] = json.dumps(schema, indent=1) + "\n"
    files |= {ROOT / "slurm" / f"{stage}.sbatch": render(config) for stage, config in SBATCH.items()}
    return files


if __name__ == "__main__":
    for path, text in expected().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
