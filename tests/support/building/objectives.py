"""Objectives built for a test, and learners that see a part of a step each."""

from learner.process_group import SingleProcess
from learner.resources import Resources


def built(config, clusters=None):
    """The objective of a config, on the given cluster map."""
    return config.build(Resources(clusters=lambda relaxation: clusters))


class Company(SingleProcess):
    """One of two ranks in two threads; a sum waits for the other."""

    world = 2

    def __init__(self, rank, shared, barrier):
        self.rank, self._shared, self._barrier = rank, shared, barrier

    def sum_(self, tensor):
        self._shared[self.rank] = tensor.clone()
        self._barrier.wait(timeout=60)
        total = self._shared[0] + self._shared[1]
        self._barrier.wait(timeout=60)
        return total
