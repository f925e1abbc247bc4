"""What the actors of a run reserve on a cluster: one place says it, from the config.

The dry run checks these bundles against the hardware (deploy/planning/placement.py), and the
launcher asks Ray for exactly them (deploy/backend/reservation.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deploy.backend.role import section_of
from deploy.config import RunConfig


@dataclass(frozen=True, slots=True)
class Bundles:
    """Equal actors of one role, that must all run at the same time; each reserves one bundle."""

    section: str
    """The config section that says so."""
    count: int
    cpus: float
    gpus: float
    role: str = ""
    """For people."""
    number: str = "workers"
    """The field of the section that says how many there are."""
    placed: Literal["together", "alone", "by Ray Train"] = "together"
    """In one group with the other roles that last as long as the run; each in a group of its own,
    because it may end before; or in the group that Ray Train makes for its ranks."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a node must be labelled with."""

    def of(self, resource: str) -> float:
        return {"CPU": self.cpus, "GPU": self.gpus}[resource]

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for; nothing is no bundle."""
        return {name: self.of(name) for name in ("CPU", "GPU") if self.of(name)}

    @property
    def fields(self) -> str:
        """Config fields that say how many there are and what each reserves."""
        return f"{self.section}.{self.number}, {self.section}.cpus or {self.section}.gpus"

    @property
    def reserved(self) -> str:
        where = [f"{name}={value}" for name, value in self.labels.items()]
        labelled = f" on a node labelled {' and '.join(where)}" if where else ""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{labelled}"


def run_bundles(config: RunConfig) -> list[Bundles]:
    """What a distillation reserves, in the order in which it asks."""
    rollout, learner = config.rollout, config.learner
    workers = (rollout.workers, rollout.cpus, rollout.gpus, "rollout worker", "workers", "alone")
    ranks = (learner.world_size, learner.cpus, learner.gpus, "learner", "world_size")
    return [
        *(scorer_bundles(config, name) for name in config.scoring),
        Bundles("rollout", *workers, node_labels(config, "rollout")),
        Bundles("learner", *ranks, "by Ray Train", node_labels(config, "learner")),
    ]


def node_labels(
    config: RunConfig, role: Literal["teacher", "rollout", "learner"]
) -> dict[str, str]:
    """What the nodes of a role must be labelled with, where the cluster has a group for each."""
    label = config.cluster.role_label
    return {} if label is None else {label: role}


def scorer_bundles(config: RunConfig, name: str) -> Bundles:
    """What the replicas of one table of [scorers] reserve; the teacher's are in [teacher]."""
    scorer = config.scorers[name]
    actors, is_teacher = scorer.actors(config.teacher), scorer.kind == "teacher"
    return Bundles(
        section_of(config, name),
        *(actors.replicas, actors.cpus, actors.gpus),
        "teacher server" if is_teacher else f"scorer {name}",
        "replicas",
        labels=node_labels(config, "teacher"),
    )


def lack(wanted: Sequence[Bundles], resource: str, nodes: Sequence[float]) -> str | None:
    """What the nodes, which have so much of `resource` each, cannot give."""
    key, total = f"{resource.lower()}s", sum(nodes)
    for bundles in wanted:
        if bundles.of(resource) > max(nodes, default=0.0):
            where = f"the cluster has {total:g}" + (" in all" if len(nodes) > 1 else "")
            return f"{bundles.section}.{key} is {bundles.of(resource):g}, but {where}"
    parts = [(b.section, b.count, b.of(resource)) for b in wanted if b.of(resource)]
    needed = sum(count * each for _, count, each in parts)
    if needed <= total:
        return None
    sums = ", ".join(f"{section} {count} x {each:g}" for section, count, each in parts)
    return f"the run wants {needed:g} {resource}s ({sums}), but the cluster has {total:g}"
