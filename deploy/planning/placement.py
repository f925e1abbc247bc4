"""Whether the bundles of a run (deploy/backend/bundles.py) fit onto its nodes, and where they go.

Ray decides; this is first-fit over equal, empty nodes. The roles that last are one group, the ranks
are another: each fills the emptiest node, then the next. A worker goes to the node that is the
emptiest then. Ray looks at CPUs and GPUs alone, this at memory as well. Where roles want a label of
a node's (`cluster.role_label`), a node is for one role.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from common.errors import InputError
from deploy.planning.hardware import Hardware
from deploy.planning.resources import Need

RAY_MB = 1200
"""Ray's own processes on one node and Ray Train's helper actors (measured)."""
DRIVER_MB = 600
"""The command itself: torch, and the metrics' libraries later (measured)."""
ROUNDING = 1e-6
DATA = "token data"


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
    labels: Mapping[str, str] = field(default_factory=dict)
    """What those who are here want it to be labelled with: of nodes that are equal, whoever comes
    first says which label one has."""

    @property
    def memory_mb(self) -> float:
        return RAY_MB + math.fsum(self.parts_mb.values())

    def serves(self, need: Need) -> bool:
        """Whether it has, or may have, the label that is wanted."""
        wanted = need.bundles.labels
        return not (self.labels and wanted) or self.labels == wanted

    def room(self, need: Need) -> float:
        """How many more of them fit; a share of a GPU fits onto one GPU, several GPUs are whole."""
        if not self.serves(need):
            return 0.0
        by_cpus = (self.cpus + ROUNDING) // need.cpus if need.cpus else math.inf
        if not need.gpus:
            return by_cpus
        share = min(need.gpus, 1.0)
        shares = sum((gpu.free + ROUNDING) // share for gpu in self.gpus)
        return min(by_cpus, shares // max(need.gpus, 1.0))

    def take(self, need: Need) -> None:
        """Put one actor here; a share goes to the fullest GPU that has room for it."""
        self.cpus -= need.cpus
        self.labels = self.labels or need.bundles.labels
        self.parts_mb[need.role] += need.host_mb
        self.actors[need.role] += 1
        share = min(need.gpus, 1.0)
        fitting = sorted(
            (gpu for gpu in self.gpus if share <= gpu.free + ROUNDING), key=lambda gpu: gpu.free
        )
        count = math.ceil(need.gpus) or bool(need.gpu_mb)  # unreserved, it computes there as well
        for gpu in (fitting if need.gpus else self.gpus)[:count]:
            gpu.free -= share
            gpu.actors[need.role] += 1
        for gpu in fitting[:1] if need.gpus else self.gpus[:1]:
            gpu.memory_mb += need.gpu_mb


def place_actors(needs: list[Need], hardware: Hardware, *, data_mb: float = 0.0) -> list[Node]:
    """The nodes with all actors on them.

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
    for placed, group in groupby(needs, key=lambda need: need.bundles.placed):
        packed = None
        for need in group:
            packed = packed or emptiest_first(need, nodes)
            _place(need, nodes, None if placed == "alone" else packed)
    for node in nodes:
        _refuse_memory(node, needs)
    return nodes


def _place(need: Need, nodes: list[Node], packed: list[Node] | None) -> None:
    """Fill the nodes as `packed` has them; without, the emptiest node takes the next one."""
    if need.is_anywhere:  # so every node must have room for it
        for node in nodes:
            node.parts_mb[need.role] += need.bundles.count * need.host_mb
        return
    for number in range(need.bundles.count):
        order = packed or emptiest_first(need, nodes)
        fitting = next((node for node in order if node.room(need)), None)
        if fitting is None:
            raise _no_room(need, number, nodes)
        fitting.take(need)


def emptiest_first(need: Need, nodes: list[Node]) -> list[Node]:
    """The nodes in the order in which they are asked for room; those that have the label that is
    wanted come before those that nobody has taken yet."""
    labelled = bool(need.bundles.labels)
    return sorted(nodes, key=lambda node: (labelled and not node.labels, -node.room(need)))


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
                f"1; correct {need.bundles.fields}"
            )
    wanted = math.fsum(need.bundles.count * need.gpus for need in needs)
    if hardware.is_here and wanted > hardware.gpus + ROUNDING:
        raise InputError(
            f"learner, rollout and teacher reserve {wanted:g} GPUs, but this machine has "
            f"{hardware.gpus}; lower the gpus fields or submit to a cluster"
        )


def _no_room(need: Need, number: int, nodes: list[Node]) -> InputError:
    hardware, taken = nodes[0].hardware, Counter[str]()
    for node in nodes:
        taken += node.actors
    beside = f" beside {several(taken)}" if taken else ""
    there = "this machine has" if hardware.is_here else f"cluster.nodes is {hardware.nodes} with"
    left, lower = "no node has that left", f"lower {need.bundles.fields}"
    serving = [node for node in nodes if node.serves(need)]
    if not serving:
        left = "every node is for another role (cluster.role_label)"
    has_cpus = [node for node in serving if node.cpus + ROUNDING >= need.cpus]
    free = max((math.fsum(gpu.free for gpu in node.gpus) for node in has_cpus), default=0.0)
    if need.gpus and free + ROUNDING >= need.gpus:
        left = f"the {free:g} GPUs that a node has free are in pieces, on no single GPU enough"
        lower += ", so that the shares on a GPU add up to 1"
    return InputError(
        f"{need.role} {number + 1} of {need.bundles.count} finds no room: it reserves "
        f"{need.bundles.reserved}, but {there} {hardware.cpus:g} CPUs and {hardware.gpus} GPUs "
        f"each, and {left}{beside}; {lower}, or declare more in cluster"
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


def several(actors: Counter[str]) -> str:
    """For people: rollout worker x2, learner x1."""
    return ", ".join(f"{role} x{count}" for role, count in actors.items())
