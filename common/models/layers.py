"""Layers shared by the backbones.

Shape letters: B sequences, L slots, n new slots, S cached slots, H heads, D head width, C width,
P rotary pairs.
Source: docs/backbones.md, "LlamaGen layers".
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.cpu import native_attention, native_rows
from common.models.key_value_cache import KeyValueCache, Placement
from common.models.packed_linear import Linear


class RMSNorm(nn.Module):
    """Root-mean-square norm; statistics in float32, cast back before the weight is applied."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            weight = self.weight.to(x.dtype)  # gathered in half precision (learner/sharded.py)
            if native_rows.computes(x):
                return native_rows.normed(x, weight, self.eps)
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x); the inner width is 8C/3 rounded up to `multiple_of`."""

    def __init__(self, width: int, multiple_of: int) -> None:
        super().__init__()
        inner = -(-int(2 * 4 * width / 3) // multiple_of) * multiple_of
        self.w1 = Linear(width, inner, bias=False)
        self.w3 = Linear(width, inner, bias=False)
        self.w2 = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w1(x), self.w3(x)
        if native_rows.computes(gate, torch.bfloat16):
            return self.w2(native_rows.gated(gate, value))
        return self.w2(F.silu(gate) * value)


def rotary_2d(rows: int, cols: int, head_width: int, *, base: float = 10000.0) -> Tensor:
    """Rotation table (1 + rows * cols, head_width / 2, 2) as (cos, sin), float32.

    The first half of the adjacent channel pairs turns with the row, the second with the column.
    Row 0 belongs to the class slot and is all zeros, *not* the identity (docs/backbones.md,
    "LlamaGen positions").
    """
    quarter = head_width // 4
    inverse = 1.0 / base ** (torch.arange(quarter).float() * 2 / (head_width // 2))
    row_angle = torch.outer(torch.arange(rows).float(), inverse)
    col_angle = torch.outer(torch.arange(cols).float(), inverse)
    angle = torch.cat(
        [
            row_angle[:, None].expand(rows, cols, quarter),
            col_angle[None].expand(rows, cols, quarter),
        ],
        dim=-1,
    ).flatten(0, 1)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return torch.cat([torch.zeros_like(table[:1]), table])


def require_rotary_heads(width: int, heads: int) -> None:
    """For the validators of configs.

    Raises:
        ValueError: heads of this width cannot be rotated in two dimensions.
    """
    if width % heads or (width // heads) % 4:
        raise ValueError(
            f"width {width} over {heads} heads gives head width {width / heads:g}; "
            "2-D rotary positions need a multiple of 4"
        )


class RotaryTable:
    """`rotary_2d` of a grid, made at first use on the device that asks.

    A plain object, not a module: outside the state dict, float32 whatever the model is cast to
    (docs/backbones.md, "Pitfalls"), and real even if the model was built on the meta device.
    """

    def __init__(self, grid: tuple[int, int], head_width: int) -> None:
        self._grid = grid
        self._head_width = head_width
        self._table: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """`rotary_2d` there."""
        if self._table is None or self._table.device != device:
            self._table = rotary_2d(*self._grid, self._head_width).to(device)
        return self._table


def rotate(x_BnHD: Tensor, table_nP: Tensor) -> Tensor:
    """Turn adjacent channel pairs by the table's angles (n, P, 2), in float32, and cast back:
    pairs are complex numbers, so that it is one product (a decoding step is bound by the number of
    calls). A compiler, which joins calls, knows no complex numbers.

    The table may have a leading batch axis, where sequences have orders of their own.
    """
    pair = x_BnHD.float().unflatten(-1, (-1, 2))
    angle = table_nP.unsqueeze(-3)
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pair.unbind(-1), angle.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pair) * torch.view_as_complex(angle))
    return turned.flatten(-2).to(x_BnHD.dtype)


def widened(x: Tensor) -> Tensor:
    """What a raster decoder attends with and keeps. On a CPU torch multiplies a single query in
    bfloat16 three times as slowly as in float32, although that reads twice the bytes."""
    return x.float() if x.is_cpu and x.dtype == torch.bfloat16 else x


class CausalAttention(nn.Module):
    """Multi-head attention with a fused projection ordered [q | k | v] and no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(width, 3 * width, bias=False)
        self.wo = Linear(width, width, bias=False)

    def forward(
        self,
        x_BnC: Tensor,
        rotary_nP: Tensor,
        cache: KeyValueCache | None = None,
        placement: Placement | None = None,
    ) -> Tensor:
        """Attend from n new slots to themselves and to everything cached before, or to what the
        placement says."""
        fused = self.wqkv(x_BnC)
        begins = placement is None and (cache is None or not cache.filled)
        if begins and native_attention.attends(fused, rotary_nP):
            if cache is not None:
                self._keep(fused, rotary_nP, cache)
            mixed = native_attention.attended(fused, rotary_nP, self.heads)
            return self.wo(mixed.to(x_BnC.dtype))
        fused = fused.unflatten(-1, (3 * self.heads, -1))
        turned = rotate(fused[:, :, : 2 * self.heads], rotary_nP).transpose(1, 2)
        query, key = turned.chunk(2, dim=1)
        value = fused[:, :, 2 * self.heads :].transpose(1, 2)
        if cache is not None:
            query, key, value = widened(query), widened(key), widened(value)
        if cache is not None and placement is not None:
            key, value = cache.place(placement, key, value)
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=placement.visible_nS
            )
        else:
            if cache is not None:
                key, value = cache.append(key, value)
            if cache is not None and query.shape[2] == 1:
                mixed = cache.attended(query)
            else:
                mixed = attend(query, key, value)
        return self.wo(mixed.transpose(1, 2).flatten(2).to(x_BnC.dtype))

    def _keep(self, fused_BnE: Tensor, rotary_nP: Tensor, cache: KeyValueCache) -> None:
        """Only the keys and values, for what follows."""
        _, key_BnC, value_BnC = fused_BnE.chunk(3, -1)
        key_BnHD, value_BnHD = (of.unflatten(-1, (self.heads, -1)) for of in (key_BnC, value_BnC))
        key_BnHD = rotate(key_BnHD, rotary_nP)
        cache.append(widened(key_BnHD).transpose(1, 2), widened(value_BnHD).transpose(1, 2))


class LabelEmbedder(nn.Module):
    """Class table whose last row is the null class; labels are dropped outside."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, class_B: Tensor) -> Tensor:
        return self.embedding_table(class_B)


class DropPath(nn.Module):
    """Drops a residual branch per sequence while training; kept ones are scaled by 1 / keep."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate

    def forward(self, x_BLC: Tensor) -> Tensor:
        if not self.training or self._rate == 0:
            return x_BLC
        keep = 1 - self._rate
        return x_BLC * x_BLC.new_empty(len(x_BLC), 1, 1).bernoulli_(keep).div_(keep)


class CausalBlock(nn.Module):
    """Pre-norm block as LlamaGen's."""

    def __init__(self, width: int, heads: int, multiple_of: int, dropout: nn.Module) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = CausalAttention(width, heads)
        self.ffn_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width, multiple_of)
        self.dropout = dropout

    def forward(
        self,
        x_BnC: Tensor,
        rotary_nP: Tensor,
        cache: KeyValueCache | None,
        placement: Placement | None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_BnC), rotary_nP, cache, placement)
        x_BnC = native_rows.dropped(attended, self.dropout, x_BnC)
        return native_rows.dropped(self.feed_forward(self.ffn_norm(x_BnC)), self.dropout, x_BnC)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Linearly spaced from 0 at the first block to `last` at the last one."""
    return torch.linspace(0, last, depth, device="cpu").tolist()


def start_uniform(model: nn.Module, head: nn.Linear) -> None:
    """N(0, 0.02) everywhere and a zero head: a fresh model is exactly uniform."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(cast(Tensor, module.weight), std=0.02)
    nn.init.zeros_(head.weight)


def attend(query_BHnD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    """Causal attention of the last n of S slots to all S."""
    new, seen = query_BHnD.shape[2], key_BHSD.shape[2]
    if new == seen:
        return F.scaled_dot_product_attention(query_BHnD, key_BHSD, value_BHSD, is_causal=True)
    visible = torch.ones(new, seen, dtype=torch.bool, device=query_BHnD.device).tril(seen - new)
    return F.scaled_dot_product_attention(query_BHnD, key_BHSD, value_BHSD, attn_mask=visible)
