"""Nothing comes: which stage is it, and is that said in time?"""

from types import SimpleNamespace

import pytest
from building.records import START

from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from deploy.stages.stall_watch import StallWatch


@pytest.fixture
def ledger():
    """Of steps of two leases, of which one step may be ahead."""
    found = Ledger(Schedule(10, 4, 2, max_staleness=1, publish_every=1))
    found.restore(START)
    return found


def stage(ledger):
    return ledger.describe().removeprefix("it waits for ").partition(";")[0]


def test_the_stage_that_holds_everybody_up_is_named(ledger):
    assert stage(ledger) == "rollout: leases are free, and no worker asks for one"
    ledger.lease("w-0", 0)
    assert stage(ledger) == "rollout: w-0 has had lease 0 for 0 s and no other"
    ledger.lease("w-1", 0)
    ledger.lease("w-0", 0)
    assert stage(ledger).startswith("scoring: w-0 has sampled lease 0, which it got 0 s ago")
    for number in (0, 1, 2):
        assert ledger.stored(number, 1)
    assert stage(ledger) == "rollout: leases are free, and no worker asks for one"
    ledger.lease("w-1", 0)
    assert stage(ledger) == "rollout: w-1 has had lease 3 for 0 s and no other"
    assert ledger.stored(3, 1)
    assert stage(ledger) == "learner: 4 scored leases wait for it, of which a step takes 2"
    assert ledger.describe().endswith("; 4 leases scored, 0 steps trained")


def test_no_step_for_long_is_said_once_and_so_is_the_next_one(ledger):
    said, services, now = [], SimpleNamespace(ledger=ledger), [0.0]
    watch = StallWatch(least_seconds=60, clock=lambda: now[0])

    def look(seconds, steps=0):
        now[0] += seconds
        watch.look(steps, services, said.append)

    look(1000)
    assert said == [], "it has not begun"
    look(1, steps=1)
    look(25, steps=1)
    look(70)
    assert said == [], "less than three times the longest step"
    look(10)
    look(1000)
    (words,) = said
    assert words.startswith("warning: no step for 80 s; it waits for rollout: leases are free, and")
    look(1, steps=1)
    assert said[1:] == ["steps end again"]
    look(3000)
    assert len(said) == 2, "it may be another step as long as that one"
