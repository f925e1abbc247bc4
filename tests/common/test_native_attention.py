"""Causal attention over whole sequences in C, beside the formula in float64."""

import pytest
import torch
from torch import nn

from common.models.cpu.native_attention import attended, attends
from common.models.key_value_cache import KeyValueCache
from common.models.layers import CausalAttention, rotary_2d

pytestmark = pytest.mark.skipif(
    not attends(torch.zeros(1, 1, 12), torch.zeros(1, 2, 2)), reason="needs a C compiler"
)
SIZES = [
    *[(2, 17, 3, 20), (3, 1, 1, 4), (2, 64, 2, 32), (2, 65, 1, 64), (1, 256, 6, 32)],
    *[(3, 130, 2, 80), (1, 49, 1, 16), (1, 300, 1, 132)],
]
"""Sequences, slots, heads, channels."""


def formula(fused_BnE, turn_nP2, heads):
    """In complex numbers and with the whole square of scores."""
    query, key, value = fused_BnE.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    turn_nP = torch.view_as_complex(turn_nP2.double())
    pairs = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn_nP for x in (query, key))
    query, key = (torch.view_as_real(x).flatten(-2) for x in pairs)
    score = query @ key.mT / query.shape[-1] ** 0.5
    later = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
    mixed = score.masked_fill(later, -torch.inf).softmax(-1) @ value
    return mixed.transpose(1, 2).flatten(2)


def drawn(batch, slots, heads, channels):
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(batch, slots, 3 * heads * channels, generator=generator)
    turn = torch.randn(slots, channels // 2, 2, generator=generator)
    upstream = torch.randn(batch, slots, heads * channels, generator=generator)
    turn[0] = 0  # as that of a class slot
    return fused, turn, upstream


def both(found, fused, upstream):
    return found.detach(), *torch.autograd.grad(found, fused, upstream)


def is_close(found, exact, error):
    return (found - exact).abs().max() <= error * exact.abs().max()


@pytest.mark.parametrize("sizes", SIZES)
def test_mixture_and_gradient_are_the_formulas(sizes):
    fused, turn, upstream = drawn(*sizes)
    fused.requires_grad_()
    exact = fused.detach().double().requires_grad_()
    found = both(attended(fused, turn, sizes[2]), fused, upstream)
    wanted = both(formula(exact, turn, sizes[2]), exact, upstream.double())
    assert all(is_close(*pair, 4e-6) for pair in zip(found, wanted, strict=True))


def test_in_bfloat16_sums_are_exact_and_results_rounded():
    fused, turn, upstream = drawn(2, 100, 2, 32)
    fused, upstream = fused.bfloat16().requires_grad_(), upstream.bfloat16()
    exact = fused.detach().double().requires_grad_()
    found = both(attended(fused, turn, 2), fused, upstream)
    wanted = both(formula(exact, turn, 2), exact, upstream.double())
    assert all(value.dtype == torch.bfloat16 for value in found)
    # A unit in the last place is 2^-7; the mixture that the gradient reads was rounded as well.
    assert all(is_close(*pair, 2**-7) for pair in zip(found, wanted, strict=True))


def test_memory_with_gaps_is_read_as_it_is():
    fused, turn, upstream = drawn(2, 33, 2, 16)
    upstream = upstream.mT.contiguous().mT
    gaps = torch.stack([fused, fused], -1)[..., 0].requires_grad_()
    found = both(attended(gaps, turn.mT.contiguous().mT, 2), gaps, upstream)
    whole = fused.requires_grad_()
    wanted = both(attended(whole, turn, 2), whole, upstream.contiguous())
    assert all(map(torch.equal, found, wanted))


def test_threads_and_company_change_no_bit():
    fused, turn, upstream = drawn(5, 70, 3, 32)
    fused.requires_grad_()
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(both(attended(fused, turn, 3), fused, upstream))
    torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))
    alone = fused.detach()[2:3].requires_grad_()
    (mixed, grad) = both(attended(alone, turn, 3), alone, upstream[2:3])
    assert torch.equal(mixed, found[0][0][2:3])
    assert torch.equal(grad, found[0][1][2:3])


def test_a_second_derivative_is_refused():
    fused, turn, upstream = drawn(1, 5, 1, 8)
    mixed = attended(fused.requires_grad_(), turn, 1)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(mixed, fused, upstream, create_graph=True)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_reaches_those_who_see_it(number):
    fused, turn, _ = drawn(1, 40, 1, 16)
    fused[0, 12, 16] = number  # a key's
    mixed, wanted = attended(fused, turn, 1)[0], formula(fused.double(), turn, 1)[0]
    assert mixed[:12].isfinite().all()
    assert torch.equal(mixed.isnan(), wanted.isnan())
    assert wanted[12:].isnan().any()


def test_a_layer_gives_the_same_without_it():
    torch.manual_seed(0)
    layer, exact = CausalAttention(64, 2), CausalAttention(64, 2).double()  # which torch computes
    nn.init.normal_(layer.wqkv.weight, std=0.3)
    exact.load_state_dict(layer.state_dict())
    x_BnC, turn_nP2 = torch.randn(2, 17, 64), rotary_2d(4, 4, 32)
    found, wanted = layer(x_BnC, turn_nP2), exact(x_BnC.double(), turn_nP2)
    assert is_close(found, wanted, 1e-5)
    with torch.no_grad():
        assert torch.equal(layer(x_BnC, turn_nP2), found)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert is_close(layer.wqkv.weight.grad, exact.wqkv.weight.grad, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_what_follows_a_first_pass_finds_its_keys_and_values(dtype):
    torch.manual_seed(0)
    layer, exact = CausalAttention(64, 2), CausalAttention(64, 2).double()
    nn.init.normal_(layer.wqkv.weight, std=0.3)
    layer.to(dtype)
    exact.load_state_dict(layer.state_dict())
    x_BnC, turn_nP2, cache = (
        torch.randn(2, 17, 64).to(dtype),
        rotary_2d(4, 4, 32),
        KeyValueCache(17),
    )
    parts = slice(0, 13), slice(13, 14), slice(14, 17)
    found = torch.cat([layer(x_BnC[:, part], turn_nP2[part], cache) for part in parts], 1)
    assert is_close(
        found, exact(x_BnC.double(), turn_nP2), 1e-5 if dtype == torch.float32 else 2e-2
    )


def test_it_steps_aside_for_a_compiler():
    layer, x_BnC, turn_nP2 = CausalAttention(16, 2), torch.randn(2, 5, 16), rotary_2d(2, 2, 8)
    whole = torch.compile(layer, backend="eager", fullgraph=True)
    assert is_close(whole(x_BnC, turn_nP2), layer(x_BnC, turn_nP2), 1e-6)
