"""A worker that waits for a version of a lost future, when its learner begins again."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from building.records import START
from torch import nn

from common.exchange.ledger import Ledger
from common.exchange.packed_weights import pack
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


def test_damaged_weights_are_loaded_anew(services):
    """Some of their bytes are in the student when the damage is noticed."""
    _, store = services
    student, other = nn.Linear(2, 1), nn.Linear(2, 1)
    loaded = StudentWeights(student, store, "worker-0")
    first, second = (Weights.of(v, pack(m, torch.float32)) for v, m in enumerate((other, student)))
    store.publish(first.copied())
    loaded.load(Lease(0, 0, 2, 0, 0, 1), lambda: True)
    store.publish(replace(second.copied(), payload=first.copied().payload))
    with pytest.raises(ValueError, match="version 1 arrived damaged"):
        loaded.load(Lease(0, 0, 2, 0, 1, 1), lambda: True)
    student.weight.data.zero_()
    loaded.load(Lease(0, 0, 2, 0, 0, 1), lambda: True)
    assert torch.equal(student.weight, other.weight)
