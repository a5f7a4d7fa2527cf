"""Each recipe on the same shards for the same CPU time, measured on a test split that no run has seen.

    python -m benchmarks.recipes SHARDS [RECIPE ...] [--minutes 3 | --to-the-end]

A run stops after the epoch in which its CPU minutes are used up, evaluation included, or where the recipe stops by
itself; decoding is left out, since all runs share the cache of decoded images. With --to-the-end it has all of its
epochs, and a line of the second table. A recipe whose weights are not on this machine is named and left out; one that
goes on from another run is given it by --set weights=RUNS/NAME. `default` is what `mlic train SHARDS` does. What was
measured is written to `benchmarks/recipes.json`, run by run, and from there to the tables of jobs/README.md; without
names or new runs (`--minutes 0`) the tables alone are written.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import click
import torch
from filelock import FileLock

from benchmarks.results import write_section
from mlic.config import TrainConfig
from mlic.data.augment import Normalizer
from mlic.data.loader import ShardReader, eval_batches
from mlic.data.shards import read_split
from mlic.errors import ConfigError
from mlic.model import losses, weights, zoo
from mlic.settings import build, read_file, read_sets, recipes
from mlic.stages import checkpoints, fit, loop, start, validation
from mlic.stages.measure import measure
from mlic.stages.place import Place

RESULTS = Path(__file__).parent / "recipes.json"
TABLE = Path(__file__).parents[1] / "jobs" / "README.md"
BEGIN, END = "<!-- table by benchmarks.recipes -->", "<!-- end of the table -->"
BEGIN_WHOLE, END_WHOLE = "<!-- second table by benchmarks.recipes -->", "<!-- end of the second table -->"
TO_THE_END = ", to the end"  # behind the name of such a run in the file of results
SHOWN = ("f1_micro", "precision_micro", "recall_micro", "f1_macro", "map", "hamming_accuracy", "subset_accuracy")


class TimeIsUpError(Exception):
    """The run has used its CPU minutes."""


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.argument("names", nargs=-1)
@click.option("--minutes", default=3.0, show_default=True, help="CPU minutes of a run")
@click.option("--to-the-end", is_flag=True, help="All epochs of the recipe, whatever they take")
@click.option("--set", "sets", multiple=True, help="Settings over those of the recipes")
@click.option("--label", help="Name of the row; default: the recipe's")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("recipe-runs"), show_default=True)
def main(
    shards: Path, names: tuple[str, ...], minutes: float, to_the_end: bool, sets: tuple[str, ...], label: str | None,
    runs: Path,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    files = {recipe.name: recipe.path for recipe in recipes() if not recipe.name.startswith(("pack-", "tune-"))}
    if unknown := set(names) - {"default", *files}:
        raise click.BadParameter(f"no recipes of these names: {', '.join(sorted(unknown))}; `mlic recipes` lists them.")
    for name in (names or ("default", *files)) if minutes else ():
        plain: dict[str, Any] = {} if name == "default" else read_file(files[name])
        config = build(TrainConfig, plain, read_sets(list(sets)), {"shards": shards})
        try:
            weights.resolve(config.arch, config.weights)
        except ConfigError as error:
            click.echo(f"{name}: left out: {error}")
            continue
        row = run(config, runs / (label or name), math.inf if to_the_end else minutes)
        click.echo(f"{label or name}: {json.dumps(row)}")
        key = (label or name) + (TO_THE_END if to_the_end else "")
        with FileLock(runs / "results.lock"):  # others may run beside this one, each on a core
            RESULTS.write_text(json.dumps(read_results() | {key: row}, indent=1, sort_keys=True) + "\n")
            write_tables()
    write_tables()


def read_results() -> dict[str, Any]:
    """The rows of all runs by name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def write_tables() -> None:
    """Put what was reported and what was measured beside each other into jobs/README.md."""
    found = read_results()
    lines = ["| recipe | reported | measured on the test split | micro-F1, 95% interval | why it may differ |"]
    lines += ["|---|---|---|---|---|"]
    every = [("default", "", {}), *((r.name, r.reported, read_file(r.path)) for r in recipes())]
    for name, reported, plain in every:
        if not name.startswith(("pack-", "tune-")):
            measured, interval, why = cells(found.get(name), plain)
            lines.append(f"| `{name}` | {reported or 'no numbers'} | {measured} | {interval} | {why} |")
    put(lines, BEGIN, END)
    lines = [
        "| recipe | reported | measured on the test split | micro-F1, 95% interval | epochs |",
        "|---|---|---|---|---|",
    ]
    for name, reported, plain in every:
        if name + TO_THE_END in found:
            measured, interval, why = cells(found.pop(name + TO_THE_END), plain)
            lines.append(f"| `{name}` | {reported or 'no numbers'} | {measured} | {interval} | {why} |")
    put(lines, BEGIN_WHOLE, END_WHOLE)
    tried = {name: row for name, row in found.items() if name not in {name for name, _, _ in every}}
    if tried:
        lines = [
            "| settings | epochs | CPU minutes | micro-F1, 95% interval | macro-F1 | mAP |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in tried.items():
            values, (low, high) = row["values"], row["interval"]
            scores = (
                f"{values['f1_micro']:.3f}, {low:.3f} to {high:.3f} | {values['f1_macro']:.3f} | {values['map']:.3f}"
            )
            lines.append(f"| {name} | {row['epochs']} | {row['minutes']:.1f} | {scores} |")
        write_section("Choosing the defaults", "One run each, on the test split.\n\n" + "\n".join(lines) + "\n")


def put(lines: list[str], begin: str, end: str) -> None:
    """Put a table between its two marks in jobs/README.md."""
    head, _, rest = TABLE.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    TABLE.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)


def cells(row: dict[str, Any] | None, plain: dict[str, Any]) -> tuple[str, str, str]:
    """What was measured, its interval, and why it may differ from what was reported."""
    if row is None:
        needs = plain.get("weights")
        if needs == "default":
            return "-", "-", "needs ImageNet weights, which this machine does not have"
        return "-", "-", "goes on from another run: below" if needs else "not measured yet"
    values = row["values"]
    measured = (
        f"precision {values['precision_micro']:.3f}, recall {values['recall_micro']:.3f}, F1 {values['f1_micro']:.3f}; "
        f"macro-F1 {values['f1_macro']:.3f}, mAP {values['map']:.3f}, labels right {values['hamming_accuracy']:.1%}, "
        f"sets right {values['subset_accuracy']:.1%}"
    )
    ends = {"cut": f"cut after {row['epochs']} of {row['of']} epochs", "whole": f"all {row['epochs']} epochs"}
    why = ends.get(row["ends"], f"stopped by itself after {row['epochs']} epochs")
    return measured, f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}", f"{why}, {row['minutes']:.1f} CPU minutes"


def run(config: TrainConfig, folder: Path, minutes: float) -> dict[str, Any]:
    """Train for so many CPU minutes and measure the best epoch on the test split."""
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
        loop.fit(config, place(folder), stop)
    except TimeIsUpError:
        ends = "cut"
    used = (time.process_time() - started) / 60
    fit.finish(config, folder, folder, warn=False)  # its bundle, for a recipe that goes on from this run
    history = checkpoints.read_history(folder)
    if len(history) < config.epochs and ends == "whole":
        ends = "stopped early"
    measured = measure_test(config, folder)
    return {"minutes": round(used, 2), "epochs": len(history), "of": config.epochs, "ends": ends} | measured


def measure_test(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The best epoch, by the thresholds that were fitted to the validation split, on the test split."""
    best = checkpoints.read_best(folder)
    test = read_split(config.shards, "test")
    prep = start.preprocessing(config)
    net = zoo.build(config.arch, len(test.labels), prep.channels, prep.image_size, config.arch_options)
    net.load_state_dict(best.state)
    one = torch.ones(len(test.labels))
    with ShardReader(test, prep) as reader:
        found = validation.evaluate(
            place(folder), net, reader.batches(eval_batches(len(test), 64, 0, 1), 0),
            Normalizer(prep.mean, prep.std, torch.device("cpu")), config.loss,
            lambda logits, targets: losses.loss_sum("bce", logits, targets, one), test.targets.shape,
        )  # fmt: skip
    decisions = found.scores >= best.thresholds
    measurement = measure(test.labels, decisions, found.targets, found.scores, 1000, 0)
    return {
        "test_samples": len(test),
        "values": {name: round(measurement.values[name], 4) for name in SHOWN},
        "interval": [round(end, 4) for end in measurement.intervals["f1_micro"]],
        "always_top_3": round(measurement.baselines["always_top_3"]["f1_micro"], 4),
        "all_negative": {
            name: round(measurement.baselines["all_negative"][name], 4)
            for name in ("hamming_accuracy", "subset_accuracy")
        },
    }


def warm(config: TrainConfig) -> None:
    """Decode the splits into the node's cache, where the run will find them."""
    prep = start.preprocessing(config)
    side = loop.decoded_side(config)
    for name, size in (("train", side), ("val", prep.image_size)):
        with ShardReader(read_split(config.shards, name), prep.model_copy(update={"image_size": size})) as reader:
            reader.use_cache(config.cache_gb, 1)


def place(folder: Path) -> Place:
    """One process on the CPU."""
    return Place(0, 1, torch.device("cpu"), folder, folder, 1)


if __name__ == "__main__":
    main()
