"""The learner's batches: fetched ahead, and otherwise as if each were asked for when it is due."""

import time
from dataclasses import replace
from threading import Thread

import pytest
import torch
from building.records import START

from common.errors import Closed, InputError, RunFailed
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.trajectory import to_arrow
from learner.intake import Intake
from learner.process_group import SingleProcess

STEPS = 4
SCHEDULE = Schedule(STEPS, 10, 5, max_staleness=4, publish_every=1, ordered=True)


@pytest.fixture
def services():
    ledger = Ledger(SCHEDULE)
    ledger.restore(START)
    return Buffer(SCHEDULE, max_bytes=2**20, ledger=ledger), ledger


@pytest.fixture
def record_of(tiny, sampled):
    batch = sampled(tiny("llamagen", 0))

    def build(lease, token=0):
        facts = {"lease": str(lease.number), "generation": str(lease.generation)}
        ids = torch.tensor(list(lease.indices))
        token_BL = torch.full_like(batch.token_BL, token)
        return to_arrow(replace(batch, id_B=ids, token_BL=token_BL, facts=batch.facts | facts))

    return build


def intake_of(services, stall_seconds=20.0, while_waiting=None):
    buffer, ledger = services
    settings = {"steps": STEPS, "stall_seconds": stall_seconds, "state": ledger.describe}
    return Intake(buffer, SingleProcess(), while_waiting=while_waiting, **settings)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def images(buffer):
    return buffer.gauges()["buffer/images"]


def test_the_next_batch_is_fetched_while_the_learner_works_and_none_after_it(services, record_of):
    buffer, ledger = services
    for _ in range(3 * SCHEDULE.leases_per_step):
        assert buffer.put(record_of(ledger.lease("w", 0)), 0)
    intake = intake_of(services)
    first = intake.take(0)
    assert first.batch.id_B.tolist() == list(range(10))
    until(lambda: images(buffer) == 10)
    time.sleep(0.1)
    assert images(buffer) == 10, "one step ahead, no more"
    assert ledger.state() == START, "what is fetched is not trained"
    assert intake.take(1).batch.id_B.tolist() == list(range(10, 20))
    intake.close()


def test_ahead_or_not_the_steps_are_the_same(services, record_of):
    buffer, ledger = services

    def work():
        lease = ledger.lease("w", 0)
        assert lease is None or buffer.put(record_of(lease), 0)

    def steps(intake):
        ledger.restore(START)
        buffer.clear(ledger._generation)
        found = []
        for step in range(STEPS):
            taken = intake.take(step)
            found.append((taken.batch.id_B.tolist(), taken.leases, taken.numbers))
            ledger.commit(step + 1, taken.leases)
        intake.close()
        return found

    here = steps(intake_of(services, while_waiting=work))
    worker = Thread(target=lambda: [(work(), time.sleep(0.002)) for _ in range(400)], daemon=True)
    ledger.restore(START)
    worker.start()
    assert steps(intake_of(services)) == here
    worker.join()


def test_an_ending_is_heard_with_the_step_that_it_ends(services, record_of):
    buffer, ledger = services
    for _ in range(SCHEDULE.leases_per_step):
        buffer.put(record_of(ledger.lease("w", 0)), 0)
    intake = intake_of(services)
    buffer_is_closed = Thread(target=lambda: buffer.close("enough"))
    intake.take(0)
    buffer_is_closed.start()
    buffer_is_closed.join()
    with pytest.raises(Closed, match="enough"):
        intake.take(1)


def test_a_damaged_record_is_refused_with_its_step_and_not_before(services, record_of):
    buffer, ledger = services
    for number in range(2 * SCHEDULE.leases_per_step):
        lease = ledger.lease("w", 0)
        buffer.put(record_of(lease, token=10**6 if number == 3 else 0), 0)
    intake = intake_of(services)
    assert len(intake.take(0).batch) == 10
    with pytest.raises(InputError, match="record holds tokens"):
        intake.take(1)


def test_nothing_for_too_long_is_a_sentence_and_leaves_no_thread(services):
    intake = intake_of(services, stall_seconds=0.05)
    with pytest.raises(RunFailed, match=r"no batch for step 0 in 0.05 s .*0 leases scored"):
        intake.take(0)
    with pytest.raises(RuntimeError, match="shutdown"):
        intake.take(0)
