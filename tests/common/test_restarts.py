"""What happens while buffer and ledger talk to each other: others act, learners restart."""

import random
import threading
from dataclasses import replace

from building.records import START, record

from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule

PLAIN = Schedule(steps=12, global_batch_size=4, lease_size=2, max_staleness=3, publish_every=2)


class Interrupted(Ledger):
    """Right after it has answered a call of the buffer, `then` happens, in another thread."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.then = lambda: None
        self.was_free = True

    def _happen(self):
        other = threading.Thread(target=self.then, daemon=True)
        other.start()
        other.join(5)
        self.was_free = self.was_free and not other.is_alive()

    def stored(self, number, generation):
        found = super().stored(number, generation)
        self._happen()
        return found

    def reopen(self, numbers, generation):
        self._happen()
        super().reopen(numbers, generation)


def interrupted(schedule=PLAIN, max_bytes=2**20):
    ledger = Interrupted(schedule)
    buffer = Buffer(schedule, max_bytes=max_bytes, ledger=ledger)
    buffer.clear(ledger.restore(START))
    return ledger, buffer


def test_nobody_waits_for_the_buffer_while_it_waits_for_the_ledger():
    ledger, buffer = interrupted()
    ledger.then = buffer.gauges
    for _ in range(2):
        buffer.put(record(ledger.lease("w", 0), 0), 0)
    assert ledger.was_free, "the gauges came while a record was stored"
    assert buffer.take(PLAIN.max_staleness + 1, shard=0, shards=1, timeout=0) is None
    assert buffer.gauges()["buffer/dropped"] == 4
    assert ledger.was_free, "and while stale leases were given back"


def test_a_learner_that_restarts_while_a_record_comes_in_gets_none_of_its_lost_future():
    ledger, buffer = interrupted()
    lease = ledger.lease("w", 0)
    ledger.then = lambda: buffer.clear(ledger.restore(START))
    assert buffer.put(record(lease, 0), 0), "whoever sends it may go on"
    ledger.then = lambda: None
    assert buffer.gauges()["buffer/images"] == 0
    again = ledger.lease("w", 0)
    assert (again.number, again.generation) == (lease.number, lease.generation + 1)


def test_a_learner_that_restarts_while_stale_leases_go_back_samples_each_once():
    ledger, buffer = interrupted()
    first = [ledger.lease("w", 0) for _ in range(2)]
    for lease in first:
        buffer.put(record(lease, 0), 0)
    ledger.then = lambda: buffer.clear(ledger.restore(START))
    assert buffer.take(PLAIN.max_staleness + 1, shard=0, shards=1, timeout=0) is None
    again = [ledger.lease("w", 0).number for _ in range(4)]
    assert again == [0, 1, 2, 3]


def test_what_workers_send_between_ledger_and_buffer_of_a_restart_stays():
    """The ledger restarts first, and a quick worker has a record for it before the buffer does."""
    ledger, buffer = interrupted()
    lost = ledger.lease("w", 0)
    buffer.put(record(lost, 0), 0)
    generation = ledger.restore(START)
    early = ledger.lease("w", 0)
    buffer.put(record(early, 7), 0)
    buffer.clear(generation)
    buffer.put(record(ledger.lease("w", 0), 7), 0)
    share = buffer.take(0, shard=0, shards=1, timeout=0)
    assert [int(part.schema.metadata[b"oldest"]) for part in share.records] == [7, 7]


def test_room_for_one_record_is_given_to_one_of_two_who_send_at_once():
    ledger, buffer = interrupted(replace(PLAIN, max_staleness=7), max_bytes=1)
    leases = [ledger.lease("w", 0) for _ in range(5)]
    for lease in leases[:3]:
        buffer.put(record(lease, 0), 0)
    other = []
    # Two steps' worth, four leases, always fit: of these two only one does.
    ledger.then = lambda: other.append(buffer.put(record(leases[4], 0), 0.01))
    assert buffer.put(record(leases[3], 0), 0)
    assert other == [False]


def test_a_ledger_holds_its_frontier_and_not_its_past():
    """Trained in another order than leased, as it happens without `ordered`."""
    ledger = Ledger(replace(PLAIN, steps=4000))
    ledger.restore(START)
    held, chance = [], random.Random(3)
    for step in range(1, 2001):
        while (lease := ledger.lease("w", 0)) is not None:
            ledger.stored(lease.number, lease.generation)
            held.append(lease.number)
        ledger.commit(step, [held.pop(0), held.pop(chance.randrange(len(held)))])
    state = ledger.state()
    assert state["frontier"] == held[0]
    assert sorted({*range(held[0], 4000 + len(held))} - {*held}) == state["beyond"]
    holders = (*vars(ledger).values(), *vars(ledger._trained).values())
    assert max(len(part) for part in holders if hasattr(part, "__len__")) <= 16
    ledger.restore(state)
    leases = [ledger.lease("w", 0).number for _ in held]
    assert leases == held, "what was not trained, and nothing else"


def test_leases_go_back_to_their_versions_or_the_next_ones_that_are_there():
    schedule = replace(PLAIN, ordered=True, publish_every=1)
    ledger = Ledger(schedule)

    def versions(*there):
        ledger.restore({"step": 7, "frontier": 14, "beyond": []}, there)
        return [ledger.lease("w", 0).version for _ in range(4 * schedule.leases_per_step)][::2]

    assert schedule.earlier_versions(7) == [4, 5, 6]
    assert versions(4, 5, 6) == [4, 5, 6, 7]
    assert versions(6) == [6, 6, 6, 7], "of a run with a tighter bound"
    assert versions() == [7, 7, 7, 7], "of a snapshot that has none"
