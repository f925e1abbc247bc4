"""The contract of an objective whose student is trained in turns with a guidance network
(learner/alternation.py). Both begin as the same network."""

from abc import abstractmethod

from common.config.quantities import Probability, Steps
from common.config.schema import Config
from common.exchange.schedule import Phase
from learner.objective import Objective
from learner.optimizer import OptimizerConfig
from learner.resources import Resources
from learner.score_objective import ScoreConfig
from learner.turns import Turns


class GuidanceConfig(Config):
    steps: Steps = 5
    """Of the guidance network before each of the generator's (K)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Of the guidance network; learner.optimizer is the generator's. Each counts its own steps."""


class AlignmentConfig(Config):
    after: Steps
    """Steps of the generator before it becomes its moving average."""
    steps: Steps
    """Steps of the guidance network while the generator stands still (published: 8000)."""
    guidance_steps: Steps = 2
    """Of the guidance network before each of the generator's, from then on."""


class AlternatingConfig(ScoreConfig):
    """`build` makes the generator's objective, which looks through the guidance network."""

    guidance: GuidanceConfig = GuidanceConfig()
    """The second network."""
    alignment: AlignmentConfig | None = None
    """Performance alignment: once, the generator becomes its average and waits for the guidance
    network."""

    mismatch: Probability = 0.01
    """Share of the tokens that may come out otherwise when the learner makes the rows again; more
    is an error. On one machine 0 may do."""

    def turns(self) -> Turns:
        """Who is trained when; learner.steps are those of both."""
        at = self.alignment
        aligned = None if at is None else (at.after, at.steps, at.guidance_steps)
        return Turns(self.guidance.steps, aligned)

    def phases(self) -> tuple[Phase, ...]:
        return self.turns().phases()

    def resources(self) -> frozenset[str]:
        return super().resources() | {"guidance"}

    @abstractmethod
    def build_guidance(self, resources: Resources) -> Objective:
        """What the guidance network learns by."""
