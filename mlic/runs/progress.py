"""Progress of a stage: one line with the same numbers on a terminal and in a log."""

from __future__ import annotations

import logging
import time

LOG_EVERY_S = 30.0
_SHOW_EVERY_S = 0.2


class Progress:
    """Counts and logs progress.

    Lines go to `logger` at INFO: about five a second with the attribute `transient` set, which a terminal shows in
    place and a log leaves out, and one every 30 seconds without it.
    """

    def __init__(self, logger: logging.Logger, verb: str, total: int, what: str, items: str) -> None:
        self._logger, self._verb, self._total, self._what, self._items = logger, verb, total, what, items
        self._start = self._shown = self._logged = time.monotonic()
        self.done = self.images = self.bad = 0

    def add(self, images: int, bad: int) -> None:
        """Count one more item with its images and its bad ones."""
        self.done, self.images, self.bad = self.done + 1, self.images + images, self.bad + bad
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = self._shown = now
            self._logger.info("%s", self)
        elif now - self._shown >= _SHOW_EVERY_S or self.done == self._total:
            self._shown = now
            self._logger.info("%s", self, extra={"transient": True})

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        left = (self._total - self.done) * seconds / self.done / 60 if self.done else 0.0
        return (
            f"{self._verb}  {self.done:,}/{self._total:,} {self._what} | {self.images:,} {self._items} | "
            f"{self.images / seconds:,.0f} img/s | {self.bad} bad | eta {left:.1f}m"
        )
