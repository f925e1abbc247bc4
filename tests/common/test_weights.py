"""Versions of a student's weights: which are kept, and how damage is found."""

import random
from dataclasses import replace

import pytest

from common.exchange.weights import Weights, WeightStore


def test_weights_are_versioned_kept_for_the_bound_and_checked():
    store = WeightStore(keep_behind=2)
    for version in (0, 2, 4):
        store.publish(Weights.of(version, [b"abc", b"%d" % version]))
    assert store.newest(0) == 4
    assert [bytes(part) for part in store.get(2, 0).verified()] == [b"abc", b"2"]
    with pytest.raises(TimeoutError, match="version 0"):
        store.get(0, 0)
    with pytest.raises(ValueError, match="not newer than 4"):
        store.publish(Weights.of(4, ()))
    damaged = replace(store.get(4, 0), payload=[b"abc", b"5"])
    with pytest.raises(ValueError, match="arrived damaged"):
        damaged.verified()


@pytest.mark.parametrize("at", [0, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**16 + 99])
def test_damage_is_found_in_every_part_of_the_weights(at):
    """Two whole blocks of the digest, and a hundred bytes more."""
    payload = bytearray(random.Random(0).randbytes(2**16 + 100))
    for cut in (0, 1, 2**15 + 8, len(payload)):
        parts = [payload[:cut], payload[cut:]]
        weights = Weights(1, parts).copied()
        assert weights.digest == Weights.of(1, parts).digest
        assert [bytes(part) for part in weights.verified()] == parts
        parts[at >= cut][at - cut * (at >= cut)] ^= 16
        with pytest.raises(ValueError, match="version 1 arrived damaged"):
            replace(weights, payload=parts).verified()


def test_blocks_of_weights_in_another_order_are_damage():
    first, second = bytes(2**15), bytes([1]) * 2**15
    with pytest.raises(ValueError, match="arrived damaged"):
        replace(Weights.of(1, [first + second]), payload=[second + first]).verified()
