"""Roles of which a run may have more actors, or fewer, while it goes on: rollout workers, and the
replicas of every scorer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from deploy.config import RunConfig
from rollout.config import RolloutConfig
from teacher_server.replicas import ReplicasConfig

ROLLOUT = "rollout"


class Runner(Protocol):
    """What is asked of an actor of a role; both are called from threads of their own."""

    def run(self) -> int:
        """Work until told to stop, or until the run is over."""
        ...

    def stop(self) -> None:
        """Let `run` return after what was begun; may be called before it."""
        ...


Actor = TypeVar("Actor", bound=Runner, covariant=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many actors of a role a run has, and what says so."""

    count: int
    """At the start."""
    least: int
    """With fewer the run ends with the cause."""
    most: int
    """The services have threads for so many."""
    max_restarts: int
    floor: int
    """By itself a run has no fewer."""
    section: str
    """Of the config."""
    noun: str
    """For people, of several: rollout workers."""
    is_elastic: bool = False
    """Whether the number changes by itself."""
    least_field: str | None = None
    most_field: str = ""

    @property
    def range(self) -> str:
        """For people, with the fields that say so."""
        least = f"{self.least} ({self.least_field})" if self.least_field else f"{self.least}"
        return f"{least} to {self.most} ({self.most_field})"


@dataclass(frozen=True, slots=True)
class Role(Generic[Actor]):
    """How actors of a role are made."""

    limits: Limits
    member: str
    """Actors are called that and a number."""
    make: Callable[[str], Actor]
    """Makes one of that name, at any time. No name is used twice."""
    first: Mapping[str, Actor] = field(default_factory=dict)
    """Those that were made with the services."""
    is_asked: bool = False
    """Whether others send it work, and must know who is there (deploy/backend/routes.py); else its
    actors fetch work themselves, and hold leases."""


def limits_of(config: RunConfig) -> dict[str, Limits]:
    """Of every role of a run, by the name that `varkd scale` has for it."""
    found = {ROLLOUT: worker_limits(config.rollout)}
    for name, scorer in config.scoring.items():
        role, section = role_name(config, name), section_of(config, name)
        found[role] = replica_limits(scorer.actors(config.teacher), role, section)
    return found


def worker_limits(config: RolloutConfig) -> Limits:
    """Of [rollout]."""
    return Limits(
        count=config.workers,
        least=config.min_workers,
        most=config.most_workers,
        max_restarts=config.max_restarts,
        floor=config.min_workers,
        section="rollout",
        noun="rollout workers",
        is_elastic=config.is_elastic,
        least_field="rollout.min_workers",
        most_field="rollout.max_workers" if config.max_workers else "2 * rollout.workers",
    )


def replica_limits(config: ReplicasConfig, role: str, section: str) -> Limits:
    """Of a scorer, whose config section says how many replicas it has."""
    return Limits(
        count=config.replicas,
        least=1,
        most=config.most_replicas,
        max_restarts=config.max_restarts,
        floor=config.replicas,
        section=section,
        noun=f"{role} replicas",
        is_elastic=config.is_elastic,
        most_field=f"{section}.max_replicas" if config.max_replicas else f"2 * {section}.replicas",
    )


def role_name(config: RunConfig, name: str) -> str:
    """What a table of [scorers] is called where its replicas are."""
    return "teacher" if config.scorers[name].kind == "teacher" else f"scorer-{name}"


def section_of(config: RunConfig, name: str) -> str:
    """The config section that says what the replicas of a table of [scorers] reserve."""
    return "teacher" if config.scorers[name].kind == "teacher" else f"scorers.{name}"
