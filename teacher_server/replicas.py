"""How many processes a part of the teacher's side has, and what each reserves."""

from typing import Self

from pydantic import model_validator

from common.config.quantities import Cpus, Gpus, Processes, Spare
from common.config.schema import Config


class ReplicasConfig(Config):
    replicas: Processes = 1
    """Actors at the start."""
    max_replicas: Processes | None = None
    """The run has up to so many, by itself: one more while the learner waits and all are busy, one
    less, down to `replicas`, while fewer would do. By default their number changes only when
    somebody asks for it (`varkd scale`), up to twice `replicas`."""
    max_restarts: Spare = 3
    """Replicas that may be replaced when they die; without any the run ends with the cause. One
    that had worked for ten minutes does not count."""
    cpus: Cpus = 1
    """Logical CPUs reserved per replica on the cluster, and threads that it computes with."""
    gpus: Gpus = 0
    """GPUs (or a fraction) reserved per replica."""

    @property
    def most_replicas(self) -> int:
        """How many there may be while the run goes on."""
        return self.max_replicas or 2 * self.replicas

    @property
    def is_elastic(self) -> bool:
        """Whether their number changes by itself."""
        return self.max_replicas is not None and self.max_replicas > self.replicas

    @model_validator(mode="after")
    def _may_have_what_it_begins_with(self) -> Self:
        if self.most_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, but there are {self.replicas} replicas at "
                "the start; raise the one or lower the other"
            )
        return self
