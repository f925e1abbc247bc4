"""Ledger, buffer and weights: credits, staleness, order, re-issue, resume. No models, no Ray."""

import random
import threading
import time
from dataclasses import replace

import pytest
from building.records import START, record

from common.errors import Closed
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Phase, Schedule
from common.exchange.weights import WeightStore

PLAIN = Schedule(steps=12, global_batch_size=4, lease_size=2, max_staleness=3, publish_every=2)


def services(schedule, max_bytes=2**20, clock=time.monotonic):
    ledger = Ledger(schedule, clock)
    buffer = Buffer(schedule, max_bytes=max_bytes, ledger=ledger)
    ledger.restore(START)
    return ledger, buffer


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("max_staleness", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_staleness_never_exceeds_the_bound_and_nothing_is_lost(seed, max_staleness, ordered):
    schedule = replace(PLAIN, max_staleness=max_staleness, ordered=ordered, steps=30)
    for step, version in versions_trained(schedule, seed):
        assert step - version <= max_staleness


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_steps_that_share_a_student_are_all_of_its_newest_version(seed, ordered):
    """Three steps a version, then one for nine steps, then two a version."""
    phases = Phase(0, 3), Phase(12, 9, asks=False), Phase(21, 2)
    schedule = replace(PLAIN, phases=phases, max_staleness=0, ordered=ordered, steps=30)
    found = dict(versions_trained(schedule, seed))
    wanted = [s // 3 * 3 if s < 12 else 12 if s < 21 else 21 + (s - 21) // 2 * 2 for s in range(30)]
    assert [found[step] for step in range(30)] == wanted
    asked = [step for step in range(30) if schedule.is_scored(2 * step)]
    assert asked == [2, 5, 8, 11, 22, 24, 26, 28]


def versions_trained(schedule, seed):
    """(step, version) of every record that is trained, under random interleavings of slow and dying
    workers with the learner; all images are trained once."""
    now = [0.0]
    ledger, buffer = services(schedule, clock=lambda: now[0])
    chance = random.Random(seed)
    held, trained, step, published = [], [], 0, 0
    crew, hired = ["w0", "w1", "w2"], 3
    while step < schedule.steps:
        move = chance.random()
        now[0] += move  # a lease may be late
        if move < 0.45:
            lease = ledger.lease(chance.choice(crew), timeout=0)
            if lease is not None:
                version = published if lease.version is None else lease.version
                assert version <= published
                held.append((lease, version))
        elif move < 0.85 and held:
            lease, version = held.pop(chance.randrange(len(held)))
            assert buffer.put(record(lease, version), timeout=0)
        elif move < 0.88:
            ledger.expire(crew.pop(chance.randrange(3)))
            crew.append(f"w{hired}")  # another takes the place of who died
            hired += 1
        share = buffer.take(step, shard=0, shards=1, timeout=0)
        if share is not None and chance.random() < 0.2:  # a node died before they were read
            buffer.lost(step, chance.sample(share.leases, chance.randint(1, len(share.leases))))
        elif share is not None:
            for part in share.records:
                yield step, int(part.schema.metadata[b"oldest"])
                trained += part.column("id").to_pylist()
            step += 1
            published = step if schedule.is_published(step) else published
            ledger.commit(step, share.leases)
    assert sorted(trained) == list(range(schedule.steps * schedule.global_batch_size))


def test_a_call_that_waits_when_its_worker_dies_gets_no_lease():
    """In an actor the call of a dead worker goes on waiting; nobody would sample what it got."""
    ledger = Ledger(PLAIN)
    got = []
    calls = [threading.Thread(target=lambda: got.append(ledger.lease("w", 20))) for _ in range(2)]
    for call in calls:
        call.start()
    ledger.expire("w")
    for call in calls:
        call.join(10)
    assert got == [None, None]
    ledger.restore(START)
    assert ledger.lease("w", 0) is None
    assert ledger.gauges()["ledger/leased"] == 0
    assert ledger.lease("another", 0).number == 0


def test_outstanding_work_is_bounded_and_credits_come_back():
    ledger, buffer = services(PLAIN)
    leases = [ledger.lease("w", 0) for _ in range(20)]
    granted = [lease for lease in leases if lease is not None]
    assert len(granted) == (PLAIN.ahead + 1) * PLAIN.leases_per_step
    for lease in granted[:2]:
        buffer.put(record(lease, 0), 0)
    assert ledger.lease("w", 0) is None, "scored but untrained images still count"
    share = buffer.take(0, shard=0, shards=1, timeout=0)
    ledger.commit(1, share.leases)
    assert ledger.lease("w", 0) is not None


def test_stale_records_are_dropped_counted_and_sampled_again():
    ledger, buffer = services(PLAIN)
    first, second, third = (ledger.lease("w", 0) for _ in range(3))
    for lease in (first, second):
        buffer.put(record(lease, 0), 0)
    ledger.commit(1, buffer.take(0, shard=0, shards=1, timeout=0).leases)
    buffer.put(record(third, 0), 0)
    assert buffer.take(PLAIN.max_staleness + 1, shard=0, shards=1, timeout=0) is None
    assert buffer.gauges()["buffer/dropped"] == 2
    assert ledger.lease("w", 0).number == third.number


@pytest.mark.parametrize("ordered", [False, True])
def test_a_lost_record_is_sampled_again_for_its_step(ordered):
    """Ranks that had theirs keep it, and the step has the same leases as before."""
    ledger, buffer = services(replace(PLAIN, ordered=ordered), max_bytes=1)
    for _ in range(4):
        buffer.put(record(ledger.lease("w", 0), 0), 0)
    one, two = (buffer.take(0, shard=shard, shards=2, timeout=0) for shard in (0, 1))
    assert buffer.take(1, shard=0, shards=2, timeout=0).leases == [2, 3], "it fetches ahead"
    buffer.lost(0, two.leases[1::2])
    buffer.lost(0, two.leases[1::2])
    assert buffer.take(0, shard=1, shards=2, timeout=0) is None
    assert buffer.gauges()["buffer/lost"] == 1
    again = ledger.lease("w", 0)
    assert again.number == 1
    assert not ledger.stored(1, again.generation + 1)
    assert buffer.put(record(again, 0), 0)
    mended = buffer.take(0, shard=1, shards=2, timeout=0)
    assert mended.leases == one.leases == [0, 1]
    assert [part.column("id").to_pylist() for part in mended.records] == [[2, 3]]
    assert ledger.gauges() == {
        "ledger/leased": 0,
        "ledger/stored": 4,
        "ledger/reissued": 0,
        "ledger/taken_over": 0,
    }


def test_there_is_room_for_a_record_in_place_of_a_lost_one():
    """Else the learner would wait for it, and it for the learner."""
    ledger, buffer = services(replace(PLAIN, max_staleness=7), max_bytes=1)
    leases = [ledger.lease("w", 0) for _ in range(6)]
    for lease in leases[:2]:
        buffer.put(record(lease, 0), 0)
    lost = buffer.take(0, shard=0, shards=1, timeout=0).leases[:1]
    for lease in leases[2:]:
        buffer.put(record(lease, 0), 0)
    assert not buffer.put(record(ledger.lease("w", 0), 0), 0)
    buffer.lost(0, lost)
    assert buffer.put(record(ledger.lease("w", 0), 0), 0)
    assert buffer.take(0, shard=0, shards=1, timeout=0).leases == [0, 1]


def test_data_records_never_go_stale():
    ledger, buffer = services(PLAIN)
    for _ in range(2):
        buffer.put(record(ledger.lease("w", 0), -1), 0)
    assert buffer.take(10, shard=0, shards=1, timeout=0) is not None
    assert buffer.gauges()["buffer/dropped"] == 0


def test_a_dead_workers_lease_goes_to_another_and_the_duplicate_is_discarded():
    ledger, buffer = services(PLAIN)
    lost, kept = ledger.lease("dead", 0), ledger.lease("dead", 0)
    buffer.put(record(kept, 0), 0)
    assert ledger.expire("dead") == [lost.number]
    again = ledger.lease("alive", 0)
    assert again == lost
    assert buffer.put(record(again, 0), 0)
    assert buffer.put(record(lost, 0), 0), "the dead worker's record arrives late"
    assert buffer.gauges()["buffer/images"] == 4
    assert buffer.gauges()["buffer/duplicates"] == 2


@pytest.mark.parametrize("ordered", [False, True])
def test_a_late_lease_that_the_learner_waits_for_goes_to_an_idle_worker_as_well(ordered):
    now = [0.0]
    schedule = replace(PLAIN, ordered=ordered, lease_size=1, max_staleness=1, publish_every=1)
    ledger, buffer = services(schedule, clock=lambda: now[0])
    for lease in [ledger.lease("fast", 0) for _ in range(8)]:
        assert ledger.lease("idle", 0) is None, "nobody knows what is usual"
        now[0] += 1.0
        buffer.put(record(lease, 0), 0)
    for step in (0, 1):
        ledger.commit(step + 1, buffer.take(step, shard=0, shards=1, timeout=0).leases)
    now[0] = 100.0
    slow, *others = [ledger.lease(worker, 0) for worker in ["slow"] + 7 * ["fast"]]
    for other in others:
        buffer.put(record(other, 2), 0)
    now[0] += 2.9  # three times the median
    assert ledger.lease("idle", 0) is None
    now[0] += 0.2
    if not ordered:
        assert ledger.lease("idle", 0) is None, "the learner has what it needs"
        ledger.commit(3, buffer.take(2, shard=0, shards=1, timeout=0).leases)
        assert len([ledger.lease("fast", 0) for _ in range(4)]) == 4
    assert ledger.lease("slow", 0) is None, "it has it"
    again = ledger.lease("idle", 0)
    assert (again, again.late, slow.late) == (slow, "slow", None)
    now[0] += 100.0
    assert ledger.lease("third", 0) != slow, "two have it"
    assert ledger.expire("idle") == []
    assert ledger.lease("fourth", 0) == slow, "one who had it died"
    before = ledger.gauges()["ledger/stored"]
    for _ in range(2):  # theirs, and then the slow one's
        assert buffer.put(record(slow, 2), 0)
    assert ledger.gauges()["ledger/stored"] == before + 1
    assert buffer.gauges()["buffer/duplicates"] == 1


def test_ordered_steps_get_exactly_their_leases_and_pinned_versions():
    schedule = replace(PLAIN, ordered=True)
    ledger, buffer = services(schedule)
    leases = [ledger.lease("w", 0) for _ in range(6)]
    assert [lease.version for lease in leases] == [0] * 6
    for lease in reversed(leases):
        buffer.put(record(lease, 0), 0)
    share = buffer.take(0, shard=0, shards=1, timeout=0)
    assert share.leases == [0, 1]
    assert ledger.lease("w", 0) is None, "version 2 is not published yet"
    for step in range(schedule.steps):
        pinned = schedule.pinned_version(step)
        assert 0 <= step - pinned <= schedule.max_staleness
        assert schedule.is_published(pinned)


def test_shards_of_a_step_are_disjoint_and_survive_closing():
    ledger, buffer = services(PLAIN)
    for _ in range(4):
        buffer.put(record(ledger.lease("w", 0), 0), 0)
    one = buffer.take(0, shard=0, shards=2, timeout=0)
    buffer.close("over")
    two = buffer.take(0, shard=1, shards=2, timeout=0)
    ids = [i for share in (one, two) for r in share.records for i in r.column("id").to_pylist()]
    assert sorted(ids) == [0, 1, 2, 3]
    assert one.leases == two.leases
    with pytest.raises(Closed, match="over"):
        buffer.take(1, shard=0, shards=2, timeout=0)


def test_a_full_buffer_makes_the_teacher_wait_until_the_learner_takes():
    ledger, buffer = services(replace(PLAIN, max_staleness=7), max_bytes=1)
    leases = [ledger.lease("w", 0) for _ in range(5)]
    for lease in leases[:4]:
        assert buffer.put(record(lease, 0), 0)
    assert not buffer.put(record(leases[4], 0), timeout=0.01)
    waiting = threading.Thread(target=buffer.put, args=(record(leases[4], 0), 5.0))
    waiting.start()
    buffer.take(0, shard=0, shards=1, timeout=0)
    waiting.join(5)
    assert buffer.gauges()["buffer/images"] == 6


def test_a_restarted_learner_refuses_records_of_its_lost_future():
    ledger, buffer = services(PLAIN)
    for _ in range(4):
        buffer.put(record(ledger.lease("w", 0), 0), 0)
    ledger.commit(1, buffer.take(0, shard=0, shards=1, timeout=0).leases)
    state = ledger.state()
    assert state == {"step": 1, "frontier": 2, "beyond": []}
    late = ledger.lease("w", 0)
    buffer.clear(ledger.restore(state))
    assert buffer.put(record(late, 0), 0)
    assert buffer.gauges()["buffer/images"] == 0
    again = ledger.lease("w", 0)
    assert (again.number, again.generation) == (2, late.generation + 1)


def test_closing_wakes_everybody_with_the_cause():
    ledger, buffer = services(PLAIN)
    store = WeightStore(3)
    for service in (ledger, buffer, store):
        service.close("the first cause")
        service.close("a later one")
    for wait in (
        lambda: ledger.lease("w", 9),
        lambda: buffer.take(0, shard=0, shards=1, timeout=9),
        lambda: store.newest(9),
    ):
        with pytest.raises(Closed, match="the first cause"):
            wait()
