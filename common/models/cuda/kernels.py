"""Triton kernels of a decoding step: between its matrix products a layer makes three calls.

Everything is computed in float32 and rounded where the layers of common/models/layers.py round, so
that in float32 both agree to the order of summation.

Shape letters: R rows, H heads, D head width, P rotary pairs (D / 2), S cached slots, C width.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN = 32
"""Cached slots that a program of the attention, one warp, reads at a time. On an H100 this reads
2.7 TB/s of the 3.0 that a copy moves; 64 slots by four warps 2.3 to 2.5."""
PIECE = 1024
"""Elements of a program of the elementwise product."""


@triton.jit
def _turned(at, cos, sin, pair, inside):
    """A head's vector, its pairs turned, in float32."""
    even = tl.load(at + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(at + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    return tl.interleave(even * cos - odd * sin, even * sin + odd * cos)


@triton.jit
def _with_earlier(
    query, most, mixed, keys, values, slot, scale, dim, is_dim, D: tl.constexpr, SPAN: tl.constexpr
):
    """The softmax as it goes along over the cached slots, begun with the new one's score."""
    total = tl.exp(most - most)
    for start in range(0, slot, SPAN):
        at = start + tl.arange(0, SPAN)
        seen = at < slot
        cells = at[:, None] * D + dim[None, :]
        both = seen[:, None] & is_dim[None, :]
        key_SD = tl.load(keys + cells, mask=both, other=0.0).to(tl.float32)
        value_SD = tl.load(values + cells, mask=both, other=0.0).to(tl.float32)
        score = tl.sum(key_SD * query[None, :], 1) * scale
        score = tl.where(seen, score, float("-inf"))
        greater = tl.maximum(most, tl.max(score, 0))
        kept, share = tl.exp(most - greater), tl.exp(score - greater)
        mixed = mixed * kept + tl.sum(value_SD * share[:, None], 0)
        total = total * kept + tl.sum(share, 0)
        most = greater
    return mixed / total


@triton.jit
def _attention(
    fused, turn, slot_at, keys, values, out, row_stride, head_stride, scale,
    HEADS: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, SPAN: tl.constexpr
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slot_at)
    kind = fused.dtype.element_ty
    pair, dim = tl.arange(0, PAIRS), tl.arange(0, 2 * PAIRS)
    is_pair, is_dim = pair < D // 2, dim < D
    angle = turn + (slot * (D // 2) + pair) * 2
    cos = tl.load(angle, mask=is_pair, other=0.0)
    sin = tl.load(angle + 1, mask=is_pair, other=0.0)
    query_at = fused + row * 3 * HEADS * D + head * D
    query = _turned(query_at, cos, sin, pair, is_pair).to(kind).to(tl.float32)
    key = _turned(query_at + HEADS * D, cos, sin, pair, is_pair).to(kind)
    value = tl.load(query_at + 2 * HEADS * D + dim, mask=is_dim, other=0.0)
    keys += row * row_stride + head * head_stride
    values += row * row_stride + head * head_stride
    tl.store(keys + slot * D + dim, key, mask=is_dim)
    tl.store(values + slot * D + dim, value, mask=is_dim)
    most = tl.sum(query * key.to(tl.float32), 0) * scale  # the slot itself is not read back
    mixed = value.to(tl.float32)
    mixed = _with_earlier(query, most, mixed, keys, values, slot, scale, dim, is_dim, D, SPAN)
    tl.store(out + row * HEADS * D + head * D + dim, mixed.to(kind), mask=is_dim)


@triton.jit
def _add_norm(
    x,
    added,
    weight,
    total,
    normed,
    eps,
    ADDS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    cell = tl.program_id(0) * WIDTH + at
    kind = x.dtype.element_ty
    value = tl.load(x + cell, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(added + cell, mask=inside, other=0.0).to(tl.float32)
        value = value.to(kind)
        tl.store(total + cell, value, mask=inside)
        value = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    unit = (value * inverse).to(kind).to(tl.float32)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + cell, (unit * factor).to(kind), mask=inside)


@triton.jit
def _turn(fused, angles, slots, HALF: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    inside = pair < 2 * HALF  # of query and key
    angle = angles + ((token % slots) * PAIRS + pair % PAIRS) * 2
    cos = tl.load(angle, mask=inside, other=0.0)
    sin = tl.load(angle + 1, mask=inside, other=0.0)
    cell = fused + token * 6 * HALF + 2 * pair
    even = tl.load(cell, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(cell + 1, mask=inside, other=0.0).to(tl.float32)
    kind = fused.dtype.element_ty
    tl.store(cell, (even * cos - odd * sin).to(kind), mask=inside)
    tl.store(cell + 1, (even * sin + odd * cos).to(kind), mask=inside)


@triton.jit
def _silu_product(gate, value, out, count, PIECE: tl.constexpr):
    at = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    inside = at < count
    kind = gate.dtype.element_ty
    raw = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    silu = (raw / (1 + tl.exp(-raw))).to(kind).to(tl.float32)
    other = tl.load(value + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (silu * other).to(kind), mask=inside)


def cached_attention(
    fused_RE: Tensor, turn_SP2: Tensor, slot_1: Tensor, key_RHSD: Tensor, value_RHSD: Tensor
) -> Tensor:
    """Attention of one new slot of every row to itself and to all that is cached before: mixed_RC.

    fused_RE is [query | key | value] of all heads; query and key are turned by the angles of slot
    `slot_1`, where key and value are then written to the cache.
    """
    rows, heads, _, width = key_RHSD.shape
    out_RC = fused_RE.new_empty(rows, heads * width)
    _attention[(rows, heads)](
        fused_RE,
        turn_SP2,
        slot_1,
        key_RHSD,
        value_RHSD,
        out_RC,
        key_RHSD.stride(0),
        key_RHSD.stride(1),
        width**-0.5,
        HEADS=heads,
        D=width,
        PAIRS=triton.next_power_of_2(width // 2),
        SPAN=SPAN,
        num_warps=1,
    )
    return out_RC


def turn(fused_BnE: Tensor, turn_nP2: Tensor, heads: int) -> None:
    """Turn the queries and keys of [query | key | value] of all heads, in place."""
    slots, pairs, _ = turn_nP2.shape
    half = heads * pairs  # pairs of a slot's queries
    tokens = fused_BnE.numel() // (6 * half)
    block = triton.next_power_of_2(2 * half)
    _turn[(tokens,)](fused_BnE, turn_nP2, slots, HALF=half, PAIRS=pairs, BLOCK=block)


def add_norm(
    x_RC: Tensor, added_RC: Tensor | None, weight_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum of both (..., C), and its root-mean-square norm times the weights."""
    width = x_RC.shape[-1]
    rows = x_RC.numel() // width
    normed_RC = torch.empty_like(x_RC)
    total_RC = x_RC if added_RC is None else torch.empty_like(x_RC)
    _add_norm[(rows,)](
        x_RC,
        x_RC if added_RC is None else added_RC,
        weight_C,
        total_RC,
        normed_RC,
        eps,
        ADDS=added_RC is not None,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
    )
    return total_RC, normed_RC


def silu_product(gate_RE: Tensor, value_RE: Tensor) -> Tensor:
    """silu(gate) * value."""
    out_RE = torch.empty_like(gate_RE)
    count = gate_RE.numel()
    _silu_product[(triton.cdiv(count, PIECE),)](gate_RE, value_RE, out_RE, count, PIECE=PIECE)
    return out_RE
