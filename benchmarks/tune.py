"""`mlic tune` beside Ray Tune as its documentation has it, beside Optuna in one process, and beside training alone.

    python -m benchmarks.tune [--trials 50] [--documented 6] [--epochs 3]

The same trials (architecture, learning rate, weighting) and generated images, decoded beforehand for all, without early
stops, so that all do the same steps. "Alone" are the trials one after another in one process that is warm; on several
cores the bound is that time over their number. The documented pattern is a TorchTrainer of one worker within each Tune
trial; as each takes half a minute, fewer are run, and its figure is for each trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.results import write_section
from benchmarks.train import prepare
from mlic.config.load import build
from mlic.config.tune import TuneConfig

CORES = os.cpu_count() or 1
SHARED: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 64,
    "doctor": False,
    "color": "rgb",
    "loader_threads": 0,
    "space": {
        "arch": {"choice": ["small", "b-final"]},
        "lr": {"loguniform": [5e-4, 8e-3]},
        "pos_weight_power": {"uniform": [0, 1]},
    },
}


@click.command()
@click.option("--trials", default=50, show_default=True)
@click.option("--documented", default=6, show_default=True, help="Trials of the documented pattern")
@click.option("--epochs", default=3, show_default=True)
def main(trials: int, documented: int, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MLIC_CACHE_DIR"] = str(folder / "cache")
        shards = prepare(folder)
        settings = {**SHARED, "shards": str(shards), "epochs": epochs, "num_samples": trials, "scheduler": "none"}
        (folder / "search.json").write_text(json.dumps(settings))
        alone = apart("alone", folder, trials)  # also decodes for all that follow
        alone = apart("alone", folder, trials)
        ours = of_mlic(folder)
        optuna = apart("optuna", folder, trials)
        pattern = apart("documented", folder, documented)
        bound = alone[0] / CORES
        rows = [
            ("the steps alone, in one warm process", trials, alone),
            ("mlic tune", trials, ours),
            ("Optuna in one process", trials, optuna),
            ("Ray Tune and TorchTrainer, as documented", documented, pattern),
        ]
        lines = ["| | trials | wall, s a trial | CPU, s a trial |", "|---|---|---|---|"]
        lines += [f"| {name} | {n} | {wall / n:.2f} | {cpu / n:.2f} |" for name, n, (wall, cpu) in rows]
        wall, cpu = pattern[0] / documented / (ours[0] / trials), pattern[1] / documented / (ours[1] / trials)
        text = [
            f"{trials} trials of {epochs} epochs, {CORES} at a time, from the command to its end.",
            "",
            *lines,
            "",
            f"mlic tune takes {ours[0] / bound:.2f} times the steps' time over {CORES} cores and "
            f"{ours[1] / alone[1]:.2f} times their CPU time; a trial of the documented pattern takes {wall:.1f} times "
            f"as long as one of mlic tune, and {cpu:.1f} times the CPU time.",
        ]
        write_section("Searching", "\n".join(text) + "\n")


def of_mlic(folder: Path) -> tuple[float, float]:
    """Seconds of wall and CPU time of the command, Ray's start included."""
    command = [
        sys.executable,
        "-m",
        "mlic",
        "tune",
        "--config",
        str(folder / "search.json"),
        "--runs",
        str(folder / "runs"),
        "--name",
        "tune",
        "-q",
    ]
    return measured(command)


def apart(what: str, folder: Path, trials: int) -> tuple[float, float]:
    """Seconds of wall and CPU time of a peer's trials, in a process of its own that times them itself."""
    command = [sys.executable, "-m", "benchmarks.tune_peers", what, str(folder), str(trials)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    wall, cpu = json.loads(out.splitlines()[-1])
    return wall, cpu


def measured(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command, and CPU seconds of the whole machine meanwhile: run this on an idle one."""
    started, before = time.monotonic(), busy()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started, busy() - before


def busy() -> float:
    """CPU seconds that the machine has worked since it started."""
    words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq = (int(word) for word in words[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def plans(folder: Path, trials: int) -> list[Any]:
    """The configurations of the trials, the same for all."""
    config = build(TuneConfig, json.loads((folder / "search.json").read_text()))
    return [config.plan(config.drawn(number)) for number in range(trials)]


if __name__ == "__main__":
    main()
