"""Whether the cluster has what is asked of it: for what it lacks Ray waits for ever, in silence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import InputError
from deploy.backend.joined_cluster import joined_address
from deploy.config import RunConfig


@dataclass(frozen=True, slots=True)
class Demand:
    """Actors that must all run at the same time, and what each takes."""

    section: str
    """The config section that says so."""
    count: int
    cpus: float
    gpus: float

    def of(self, resource: str) -> float:
        return {"CPU": self.cpus, "GPU": self.gpus}[resource]


def run_demands(config: RunConfig) -> list[Demand]:
    """What a distillation takes."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    return [
        Demand("rollout", rollout.workers, rollout.cpus, rollout.gpus),
        Demand("teacher", teacher.replicas, teacher.cpus, teacher.gpus),
        *(
            Demand(f"scorers.{name}", actors.replicas, actors.cpus, actors.gpus)
            for name, scorer in config.scorers.items()
            if scorer.kind != "teacher"
            for actors in [scorer.actors(teacher)]
        ),
        Demand("learner", learner.world_size, learner.cpus, learner.gpus),
    ]


def require_room(demands: Sequence[Demand], say: Callable[[str], object]) -> None:
    """Refuse, or say on a cluster that may grow, what the nodes that are there cannot give.

    Raises:
        InputError: the private cluster has too few CPUs or GPUs.
    """
    import ray  # not above: the driver sets Ray's environment before it first imports it

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    lacking = [
        text
        for resource in ("CPU", "GPU")
        if (text := lack(demands, resource, [node.get(resource, 0.0) for node in nodes]))
    ]
    if not lacking:
        return
    if joined_address() is None:
        raise InputError(f"{lacking[0]}; lower it, or submit to a cluster that has them")
    say(f"{'; '.join(lacking)}; waiting for nodes that have them")


def lack(demands: Sequence[Demand], resource: str, nodes: Sequence[float]) -> str | None:
    """What the nodes, which have so much of `resource` each, cannot give."""
    key, total = f"{resource.lower()}s", sum(nodes)
    for demand in demands:
        if demand.of(resource) > max(nodes, default=0.0):
            where = f"the cluster has {total:g}" + (" in all" if len(nodes) > 1 else "")
            return f"{demand.section}.{key} is {demand.of(resource):g}, but {where}"
    parts = [(d.section, d.count, d.of(resource)) for d in demands if d.of(resource)]
    wanted = sum(count * each for _, count, each in parts)
    if wanted <= total:
        return None
    sums = ", ".join(f"{section} {count} x {each:g}" for section, count, each in parts)
    return f"the run wants {wanted:g} {resource}s ({sums}), but the cluster has {total:g}"
