"""PyTorch's process group on the network interface that Ray uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from mlic.cluster.placement import assigned_device, set_socket_interface
from mlic.model import malloc


def _prepare() -> None:
    """Prepare a worker before its training thread starts."""
    set_socket_interface()
    if assigned_device() == "cpu":
        malloc.keep()


class _NodeBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Prepares each worker before Ray Train sets up torch.distributed there."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_prepare)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's set-up of torch.distributed (NCCL on GPUs, gloo on CPUs) with the right interface on every node."""

    @property
    def backend_cls(self) -> type[_NodeBackend]:
        return _NodeBackend
