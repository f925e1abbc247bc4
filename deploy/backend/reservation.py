"""Room on the cluster for the actors of a run, held before anything is started.

For what a cluster lacks Ray waits for ever, in silence; a placement group can be asked whether it
has its room. Ray Train takes no group from outside, so the one for the learner's ranks shows that
they have room and is given back for Ray Train's own.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from common.errors import InputError
from deploy.backend.bundles import Bundles, lack
from deploy.backend.joined_cluster import joined_address
from deploy.config import RunConfig

NAMES = ("CPU", "GPU")
POLL_SECONDS = 0.2
UNSAID_SECONDS = 1.0
"""Ray answers sooner where there is room."""
PRIVATE_SECONDS = 60.0
"""No node joins a private cluster, and nobody else takes room there."""


def patience(config: RunConfig) -> float:
    """Seconds that a command waits for room."""
    seconds = config.cluster.wait_seconds
    return seconds if joined_address() else min(seconds, PRIVATE_SECONDS)


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """One placement group, and what its bundles are for, in their order."""

    group: PlacementGroup
    roles: tuple[Bundles, ...]


HeldBundle: TypeAlias = tuple[HeldGroup, int]
"""A group, and which of its bundles."""


class Reservation:
    """The placement groups of one run: one for the roles that last as long as it (PACK), one for
    each rollout worker, and one for the ranks."""

    def __init__(self, wanted: Sequence[Bundles]) -> None:
        """Asks for the room and returns at once: see `wait`."""
        self._labels = {bundles.section: dict(bundles.labels) for bundles in wanted}
        self._held: list[HeldGroup] = []
        self._free: defaultdict[str, deque[HeldBundle]] = defaultdict(deque)
        needing = [bundles for bundles in wanted if bundles.resources]
        self._hold(*(bundles for bundles in needing if bundles.placed == "together"))
        for bundles in needing:
            if bundles.placed == "alone":
                for _ in range(bundles.count):
                    self._hold(replace(bundles, count=1))
            elif bundles.placed == "by Ray Train":
                self._hold(bundles)

    def _hold(self, *roles: Bundles) -> None:
        each = [bundles for bundles in roles for _ in range(bundles.count)]
        if each:
            group = placement_group(
                [bundles.resources for bundles in each],
                strategy="PACK",
                bundle_label_selector=[dict(bundles.labels) for bundles in each],
            )
            self._held.append(held := HeldGroup(group, roles))
            for index, bundles in enumerate(each):
                self._free[bundles.section].append((held, index))

    def wait(self, seconds: float, say: Callable[[str], object]) -> None:
        """Block until all have room; `say` hears who has none yet.

        Raises:
            InputError: `seconds` are over. One sentence with those that have no room, what each
                reserves, what the cluster has and what to lower.
        """
        started, said = time.monotonic(), ""
        waiting = {held.group.ready(): held for held in self._held}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
            for reference in ready:
                del waiting[reference]
            waited, without = time.monotonic() - started, list(waiting.values())
            if waiting and waited > seconds:
                raise self._refusal(without, seconds)
            words = f"waiting for room for {_several(without)}"
            if waiting and waited > UNSAID_SECONDS and words != said:
                say(said := words)

    def _refusal(self, waiting: list[HeldGroup], seconds: float) -> InputError:
        there, left = ray.cluster_resources(), ray.available_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        sizes = (f"{there.get(name, 0):g} {name}s ({left.get(name, 0):g} free)" for name in NAMES)
        roles = {bundles.section: bundles for held in waiting for bundles in held.roles}
        has_room = [held for held in self._held if held not in waiting]
        beside = f" beside {_several(has_room)}" if has_room else ""
        return InputError(
            f"no room in {seconds:g} s for {_several(waiting)}{beside}: the cluster has "
            f"{' and '.join(sizes)} on {nodes} {'node' if nodes == 1 else 'nodes'}; lower "
            f"{'; '.join(bundles.fields for bundles in roles.values())}, or make room"
            + (", or wait longer (cluster.wait_seconds)" if joined_address() else "")
            + _without_node(roles.values())
        )

    def take(
        self, section: str
    ) -> tuple[PlacementGroupSchedulingStrategy | None, HeldBundle | None]:
        """(scheduling strategy, key for `give_back`) of the next actor of a role; a role that
        reserves nothing, or has more actors than were asked for, waits for room as Ray does."""
        if not self._free[section]:
            return None, None
        held, index = bundle = self._free[section].popleft()
        strategy = PlacementGroupSchedulingStrategy(held.group, placement_group_bundle_index=index)
        return strategy, bundle

    def labels(self, section: str) -> dict[str, str]:
        """What a node of that role is labelled with: for actors that `take` has no room for."""
        return self._labels.get(section, {})

    def give_back(self, section: str, bundle: HeldBundle | None) -> None:
        """Let others have the room of an actor that ended; the roles that last keep theirs, for
        who takes its place."""
        if bundle is None or bundle[0] not in self._held:
            return
        if bundle[0].roles[0].placed == "together":
            self._free[section].appendleft(bundle)
        else:
            self._release(bundle[0])

    def give_ranks_back(self) -> None:
        """Ray Train is about to ask for the room of the learner's ranks itself."""
        for held in list(self._held):
            if held.roles[0].placed == "by Ray Train":
                self._release(held)

    def _release(self, held: HeldGroup) -> None:
        self._held.remove(held)
        remove_placement_group(held.group)

    def remove(self) -> None:
        """Hold nothing any more; actors in the groups end."""
        for held in self._held:
            remove_placement_group(held.group)
        self._held.clear()
        self._free.clear()


def _without_node(roles: Iterable[Bundles]) -> str:
    """Labels that are asked for and that no node has: nothing else would help."""
    there = [node["Labels"].items() for node in ray.nodes() if node["Alive"]]
    wanted = dict.fromkeys(label for bundles in roles for label in bundles.labels.items())
    lacking = [label for label in wanted if not any(label in labels for labels in there)]
    missing = [f"{name}={value}" for name, value in lacking]
    if not missing:
        return ""
    return (
        f"; no node is labelled {' or '.join(missing)}: start some (ray start --labels), or "
        "correct cluster.role_label"
    )


def _several(held: Sequence[HeldGroup]) -> str:
    """For people: rollout worker x2 (1 CPUs and 0.5 GPUs each)."""
    counts: dict[tuple[str, str], int] = {}
    for bundles in (bundles for group in held for bundles in group.roles):
        key = bundles.role or bundles.section, bundles.reserved
        counts[key] = counts.get(key, 0) + bundles.count
    return ", ".join(f"{role} x{n} ({reserved} each)" for (role, reserved), n in counts.items())


@contextmanager
def reserved(
    wanted: Sequence[Bundles], seconds: float, say: Callable[[str], object]
) -> Iterator[Reservation]:
    """Room for all of `wanted`, held for the block; nothing of it is left afterwards.

    Raises:
        InputError: a private cluster has too few CPUs or GPUs, or there was no room for `seconds`.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = [lack(wanted, name, [node.get(name, 0.0) for node in nodes]) for name in NAMES]
    lacking = [text for text in each if text]
    if lacking and joined_address() is None:
        raise InputError(f"{lacking[0]}; lower it, or submit to a cluster that has them")
    if lacking:
        say(f"{'; '.join(lacking)}; waiting for nodes that have them")
    reservation = Reservation(wanted)
    try:
        reservation.wait(seconds, say)
        yield reservation
    finally:
        reservation.remove()
