"""A worker that waits for versions, loads them, and gives up those of a lost future."""

import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from building.records import START
from torch import nn

from common.exchange.ledger import Ledger
from common.exchange.packed_weights import load, pack
from common.exchange.schedule import Lease, Schedule
from common.exchange.weights import Weights, WeightStore
from rollout import student_weights
from rollout.student_weights import StudentWeights, Withdrawn


@pytest.fixture
def services():
    schedule = Schedule(9, 4, 2, 1, 1, ordered=True)
    ledger = Ledger(schedule)
    ledger.restore(START)
    return ledger, WeightStore(schedule.versions_kept)


def test_a_lease_that_nobody_wants_any_more_is_given_up(services):
    """After one look instead of a minute."""
    ledger, store = services
    lease = ledger.lease("worker-0", 0)
    assert ledger.wants(lease.number, lease.generation)
    loaded, began = StudentWeights(nn.Linear(2, 1), store, "worker-0"), time.monotonic()
    future = Lease(lease.number, 0, 2, 0, 7, lease.generation)
    timer = threading.Timer(0.1, ledger.restore, (START,))
    timer.start()
    with pytest.raises(Withdrawn):
        loaded.load(future, lambda: ledger.wants(lease.number, lease.generation))
    assert time.monotonic() - began < 4 * student_weights.LOOK_SECONDS
    assert not ledger.wants(lease.number, lease.generation)
    assert loaded.version == -1


def test_a_version_that_comes_late_is_waited_for(services):
    _, store = services
    student, other = nn.Linear(2, 1), nn.Linear(2, 1)
    loaded = StudentWeights(student, store, "worker-0")
    version = Weights.of(3, pack(other, torch.float32))
    threading.Timer(0.1, store.publish, (version,)).start()
    loaded.load(Lease(0, 0, 2, 0, 3, 1), lambda: False)
    assert loaded.version == 3
    assert torch.equal(student.weight, other.weight)


def test_damaged_weights_leave_the_student_as_it_was(services):
    _, store = services
    student, other = nn.Linear(2, 1), nn.Linear(2, 1)
    loaded = StudentWeights(student, store, "worker-0")
    first, second = (Weights.of(v, pack(m, torch.float32)) for v, m in enumerate((other, student)))
    store.publish(first.copied())
    loaded.load(Lease(0, 0, 2, 0, 0, 1), lambda: True)
    changed = [part.copy() for part in second.payload]
    changed[-1][-1] ^= 1
    store.publish(replace(second, payload=changed))
    with pytest.raises(ValueError, match="version 1 arrived damaged"):
        loaded.load(Lease(0, 0, 2, 0, 1, 1), lambda: True)
    assert loaded.version == 0
    assert torch.equal(student.weight, other.weight)


def test_a_student_on_a_cpu_lies_in_the_memory_of_its_version(services):
    """Once for all workers of a node. What begins at another address than torch's own memory may
    would give products that are rounded in another way: it is copied."""
    _, store = services
    student, other = nn.Linear(16, 3), nn.Linear(16, 3)
    store.publish(Weights.of(0, pack(other, torch.float32)))
    joined = store.get(0, 0).joined()
    for weights, shared in ((store.get(0, 0), True), (Weights.of(1, [_past(4, joined)]), False)):
        load(weights, student)
        assert _lies_in(student.weight, weights) is shared
        assert student.weight.data_ptr() % 64 == 0
        assert torch.equal(student.weight, other.weight)
        assert torch.equal(student.bias, other.bias)


def _past(past: int, data: np.ndarray) -> np.ndarray:
    """The same at an address that is so many bytes past a multiple of 64."""
    memory = np.empty(len(data) + 128, np.uint8)
    first = -memory.ctypes.data % 64 + past
    memory[first : first + len(data)] = data
    return memory[first : first + len(data)]


def _lies_in(tensor: torch.Tensor, weights: Weights) -> bool:
    return any(
        part.ctypes.data <= tensor.data_ptr() < part.ctypes.data + part.nbytes
        for part in map(partial(np.frombuffer, dtype=np.uint8), weights.payload)
    )
