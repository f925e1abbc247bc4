"""Objectives built for a test, and learners that see a part of a step each."""

from dataclasses import replace

import torch
from building.dependent_codes import fresh

from common.config.plugins import kinds, load_plugin
from common.models.backbone import BackboneConfig
from learner.process_group import SingleProcess
from learner.resources import Resources
from learner.score_objective import ScoreConfig

OF_BACKBONES = tuple(
    kind
    for kind in kinds("learner.objectives")
    if load_plugin("learner.objectives", kind).Config.students is BackboneConfig
)
"""Kinds that train students which decode token by token."""
OF_TOKENS = tuple(
    kind
    for kind in kinds("learner.objectives")
    if not issubclass(load_plugin("learner.objectives", kind).Config, ScoreConfig)
)
"""Kinds with a loss of single tokens."""

DRAWN = (
    *(f"contexts.sources.{kind}.ratio=0" for kind in ("data", "student")),
    *("contexts.sources.parallel.ratio=1", "rollout.group.size=2"),
    *(f"scorers.{kind}.kind={kind}" for kind in ("decoded_mse", "perceptual")),
)
"""Draws of one pass, judged by their images."""
JUDGED = ("scorers.opinion.kind=token_logprob", "rollout.group.size=2")
WITH = {
    "kdrl": JUDGED,
    "privileged": ("teacher.peek=0.25",),
    "sar": ("contexts.sources.student.ratio=0",),
    "vapi": DRAWN,
}
"""What else a run's config must have for an objective of that kind."""


def judged(batch):
    """With what scorers say of rows, each alone in its group."""
    names = "teacher_logprob", "decoded_mse", "perceptual"
    said = {name: torch.linspace(-1, 0, len(batch)) for name in names}
    groups = {"group_B": batch.id_B, "member_B": torch.zeros_like(batch.id_B)}
    return replace(batch, sequence=said, **groups)


def built(config, clusters=None):
    """The objective of a config, on the given cluster map."""
    return config.build(resources(clusters))


def resources(clusters=None):
    """All that there is but a teacher's head: codes of two numbers, images of one row."""
    return Resources(
        clusters=lambda relaxation: clusters,
        codebook=lambda: torch.randn(24, 2, generator=torch.Generator().manual_seed(0)),
        render=lambda device: lambda vector_BLD: vector_BLD[:, None],
        perceptual=lambda device: lambda image_BCHW: image_BCHW.flatten(1),
        positions=lambda: (1, 3),
        guidance=fresh,
    )


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

    def begin_sum(self, tensor):
        tensor.copy_(self.sum_(tensor))
        return lambda: None

    def all_say(self, number):
        return bool(self.sum_(torch.tensor(number)) == 2 * number)

    def barrier(self):
        self._barrier.wait(timeout=60)


def logprobs(seed, *shape, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(*shape, generator=generator)).log_softmax(-1)


def contexts_of(objective):
    found = [name for name in ("data", "student") if objective.config.uses(name)]
    return found or ["teacher"]
