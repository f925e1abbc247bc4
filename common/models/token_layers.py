"""The layers of a model of the LlamaGen kind, laid open for what runs them otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from common.models.layers import CausalBlock, RMSNorm


@dataclass(frozen=True, slots=True)
class TokenLayers:
    """What a token passes, from its table to the head, and the angles of every slot."""

    conditions: nn.Embedding
    """What the first slot is given."""
    tokens: nn.Embedding
    blocks: Sequence[CausalBlock]
    norm: RMSNorm
    head: nn.Linear
    turn_SP2: Tensor
