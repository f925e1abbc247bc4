"""How far a run may grow by itself, and how much of that the nodes have room for."""

from copy import deepcopy

from deploy.backend.role import limits_of
from deploy.config import RunConfig
from deploy.planning.placement import Node, emptiest_first
from deploy.planning.resources import Need


def describe_growth(config: RunConfig, needs: list[Need], nodes: list[Node]) -> dict[str, str]:
    """For people: of every role whose number changes by itself, up to how many there may be; those
    that come first take their room first. Nothing where no number does."""
    left, said = deepcopy(nodes), []
    for limits in limits_of(config).values():
        need = next((need for need in needs if need.bundles.section == limits.section), None)
        more = limits.most - limits.count
        if not limits.is_elastic or need is None:
            continue
        fitting = sum(_fits(need, left) for _ in range(more)) if left else more
        room = "" if fitting == more else f", of whom {fitting or 'none'} will find room"
        said.append(
            f"up to {limits.most} {limits.noun} ({limits.most_field}): {more} more, each with "
            f"{need.bundles.reserved}{room}"
        )
    return {"grows": "; ".join(said)} if said else {}


def _fits(need: Need, nodes: list[Node]) -> bool:
    """Whether there is room for one more, which it then has; GPUs' memory as for the first."""
    for node in emptiest_first(need, nodes):
        if node.room(need) >= 1 and node.memory_mb + need.host_mb <= node.hardware.memory_mb:
            node.take(need)
            return True
    return False
