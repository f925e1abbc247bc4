"""The contract of a teacher signal: what the teacher sends, and how the learner reads it.

Shape letters: B sequences, L slots, N tokens, C width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from common.config.plugins import PluginConfig
from common.exchange.entropy import entropies


class SignalConfig(PluginConfig, ABC):
    """Encodes at the teacher, decodes at the learner; both hold the teacher's output head."""

    @abstractmethod
    def encode(self, hidden_BLC: Tensor, head: nn.Linear) -> dict[str, Tensor]:
        """Turn guided post-norm hidden vectors into wire columns, each (B, L, ...)."""

    @abstractmethod
    def logprob(self, column: Mapping[str, Tensor], head: nn.Linear) -> Tensor:
        """The teacher's normalised logprob_NV from columns gathered to (N, ...)."""

    def logit(self, column: Mapping[str, Tensor], head: nn.Linear) -> Tensor | None:
        """The same up to a constant per token, where that is less work; None where it is not."""
        return None

    def entropy(self, column: Mapping[str, Tensor], hidden_BLC: Tensor, head: nn.Linear) -> Tensor:
        """entropy_BL of the untempered teacher, from what `encode` made of `hidden_BLC` or from the
        hidden vectors themselves: by default one pass through the head, a chunk of tokens at a
        time."""
        return entropies(hidden_BLC, head)

    @abstractmethod
    def bytes_per_token(self, width: int, vocab_size: int) -> int:
        """Size on the wire, the entropy column not counted."""
