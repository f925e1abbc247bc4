"""Ray's library in the fork server: as a worker would load it, and fit to be forked.

Each process draws the names of its tasks and objects from a generator that the library seeds at the
first draw. A draw before a fork would give all workers the same names: they would overwrite each
other's objects.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any

USERS = ("deploy.backend.train_job",)
"""Modules that import much of Ray."""


def load(variables: Mapping[str, str]) -> None:
    """Load it with a cluster's variables, which the library reads while it is loaded.

    Raises:
        RuntimeError: its names are drawn in another way than this function knows.
    """
    os.environ.update(variables)
    actor: Any = importlib.import_module("ray.actor")
    library_s = actor.ActorClassID

    class FromSystem(library_s):
        """Names of classes that are declared while modules are imported."""

        @classmethod
        def from_random(cls) -> object:
            return library_s(os.urandom(library_s.size()))

    actor.ActorClassID = FromSystem
    try:
        for name in USERS:
            importlib.import_module(name)
    finally:
        actor.ActorClassID = library_s
    if not forks_draw_apart():
        raise RuntimeError("Ray drew a name while it was imported")


def forks_draw_apart() -> bool:
    """Whether two forks of this process, which do not look at each other, draw other names."""
    return _drawn_in_a_fork() != _drawn_in_a_fork()


def _drawn_in_a_fork() -> bytes:
    ray = importlib.import_module("ray")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ray.NodeID.from_random().binary())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        return stream.read()
