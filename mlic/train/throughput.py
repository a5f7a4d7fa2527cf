"""Images per second of an epoch, the time it waits for data, and ranks that fall behind the others."""

from __future__ import annotations

import socket
import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch

from mlic.train.rank import RankContext

_SAY_EVERY_S = 5.0
_TIMED = 200  # forward passes of an epoch whose times are kept: the last ones
_BEHIND = 1.5  # times the median of the ranks: slower ones hold up the others
_FEWEST_STEPS = 20  # of an epoch whose times say something

T = TypeVar("T")


class Clock:
    """Images per second and the share of time spent waiting for data, of one epoch."""

    def __init__(self) -> None:
        self._start = self._said = self._kept = time.monotonic()
        self._waited = 0.0
        self.images = self.steps = 0

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass batches on, and count the time until each is there."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def due(self) -> bool:
        """Whether it is time for another line; then the next is due some seconds later."""
        if time.monotonic() - self._said < _SAY_EVERY_S:
            return False
        self._said = time.monotonic()
        return True

    def since_kept(self) -> float:
        """Seconds since the epoch's position was kept last, or since its start."""
        return time.monotonic() - self._kept

    def kept(self) -> None:
        """The epoch's position has been kept now."""
        self._kept = time.monotonic()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def data_pct(self) -> float:
        return 100 * self._waited / self.seconds

    def values(self, context: RankContext, forward: ForwardTimes) -> dict[str, float]:
        """The throughput of the epoch as metrics; all ranks say by name which of them falls behind."""
        if context.world_size > 1 and self.steps >= _FEWEST_STEPS:
            mine = RankTimes(socket.gethostname(), self._waited / self.steps, forward.mean)
            late = behind(context.gather(mine), self.seconds / self.steps)
            if late is not None:
                context.say(f"Warning: {late}")
        return {"time/images_per_s": self.images_per_s, "time/data_pct": self.data_pct}


class RankTimes(NamedTuple):
    """The seconds of a rank's step in which it does not depend on others: waiting for data, and its forward pass."""

    host: str
    data: float
    forward: float


def behind(ranks: list[RankTimes], step_s: float) -> str | None:
    """The rank that holds up the others in their steps of `step_s` seconds, in words; None where there is none.

    Gradients are summed in each step, so all ranks are as slow as the slowest, and steps alone do not show which it is.
    """
    own = [rank.data + rank.forward for rank in ranks]
    slowest, usual = max(range(len(own)), key=own.__getitem__), statistics.median_low(own)
    if own[slowest] < _BEHIND * usual or own[slowest] - usual < 0.1 * step_s:
        return None
    rank = ranks[slowest]
    cause = "waiting for data" if rank.data > rank.forward else "in its forward pass"
    return (
        f"rank {slowest} on {rank.host} falls behind: it has its loss after {1000 * own[slowest]:.0f} ms of a step, "
        f"most of them {cause}, and the other ranks after {1000 * usual:.0f} ms; look at what else runs on that node."
    )


class ForwardTimes:
    """Seconds of forward passes. On a GPU they are read from events afterwards, so that no step waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times = deque[tuple[float | torch.cuda.Event, float | torch.cuda.Event]](maxlen=_TIMED)

    def now(self) -> float | torch.cuda.Event:
        """This moment of the device."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, start: float | torch.cuda.Event) -> None:
        """A forward pass has ended that began at `start`."""
        self._times.append((start, self.now()))

    @property
    def mean(self) -> float:
        """Mean seconds of the last passes, which have to be over."""
        return statistics.fmean(_seconds(start, end) for start, end in self._times) if self._times else 0.0


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    raise AssertionError("both moments are of one device")
