"""Does training on streamed shards lose quality? The same runs with both orders of samples, over several seeds.

    python -m benchmarks.streaming IMAGES LABELS [--seeds 3] [--epochs 12] [--image-size 64]

Streamed samples are mixed over a few shards at a time, and others over the whole split; all else is the same. The test
split measures both. The interval is that of the mean difference over the seeds, by Student's t.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from scipy import stats

from benchmarks.results import write_section

METRICS = {"micro-F1": "f1_micro", "macro-F1": "f1_macro", "mAP": "map"}


@click.command()
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--image-size", default=64, show_default=True)
def main(images: Path, labels: Path, seeds: int, epochs: int, image_size: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mlic(folder, "pack", images.absolute(), "--labels", labels.absolute(), "--min-shards", 128)
        values = {order: np.zeros((seeds, len(METRICS))) for order in ("never", "always")}
        said = ""
        for seed in range(seeds):
            for order, rows in values.items():
                begun = time.monotonic()
                name = f"{order}{seed}"
                settings = ["--epochs", epochs, "--image-size", image_size, "--seed", seed, "--no-doctor"]
                trained = mlic(folder, "train", "shards", "--stream", order, "--name", name, *settings)
                said = next((line for line in trained.splitlines() if line.startswith("streams ")), said)
                mlic(folder, "evaluate", f"runs/{name}", "--out", f"{name}")
                measured = json.loads((folder / name / "metrics.json").read_text())["values"]
                rows[seed] = [measured[key] for key in METRICS.values()]
                print(name, rows[seed], f"{time.monotonic() - begun:.0f} s", flush=True)
    lines = ["| | whole order | streamed | difference, 95% interval |", "|---|---|---|---|"]
    for number, title in enumerate(METRICS):
        whole, streamed = values["never"][:, number], values["always"][:, number]
        difference = streamed - whole
        half = stats.t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / np.sqrt(seeds)
        low, high = difference.mean() - half, difference.mean() + half
        lines.append(
            f"| {title} | {whole.mean():.4f} | {streamed.mean():.4f} | "
            f"{difference.mean():+.4f}, {low:+.4f} to {high:+.4f} |"
        )
    heading = (
        f"{seeds} seeds, {epochs} epochs, {image_size} px, the default network; means on the test split. mlic {said}."
    )
    write_section("Streamed order", "\n".join([heading, "", *lines]) + "\n")


def mlic(folder: Path, *arguments: object) -> str:
    """Run a command in a folder; returns what it wrote to stderr."""
    command = [sys.executable, "-m", "mlic", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    main()
