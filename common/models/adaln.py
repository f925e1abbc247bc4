"""Transformer blocks under adaptive layer norm, as VAR's (docs/backbones.md, "VAR layers").

Shape letters: B sequences, n new slots, S seen slots, C width, H heads.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.cpu import native_rows, native_unmasked
from common.models.key_value_cache import KeyValueCache
from common.models.layers import DropPath
from common.models.packed_linear import Linear
from common.models.products import linear
from common.models.scale_mask import Seen

SCALE_LIMIT = math.log(100)
"""Upper clamp of the learned attention temperature (log)."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    width: int
    heads: int
    inner: int
    l2_norm: bool
    shared: bool
    dropout: float


class Attention(nn.Module):
    """Fused projection whose key part has no bias; normalised queries and keys."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self._heads = sizes.heads
        self._l2_norm = sizes.l2_norm
        if sizes.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, sizes.heads, 1, 1), math.log(4.0)))
        self.mat_qkv = Linear(sizes.width, 3 * sizes.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(sizes.width))
        self.v_bias = nn.Parameter(torch.zeros(sizes.width))
        self.proj = Linear(sizes.width, sizes.width)

    def forward(self, x_BnC: Tensor, seen: Seen | None, cache: KeyValueCache | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        fused = linear(x_BnC, self.mat_qkv.weight, bias)
        query, key, value = fused.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        if self._l2_norm:
            temperature = self.scale_mul_1H11.clamp_max(SCALE_LIMIT).exp()
            query, key = F.normalize(query, dim=-1) * temperature, F.normalize(key, dim=-1)
            scale = 1.0
        else:
            scale = 0.25 / math.sqrt(query.shape[-1])
        # The norms and the temperature may have been computed in float32 under autocast.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            key, value = cache.append(key, value)
        parts = seen.parts if seen else ((query.shape[2], key.shape[2]),)
        if parts and native_unmasked.mixes(query, key, value):
            return self.proj(native_unmasked.mixed_in_parts(query, key, value, scale, parts))
        mask_nS = seen.mask_nS if seen else None
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_nS, scale=scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self.fc1 = Linear(sizes.width, sizes.inner)
        self.fc2 = Linear(sizes.inner, sizes.width)

    def forward(self, x_BnC: Tensor) -> Tensor:
        inner = self.fc1(x_BnC)
        if native_rows.computes(inner, torch.bfloat16):
            return self.fc2(native_rows.gelu(inner))
        return self.fc2(F.gelu(inner, approximate="tanh"))


class Block(nn.Module):
    """Pre-norm block under adaptive layer norm: gates, scales and shifts come from the class."""

    def __init__(self, sizes: BlockSizes, drop_path: float) -> None:
        super().__init__()
        width = sizes.width
        self._shared = sizes.shared
        self.attn = Attention(sizes)
        self.ffn = FeedForward(sizes)
        if sizes.shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(sizes.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x_BnC: Tensor,
        condition: Tensor,
        seen: Seen | None,
        cache: KeyValueCache | None,
        between_BnC: Tensor | None = None,
    ) -> Tensor:
        """`condition` is the class embedding (B, C), or (B, 1, 6, C) where it is shared;
        `between_BnC` is added after the attention, before the feed-forward part."""
        if self._shared:
            modulation = self.ada_gss + condition
        else:
            modulation = self.ada_lin(condition).unflatten(-1, (6, -1))[:, None]
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        attended = self.attn(plain_norm(x_BnC) * (1 + scale1) + shift1, seen, cache)
        x_BnC = x_BnC + self.drop_path(self.dropout(attended) * gate1)
        if between_BnC is not None:
            x_BnC = x_BnC + between_BnC
        fed = self.ffn(plain_norm(x_BnC) * (1 + scale2) + shift2)
        return x_BnC + self.drop_path(self.dropout(fed) * gate2)

    @property
    def modulation_weight(self) -> Tensor:
        """Rows gamma1, gamma2, scale1, scale2, shift1, shift2; C rows each, or one if shared."""
        return self.ada_gss[0, 0] if self._shared else cast(nn.Linear, self.ada_lin[1]).weight


class HeadNorm(nn.Module):
    """The last layer norm, scaled and shifted by the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BnC: Tensor, class_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(class_BC).unflatten(-1, (2, -1))[:, None].unbind(2)
        return plain_norm(x_BnC) * (1 + scale) + shift


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
