"""Two learners in turns: a guidance network that follows the generator's own sequences, and the
generator, which follows what the teacher and the guidance network say of them.

Distilled Decoding 2, stage 2 (arXiv 2510.21003, algorithm 3; docs/one_step.md). Each is a plain
`Learner` with its network, objective, optimizer, schedule and average; this says whose turn it is,
and is to the loop around it what one learner is.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Required, TypedDict, Unpack

from torch import Tensor

from common.errors import InputError
from common.exchange.condition import Conditions
from common.exchange.schedule import Schedule
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Weights
from common.models.velocity_model import VelocityModel
from common.randomness import derive_seed
from learner.alternating_config import AlternatingConfig
from learner.config import LearnerConfig
from learner.layout import LayoutOf
from learner.learner import Learner, StudentName
from learner.process_group import ProcessGroup
from learner.profile import Profile
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets
from learner.turns import Turns

GUIDANCE = "guidance"


class Alternation:
    """The generator is what others see of it: published, stored, averaged."""

    def __init__(
        self, generator: Learner, guidance: Learner, turns: Turns, schedule: Schedule
    ) -> None:
        self._generator = generator
        self._guidance = guidance
        self._turns = turns
        self.schedule = schedule
        """Which versions there are, and which rows a step takes."""
        self.steps_done = 0

    @property
    def profile(self) -> Profile:
        return self._generator.profile

    def step(self, batch: TrajectoryBatch) -> dict[str, float]:
        """One update of whoever's turn it is; numbers of a guidance step are called so.

        Raises:
            InputError: a row is not of the newest generator, or is not what it makes of the seed.
            Diverged: as `Learner.step`.
        """
        step = self.steps_done
        self._require_newest(batch)
        if self._turns.aligns(step):
            self._generator.take_average()
        turn = self._turns.turn(step)
        newest = int(batch.version_B.max())  # lags are counted in changes of the generator
        if turn == "generator":
            metrics = self._generator.step(batch, now=newest)
        else:
            found = self._guidance.step(batch, now=newest)
            metrics = {f"{GUIDANCE}/{name}": value for name, value in found.items()}
        self.steps_done += 1
        done = self._turns.done(self.steps_done)
        return metrics | {f"{name}/steps": count for name, count in done.items()}

    def _require_newest(self, batch: TrajectoryBatch) -> None:
        oldest, found = self.schedule.oldest_version(self.steps_done), int(batch.version_B.min())
        if found < oldest:
            raise InputError(
                f"step {self.steps_done + 1}: a row was made by version {found} of the generator, "
                f"but its newest is {oldest}, and both networks learn from that one alone; let "
                "workers fetch weights as they are published"
            )

    def update(self, loss: Tensor) -> None:
        """As `Learner.update` of both, which makes their optimizers' moments."""
        self._guidance.update(loss)
        self._generator.update(loss)

    @property
    def is_spread(self) -> bool:
        """Each rank holds both whole (deploy/config.py sees to it)."""
        return False

    def published(self, dtype: str, *, checked: bool = False) -> Weights:
        """The generator, versioned by the steps of both; there is no canary of one."""
        return self._generator.published(dtype, version=self.steps_done)

    def states(self) -> Iterator[tuple[StudentName, Mapping[str, Tensor]]]:
        """The generator's, as `Learner.states`."""
        return self._generator.states()

    def snapshot(self) -> dict[str, Any]:
        """Of both; who had how many steps follows from the step."""
        return self._generator.snapshot() | {GUIDANCE: self._guidance.snapshot()}

    def restore(self, tensors: dict[str, Any], step: int) -> None:
        """Continue from a snapshot, also between a guidance step and the generator's.

        Raises:
            InputError: it is of other networks, or of a run with one.
        """
        if GUIDANCE not in tensors:
            raise InputError(
                "the snapshot has one network, but this run trains two in turns; begin again with "
                "--restart"
            )
        done = self._turns.done(step)
        self._guidance.restore(tensors[GUIDANCE], done["guidance"])
        self._generator.restore(tensors, done["generator"])
        self.steps_done = step


class LearnerParts(TypedDict, total=False):
    """What both learners are handed alike."""

    contexts: Required[tuple[str, ...]]
    teacher: TeacherTargets | None
    ranks: ProcessGroup | None
    conditions: Conditions | None
    layout: LayoutOf


def alternation(
    config: LearnerConfig,
    objective: AlternatingConfig,
    resources: Resources,
    networks: tuple[VelocityModel, VelocityModel],
    *,
    seed: int,
    **parts: Unpack[LearnerParts],
) -> Alternation:
    """Of the run's config: `networks` are generator and guidance, which begin alike; `resources`
    hold the second as `guidance`."""
    turns = objective.turns()
    steps = turns.done(config.steps)
    settings = config.model_copy(update={"profile_every": 0})  # no token has a curve
    of_guidance = {"optimizer": objective.guidance.optimizer, "steps": steps["guidance"]}
    generator = Learner(
        settings.model_copy(update={"steps": steps["generator"]}),
        objective.build(resources),
        networks[0],
        seed=derive_seed(seed, "generator"),
        **parts,
    )
    guidance = Learner(
        settings.model_copy(update=of_guidance),
        objective.build_guidance(resources),
        networks[1],
        seed=derive_seed(seed, "guidance"),
        section="objective.guidance",
        **{**parts, "teacher": None},  # it learns from the rows alone, which nobody scores
    )
    size = config.global_batch_size
    schedule = Schedule(config.steps, size, size, 0, 1, phases=objective.phases())
    return Alternation(generator, guidance, turns, schedule)
