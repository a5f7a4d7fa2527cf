"""A pool of Ray tasks that survives tasks that kill their workers.

An image that crashes a decoder, or takes all memory, ends the process that opens it. The piece is then done once more;
if that ends a worker too, it is cut into smaller ones, until the image is alone. Of an image that is alone and has
ended three workers the caller says what becomes of it, and everything else is done as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mlic.cluster import signals
from mlic.errors import ClusterError

logger = logging.getLogger(__name__)

P = TypeVar("P")  # a piece of work
R = TypeVar("R")  # what comes of it

_BEFORE_CUT = 2  # workers that die at a piece before it is cut
_DEADLY = 3  # workers that die at a piece that cannot be cut


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

    `function(piece, shared)` is done by tasks. `cut` parts a piece into smaller ones, or returns it where it cannot;
    `lost` says what comes of one that ended worker after worker, from the piece and the reason. What `function`
    raises is raised here. Raises ClusterError when Ray itself fails, and KeyboardInterrupt.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=0)(function)
    reference = ray.put(shared)
    running, again = dict[Any, _Piece[P]](), list[_Piece[P]]()
    more = True
    try:
        while more or running or again:
            while len(running) < workers and (again or more):
                piece = again.pop() if again else _next(pieces)
                if piece is None:
                    more = False
                else:
                    running[task.remote(piece.content, reference)] = piece
            if not running:
                return
            for ready in signals.done(running):
                piece = running.pop(ready)
                try:
                    yield piece.content, ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except deaths() as error:
                    logger.warning("a worker died; its task is retried in smaller pieces")
                    logger.debug("%s", error)
                    smaller = _after_death(piece, cut)
                    again += smaller or []
                    if smaller is None:
                        yield piece.content, lost(piece.content, _reason(error))
                except ray.exceptions.RayError as error:
                    raise ClusterError(
                        f"Ray failed: {' '.join(str(error).split())[:300]}.", "run the same command again."
                    ) from None
    finally:  # after an error nothing continues writing behind the back of the next attempt
        for ready in running:
            ray.cancel(ready, force=True)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=10)


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
    """The errors that Ray raises if a process, or its result, is lost: killed by itself, the system or its node."""
    import ray.exceptions as ray_errors

    return (
        ray_errors.WorkerCrashedError,
        ray_errors.OutOfMemoryError,
        ray_errors.NodeDiedError,
        ray_errors.ObjectLostError,
    )


def _reason(error: Exception) -> str:
    by_memory = type(error).__name__ == "OutOfMemoryError"
    why = "ran out of memory" if by_memory else "died"
    return f"the process that decoded it {why}, {_DEADLY} times"
