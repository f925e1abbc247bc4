"""The layers of a model of the LlamaGen kind, laid open for what runs them otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor, nn

from common.models.layers import CausalAttention, CausalBlock, DropPath, RMSNorm, SwiGLU
from common.models.packed_linear import Linear

PLAIN = (CausalBlock, CausalAttention, SwiGLU, RMSNorm, Linear, nn.Linear, nn.Dropout, DropPath)
"""Types of the parts of a block."""


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

    @property
    def are_plain(self) -> bool:
        """Whether they are just what their types say: nothing wraps, replaces or watches a part of
        them, and all have the same sizes."""
        parts = [part for block in self.blocks for part in block.modules()] + [self.norm]
        tables = self.conditions, self.tokens
        return (
            all(type(part) in PLAIN and not _is_watched(part) for part in parts)
            and all(type(table) is nn.Embedding for table in tables)
            and all(table.weight.is_contiguous() for table in tables)
            and all(layer.bias is None for layer in (*parts, self.head) if _is_linear(layer))
            and len({part.eps for part in parts if isinstance(part, RMSNorm)}) == 1
            and len({block.attention.heads for block in self.blocks}) == 1
        )


def _is_linear(part: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(part, nn.Linear)


def _is_watched(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)
