"""A cache that grows, and what is mixed of all that it has."""

import pytest
import torch
from torch.nn import functional as F

from common.models.key_value_cache import FEW, KeyValueCache

CAPACITY = 3 * FEW - 5


WAYS = {"by channel": 0, "first by slot": 2**11, "by slot": 5_000, "fused": 2**62}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def cache(request):
    """Of every way to mix, whatever the size."""
    return KeyValueCache(CAPACITY, large=request.param)


def drawn(count, seed, rows=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, count, 8, generator=generator) for _ in range(3)]


def test_a_query_mixes_all_that_is_there(cache):
    keys, values, filled = [], [], 0
    for at, count in enumerate([7, 1, 1, FEW, 1, 3, 1, FEW + 1, *[1] * 9]):
        query, key, value = drawn(count, at)
        keys.append(key)
        values.append(value)
        filled += count
        seen = cache.append(key, value)
        whole = torch.cat(keys, 2), torch.cat(values, 2)
        assert all(torch.equal(part, of) for part, of in zip(seen, whole, strict=True))
        last = query[:, :, -1:]
        wanted = F.scaled_dot_product_attention(last, *whole)
        torch.testing.assert_close(cache.attended(last), wanted, rtol=1e-5, atol=1e-6)
    assert filled == cache.filled


def test_sequences_that_join_mix_their_own(cache):
    query, key, value = drawn(FEW + 2, 0)
    other, late = KeyValueCache(CAPACITY), drawn(FEW + 2, 1, rows=2)
    for slot in range(FEW + 2):  # one grows slot by slot, the other has no room to spare
        cache.append(key[:, :, slot : slot + 1], value[:, :, slot : slot + 1])
    other.append(*late[1:])
    joined = cache.joined(other)
    both = [torch.cat(parts) for parts in zip((query, key, value), late, strict=True)]
    last = both[0][:, :, -1:]
    wanted = F.scaled_dot_product_attention(last, *both[1:])
    torch.testing.assert_close(joined.attended(last), wanted, rtol=1e-5, atol=1e-6)
    joined.append(last, last)
    assert joined.filled == FEW + 3


def test_it_has_room_for_few_slots_more_than_there_are():
    cache = KeyValueCache(CAPACITY)
    for slot in range(CAPACITY):
        cache.append(*drawn(1, slot)[:2])
        assert cache.key_BHSD is not None
        assert cache.key_BHSD.shape[2] <= min(slot + FEW, CAPACITY)
        assert cache.key_BHSD[:, :, slot + 1 :].abs().sum() == 0
