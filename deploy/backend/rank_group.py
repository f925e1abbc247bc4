"""How the learner's ranks find one another: at a store that rank 0 holds on its node's address.

The store that torch makes by itself, as Ray Train has it do, listens on all addresses of a machine,
and whoever reaches it may write to it.
"""

import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented

LOOPBACK = "127.0.0.1"
_listening: list[socket.socket] = []
"""Rank 0's, until it has joined."""


@dataclass
class RankGroup(TorchConfig):
    """In the place of Ray Train's; one rank alone needs no group and gets none."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OnOneAddress


class Group(NamedTuple):
    """Of ranks: where its store is, and how they communicate."""

    address: str
    port: int
    world: int
    backend: str
    seconds: int
    """How long a rank waits for another."""


class _OnOneAddress(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        world = len(worker_group)
        if world == 1:
            return
        address, port = worker_group.execute_single(0, listen)
        kind, seconds = backend_config.backend or "gloo", backend_config.timeout_s
        group = Group(address, port, world, kind, seconds)
        ray.get([worker_group.execute_single_async(at, join, group, at) for at in range(world)])


def listen(address: str | None = None) -> tuple[str, int]:
    """(address, port) of this node alone, by default the one by which other nodes know it."""
    address = address or ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.create_server((address, 0), family=family, backlog=128)
    _listening[:] = [found]
    return address, found.getsockname()[1]


def join(group: Group, own: int) -> None:
    """Make this process rank `own` of the group; rank 0's called `listen`."""
    if group.address == LOOPBACK and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "nccl" in group.backend:  # as Ray Train has it: a rank that hangs in a sum ends
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    limit = timedelta(seconds=group.seconds)
    held = _listening.pop().detach() if own == 0 else None
    store = TCPStore(group.address, group.port, group.world, own == 0, limit, master_listen_fd=held)
    distributed.init_process_group(
        group.backend, store=store, rank=own, world_size=group.world, timeout=limit
    )
