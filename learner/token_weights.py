"""What an objective says about a batch before any logit exists, and what it keeps in mind.

Shape letters: B sequences, L slots.
"""

from dataclasses import dataclass, field

from torch import Tensor

ObjectiveState = dict[str, float]
"""Numbers that an objective carries from step to step (a calibrated threshold, a horizon).

They come from sums over all ranks, so every rank holds the same; they are plotted and are part of
every snapshot, so a resumed run goes on with them. The config itself never changes.
"""


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """How much each token counts, and what goes with it; nothing here carries a gradient."""

    weight_BL: Tensor
    """Weight of the token's loss; tokens of weight 0 never reach the head."""
    open_BL: Tensor
    """Slots that the gate left open."""
    support_BL: Tensor
    """Slots that could have been open: the denominator of `suffix_mean`."""
    column: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per token that the objective wants back in its chunks, each (B, L)."""
    group_BL: Tensor | None = None
    """Neighbouring tokens of equal number are handed over in one chunk; None: any cut will do."""
    sequence_B: Tensor | None = None
    """Weight of each row's `sequence_loss`; None: 1 where its context has a loss, else 0."""
    sequence_column: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per sequence that `sequence_loss` wants back, each (B, ...)."""

    def rows(self, chosen: slice) -> "TokenWeights":
        """A view of some sequences."""
        return TokenWeights(
            self.weight_BL[chosen],
            self.open_BL[chosen],
            self.support_BL[chosen],
            {name: value[chosen] for name, value in self.column.items()},
            None if self.group_BL is None else self.group_BL[chosen],
            None if self.sequence_B is None else self.sequence_B[chosen],
            {name: value[chosen] for name, value in self.sequence_column.items()},
        )
