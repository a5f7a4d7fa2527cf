"""Worker processes on this machine, for work that is too short to start Ray for it.

A process starts in a fifth of a second, all of an embedded Ray in about five. Each worker is an executor of one
process, so it is known which task a process died at.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from mlic.errors import ClusterError

logger = logging.getLogger(__name__)


class WorkerDied(Exception):
    """The process of a task, or its result, is lost: a crash, a kill by the system, or a lost node.

    `how` says it in two or three words that follow the word process: "died", "ran out of memory".
    """

    def __init__(self, text: str, how: str) -> None:
        super().__init__(text)
        self.how = how


class Processes:
    """Runs tasks `function(piece, shared)` in processes of this machine: an idle one, else a new one."""

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any) -> None:
        self._function, self._shared = function, shared
        self._idle = list[Any]()
        self._busy = dict[Any, Any]()
        self._has_started = False

    def submit(self, piece: Any) -> Any:
        """Start a task. The result can be given to `done`."""
        worker = self._idle.pop() if self._idle else self._start()
        task = worker.submit(self._function, piece, self._shared)
        self._busy[task] = worker
        return task

    def done(self, running: Collection[Any]) -> list[Any]:
        """Wait for at least one of the tasks; returns those that are done. Raises KeyboardInterrupt."""
        return list(concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done)

    def result(self, task: Any) -> Any:
        """The result of a task that is done. Raises what it raised, and WorkerDied if its process died."""
        worker = self._busy.pop(task)
        try:
            result = task.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            worker.shutdown(kill_workers=True)
            raise WorkerDied(str(error), "died") from None
        except BaseException:
            self._idle.append(worker)
            raise
        self._idle.append(worker)
        return result

    def _start(self) -> Any:
        """A new worker. Raises ClusterError if the first one does not come up, for which no image is to blame."""
        from loky import ProcessPoolExecutor

        verbose = logger.isEnabledFor(logging.DEBUG)
        worker = ProcessPoolExecutor(1, initializer=_prepare, initargs=(os.getpid(), verbose))
        if not self._has_started:
            try:
                worker.submit(os.getpid).result()
            except (OSError, concurrent.futures.process.BrokenProcessPool) as error:
                worker.shutdown(kill_workers=True)
                text = " ".join(str(error).split())[:300]
                raise ClusterError(
                    f"no worker process starts on this machine: {text}.",
                    "look at its memory and /dev/shm; --workers 1 starts one by Ray.",
                ) from None
            self._has_started = True
        return worker

    def close(self) -> None:
        """End all processes, those that are at a task too."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.shutdown(kill_workers=True)


def _prepare(parent: int, verbose: bool) -> None:
    """Begin a worker: Ctrl-C is the parent's, the words of image libraries are not shown, as in a worker of Ray."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not verbose:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123 - not a file of the user
            os.dup2(nothing.fileno(), 2)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
