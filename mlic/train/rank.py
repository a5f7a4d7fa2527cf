"""The rank, device and folder of a training process, and collectives between ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch

from mlic.errors import RunError
from mlic.runs.files import disk_errors
from mlic.runs.run import is_asked_to_stop, is_current

T = TypeVar("T")


@dataclass(frozen=True)
class RankContext:
    """Where this process stands: its rank, its device, the run's folder and the attempt that may write to it.

    `attempt` numbers the starts of the run in `owner`, the folder with run.json. `host_group` is a process group of
    the CPUs, for objects and for waiting: its time limit is longer than that of the GPUs' group.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: Path
    owner: Path
    attempt: int
    host_group: torch.distributed.ProcessGroup | None = None

    def say(self, line: str, everyone: bool = False) -> None:
        """Add a line to the run's log, which the driver follows; only rank 0 writes, unless `everyone` is set.

        If a newer start of the run has taken over the folder, this process writes nothing.
        """
        if (self.rank == 0 or everyone) and is_current(self.owner, self.attempt):
            with disk_errors(self.folder), (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def check_current(self) -> None:
        """Raise RunError when a newer start of the run has taken over its folder."""
        if not is_current(self.owner, self.attempt):
            raise RunError("a newer attempt of this run is active.", "let that one finish.")

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this rank knows that the run should write what it has and stop; only rank 0 looks."""
        return self.rank == 0 and is_asked_to_stop(self.owner, self.attempt)

    @property
    def sees_stop_request(self) -> bool:
        """Whether this rank sees the request; any rank may look. The ranks agree afterwards on what to do."""
        return is_asked_to_stop(self.owner, self.attempt)

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, float64."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(totals)
        return [float(total) for total in totals]

    def gather(self, value: T) -> list[T]:
        """What every rank has, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self.host_group)
        return cast("list[T]", values)
