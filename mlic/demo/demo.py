"""Run the whole pipeline on a small generated corpus: pack, train, tune, batch-predict, evaluate."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

from mlic.batch_predict.predict import predict
from mlic.cluster.connect import connect
from mlic.config.base import Model
from mlic.config.data import PackConfig
from mlic.config.evaluate import EvaluateConfig
from mlic.config.examples import DemoConfig
from mlic.config.predict import PredictConfig
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data import toy
from mlic.evaluate.evaluate import evaluate
from mlic.metrics.measurement import Measurement
from mlic.pack.pack import pack
from mlic.runs.run import Run
from mlic.train.launch import fit
from mlic.tune.tune import tune

logger = logging.getLogger(__name__)

_IMAGE_SIZE = 64
_EPOCHS = 8
_TRIALS = 4


class DemoReport(Model):
    """What the demo left behind. `measurement` is of the test split, which neither training nor the search saw."""

    out: Path
    shards: Path
    run: Path
    search: Path
    predictions: Path
    predicted: int
    report: Path
    measurement: Measurement

    def text(self) -> str:
        return "\n".join(
            [
                f"test split of the generated corpus, {self.measurement.samples} samples, model {self.run.name}",
                self.measurement.table(),
                f"predictions of {self.predicted} new images  {self.predictions}",
                f"report  {self.report}",
            ]
        )


def demo(config: DemoConfig) -> DemoReport:
    """Generate a corpus and run every stage on it, on one Ray; each stage may be stopped and continues."""
    out = config.out
    corpus = out / "corpus"
    with Run.open(out, "demo", config, {}, config.fresh) as run:
        if run.finished and Path(run.report["report"]).is_file():
            return DemoReport(**run.report)
        if run.finished:
            run.reopen()
        if not (corpus / "done").is_file():
            _say("generating the corpus")
            toy.generate(corpus, config.samples, config.samples // 8, config.seed, _IMAGE_SIZE)
            (corpus / "done").touch()
        with connect(config.address) as cluster:
            workers = 1 if config.workers != "auto" and cluster.cpus < config.workers else config.workers
            report = _run_stages(config, corpus, workers)
        run.finish(report)
    return report


def _run_stages(config: DemoConfig, corpus: Path, workers: int | Literal["auto"]) -> DemoReport:
    """Run the stages that are not finished, one after the other."""
    out = config.out
    shards, common = out / "shards", {"seed": config.seed, "address": config.address}
    shared = {
        "shards": shards,
        "runs": out / "runs",
        "epochs": _EPOCHS,
        "image_size": _IMAGE_SIZE,
        "batch_size": 32,
        **common,
    }
    _say("mlic pack")
    pack(PackConfig(images=corpus / "images", labels=corpus / "annotations", out=shards, **common))
    _say(f"mlic train, {_EPOCHS} epochs on {workers} workers")
    trained = fit(TrainConfig(arch="b-final", color="rgb", name="train", workers=workers, **shared))
    _say(f"mlic tune, {_TRIALS} trials")
    searched = tune(TuneConfig(num_samples=_TRIALS, color="rgb", name="tune", **shared))
    best = trained.run
    if searched.measurement.values["f1_micro"] > trained.measurement.values["f1_micro"]:
        best = searched.run
    _say(f"mlic batch-predict with {best.name}")
    predicted = predict(
        PredictConfig(model=best, images=corpus / "unlabelled", out=out / "preds.tsv", address=config.address)
    )
    _say("mlic evaluate")
    measured = evaluate(EvaluateConfig(predictions=best, labels=shards, out=out / "evaluation", **common))
    return DemoReport(
        out=out,
        shards=shards,
        run=best,
        search=searched.run,
        predictions=predicted.out,
        predicted=predicted.predicted,
        report=measured.report,
        measurement=measured.measurement,
    )


def _say(text: str) -> None:
    logger.info("%s  %s", time.strftime("%H:%M:%S"), text)
