"""Layers as LlamaGen has them, in few kernels, without gradients.

Shape letters: B sequences, n new slots, R rows of one token, C width, E channels of a projection,
H heads, D head width, S slots of a cache, P rotary pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from common.models.cuda.kernels import add_norm, cached_attention, silu_product, turn
from common.models.key_value_cache import KeyValueCache
from common.models.layers import RMSNorm, attend


def token_hidden(
    x_RC: Tensor,
    layers: nn.ModuleList,
    norm: RMSNorm,
    turn_SP2: Tensor,
    slot_1: Tensor,
    caches: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Post-norm hidden_RC of one token a row, all at the same slot; keys and values enter the
    caches (R, H, S, D) there."""

    def mix(depth: int, fused_RE: Tensor) -> Tensor:
        return cached_attention(fused_RE, turn_SP2, slot_1, *caches[depth])

    return _hidden(x_RC, layers, norm, mix)


def sequence_hidden(
    x_BnC: Tensor,
    layers: nn.ModuleList,
    norm: RMSNorm,
    turn_nP2: Tensor,
    caches: Sequence[KeyValueCache] | None,
) -> Tensor:
    """Post-norm hidden_BnC of n slots, which follow what is cached."""

    def mix(depth: int, fused_BnE: Tensor) -> Tensor:
        heads = cast(Any, layers[depth]).attention.heads
        turn(fused_BnE, turn_nP2, heads)
        query, key, value = fused_BnE.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if caches is not None:
            key, value = caches[depth].append(key, value)
        return attend(query, key, value).transpose(1, 2).flatten(2)

    return _hidden(x_BnC, layers, norm, mix)


def _hidden(
    x_BnC: Tensor, layers: Iterable[Any], norm: RMSNorm, mix: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """`mix` is a layer's attention: (depth, projections) -> what its heads say. A residual sum is
    made by the norm that follows it."""
    added_BnC = None
    for depth, layer in enumerate(layers):
        x_BnC, h_BnC = _sum_norm(x_BnC, added_BnC, layer.attention_norm)
        mixed_BnC = mix(depth, layer.attention.wqkv(h_BnC))
        x_BnC, h_BnC = _sum_norm(x_BnC, layer.attention.wo(mixed_BnC), layer.ffn_norm)
        inner = layer.feed_forward
        added_BnC = inner.w2(silu_product(inner.w1(h_BnC), inner.w3(h_BnC)))
    return _sum_norm(x_BnC, added_BnC, norm)[1]


def _sum_norm(x: Tensor, added: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    return add_norm(x, added, norm.weight, norm.eps)
