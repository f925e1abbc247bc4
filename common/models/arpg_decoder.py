"""ARPG's two decoders: one reads the known tokens, one asks for positions (docs/backbones.md, "ARPG
layers").

Shape letters: B sequences, n new slots, S seen slots, C width, P rotary pairs, H heads, E head
width.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.cpu import native_rows, native_unmasked
from common.models.key_value_cache import KeyValueCache
from common.models.layers import RMSNorm, SwiGLU, rotate
from common.models.packed_linear import Linear


@dataclass(frozen=True, slots=True)
class TwoPassSizes:
    width: int
    depth: int
    heads: int
    multiple_of: int
    dropout: float


class Attention(nn.Module):
    """Multi-head attention without biases; a guided block brings only queries."""

    def __init__(self, sizes: TwoPassSizes, *, guided: bool) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.to_q = Linear(sizes.width, sizes.width, bias=False)
        if not guided:
            self.to_k = Linear(sizes.width, sizes.width, bias=False)
            self.to_v = Linear(sizes.width, sizes.width, bias=False)
        self.proj = Linear(sizes.width, sizes.width, bias=False)

    def queries(self, x_BnC: Tensor, rotary_BnP: Tensor) -> Tensor:
        """query_BHnE."""
        return rotate(split(self.to_q(x_BnC), self.heads), rotary_BnP).transpose(1, 2)

    def mix(self, query_BHnE: Tensor, memory: "Memory") -> Tensor:
        seen = memory.key_BHSE, memory.value_BHSE
        if memory.shows_all and native_unmasked.mixes(query_BHnE, *seen):
            scale = query_BHnE.shape[-1] ** -0.5
            return self.proj(native_unmasked.mixed(query_BHnE, *seen, scale))
        mixed = F.scaled_dot_product_attention(
            query_BHnE, *seen, attn_mask=memory.visible_nS, is_causal=memory.is_causal
        )
        return self.proj(mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and values, and which of them each query may see: all, a mask, or its own past."""

    key_BHSE: Tensor
    value_BHSE: Tensor
    visible_nS: Tensor | None = None
    is_causal: bool = False

    @property
    def shows_all(self) -> bool:
        return self.visible_nS is None and not self.is_causal


class Block(nn.Module):
    def __init__(self, sizes: TwoPassSizes, *, guided: bool) -> None:
        super().__init__()
        self.attn = Attention(sizes, guided=guided)
        self.ffn = SwiGLU(sizes.width, sizes.multiple_of)
        self.attn_norm = RMSNorm(sizes.width)
        self.ffn_norm = RMSNorm(sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def finish(self, x_BnC: Tensor, attended_BnC: Tensor) -> Tensor:
        x_BnC = native_rows.dropped(attended_BnC, self.dropout, x_BnC)
        return native_rows.dropped(self.ffn(self.ffn_norm(x_BnC)), self.dropout, x_BnC)


class SelfBlock(Block):
    def forward(
        self,
        x_BnC: Tensor,
        rotary_BnP: Tensor,
        visible_nS: Tensor | None,
        is_causal: bool,
        cache: KeyValueCache | None,
    ) -> Tensor:
        normed = self.attn_norm(x_BnC)
        key, value = keys_and_values(self.attn, normed, rotary_BnP, self.attn.heads)
        if cache is not None:
            key, value = cache.append(key, value)
        query = self.attn.queries(normed, rotary_BnP)
        return self.finish(x_BnC, self.attn.mix(query, Memory(key, value, visible_nS, is_causal)))


class GuidedBlock(Block):
    def forward(self, x_BnC: Tensor, rotary_BnP: Tensor, memory: Memory) -> Tensor:
        query = self.attn.queries(self.attn_norm(x_BnC), rotary_BnP)
        return self.finish(x_BnC, self.attn.mix(query, memory))


class TwoPassDecoder(nn.Module):
    """The official container: both decoders, and the projection between them."""

    def __init__(self, sizes: TwoPassSizes) -> None:
        super().__init__()
        half = sizes.depth // 2
        self.self_dec = nn.ModuleList(SelfBlock(sizes, guided=False) for _ in range(half))
        self.cross_dec = nn.ModuleList(GuidedBlock(sizes, guided=True) for _ in range(half))
        self.norm = RMSNorm(sizes.width)
        self.to_k = Linear(sizes.width, sizes.width, bias=False)
        self.to_v = Linear(sizes.width, sizes.width, bias=False)


def keys_and_values(
    owner: Attention | TwoPassDecoder, x_BnC: Tensor, rotary_BnP: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """key_BHnE, rotated to the tokens' own positions, and value_BHnE."""
    key = rotate(split(owner.to_k(x_BnC), heads), rotary_BnP)
    return key.transpose(1, 2), split(owner.to_v(x_BnC), heads).transpose(1, 2)


def split(x_BnC: Tensor, heads: int) -> Tensor:
    return x_BnC.unflatten(-1, (heads, -1))
