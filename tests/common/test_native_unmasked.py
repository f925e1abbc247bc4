"""Attention without a mask in C, beside the formula in float64."""

import pytest
import torch

from common.models.adaln import Attention, BlockSizes
from common.models.arpg_decoder import Attention as ArpgAttention
from common.models.arpg_decoder import Memory, TwoPassSizes
from common.models.cpu.native_unmasked import LEAST, mixed, mixes
from common.models.key_value_cache import KeyValueCache
from common.models.scale_mask import seen_scales


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        if not mixes(*[torch.zeros(1, 1, LEAST, 2)] * 3):
            pytest.skip("needs a C compiler")
        yield


SIZES = [
    *[(2, 3, 8, 17, 20), (1, 1, 64, 64, 32), (2, 2, 65, 3, 64), (1, 2, 9, 1, 4)],
    *[(2, 1, 200, 131, 48), (1, 3, 33, 680, 64), (1, 1, 8, 257, 132), (3, 2, 70, 40, 7)],
]
"""Sequences, heads, queries, slots, channels."""


def drawn(batch, heads, queries, slots, channels, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, queries, channels), *[(batch, heads, slots, channels)] * 2
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def formula(query, key, value, scale):
    query, key, value = (x.double() for x in (query, key, value))
    found = (scale * query @ key.mT).softmax(-1) @ value
    return found.transpose(1, 2).flatten(2)


def is_close(found, exact, error):
    return (found - exact).abs().max() <= error * exact.abs().max()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_mixtures_are_the_formula(sizes, scale):
    given = drawn(*sizes)
    assert is_close(mixed(*given, scale), formula(*given, scale), 1e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_in_bfloat16_they_are_rounded(sizes):
    given = drawn(*sizes, dtype=torch.bfloat16)
    found = mixed(*given, 0.3)
    assert found.dtype == torch.bfloat16
    assert is_close(found, formula(*given, 0.3), 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_read_where_they_lie(dtype):
    batch, heads, queries, slots, channels = 2, 3, 10, 21, 8
    apart = torch.randn(batch, queries, 3, heads, channels).to(dtype)
    query = apart[:, :, 0].transpose(1, 2)
    held = torch.randn(2, batch, heads, slots + 5, channels).to(dtype)
    key, value = held[:, :, :, :slots]
    found = mixed(query, key, value, 0.5)
    assert torch.equal(found, mixed(*(x.contiguous() for x in (query, key, value)), 0.5))


def test_threads_and_company_change_no_bit():
    given = drawn(3, 4, 70, 50, 16)
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(mixed(*given, 0.4))
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert torch.equal(mixed(*(x[1:2] for x in given), 0.4), found[0][1:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_reaches_those_who_read_it(dtype, number):
    query, key, value = drawn(1, 1, 40, 30, 16, dtype)
    query[0, 0, 12, 3] = number
    found = mixed(query, key, value, 1.0)[0]
    assert found.isnan().any(-1).nonzero().tolist() == [[12]]
    query, key, value = drawn(1, 1, 40, 30, 16, dtype)
    value[0, 0, 5, 2] = number
    assert (~mixed(query, key, value, 1.0)[0].isfinite()).any(0).nonzero().tolist() == [[2]]


def test_far_scores_do_not_overflow():
    query, key, value = drawn(1, 1, 8, 20, 16)
    found = mixed(300 * query, 300 * key, value, 1.0)
    assert is_close(found, formula(300 * query, 300 * key, value, 1.0), 1e-4)


def test_it_is_asked_where_it_can_answer():
    query, key, value = drawn(1, 2, LEAST, 20, 16)
    assert mixes(query, key, value)
    assert not mixes(query[:, :, 1:], key, value)
    assert not mixes(query.double(), key.double(), value.double())
    assert not mixes(query, key.mT.contiguous().mT, value)
    with torch.enable_grad():
        assert not mixes(query, key, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_normalised", [True, False])
def test_a_scale_of_var_is_read_as_torch_reads_it(dtype, is_normalised):
    sizes = BlockSizes(64, 2, 128, l2_norm=is_normalised, shared=False, dropout=0)
    torch.manual_seed(0)
    layer = Attention(sizes).to(dtype)
    exact = Attention(sizes).double()  # which torch computes
    exact.load_state_dict(layer.state_dict())
    cache, twin = KeyValueCache(30), KeyValueCache(30)
    for count in (1, 9, 20):
        x_BnC = torch.randn(2, count, 64).to(dtype)
        found, wanted = layer(x_BnC, None, cache), exact(x_BnC.double(), None, twin)
        assert is_close(found, wanted, 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_scales_that_are_read_at_once_see_what_they_see_one_by_one(given):
    """Behind what is cached of the first ones."""
    torch.manual_seed(0)
    sizes = BlockSizes(64, 2, 128, l2_norm=True, shared=False, dropout=0)
    layer, exact = Attention(sizes), Attention(sizes).double()
    exact.load_state_dict(layer.state_dict())
    scale_L = [0] + [1] * 4 + [2] * 9 + [3] * 16
    x_BLC, ends = torch.randn(2, len(scale_L), 64), (1, 5, 14, 30)
    start = 0 if given == 0 else ends[given - 1]
    seen = seen_scales(scale_L, start, None, x_BLC.device)
    assert seen.parts == tuple(zip((1, 4, 9, 16)[given:], ends[given:], strict=True))
    cache, twin = KeyValueCache(30), KeyValueCache(30)
    if given:
        layer(x_BLC[:, :start], seen_scales(scale_L[:start], 0, None, x_BLC.device), cache)
    found = layer(x_BLC[:, start:], seen, cache)
    steps = [slice(a, b) for a, b in zip((0, *ends), ends, strict=False)]
    wanted = torch.cat([exact(x_BLC[:, part].double(), None, twin) for part in steps], 1)
    assert is_close(found, wanted[:, start:], 1e-5)
    apart = exact(x_BLC.double(), seen_scales(scale_L, 0, None, x_BLC.device), None)
    assert is_close(apart, wanted, 1e-12)  # by the mask


def test_rows_of_their_own_histories_are_read_by_a_mask():
    history_B, device = torch.tensor([0, 2]), torch.device("cpu")
    seen = seen_scales([0, 1, 1, 2, 3], 0, history_B, device)
    assert seen.parts == ()
    assert seen.mask_nS[0, 0, 4].tolist() == [True, False, False, False, True]
    assert seen.mask_nS[1, 0, 4].tolist() == [True, True, True, True, True]
    assert seen_scales([0, 1, 1], 1, None, device) is None


def test_positions_of_arpg_are_asked_for_as_torch_does():
    torch.manual_seed(0)
    sizes = TwoPassSizes(width=64, depth=2, heads=2, multiple_of=8, dropout=0)
    layer, exact = ArpgAttention(sizes, guided=True), ArpgAttention(sizes, guided=True).double()
    exact.load_state_dict(layer.state_dict())
    query, key, value = drawn(2, 2, 12, 30, 32)
    wanted = exact.mix(query.double(), Memory(key.double(), value.double()))
    assert is_close(layer.mix(query, Memory(key, value)), wanted, 1e-5)
    one_less = torch.ones(12, 30, dtype=torch.bool).index_fill(1, torch.tensor([3]), value=False)
    for memory in (Memory(key, value, one_less), Memory(key, value, is_causal=True)):
        of = (memory.visible_nS, memory.is_causal)
        wanted = exact.mix(query.double(), Memory(key.double(), value.double(), *of))
        assert is_close(layer.mix(query, memory), wanted, 1e-5)
