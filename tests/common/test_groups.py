"""Groups of samples of one condition, through ledger and buffer: always whole. No models."""

import random
from collections import Counter

import pytest
from building.records import START, record

from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule

SIZE, STEPS = 3, 30


def schedule_of(ordered):
    return Schedule(
        steps=STEPS,
        global_batch_size=24,
        lease_size=6,
        max_staleness=3,
        publish_every=2,
        ordered=ordered,
        group_size=SIZE,
    )


def test_an_index_is_a_condition_and_a_member():
    schedule = schedule_of(ordered=True)
    pairs = [(schedule.condition(index), schedule.member(index)) for index in range(7)]
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    alone = Schedule(2, 4, 2, 1, 1)
    assert [(alone.condition(i), alone.member(i)) for i in range(3)] == [(0, 0), (1, 0), (2, 0)]


def run(ordered, seed):
    """(ids of every rank's share by step, images dropped, leases re-issued) of a run in which
    workers dawdle and die."""
    schedule = schedule_of(ordered)
    ledger = Ledger(schedule)
    buffer = Buffer(schedule, max_bytes=2**20, ledger=ledger)
    ledger.restore(START)
    chance, held, shares, published = random.Random(seed), [], [], 0
    crew, hired = ["w0", "w1", "w2"], 3
    while len(shares) < STEPS:
        move, step = chance.random(), len(shares)
        if move < 0.45:
            lease = ledger.lease(chance.choice(crew), timeout=0)
            if lease is not None:
                version = published if lease.version is None else lease.version
                held.append((lease, version))
        elif move < 0.85 and held:
            # The newest first, so that some are stale when they come.
            buffer.put(record(*held.pop(-1 if chance.random() < 0.9 else 0)), timeout=0)
        elif move < 0.88:
            ledger.expire(crew.pop(chance.randrange(3)))
            crew.append(f"w{hired}")  # another takes the place of who died
            hired += 1
        taken = [buffer.take(step, shard=rank, shards=2, timeout=0) for rank in range(2)]
        if taken[0] is not None:
            shares.append(
                [[i for r in part.records for i in r["id"].to_pylist()] for part in taken]
            )
            published = step + 1 if schedule.is_published(step + 1) else published
            ledger.commit(step + 1, taken[0].leases)
    return shares, buffer.gauges()["buffer/dropped"], ledger.gauges()["ledger/reissued"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_rank_gets_whole_groups_under_drops_and_deaths(ordered, seed):
    shares, dropped, reissued = run(ordered, seed)
    schedule, seen = schedule_of(ordered), Counter()
    for ranks in shares:
        for ids in ranks:
            members: dict[int, list[int]] = {}
            for index in ids:
                members.setdefault(schedule.condition(index), []).append(schedule.member(index))
            assert all(sorted(found) == [0, 1, 2] for found in members.values())
            seen.update(ids)
    assert seen == Counter(range(STEPS * 24)), "every sample is trained once"
    assert reissued > 0
    assert ordered or dropped > 0
    if ordered:
        assert [sorted(a + b) for a, b in shares] == [
            list(range(24 * step, 24 * step + 24)) for step in range(STEPS)
        ]
