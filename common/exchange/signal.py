"""The contract of a teacher signal: what the teacher sends, and how the learner reads it.

Shape letters: B sequences, L slots, N tokens, C width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.config.plugins import PluginConfig


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


def entropy_of(logprob: Tensor) -> Tensor:
    """Entropy in nats over the last axis (VarKD eq. 8); 0 log 0 is its limit 0."""
    probability = logprob.exp()
    return -(probability * logprob.masked_fill(probability == 0, 0)).sum(-1)


CHUNK = 256
"""Tokens whose logits exist at a time: so few that a CPU's cache holds them."""


@torch.no_grad()
def entropies(hidden_BLC: Tensor, head: nn.Linear, chunk: int = CHUNK) -> Tensor:
    """entropy_BL of the head's distributions; memory grows with `chunk`, not with B * L * V."""
    parts = [
        entropy_of(head(part).float().log_softmax(-1))
        for part in hidden_BLC.flatten(0, 1).split(chunk)
    ]
    return torch.cat(parts).view(hidden_BLC.shape[:2])
