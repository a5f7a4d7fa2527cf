"""Signals to this process while Ray's own code runs, and Ray's loops in threads."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

_signals: list[int] = []  # signals that this process has received since it connected


# One event for each thread that is at work in Ray; it is set when the thread ends. Threads themselves are not reliable
# here: after an interrupted join(), Python 3.11 says that the thread is no longer alive.
waiting_loops: list[threading.Event] = []


@contextlib.contextmanager
def _heard_once() -> Iterator[None]:
    """Clear recorded signals when KeyboardInterrupt propagates, so that the next call ignores them."""
    try:
        yield
    except KeyboardInterrupt:
        _signals.clear()
        raise


@_heard_once()
def done(running: Collection[Any]) -> list[Any]:
    """Wait for at least one of the tasks; returns those that are done.

    Raises KeyboardInterrupt when this process has been told to stop. It does so even if Ray's own code was running at
    that moment and swallowed the KeyboardInterrupt that was raised in it.
    """
    import ray

    ready, _ = ray.wait(list(running), num_returns=1)
    if _signals:
        raise KeyboardInterrupt
    return list(ready)


@_heard_once()
def run_beside(function: Callable[[], object], look: Callable[[], object] = lambda: None) -> BaseException | None:
    """Run `function` in a thread and call `look` three times a second; returns its exception, if any.

    This is for the loops of Ray Train and Ray Tune. In the main thread, they would handle Ctrl-C themselves and
    sometimes lose it. Here Ctrl-C is raised to the caller, and the thread ends with the process.
    """
    failed: list[BaseException] = []
    ended = threading.Event()

    def target() -> None:
        try:
            function()
        except BaseException as error:  # handed to the main thread, which is waiting for it
            failed.append(error)
        finally:
            ended.set()

    waiting_loops.append(ended)
    threading.Thread(target=target, name="ray-loop", daemon=True).start()
    while not ended.wait(0.3):
        look()
    waiting_loops.remove(ended)
    look()
    return failed[0] if failed else None


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], None]]:
    """Record SIGTERM, SIGINT and SIGUSR1 for `done`, then call their previous handlers.

    Yields a function that sets the handlers again. It is needed because ray.init replaces the handler of SIGTERM by one
    that ends the process silently.
    """
    _signals.clear()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def note(number: int, frame: Any) -> None:
        _signals.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    def take_over() -> None:
        for number, handler in before.items():
            if callable(handler):  # not those that this process was told to ignore
                signal.signal(number, note)

    take_over()
    try:
        yield take_over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
