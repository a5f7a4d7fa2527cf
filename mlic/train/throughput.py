"""Images per second of an epoch, and the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

_SAY_EVERY_S = 5.0

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
