"""The peers of benchmarks.tune, each in a process of its own: prints seconds of wall and CPU time of its trials.

python -m benchmarks.tune_peers alone|optuna|documented FOLDER TRIALS
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.tune import busy, plans
from mlic.config.train import TrainConfig
from mlic.train import training_loop
from mlic.train.rank import RankContext


def fit(config: TrainConfig, folder: Path, say: Any = lambda _: None) -> float:
    """Train a trial in this process; returns its best value."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
    values: list[float] = []

    def row(found: dict[str, float]) -> None:
        values.append(found["val/f1_micro"])
        say(found)

    training_loop.fit(config, RankContext(0, 1, torch.device("cpu"), folder, folder, 1), row)
    return max(values)


def alone(folder: Path, trials: int) -> None:
    """The trials one after another, after one that warms up."""
    torch.set_num_threads(1)
    todo = plans(folder, trials)
    fit(todo[0], folder / "one")
    started, cpu = time.monotonic(), time.process_time()
    for config in todo:
        fit(config, folder / "one")
    tell(time.monotonic() - started, time.process_time() - cpu)


def optuna(folder: Path, trials: int) -> None:
    """As one writes it by hand: a study in one process, with PyTorch's threads on all cores."""
    import optuna as peer

    peer.logging.set_verbosity(peer.logging.ERROR)
    todo = plans(folder, trials)
    started, cpu = time.monotonic(), time.process_time()
    study = peer.create_study(direction="maximize")
    study.optimize(lambda trial: fit(todo[trial.number], folder / "one"), n_trials=trials)
    tell(time.monotonic() - started, time.process_time() - cpu)


def documented(folder: Path, trials: int) -> None:
    """A TorchTrainer of one worker in each trial of a Tuner, two trials at a time."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    todo = [config.model_dump(mode="json") for config in plans(folder, trials)]
    started, cpu = time.monotonic(), busy()
    ray.init(log_to_driver=False, num_cpus=2)

    def worker(given: dict[str, Any]) -> None:
        def say(row: dict[str, float]) -> None:
            ray.train.report({"epoch": row["epoch"], "value": row["val/f1_micro"]})

        fit(TrainConfig(**todo[given["number"]]), folder / f"documented{given['number']}", say)

    def trial(given: dict[str, Any]) -> None:
        TorchTrainer(
            worker,
            train_loop_config=given,
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(
                name=f"trial-{given['number']}", storage_path=str(folder / "ray"), callbacks=[TuneReportCallback()]
            ),
        ).fit()

    results = tune.Tuner(
        tune.with_resources(trial, {"memory": 2**20}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(name="documented", storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    if results.errors:
        raise results.errors[0]
    ray.shutdown()
    tell(time.monotonic() - started, busy() - cpu)


def tell(wall: float, cpu: float) -> None:
    print(json.dumps([wall, cpu]))


if __name__ == "__main__":
    {"alone": alone, "optuna": optuna, "documented": documented}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
