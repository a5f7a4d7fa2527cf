"""The tutorial docs/loop.md: its commands run as they stand, with a person whose answers are right."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlic.data import toy
from mlic.data.shards import read_index
from tests.golden import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_loop_from_a_few_labels_to_more(tmp_path: Path) -> None:
    toy.generate(tmp_path / "all", num_samples=220, num_unlabelled=2, seed=5)
    truth = {path.stem: set(path.read_text().split()) for path in (tmp_path / "all" / "annotations").iterdir()}
    labels, names = sorted(truth), sorted(path.name for path in (tmp_path / "all" / "images").iterdir())
    for number, name in enumerate(names):
        target = tmp_path / ("photos" if number % 2 else "more-photos") / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "all" / "images" / name, target)

    def write(path: Path, files: list[str]) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", *labels])
            for name in files:
                number = re.sub(r"\D", "", name)
                writer.writerow(
                    [name, *(int(bool({name, Path(name).stem, number} & truth[label])) for label in labels)]
                )

    write(tmp_path / "labels.csv", names[1::2])
    page = (ROOT / "docs" / "loop.md").read_text()
    first, second = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(commands: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(first)
    assert (tmp_path / "review.html").is_file()
    with (tmp_path / "batch.tsv").open(newline="") as file:
        chosen = [row["file"] for row in csv.DictReader(file, delimiter="\t")]
    assert len(chosen) == 40
    write(tmp_path / "answers.csv", chosen)

    def test_shards() -> dict[str, str]:
        shards = read_index(tmp_path / "shards")["shards"]
        return {name: shard["sha256"] for name, shard in shards.items() if shard["split"] == "test"}

    before = test_shards()
    said = run(second)
    assert said.splitlines()[0] == said.splitlines()[1]  # the same columns
    assert test_shards() == before
    assert read_index(tmp_path / "shards")["samples"] == 110 + 40
    reports = sorted((tmp_path / "runs").glob("*/predictions/test.parquet.eval/metrics.json"))
    assert len(reports) == 2
    assert len({json.loads(report.read_text())["samples"] for report in reports}) == 1
