"""Pools of tasks and of actors that survive tasks that kill their workers.

Tasks run on Ray if this process is connected to it, else in processes of this machine.

An image that crashes a decoder, or takes all memory, kills the process that opens it. The task is then run once more.
If that kills a worker too, the task is split into smaller ones, until the image has a task of its own. When that task
has killed three workers, the caller decides what its result is. All other images are processed as usual.

Actors are for tasks that need something loaded, such as a model. Such a task is run again as a whole. The actor itself
records which image it decodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mlic.cluster import signals
from mlic.cluster.connect import connected
from mlic.cluster.processes import Processes, WorkerDied
from mlic.cluster.resources import Share
from mlic.errors import ClusterError

logger = logging.getLogger(__name__)

P = TypeVar("P")  # the input of a task
R = TypeVar("R")  # the result of a task
T = TypeVar("T", bound=Hashable)  # the name of a task

_BEFORE_CUT = 2  # a piece is split after it has killed this many workers
_IN_VAIN = 6  # actors that die one after another before they begin a task
_DEADLY = 3  # a piece that cannot be split is given up after it has killed this many workers


@dataclass(frozen=True)
class _Piece(Generic[P]):
    content: P
    deaths: int = 0


def run(
    function: Callable[[P, Any], R],
    pieces: Iterator[P],
    shared: Any,
    workers: int,
    cut: Callable[[P], list[P]],
    lost: Callable[[P, str], R],
) -> Iterator[tuple[P, R]]:
    """Yield each task and its result, as they finish; at most one task per worker exists at a time.

    Each task calls `function(piece, shared)`. `cut` splits a piece into smaller ones, or returns only the piece if it
    cannot be split. `lost` gives the result for a piece that killed worker after worker, from the piece and the reason.
    What `function` raises is raised here. Raises ClusterError when Ray itself fails, and KeyboardInterrupt.
    """
    tasks = _RayTasks(function, shared) if connected() else Processes(function, shared)
    running, again = dict[Any, _Piece[P]](), list[_Piece[P]]()
    more = True
    try:
        while more or running or again:
            while len(running) < workers and (again or more):
                piece = again.pop() if again else _next(pieces)
                if piece is None:
                    more = False
                else:
                    running[tasks.submit(piece.content)] = piece
            if not running:
                return
            for ready in tasks.done(running):
                piece = running.pop(ready)
                try:
                    yield piece.content, tasks.result(ready)
                except WorkerDied as error:
                    logger.warning("a worker died; its task is retried in smaller pieces")
                    logger.debug("%s", error)
                    smaller = _after_death(piece, cut)
                    again += smaller or []
                    if smaller is None:
                        reason = f"the process that decoded it {error.how}, {_DEADLY} times"
                        yield piece.content, lost(piece.content, reason)
    finally:  # after an error, no task may still write while the next attempt runs
        tasks.close()


class _RayTasks:
    """Runs tasks `function(piece, shared)` on the cluster that this process is connected to."""

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        import ray

        self._task = ray.remote(num_cpus=1, max_retries=0)(function)
        self._shared = ray.put(shared)
        self._running = set[Any]()

    def submit(self, piece: Any) -> Any:
        """Start a task. The result can be given to `done`."""
        reference = self._task.remote(piece, self._shared)
        self._running.add(reference)
        return reference

    def done(self, running: Collection[Any]) -> list[Any]:
        """Wait for at least one of the tasks; returns those that are done. Raises KeyboardInterrupt."""
        return signals.done(running)

    def result(self, reference: Any) -> Any:
        """The result of a task. Raises what it raised, WorkerDied, or ClusterError."""
        import ray

        self._running.discard(reference)
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except deaths() as error:
            how = "ran out of memory" if type(error).__name__ == "OutOfMemoryError" else "died"
            raise WorkerDied(str(error), how) from None
        except ray.exceptions.RayError as error:
            text = " ".join(str(error).split())[:300]
            raise ClusterError(f"Ray failed: {text}.", "run the same command again.") from None

    def close(self) -> None:
        """Cancel the tasks that are still running, and wait for their end."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=10)


def run_on_actors(
    actor_class: type,
    arguments: tuple[Any, ...],
    share: Share,
    tasks: Sequence[T],
    task: Callable[[T], tuple[Any, ...]],
    attempts: Callable[[T], int],
    most_attempts: int,
    at_once: int = 1,
) -> Iterator[tuple[T, Any, str | None]]:
    """Yield each task with its result, or with the reason why it was given up, as they finish.

    `share.workers` actors are made with `arguments`. Each has a method `ready`, which returns when the actor can begin,
    and a method `run`, which is called with `task(name)` and does that task. `attempts(name)` is the number of actors
    that have begun a task and not ended it. A task with `most_attempts` is given up. An actor gets tasks only when it
    is ready: the replacement of an actor on a lost node may never find room. An actor has up to `at_once` tasks, each
    in a thread of its own. What `run` raises is raised here. Raises ClusterError when actors die again and again before
    they have begun, and KeyboardInterrupt.
    """
    import ray

    actors: _Actors[T] = _Actors(actor_class, arguments, share, at_once)
    for _ in range(min(share.workers, len(tasks))):
        actors.start()
    waiting = list(reversed(tasks))
    begun, in_vain = dict.fromkeys(tasks, 0), 0
    while waiting or any(name is not None for name, _ in actors.running.values()):
        for reference in signals.done(actors.running):
            name, worker = actors.running.pop(reference)
            try:
                result = ray.get(reference)
                if name is not None:
                    yield name, result, None
                in_vain = 0
                actors.idle += [worker] * (1 if name is not None else at_once)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (ray.exceptions.RayActorError, *deaths()) as error:
                why = " ".join(str(error).split())[:200]
                count = 0 if name is None else attempts(name)
                in_vain = 0 if name is not None and count > begun[name] else in_vain + 1
                _check_not_in_vain(in_vain, why)
                if name is not None and count >= most_attempts:
                    yield name, None, why
                elif name is not None:
                    logger.warning("a worker died at part %s, which is retried in smaller pieces", name)
                    waiting.append(name)
                actors.replace(worker)
        while waiting and actors.idle:
            name = waiting.pop()
            begun[name] = attempts(name)
            actors.give(name, task(name))


class _Actors(Generic[T]):
    """The actors of `run_on_actors`: those that are idle, and what the others do."""

    def __init__(self, actor_class: type, arguments: tuple[Any, ...], share: Share, at_once: int) -> None:
        import ray

        self._actor = ray.remote(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0, max_concurrency=at_once
        )(actor_class)
        self._arguments = arguments
        self.idle = list[Any]()
        # By Ray reference: (task, actor), or (None, actor) that starts.
        self.running: dict[Any, tuple[T | None, Any]] = {}

    def start(self) -> None:
        """Start an actor; it is idle once its `ready` has returned."""
        worker = self._actor.remote(*self._arguments)
        self.running[worker.ready.remote()] = (None, worker)

    def give(self, name: T, arguments: tuple[Any, ...]) -> None:
        """Give a task to an idle actor."""
        worker = self.idle.pop()
        self.running[worker.run.remote(*arguments)] = (name, worker)

    def replace(self, worker: Any) -> None:
        """Start an actor for one that has died, when the last of its tasks is known to be lost."""
        self.idle = [other for other in self.idle if other is not worker]
        if not any(other is worker for _, other in self.running.values()):
            self.start()


def _check_not_in_vain(deaths_in_turn: int, why: str) -> None:
    if deaths_in_turn >= _IN_VAIN:
        raise ClusterError(
            f"{deaths_in_turn} workers died before they started: {why}.",
            "look at the memory that each worker has; -v shows Ray's own log.",
        ) from None


def _next(pieces: Iterator[P]) -> _Piece[P] | None:
    for content in pieces:
        return _Piece(content)
    return None


def _after_death(piece: _Piece[P], cut: Callable[[P], list[P]]) -> list[_Piece[P]] | None:
    """The tasks that replace a task whose worker died; None if nothing is left to try."""
    deaths = piece.deaths + 1
    if deaths < _BEFORE_CUT:
        return [_Piece(piece.content, deaths)]
    parts = cut(piece.content)
    if len(parts) > 1:
        return [_Piece(part, _BEFORE_CUT - 1 if len(cut(part)) > 1 else 0) for part in parts]
    return [_Piece(piece.content, deaths)] if deaths < _DEADLY else None


def deaths() -> tuple[type[Exception], ...]:
    """The errors that Ray raises if a process or its result is lost: a crash, a kill by the system, or a lost node."""
    import ray.exceptions as ray_errors

    return (
        ray_errors.WorkerCrashedError,
        ray_errors.OutOfMemoryError,
        ray_errors.NodeDiedError,
        ray_errors.ObjectLostError,
    )
