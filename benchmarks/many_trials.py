"""What the driver of `mlic tune` costs as its trials grow in number: memory, and time for each trial.

    python -m benchmarks.many_trials [--trials 2000]

Trials of three epochs of one step on 64 generated images of 16 pixels, with ASHA, so that next to nothing is training.
The trials' folders say when each was begun, and /proc what the driver's process has used until then.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.results import write_section
from mlic.config.data import PackConfig
from mlic.data import toy
from mlic.pack.pack import pack

PARTS = 5


@click.command()
@click.option("--trials", default=2000, show_default=True)
def main(trials: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        toy.generate(folder / "corpus", 96, 0, 0, 16)
        where = {"images": folder / "corpus" / "images", "labels": folder / "corpus" / "annotations"}
        share = 32 / 96
        split = {"train": 1 - share, "val": share}
        pack(PackConfig(**where, out=folder / "shards", split=split, split_by="random", group_by="none", workers=1))
        settings = {
            "image_size": 16,
            "batch_size": 64,
            "epochs": 3,
            "doctor": False,
            "num_samples": trials,
            "arch": "a-ffnn",
            "precision": "fp32",
            "calibration": "none",
            "loader_threads": 0,
            "space": {"lr": {"loguniform": [5e-4, 8e-3]}, "weight_decay": {"uniform": [0, 0.1]}},
        }
        (folder / "search.json").write_text(json.dumps(settings))
        rows = watched(folder, trials)
        lines = ["| trials begun | s a trial | CPU of the driver, s a trial | memory of the driver, MB |"]
        lines.append("|---|---|---|---|")
        for one, two in itertools.pairwise(rows):
            new = two[0] - one[0]
            lines.append(
                f"| {one[0]:,} to {two[0]:,} | {(two[1] - one[1]) / new:.3f} | {(two[2] - one[2]) / new:.4f} | "
                f"{two[3]:.0f} |"
            )
        write_section("Many trials", "\n".join(lines) + "\n")


def watched(folder: Path, trials: int) -> list[tuple[int, float, float, float]]:
    """Trials that are begun, seconds, CPU seconds and megabytes of the driver, at the ends of the parts of a search."""
    command = [
        sys.executable,
        "-m",
        "mlic",
        "tune",
        str(folder / "shards"),
        "--config",
        str(folder / "search.json"),
        "--runs",
        str(folder / "runs"),
        "--name",
        "tune",
        "-q",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found: list[tuple[int, float, float, float]] = []
    seen = 0
    while driver.poll() is None and len(found) <= PARTS:
        while (folder / "runs" / "tune" / "trials" / f"{seen:05d}").is_dir():
            seen += 1
        if seen > len(found) * (trials - 10) / PARTS:
            found.append((seen, time.monotonic(), *used(driver.pid)))
        time.sleep(0.05)
    if driver.wait():
        raise RuntimeError(f"mlic tune ended with {driver.returncode}")
    return found


def used(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and the megabytes that it holds."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    cpu = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    held = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return cpu, int(held.split()[1]) / 1024


if __name__ == "__main__":
    main()
