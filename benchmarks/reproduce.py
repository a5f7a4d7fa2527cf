"""`mlic reproduce a` to `e` on a subset, each to its end, as they are typed.

    python -m benchmarks.reproduce IMAGES LABELS [--limit 300] [--epochs 1] [--out FOLDER]

Systems C and D begin with published weights. Where those are not in PyTorch's cache, random ones of the right shape
stand in, which says nothing of the numbers and everything of the way to them. Ends with 1 when a command fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch

from mlic.errors import ConfigError
from mlic.model import weights, zoo

ROWS = {"a": None, "b": None, "c": "resnet50", "d": "densenet121", "e": None}  # the architecture that needs weights


@click.command()
@click.argument("images", type=click.Path(path_type=Path, exists=True))
@click.argument("labels", type=click.Path(path_type=Path, exists=True))
@click.option("--limit", default=300, show_default=True, help="Images to pack")
@click.option("--epochs", default=1, show_default=True, help="Epochs, at most")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to keep; default: a temporary one")
def main(images: Path, labels: Path, limit: int, epochs: int, out: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="mlic-reproduce-") as scratch:
        folder = out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        codes = {system: run(system, images, labels, limit, epochs, folder) for system in ROWS}
    click.echo(", ".join(f"{system}: {code}" for system, code in codes.items()))
    sys.exit(any(codes.values()))


def run(system: str, images: Path, labels: Path, limit: int, epochs: int, folder: Path) -> int:
    """Run a system's command, and return its exit code."""
    arguments = ["--images", images, "--labels", labels, "--limit", limit, "--epochs", epochs, "--out", folder / system]
    arch = ROWS[system]
    if arch is not None:
        arguments += ["--weights", stand_in(arch, folder)]
    command = [sys.executable, "-m", "mlic", "reproduce", system, *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


def stand_in(arch: str, folder: Path) -> Path | str:
    """The published weights of an architecture where they are, else a file of random ones."""
    try:
        return weights.resolve(arch, "default") or "default"
    except ConfigError:
        file = folder / f"{arch}-random.pth"
        if not file.is_file():
            torch.save(zoo.build(arch, 1000, 3, 224, {}).state_dict(), file)
        return file


if __name__ == "__main__":
    main()
