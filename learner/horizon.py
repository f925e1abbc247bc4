"""How far into a rollout the loss looks: a length that grows as training goes on.

The entropy-gated length curriculum of arXiv 2605.16826 (docs/method.md, "Baselines"), and, without
the entropy condition, Fast OPD (arXiv 2602.15260, docs/method.md, "Reliability").

Shape letters: B sequences, L slots.
"""

from torch import Tensor

from common.config.quantities import Nats, Steps, Tokens, TokensOrNone
from common.config.schema import Config
from learner.token_weights import ObjectiveState

LENGTH = "horizon/length"
STEPS = "horizon/steps"


class HorizonConfig(Config):
    start: TokensOrNone = 0
    """Slots of every rollout suffix that count at first; 0 lets all count from the start."""
    grow: Tokens = 1
    """Slots that are added at a time."""
    every: Steps = 100
    """Steps with rollouts from one addition to the next."""
    min_entropy: Nats = 0.0
    """Add only while the student's mean entropy, in nats, is at least this; 0 always adds."""

    def slots(self, suffix_BL: Tensor, state: ObjectiveState) -> Tensor:
        """The suffix slots inside the horizon."""
        if not self.start:
            return suffix_BL
        length = state.setdefault(LENGTH, float(self.start))
        return suffix_BL & (suffix_BL.cumsum(1) <= length)

    def advance(self, state: ObjectiveState, student_entropy: float) -> None:
        """Count one step with rollouts; the entropy is the student's mean over
        the watched tokens of all ranks (learner/gathered_tokens.py).

        The notes ask for held-out entropy. Rollouts are drawn for images and noise that the
        student has not been trained on, and are measured before the update, so theirs is.
        """
        if not self.start:
            return
        state[STEPS] = state.get(STEPS, 0.0) + 1
        if state[STEPS] % self.every == 0 and student_entropy >= self.min_entropy:
            state[LENGTH] = state.get(LENGTH, float(self.start)) + self.grow
