"""The processes that train, Ray actors on this machine or a group by Ray Train, and how their failures are reported."""

from __future__ import annotations

import datetime
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlic.cluster import placement, pool, ray_private
from mlic.cluster.resources import Share
from mlic.config.fit_checks import STORED
from mlic.config.train import TrainConfig
from mlic.errors import MlicError, RunError
from mlic.runs.files import write_json
from mlic.runs.progress import LOG_EVERY_S
from mlic.runs.run import is_current
from mlic.train import training_loop
from mlic.train.rank import RankContext

logger = logging.getLogger(__name__)

FAILURE = ".failure.json"
# One rank of a node decodes its cache while the others wait, and the nodes with a small part wait for those with more.
_LONGEST_PREPARATION = datetime.timedelta(days=1)
_LONGEST_COLLECTIVE = datetime.timedelta(minutes=30)  # as in Ray Train
# If a process dies, its peers fail in a collective, sometimes before Ray knows of the death.
_DEATH_KNOWN_S = 5
_WARNING = "Warning: "


class GroupError(Exception):
    """A rank of a group failed. `worker_failures` has its error by its number, as the error of Ray Train has."""

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(str(error))
        self.worker_failures = {rank: error}


def lost_worker(failed: BaseException) -> bool:
    """Whether a worker died and was not replaced.

    This is a single worker, or a worker of a group that died while the group was set up or shut down. Ray Train does
    not restart the latter.
    """
    from ray.exceptions import RayActorError

    seen: list[BaseException | None] = [failed, failed.__cause__, getattr(failed, "cause", None)]
    seen += [getattr(error, "controller_failure", None) for error in list(seen)]
    return any(isinstance(error, (RayActorError, *pool.deaths())) for error in seen)


def trains_here(embedded: bool, share: Share) -> bool:
    """Whether the workers are plain actors of an embedded Ray, and not a group of Ray Train.

    Ray Train would add a controller and two more processes. Their main threads wake a hundred times a second each
    (CoreWorker looks for signals). This interrupts the threads of a computation, which wait for each other at every
    layer: on two cores one worker trains ResNet18 a tenth faster without these processes. A group of two begins ten
    seconds earlier. What Ray Train is for, other nodes and its page in the dashboard, an embedded Ray does not have.
    """
    return share.workers == 1 or (embedded and not share.gpus)


def actors(
    config: TrainConfig,
    where: Mapping[str, Any],
    share: Share,
    until: int | None = None,
    deadline: float | None = None,
) -> Callable[[], None]:
    """A function that trains in plain Ray actors, one for each worker; the arguments are those of `group`.

    The function raises RayActorError if an actor dies, the error of a worker that trains alone, and GroupError for the
    first rank of a group that fails.
    """
    import ray

    resources = {"num_cpus": share.cpus, "num_gpus": share.gpus}
    # A trial of Ray Tune is in a placement group that has no room for them: by default they would be put there.
    placed = {"scheduling_strategy": "DEFAULT"}
    actor = ray.remote(**resources, **placed, max_restarts=0, max_task_retries=0)(Worker)
    arguments = _arguments(config, where, until, deadline)

    def train() -> None:
        with tempfile.TemporaryDirectory(prefix="mlic-group-") as folder:
            workers = [actor.remote() for _ in range(share.workers)]
            try:
                store = str(Path(folder) / "store")
                _wait_for([w.fit.remote(arguments, rank, share.workers, store) for rank, w in enumerate(workers)])
            finally:
                for worker in workers:
                    ray.kill(worker)

    return train


def _wait_for(ranks: list[Any]) -> None:
    """Wait until all ranks have ended, or one has failed."""
    import ray

    failed: BaseException | None = None
    waiting = list(ranks)
    while waiting:
        ended, waiting = ray.wait(waiting, timeout=_DEATH_KNOWN_S if failed else None)
        if not ended:
            break
        try:
            ray.get(ended[0])
        except ray.exceptions.RayActorError:
            raise
        except Exception as error:  # whatever the training raised
            failed = failed or (error if len(ranks) == 1 else GroupError(ranks.index(ended[0]), error))
    if failed:
        raise failed


class Worker:
    """A Ray actor that trains alone, or as a rank of a group on one machine."""

    def fit(self, arguments: dict[str, Any], rank: int, world_size: int, store: str) -> None:
        """Run the training loop; the ranks of a group find each other by the file `store`."""
        import torch

        waits = None
        if world_size > 1:
            placement.set_socket_interface()
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world_size,
                timeout=_LONGEST_COLLECTIVE,
            )
            waits = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_PREPARATION)
        _loop(arguments, rank, world_size, torch.device(placement.assigned_device()), host_group=waits)


def group(
    config: TrainConfig,
    where: Mapping[str, Any],
    share: Share,
    embedded: bool,
    name: str,
    until: int | None = None,
    deadline: float | None = None,
) -> Any:
    """A Ray Train trainer for a group of workers, named `name`; it trains up to `until` epochs or the last epoch.

    After `deadline`, in seconds since 1970, no epoch but its first is begun. `where` has the `folder` of the run or
    trial, that of its `owner`, the `attempt` that may write there, the `dtype` and whether to `keep_scores`.
    """
    # Ray Train reads these when it is imported, and hands them on to its controller and workers.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    if share.gpus:  # it asks NCCL which ranks hang, and says so after ten minutes; it stops nothing
        os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    import ray.train

    from mlic.cluster.torch_backend import NodeTorchConfig

    # A worker that is lost while the group starts is counted by the controller, one that is lost later as a failure.
    limit = max(1, config.max_failures)
    workers = share.workers if config.min_workers is None else (config.min_workers, share.workers)
    resources = {"CPU": float(share.cpus), **({"GPU": float(share.gpus)} if share.gpus else {})}
    return ray_private.trainer_class(embedded)(
        _worker,
        train_loop_config=_arguments(config, where, until, deadline),
        torch_config=NodeTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(share.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(Path(where["folder"]) / ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures, controller_failure_limit=limit),
        ),
    )


def _arguments(
    config: TrainConfig, where: Mapping[str, Any], until: int | None = None, deadline: float | None = None
) -> dict[str, Any]:
    """The arguments of a worker, as plain values."""
    return {"config": config.model_dump(mode="json"), "until": until, "deadline": deadline, **where}


def _worker(arguments: dict[str, Any]) -> None:
    """A Ray Train worker: the training loop on this rank. Every epoch is reported, so Ray's dashboard shows the run."""
    import ray.train
    import ray.train.torch
    import torch

    context, device = ray.train.get_context(), ray.train.torch.get_device()
    waits = None
    if context.get_world_size() > 1:
        waits = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_PREPARATION)
    _loop(arguments, context.get_world_rank(), context.get_world_size(), device, ray.train.report, waits)


def _loop(
    arguments: Mapping[str, Any],
    rank: int,
    world_size: int,
    device: Any,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    host_group: Any = None,
) -> None:
    """The training loop; our own errors are noted for the driver in the run's folder.

    It keeps its own checkpoints there, too. Ray Train registers a reported checkpoint only when its controller polls
    the next time, and a worker killed before that would resume from an older epoch.
    """
    folder = Path(arguments["folder"])
    owner, attempt = Path(arguments["owner"]), arguments["attempt"]
    context = RankContext(rank, world_size, device, folder, owner, attempt, host_group)
    if _read_failure(folder, context.attempt) is not None:
        return  # a restart would only repeat our own error; restarts are meant for lost workers
    try:
        config = TrainConfig.model_validate(arguments["config"], context=STORED)
        training_loop.fit(
            config,
            context,
            on_epoch,
            until=arguments["until"],
            deadline=arguments["deadline"],
            dtype=arguments["dtype"],
            keep_scores=arguments["keep_scores"],
        )
    except MlicError as error:
        failure = {
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "attempt": context.attempt,
        }
        if is_current(context.owner, context.attempt):
            write_json(folder / FAILURE, failure)
        raise


def _read_failure(folder: Path, attempt: int) -> MlicError | None:
    try:
        failure = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if failure["attempt"] != attempt:
        return None
    kinds = {kind.__name__: kind for kind in MlicError.__subclasses__()}
    return kinds.get(failure["kind"], MlicError)(failure["message"], failure["hint"])


def raise_failure(folder: Path, attempt: int, failed: BaseException | None) -> None:
    """Raise the error of a failed worker: our own error, as it was raised there, or a RunError with Ray's message."""
    ours = _read_failure(folder, attempt)
    if ours is not None:
        raise ours
    if failed is not None:
        rank, error = min((getattr(failed, "worker_failures", None) or {-1: failed}).items())
        for raised in (error, error.__cause__, getattr(error, "cause", None)):
            if isinstance(raised, MlicError):  # its file is not visible yet on a network file system
                raise raised
        where = f" on rank {rank}" if rank >= 0 else ""
        line = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)
        raise RunError(
            f"training failed{where}: {line.strip()[:300]}.",
            "run the same command again; -v shows Ray's own log.",
        ) from error


def follow(path: Path) -> Iterator[None]:
    """Log new lines of a file; each step of the generator logs the lines since the last step."""
    position = path.stat().st_size if path.is_file() else 0
    logged = -LOG_EVERY_S
    while True:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                data = file.read()
            complete_lines = data[: data.rfind(b"\n") + 1]
            position += len(complete_lines)
            for line in complete_lines.decode("utf-8", "replace").splitlines():
                transient = line.startswith("step") and time.monotonic() - logged < LOG_EVERY_S
                if line.startswith("step") and not transient:
                    logged = time.monotonic()
                if line.startswith(_WARNING):
                    logger.warning("%s", line.removeprefix(_WARNING))
                else:
                    logger.info("%s", line, extra={"transient": transient})
        yield
