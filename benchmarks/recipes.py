"""Each recipe on shards that were packed as its team packed them, for the same CPU time.

    python -m benchmarks.recipes IMAGES LABELS [RECIPE ...] [--minutes 20]

A run stops after the epoch in which its CPU minutes are used up, evaluation included, or where the recipe stops by
itself; twenty CPU minutes are what two cores do in ten. Decoding is left out, since all runs on the same shards share
the cache of decoded images. A recipe is measured where its team measured: on its test split, else on the validation
split, at the epoch that it keeps. One whose weights are not on this machine is named and left out. `default` is what
`mlic train` does, on the shards of system D, which have a test split. What was measured is written to
`benchmarks/recipes.json`, run by run, and from there to the table of jobs/README.md; `--minutes 0` writes the table
alone.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from mlic.config.data import PackConfig
from mlic.config.load import build, read_file
from mlic.config.recipes import Told, recipes, reported
from mlic.config.train import TrainConfig
from mlic.data.loader import ShardReader, eval_batches
from mlic.data.pixels.augment import Normalizer
from mlic.data.shards import read_index, read_split
from mlic.errors import MlicError
from mlic.metrics import thresholds
from mlic.metrics.calibration import Calibration
from mlic.metrics.measurement import Measurement, measure
from mlic.model import bundle, losses, weights
from mlic.pack.pack import pack
from mlic.train import checkpoints, evaluation, launch, setup, training_loop
from mlic.train.batches import readers
from mlic.train.rank import RankContext

RESULTS = Path(__file__).parent / "recipes.json"
TABLE = Path(__file__).parents[1] / "jobs" / "README.md"
BEGIN, END = "<!-- table by benchmarks.recipes -->", "<!-- end of the table -->"
GOES_ON = {"e-cnn-second": "e-cnn"}  # from the run of another recipe
SHOWN = ("f1_micro", "precision_micro", "recall_micro", "f1_macro", "map", "hamming_accuracy", "subset_accuracy")


class TimeIsUpError(Exception):
    """The run has used its CPU minutes."""


@click.command()
@click.argument("images", type=click.Path(path_type=Path, exists=True))
@click.argument("labels", type=click.Path(path_type=Path, exists=True))
@click.argument("names", nargs=-1)
@click.option("--minutes", default=20.0, show_default=True, help="CPU minutes of a run")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("recipe-runs"), show_default=True)
def main(images: Path, labels: Path, names: tuple[str, ...], minutes: float, runs: Path) -> None:
    torch.set_num_threads(2)
    told = {"default": Told("pack-d", {}, {}, "")} | reported()
    files = {recipe.name: recipe.path for recipe in recipes()}
    trained = [name for name in told if not name.startswith("tune-")]
    if unknown := set(names) - set(trained):
        raise click.BadParameter(f"no recipes of these names: {', '.join(sorted(unknown))}; `mlic recipes` lists them.")
    for name in (names or trained) if minutes else ():
        pack_plain = read_file(files[told[name].pack])
        shards = runs / f"shards-{told[name].pack.removeprefix('pack-')}"
        pack(build(PackConfig, pack_plain, {"images": images, "labels": labels, "out": shards}))
        plain: dict[str, Any] = {} if name == "default" else read_file(files[name])
        own = {"weights": str(runs / GOES_ON[name])} if name in GOES_ON else {}
        config = build(TrainConfig, plain, {"shards": shards}, own)
        try:
            weights.resolve(config.arch, config.weights)
        except MlicError as error:
            click.echo(f"{name}: left out: {error}")
            continue
        row = run(config, runs / name, minutes)
        click.echo(f"{name}: {json.dumps(row)}")
        RESULTS.write_text(json.dumps(read_results() | {name: row}, indent=1, sort_keys=True) + "\n")
        write_tables()
    write_tables()


def read_results() -> dict[str, Any]:
    """The rows of all runs by name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def write_tables() -> None:
    """Put what was reported and what was measured beside each other into jobs/README.md."""
    found = read_results()
    lines = ["| recipe | reported | measured | micro-F1, 95% interval | split | epochs |", "|---|---|---|---|---|---|"]
    every = [("default", "", {}), *((r.name, r.reported, read_file(r.path)) for r in recipes())]
    for name, told, plain in every:
        if not name.startswith(("pack-", "tune-")):
            lines.append(f"| `{name}` | {told or 'no numbers'} | {' | '.join(cells(found.get(name), plain))} |")
    put(lines, BEGIN, END)


def put(lines: list[str], begin: str, end: str) -> None:
    """Put a table between its two marks in jobs/README.md."""
    head, _, rest = TABLE.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    TABLE.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)


def cells(row: dict[str, Any] | None, plain: dict[str, Any]) -> tuple[str, str, str, str]:
    """What was measured, its interval, on which split, and after which epochs."""
    if row is None:
        needs = plain.get("weights") == "default"
        return "-", "-", "-", "needs ImageNet weights, which were not at hand" if needs else "not measured yet"
    values = row["values"]
    measured = (
        f"precision {values['precision_micro']:.3f}, recall {values['recall_micro']:.3f}, F1 {values['f1_micro']:.3f}; "
        f"macro-F1 {values['f1_macro']:.3f}, mAP {values['map']:.3f}, labels right {values['hamming_accuracy']:.1%}, "
        f"sets right {values['subset_accuracy']:.1%}"
    )
    ends = {"cut": f"cut after {row['epochs']} of {row['of']}", "whole": f"all {row['epochs']}"}
    epochs = ends.get(row["ends"], f"stopped by itself after {row['epochs']}")
    interval = f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}"
    return measured, interval, row["split"], f"{epochs}, {row['minutes']:.1f} CPU minutes"


def run(config: TrainConfig, folder: Path, minutes: float) -> dict[str, Any]:
    """Train for so many CPU minutes and measure the epoch that is kept, where the team measured."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    warm(config)
    started = time.process_time()

    def stop(row: dict[str, float]) -> None:
        if time.process_time() - started > 60 * minutes and row["epoch"] < config.epochs:
            raise TimeIsUpError

    ends = "whole"
    try:
        training_loop.fit(config, place(folder), stop)
    except TimeIsUpError:
        ends = "cut"
    used = (time.process_time() - started) / 60
    report = launch.finish(config, folder, folder, warn=False)
    history = checkpoints.read_history(folder)
    if len(history) < config.epochs and ends == "whole":
        ends = "stopped early"
    split, measurement = "val", report.measurement
    if read_index(config.shards)["splits"].get("test", {}).get("samples"):
        split, measurement = "test", measure_test(config, folder)
    return {
        "minutes": round(used, 2),
        "epochs": len(history),
        "of": config.epochs,
        "ends": ends,
        "split": split,
        "samples": measurement.samples,
        "values": {name: round(measurement.values[name], 4) for name in SHOWN},
        "interval": [round(end, 4) for end in measurement.intervals["f1_micro"]],
        "always_top_3": round(measurement.baselines["always_top_3"]["f1_micro"], 4),
        "all_negative": {
            name: round(measurement.baselines["all_negative"][name], 4)
            for name in ("hamming_accuracy", "subset_accuracy")
        },
    }


def measure_test(config: TrainConfig, folder: Path) -> Measurement:
    """The model of a run on the test split, as its bundle decides."""
    model, net = bundle.load_model(folder)
    test, prep = read_split(config.shards, "test"), model.preprocessing
    with ShardReader(test, prep) as reader:
        found = evaluation.evaluate(
            place(folder),
            net,
            reader.batches(eval_batches(len(test), 64, 0, 1), 0),
            Normalizer(prep.mean, prep.std, torch.device("cpu")),
            config.loss,
            lambda logits, targets: losses.loss_sum("bce", logits, targets, torch.ones(len(test.labels))),
            test,
        )
    if found is None:
        raise RuntimeError("the evaluation was stopped")
    scores = Calibration.read(model.calibration).apply(found.scores)
    decisions = thresholds.decide(scores, np.array(model.thresholds), model.top_k)
    return measure(test.labels, decisions, found.targets, scores, 1000, 0)


def warm(config: TrainConfig) -> None:
    """Decode the splits into the node's cache, where the run will find them."""
    prep = setup.preprocessing(config)
    side = readers.decoded_side(config)
    for name, size in (("train", side), ("val", prep.image_size)):
        with ShardReader(read_split(config.shards, name), prep.model_copy(update={"image_size": size})) as reader:
            reader.use_cache(config.cache_gb, 1)


def place(folder: Path) -> RankContext:
    """One process on the CPU."""
    return RankContext(0, 1, torch.device("cpu"), folder, folder, 1)


if __name__ == "__main__":
    main()
