"""Where Ray puts the actors of a run, and whether they fit.

Ray looks at CPUs and at the sum of a node's free GPU shares, never at memory. Single actors fill a
node until half of its CPUs are taken, then go to the least taken one; a share goes to the fullest
GPU that has room; the learner's ranks are a group, packed onto the emptiest nodes. Compared with
Ray 2.60 on simulated clusters, as was this: an actor waits for ever at a node whose free shares
add up to enough but are in pieces, even if another node has room. With more than five nodes Ray
draws from the best fifth, so nodes may change places.
"""

import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Self

import psutil
import torch

from common.device import place
from common.errors import InputError
from deploy.backend.joined_cluster import joined_address
from deploy.backend.session import logical_cpus
from deploy.config import RunConfig
from deploy.planning.resources import MB, Need

RAY_MB = 1200
"""Ray's own processes on one node and Ray Train's helper actors (measured)."""
DRIVER_MB = 600
"""The command itself: torch, and the metrics' libraries later (measured)."""
PACKED = 0.5
"""Share of its CPUs up to which Ray fills a node first (scheduler_spread_threshold)."""
ROUNDING = 1e-6
DATA = "token data"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every node has; infinite where nobody said."""

    nodes: int
    cpus: float
    gpus: int
    memory_mb: float
    gpu_memory_mb: float
    is_here: bool
    """This machine as it is; otherwise what [cluster] declares."""

    @classmethod
    def of(cls, config: RunConfig, *, planned: bool) -> Self | None:
        """The target of a run; None for a cluster of which nothing is known.

        A planned run (--dry-run) goes to the machine that [cluster] declares, a real one to the
        cluster that RAY_ADDRESS names, or to this machine whatever is declared.

        Raises:
            InputError: a role wants CUDA, and there is none.
        """
        target, joins = config.cluster, joined_address() is not None
        if target.is_declared and (planned or joins):
            return cls._declared(config)
        if joins:
            return None  # other machines' memory is not ours to guess
        for name in (config.learner.device, config.rollout.device, config.teacher.device):
            place(name)
        memory_mb = psutil.virtual_memory().available / MB
        if target.memory_gb is not None:
            memory_mb = (
                target.memory_gb * 1024 if planned else min(memory_mb, target.memory_gb * 1024)
            )
        gpus = torch.cuda.device_count()
        sizes = (torch.cuda.get_device_properties(index).total_memory for index in range(gpus))
        gpu_mb = min(sizes, default=0) / MB
        return cls(1, logical_cpus(config), gpus, memory_mb, gpu_mb, is_here=True)

    @classmethod
    def _declared(cls, config: RunConfig) -> Self:
        target = config.cluster
        cpus = logical_cpus(config) if target.nodes == 1 else os.cpu_count() or 1
        gpus = torch.cuda.device_count() if target.gpus is None else target.gpus
        for name in ("learner", "rollout", "teacher"):
            if getattr(config, name).device == "cuda" and gpus == 0:
                raise InputError(
                    f"{name}.device is cuda, but a node has no GPUs; set cluster.gpus, or "
                    f"{name}.device=auto"
                )
        return cls(
            target.nodes,
            target.cpus or cpus,
            gpus,
            target.memory_gb * 1024 if target.memory_gb else math.inf,
            target.gpu_memory_gb * 1024 if target.gpu_memory_gb else math.inf,
            is_here=False,
        )


@dataclass(slots=True)
class Gpu:
    free: float = 1.0
    memory_mb: float = 0.0
    actors: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Node:
    """What is left of a node, and what was put there."""

    index: int
    hardware: Hardware
    cpus: float
    gpus: list[Gpu]
    actors: Counter[str] = field(default_factory=Counter)
    parts_mb: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Host memory by what takes it."""

    @property
    def memory_mb(self) -> float:
        return RAY_MB + math.fsum(self.parts_mb.values())

    @property
    def free_gpus(self) -> float:
        return math.fsum(gpu.free for gpu in self.gpus)

    @property
    def crowding(self) -> float:
        taken = 1 - self.cpus / self.hardware.cpus
        return taken if taken > PACKED - ROUNDING else 0.0

    def seems_to_fit(self, need: Need) -> bool:
        """What Ray looks at when it chooses a node."""
        enough_gpus = need.gpus <= self.free_gpus + ROUNDING
        return need.cpus <= self.cpus + ROUNDING and enough_gpus

    def emptiness(self, need: Need) -> float:
        """The mean share of each wanted resource that would stay free."""
        wanted = [(need.cpus, self.cpus), (need.gpus, self.free_gpus)]
        left = [(free - want) / free for want, free in wanted if want]
        return math.fsum(left) / len(left) if left else 0.0

    def take(self, need: Need) -> bool:
        """Put one actor here; False if the free shares are on different GPUs."""
        chosen = self._choose_gpus(need)
        if chosen is None:
            return False
        self.cpus -= need.cpus
        self.parts_mb[need.role] += need.host_mb
        self.actors[need.role] += 1
        for gpu in chosen:
            gpu.free -= min(need.gpus, 1.0)
            gpu.actors[need.role] += 1
        for gpu in chosen[:1]:
            gpu.memory_mb += need.gpu_mb
        return True

    def _choose_gpus(self, need: Need) -> list[Gpu] | None:
        if need.gpus == 0:  # unreserved, but it computes there all the same
            return self.gpus[:1] if need.gpu_mb else []
        fitting = [gpu for gpu in self.gpus if min(need.gpus, 1.0) <= gpu.free + ROUNDING]
        if need.gpus < 1:
            return [min(fitting, key=lambda gpu: gpu.free)] if fitting else None
        count = round(need.gpus)
        return fitting[:count] if len(fitting) >= count else None


def place_actors(needs: list[Need], hardware: Hardware, *, data_mb: float = 0.0) -> list[Node]:
    """Follow Ray's choices in the order in which the command asks.

    Raises:
        InputError: an actor finds no room, or there is too little memory where it would go; one
            sentence with the role, what it needs, what is there and what to lower.
    """
    _refuse_reservations(needs, hardware)
    nodes = [
        Node(index, hardware, hardware.cpus, [Gpu() for _ in range(hardware.gpus)])
        for index in range(hardware.nodes)
    ]
    nodes[0].parts_mb["the command"] = DRIVER_MB + data_mb
    for node in nodes:
        node.parts_mb[DATA] = data_mb  # in shared memory, for all workers of the node
    for need in needs:
        if need.is_anywhere:  # so every node must have room for it
            for node in nodes:
                node.parts_mb[need.role] += need.count * need.host_mb
        elif need.is_group:
            _place_group(need, nodes)
        else:
            for number in range(need.count):
                _put(need, number, min(_fitting(need, number, nodes), key=lambda n: n.crowding))
    for node in nodes:
        _refuse_memory(node, needs)
    return nodes


def require_places(needs: list[Need], hardware: Hardware | None) -> None:
    """As `place_actors`, whatever the actors hold; a cluster that nobody knows is not judged.

    Raises:
        InputError: an actor finds no room.
    """
    if hardware is not None:
        place_actors(needs, replace(hardware, memory_mb=math.inf, gpu_memory_mb=math.inf))


def _refuse_reservations(needs: list[Need], hardware: Hardware) -> None:
    for need in needs:
        if need.gpus > 1 and need.gpus % 1:
            raise InputError(
                f"{need.role} reserves {need.gpus:g} GPUs, but Ray knows parts of a GPU only below "
                f"1; correct {need.reservations}"
            )
    wanted = math.fsum(need.count * need.gpus for need in needs)
    if hardware.is_here and wanted > hardware.gpus + ROUNDING:
        raise InputError(
            f"learner, rollout and teacher reserve {wanted:g} GPUs, but this machine has "
            f"{hardware.gpus}; lower the gpus fields or submit to a cluster"
        )


def _place_group(need: Need, nodes: list[Node]) -> None:
    """Ray's PACK strategy: the emptiest node takes all it can, then the next one."""
    number = 0
    while number < need.count:
        node = max(_fitting(need, number, nodes), key=lambda n: n.emptiness(need))
        while number < need.count and node.seems_to_fit(need):
            _put(need, number, node)
            number += 1


def _fitting(need: Need, number: int, nodes: list[Node]) -> list[Node]:
    found = [node for node in nodes if node.seems_to_fit(need)]
    if found:
        return found
    hardware = nodes[0].hardware
    taken = Counter[str]()
    for node in nodes:
        taken += node.actors
    beside = f" beside {several(taken)}" if taken else ""
    there = "this machine has" if hardware.is_here else f"cluster.nodes is {hardware.nodes} with"
    raise InputError(
        f"{need.role} {number + 1} of {need.count} finds no room: it reserves {_reserved(need)}, "
        f"but {there} {hardware.cpus:g} CPUs and {hardware.gpus} GPUs each, and no node has that "
        f"left{beside}; lower {need.reservations}, or declare more in cluster"
    )


def _put(need: Need, number: int, node: Node) -> None:
    if not node.take(need):
        raise InputError(
            f"{need.role} {number + 1} of {need.count} would wait for ever: it reserves "
            f"{_reserved(need)}, and node {node.index}, where Ray would put it, has "
            f"{node.free_gpus:g} GPUs free, but on no single GPU enough; change "
            f"{need.reservations} so that the shares on a GPU add up to 1"
        )


def _refuse_memory(node: Node, needs: list[Need]) -> None:
    host, gpu_mb = node.hardware.memory_mb, node.hardware.gpu_memory_mb
    if node.memory_mb > host:
        lower = {need.role: need.lower for need in needs} | {DATA: "tokens.crops or tokens.paths"}
        most = max(lower, key=lambda part: node.parts_mb[part])
        raise InputError(
            f"the run needs about {node.memory_mb / 1024:.1f} GB on node {node.index}, most of it "
            f"{most} with {node.parts_mb[most] / 1024:.1f} GB, but {host / 1024:.1f} GB are "
            f"available; lower {lower[most]}, or correct cluster.memory_gb"
        )
    for index, gpu in enumerate(node.gpus):
        if gpu.memory_mb > gpu_mb:
            most = max(needs, key=lambda n: n.gpu_mb * gpu.actors[n.role])
            raise InputError(
                f"{several(gpu.actors)} on GPU {index} of node {node.index} need about "
                f"{gpu.memory_mb / 1024:.1f} GB, most of it {most.role} with "
                f"{most.gpu_mb / 1024:.1f} GB each, but a GPU has {gpu_mb / 1024:.1f} GB; lower "
                f"{most.lower}, or let fewer actors share a GPU"
            )


def _reserved(need: Need) -> str:
    return f"{need.cpus:g} CPUs and {need.gpus:g} GPUs"


def several(actors: Counter[str]) -> str:
    """For people: rollout worker x2, learner x1."""
    return ", ".join(f"{role} x{count}" for role, count in actors.items())
