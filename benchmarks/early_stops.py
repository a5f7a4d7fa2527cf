"""What ASHA loses and saves: a search with it beside the same search to the end.

    python -m benchmarks.early_stops SHARDS --config jobs/tune-frozen.yaml [--weights FILE] [--runs FOLDER]

Searches that are finished in FOLDER are not run again. The trial that wins with ASHA is looked up in the whole search,
where it was trained to its end beside all others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd

from benchmarks.results import write_section


@click.command()
@click.argument("shards")
@click.option("--config", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--weights", default="none", show_default=True)
@click.option("--runs", default=Path("early-stops"), type=click.Path(path_type=Path), show_default=True)
def main(shards: str, config: Path, weights: str, runs: Path) -> None:
    reports = {}
    for name, scheduler in (("whole", "none"), ("asha", "asha")):
        command = [
            sys.executable,
            "-m",
            "mlic",
            "tune",
            shards,
            "--config",
            str(config),
            "--weights",
            weights,
            "--runs",
            str(runs),
            "--name",
            name,
            "--scheduler",
            scheduler,
            "--no-doctor",
            "--json",
            "-q",
        ]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        reports[name] = json.loads(out.splitlines()[-1])
    table = pd.read_parquet(runs / "whole" / "trials.parquet").set_index("number")
    whole, asha = reports["whole"], reports["asha"]
    winner = asha["trials"][0]["number"]
    place = int((table["value"] > table["value"][winner]).sum()) + 1
    low, high = whole["measurement"]["intervals"][whole["objective"]]
    best = whole["trials"][0]["value"]
    lines = [
        f"{config.name}: {len(table)} trials of up to {whole['possible'] // len(table)} epochs. ASHA trained "
        f"{asha['epochs']} of {whole['epochs']} epochs, {asha['epochs'] / whole['epochs']:.0%}, "
        f"in {asha['seconds']:.0f} s; the whole search took {whole['seconds']:.0f} s.",
        f"Its winner is number {place} of the whole search, with {table['value'][winner]:.4f} there; the best has "
        f"{best:.4f}, whose interval over images is {low:.4f} to {high:.4f}.",
    ]
    write_section("Early stops", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
