"""Versions of a student's weights: which are kept, and how damage is found."""

import random
from dataclasses import replace

import pytest

from common.errors import Closed
from common.exchange.weight_folder import FiledVersions, WeightFolder
from common.exchange.weights import ALIGNED, Canary, Weights, WeightStore


@pytest.fixture(params=["memory", "files"])
def make(request, tmp_path):
    """Either way in which versions travel in one process, by how many steps back they are kept."""
    if request.param == "memory":
        return WeightStore
    return lambda keep_behind: WeightFolder(FiledVersions(keep_behind), tmp_path, keep_behind)


def test_weights_are_versioned_kept_for_the_bound_and_checked(make):
    store = make(2)
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


def test_a_version_is_the_bytes_that_were_there_when_it_was_published(make):
    """Parts of any length, each as aligned as where it came from; sealed before or not."""
    store, parts = make(9), [bytearray(b"%d" % size * size) for size in (0, 1, 65, 2**16 + 3)]
    digest = Weights.of(0, parts).digest
    for version, offered in enumerate((Weights(0, parts), Weights.of(1, parts, Canary(2.0)))):
        store.publish(offered)
        found = store.get(version, 0)
        assert [bytes(part) for part in found.verified()] == parts
        assert (found.version, found.digest, found.canary) == (version, digest, offered.canary)
        assert not any(part.ctypes.data % ALIGNED for part in found.payload if len(part))
    parts[1][:] = b"x"
    store.get(1, 0).verified()
    store.publish(Weights.of(2, ()))
    assert (store.newest(0), [*store.get(2, 0).verified()]) == (2, [])


def test_a_learner_that_begins_again_publishes_the_same_versions(make):
    store = make(1)
    for version in range(4):
        store.publish(Weights(version, [b"lost"]))
    store.rewind()
    with pytest.raises(TimeoutError, match="version 3 of the student's weights"):
        store.get(3, 0)
    for version in (2, 3):
        store.publish(Weights(version, [b"again"]))
    assert bytes(store.get(3, 0).payload[0]) == b"again"
    store.close("the run is over")
    with pytest.raises(Closed, match="the run is over"):
        store.get(3, 9)


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
