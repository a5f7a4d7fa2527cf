"""Run the trials of a search on Ray Tune, and wait for its end.

Ray Tune gives every trial a worker with its CPUs and GPUs, keeps its process for the next trial, and restarts a trial
whose worker is lost. Which trial runs, pauses and stops is decided in `scheduler`, in the order of trial numbers. Each
trial's own folder is the record: a resumed search reads its past from there, and Ray Tune starts without any state.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from mlic.cluster import placement, signals
from mlic.cluster.preflight import trials_at_once
from mlic.cluster.resources import Cluster, Share
from mlic.config.tune import TuneConfig
from mlic.errors import RunError
from mlic.runs.run import Run
from mlic.train.launch import decide_dtype
from mlic.tune import trial_worker
from mlic.tune.early_stopping import Search
from mlic.tune.progress import IN_ORDER, Progress
from mlic.tune.trial_store import Trials

logger = logging.getLogger(__name__)

_SCRATCH = ".ray"  # in the run's folder: Ray Tune's own records of its trials, which nobody needs later
_ALL_AT_ONCE = ("hyperband", "pbt")  # schedulers that have to know all trials from the start


def train_on(cluster: Cluster, config: TuneConfig, trials: Trials, run: Run[Path], timed: bool) -> None:
    """Train the trials until the search is done or, if it is `timed`, until its budget is used.

    Raises ClusterError when not even one trial fits, RunError when trials die of one error from the first on, and
    PartialError when it is interrupted.
    """
    at_once, share = trials_at_once(cluster, config)
    _announce(config, trials.search, at_once, timed)
    progress = Progress(config, trials, run, at_once, timed)
    _set_environment(trials.count if config.scheduler in _ALL_AT_ONCE else at_once)
    arguments = {
        "folder": str(run.folder),
        "base": str(trials.base),
        "attempt": run.attempt,
        "deadline": progress.deadline,
        "share": dataclasses.astuple(share),
        "embedded": cluster.embedded,
        "objective": progress.metric,
        "population": config.model_dump_json() if config.scheduler == "pbt" else None,
        "dtype": decide_dtype("auto", share, run),
    }
    scratch = run.folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with run.stopping_on_request(), placement.watching_room(share, share.workers):
            failed = signals.run_beside(_tuner(progress, arguments, share, scratch).fit, progress.look)
    except KeyboardInterrupt:
        raise progress.stopped() from None
    finally:
        progress.save_clock()
        shutil.rmtree(scratch, ignore_errors=True)
    if failed is not None:
        raise failed
    if progress.hopeless is not None:
        raise RunError(
            f"the first {progress.first} trials all failed with the same error: {progress.hopeless}",
            "fix that and use --fresh.",
        )
    if run.is_asked_to_stop and not trials.search.done:
        raise progress.stopped()


def _set_environment(pending: int) -> None:
    """Set what Ray Tune reads from the environment when it is imported and when it starts."""
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours to answer
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the trials' folders have their own files
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # nobody resumes from what Ray Tune notes of its trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # All workers start at once. With a searcher, Ray Tune would start them one after another. That would take the time
    # of as many starts of a process as there are nodes.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(pending)


def _tuner(progress: Progress, arguments: dict[str, Any], share: Share, scratch: Path) -> Any:
    """The Ray Tune experiment of a search, with its files in the folder `scratch`."""
    from ray import tune as ray_tune

    from mlic.tune import ray_schedulers
    from mlic.tune.scheduler import SearchScheduler, TrialSearcher

    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # lost work is repeated or reported
    # A group of workers reserves its own resources, and the function that waits for the group needs almost none.
    resources = {"memory": 2**20} if share.workers > 1 else {"cpu": share.cpus, "gpu": share.gpus}
    config = progress.config
    in_order = config.scheduler in IN_ORDER
    all_at_once = config.scheduler in _ALL_AT_ONCE
    scheduler = SearchScheduler(progress) if in_order else ray_schedulers.scheduler(config, progress.metric)
    return ray_tune.Tuner(
        ray_tune.with_resources(trial_worker.trainable(arguments), resources),
        param_space=ray_schedulers.parameters(progress) if all_at_once else None,
        tune_config=ray_tune.TuneConfig(
            search_alg=None if all_at_once else TrialSearcher(progress),
            scheduler=scheduler,
            num_samples=1 if all_at_once else -1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            stop=None if in_order else ray_schedulers.EndOfSearch(progress),
            callbacks=None if in_order else [ray_schedulers.Recorder(progress)],
            # SearchScheduler counts failures itself, anew after every epoch.
            failure_config=ray_tune.FailureConfig(max_failures=-1 if in_order else config.max_failures),
        ),
    )


def _name(trial: Any) -> str:
    """The name of a trial of Ray Tune: its number, which a worker of a population could not know otherwise."""
    return f"{trial.config['number']:05d}"


def _announce(config: TuneConfig, search: Search, at_once: int, timed: bool) -> None:
    """Log the size of the search and its maximum cost."""
    most = search.count * config.epochs
    longest = -(-search.count // at_once) * config.epochs
    milestones = ", ".join(str(epoch) for epoch in search.rule.milestones())
    early = f"stopped early by Ray Tune's {config.scheduler}"
    if config.scheduler in IN_ORDER:
        early = f"asha decides about them after epochs {milestones}" if milestones else "none is stopped early"
    budget = "" if config.budget is None or not timed else f"; {config.budget / 3600:.3g} h at the longest"
    logger.info(
        "search: %d trials of up to %d epochs, %d at a time; %s; at most %d epochs, %d one after another%s",
        search.count,
        config.epochs,
        at_once,
        early,
        most,
        longest,
        budget,
    )
