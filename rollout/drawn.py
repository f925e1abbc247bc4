"""What a sampler makes of the rows of a lease that are its own.

Shape letters: B rows, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from common.models.plan import DecodePlan
from rollout.context import RolloutRequest
from rollout.speculation import Acceptance


@dataclass(frozen=True, slots=True)
class Drawn:
    """In the slots of the plan that the sampler was given, on the CPU."""

    token_BL: Tensor
    logprob_BL: Tensor
    """Under the distribution that drew the token; 0 where it was given."""
    input_token_BL: Tensor | None = None
    """What is read in every slot, where that is not the tokens."""
    history: int | None = None
    """How many steps before its own a step sees, beside the first one; None: all."""
    acceptance: Acceptance | None = None
    """What became of guesses, where any were checked."""


class Sampler(Protocol):
    """One way of drawing rows of tokens."""

    def __call__(
        self,
        work: RolloutRequest,
        seeds: Sequence[int],
        plan: DecodePlan,
        order_seeds: Sequence[int] | None = None,
    ) -> Drawn:
        """The rows of `work` in the slots of `plan`. Seeds give each row's own noise;
        `order_seeds`, by default the same, what rows of one condition share.

        Raises:
            InputError: the sampler cannot make such rows.
            Diverged: the model's numbers are not finite.
        """
        ...
