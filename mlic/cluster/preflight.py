"""Checks before PyTorch and Ray are loaded: missing shards, and trials that are too large for the cluster.

The stages check the same and more. This answers a mistake on a login node in half a second.
"""

from __future__ import annotations

from mlic.cluster.connect import begin, foreseen
from mlic.cluster.resources import Cluster, Share
from mlic.config.base import Settings
from mlic.config.fit import ShardSettings
from mlic.config.train import TrainConfig
from mlic.config.tune import TuneConfig
from mlic.data.shards import check_trainable, is_foreign, read_index
from mlic.errors import ClusterError, MlicError
from mlic.runs.run import read_state


def check(config: Settings) -> None:
    """Raise DataError for shards that cannot be trained on, and ClusterError where an embedded Ray has no room."""
    if not isinstance(config, ShardSettings):
        return
    if is_foreign(config.shards):  # the command itself indexes them first
        return
    index = read_index(config.shards)
    if isinstance(config, TrainConfig | TuneConfig) and not config.cross_validate:
        check_trainable(config.shards, index, config.fold)
    if isinstance(config, TuneConfig) and not config.folder.exists():
        here = foreseen(config.address)
        if here is not None:
            trials_at_once(here, config)


def begin_ray(config: Settings) -> None:
    """Begin to start an embedded Ray, if the command will need one: meanwhile the command imports PyTorch."""
    if isinstance(config, TrainConfig | TuneConfig) and (config.fresh or not _is_finished(config)):
        begin(config.address, ("torch", "pyarrow.parquet"))


def _is_finished(config: TrainConfig | TuneConfig) -> bool:
    try:
        state = read_state(config.folder)
    except MlicError:  # the command itself says what is wrong
        return True
    return state is not None and state.get("status") == "finished"


def trials_at_once(cluster: Cluster, config: TuneConfig) -> tuple[int, Share]:
    """How many trials of a search fit on a cluster at a time, and the workers of each.

    Raises ClusterError when none fits: Ray Tune itself would wait for ever.
    """
    gpus = config.gpus_per_trial if config.gpus_per_trial is not None else float(cluster.gpus > 0)
    cpus, counts = config.cpus_per_trial or 1.0, []
    if gpus and config.cpus_per_trial is None:
        with_gpus = [node for node in cluster.nodes if node.gpus]
        cpus = float(max(1, min((int(node.cpus * gpus / node.gpus) for node in with_gpus), default=1)))
    for node in cluster.nodes:
        fits = int(node.cpus / cpus + 1e-9)
        counts.append(min(fits, int(node.gpus / gpus + 1e-9)) if gpus else fits)
    for what, need, have in (
        ("CPUs", cpus, max((node.cpus for node in cluster.nodes), default=0)),
        ("GPUs", gpus, max((node.gpus for node in cluster.nodes), default=0)),
    ):
        if need > have:
            flag = f"--{what[:3].lower()}s-per-trial {have}"
            raise ClusterError(f"a trial needs {need:g} {what}; the largest node has {have}.", flag + ".")
    if not sum(counts):
        raise ClusterError(f"no node has {cpus:g} CPUs and {gpus:g} GPUs for a trial.", "give it fewer of them.")
    fits = sum(counts) // config.workers_per_trial
    if not fits:
        raise ClusterError(
            f"a trial needs {config.workers_per_trial} workers; this cluster has room for {sum(counts)}.",
            f"--workers-per-trial {sum(counts)}.",
        )
    at_once = fits if config.workers == "auto" else min(fits, config.workers)
    return at_once, Share(config.workers_per_trial, cpus, gpus)
