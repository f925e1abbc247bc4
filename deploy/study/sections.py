"""Sections of a study's file: how much cells train, where they are measured, and how they run."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from common.config.quantities import Batch, Depth, Factor, Gpus, Seconds, SomeCpus, Steps
from common.config.schema import Config


class BudgetConfig(Config):
    """One of steps and seconds; the page says which."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"steps", "seconds"}),)

    steps: Steps | None = None
    """Learner steps of every cell."""
    own: dict[str, Steps] = Field(default_factory=dict)
    """Steps of single methods instead, by name, where a step is something else (two networks in
    turns); the page names them as unequal."""
    seconds: Seconds | None = None
    """Training seconds of every cell: each method gets the steps that it does in this time, as a
    short run of its own tells before the study starts."""
    probe_steps: Steps = 10
    """Steps of that short run, after one that warms up."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("give steps or seconds, and not both")
        if self.own and self.steps is None:
            raise ValueError("own has steps of single methods; give steps for the others")
        return self


class GuidanceConfig(Config):
    fixed: Factor = 1.5
    """The scale of the main table and of the curves; 1 is none."""
    sweep: tuple[Factor, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    """Scales at which the end of every cell is measured, so that a shift along the guidance axis is
    not taken for a gain."""

    @property
    def scales(self) -> tuple[float, ...]:
        """The sweep, in order, with the fixed scale."""
        return tuple(sorted({*self.sweep, self.fixed}))


class CellsConfig(Config):
    cpus: SomeCpus = 1
    """Logical CPUs of a Ray task; a cell is one process."""
    gpus: Gpus = 0
    """GPUs, or a fraction, of a Ray task."""
    tries: Depth = 2
    """A cell whose process died is begun again (from its snapshot) this often in all."""


class SpeedConfig(Config):
    batches: Annotated[tuple[Batch, ...], Field(min_length=1)] = (1, 250)
    """Images drawn together; each number is timed by itself."""
    rounds: Annotated[int, Field(ge=2, le=1000)] = 8
    """Times that everything is drawn, forwards and backwards in turn; intervals are over them."""
