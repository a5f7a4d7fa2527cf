"""A soup: one network whose weights are the means of those of several runs of one architecture.

Models are taken in greedily, as by Wortsman et al. 2022 (https://arxiv.org/abs/2203.05482, recipe 1): from the best one
on, each stays in if the mean with it is at least as good on the validation split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlic.config.predict import AverageConfig
from mlic.data.loader import ShardReader, eval_batches
from mlic.data.pixels.augment import Normalizer
from mlic.data.shards import Split, read_index, read_split
from mlic.errors import DataError
from mlic.evaluate.evaluate import shards_of
from mlic.metrics.decision import Settled
from mlic.metrics.measurement import Measurement
from mlic.model import bundle, losses, runtimes, zoo
from mlic.runs.files import disk_errors
from mlic.train import checkpoints
from mlic.train.launch import decide, expected, measured

_OBJECTIVE = "f1_micro"
_BATCH, _THREADS = 64, 2
Array = np.ndarray[Any, Any]
State = dict[str, torch.Tensor]


def soup(
    config: AverageConfig, models: Mapping[str, bundle.Bundle], bests: Mapping[str, checkpoints.Best]
) -> tuple[Settled, Measurement, tuple[str, ...]]:
    """Write the bundle of the soup, and its validation scores; returns its decisions and the names of what is in it.

    Raises DataError for models of several architectures, and for shards that are gone or have changed.
    """
    first = next(iter(models))
    for name, model in models.items():
        _check_same(first, models[first], name, model)
    split = _validation(config, models[first], bests[first])
    weights = models[first].provenance["pos_weight"]

    def judged(best: checkpoints.Best) -> tuple[Settled, dict[str, Any], float]:
        settled, fit = decide(config.policy, config.calibration, best, weights, config.seed, _OBJECTIVE)
        measurement = measured(models[first].labels, settled, best.targets, config.seed)
        return settled, fit, measurement.values[_OBJECTIVE]

    alone = {name: judged(best)[2] for name, best in bests.items()}
    order = sorted(bests, key=lambda name: -alone[name])
    taken, together = [order[0]], bests[order[0]]
    settled, fit, value = judged(together)
    for name in order[1:]:
        state = mean_of([bests[other].state for other in (*taken, name)])
        scores = _scores(models[first], state, split)
        tried = dataclasses.replace(together, epoch=0, metrics={}, state=state, scores=scores)
        result = judged(tried)
        if result[2] >= value:
            taken.append(name)
            together, (settled, fit, value) = tried, result
    measurement = _write(config, models[first], together, settled, fit, taken)
    return settled, measurement, tuple(taken)


def mean_of(states: Sequence[State]) -> State:
    """The mean of each tensor; counts, such as those of batches, are the first network's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


def _check_same(first: str, one: bundle.Bundle, name: str, other: bundle.Bundle) -> None:
    for what, a, b in (
        ("architecture", (one.arch, one.arch_options), (other.arch, other.arch_options)),
        ("preprocessing", one.preprocessing, other.preprocessing),
        ("activation", one.activation, other.activation),
    ):
        if a != b:
            raise DataError(
                f"the weights of {first} and {name} have no mean: their {what} is not the same ({a} and {b}).",
                "leave --weights out: the mean of their scores needs no common architecture.",
            )


def _validation(config: AverageConfig, model: bundle.Bundle, best: checkpoints.Best) -> Split:
    folder = shards_of(bundle.find(config.runs[0]).parent)
    split = read_split(folder, "val")
    same = (
        split.targets.shape == best.targets.shape
        and not (
            (best.targets >= 0)
            & (best.targets != split.targets)  # those of unreadable images count as unknown in a run
        ).any()
    )
    if read_index(folder)["fingerprint"] != model.provenance["shards"] or not same:
        raise DataError(
            f"{folder} does not hold the validation images of {config.runs[0]} any more.",
            "pack them again as they were, or leave --weights out.",
        )
    return split


def _scores(model: bundle.Bundle, state: State, split: Split) -> Array:
    """Scores float32 (N, L) of a split."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prep = model.preprocessing
    net = zoo.build(model.arch, len(model.labels), prep.channels, prep.image_size, model.arch_options)
    net.load_state_dict(state)
    net.eval().to(device)
    torch.set_num_threads(runtimes.threads())
    scores = np.zeros((len(split), len(model.labels)), np.float32)
    normalize = Normalizer(prep.mean, prep.std, device, prep.top)
    with ShardReader(split, prep) as reader, torch.inference_mode():
        for batch in reader.batches(eval_batches(len(split), _BATCH, 0, 1), _THREADS):
            outputs = losses.scores(model.activation, net(normalize(batch.images)).float())
            scores[batch.index] = outputs.cpu().numpy()
    return scores


def _write(
    config: AverageConfig,
    model: bundle.Bundle,
    together: checkpoints.Best,
    settled: Settled,
    fit: dict[str, Any],
    taken: Sequence[str],
) -> Measurement:
    provenance = {
        "run": config.out.name,
        "runs": list(taken),
        "shards": model.provenance["shards"],
        "seed": config.seed,
        "checkpoint": ".",
        "pos_weight": model.provenance["pos_weight"],
    }
    fit = fit | {"fitted_on": "val", "split": "val", "data": provenance["shards"], "samples": len(together.targets)}
    measurement = measured(model.labels, settled, together.targets, config.seed)
    mixed = dataclasses.replace(
        model,
        thresholds=tuple(float(value) for value in settled.thresholds),
        threshold_fit=fit | expected(measurement),
        calibration=settled.calibration.plain(),
        provenance=provenance,
    )
    with disk_errors(config.out):
        checkpoints.write_best(config.out, dataclasses.replace(together, decisions=settled.decisions))
        bundle.save(mixed, together.state, Path(config.out) / "model")
    return measurement
