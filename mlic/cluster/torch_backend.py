"""PyTorch's process group on the network interface that Ray uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
from ray.train.torch import TorchConfig

from mlic.cluster.placement import assigned_device
from mlic.model import malloc


def set_socket_interface() -> str | None:
    """Use the network interface with this node's Ray address for gloo and NCCL, unless the user has set one.

    By default, both look up the host's name, which many machines map to a loopback address.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return str(name)
    return None


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
