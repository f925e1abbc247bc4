"""A worker whose process hardly runs."""

import os
import signal
import time
from contextlib import contextmanager

import pytest
import ray
from building.services import publish, start, take

from common.exchange.trajectory import from_arrow
from deploy.backend.role import ROLLOUT

pytestmark = pytest.mark.ray
USUAL, LATE, MOST = 8, 3, 40
"""Steps of two quick workers; leases that one of them is late with; steps in which that happens."""


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_a_slow_process_holds_up_an_idle_worker_samples(placed, run_in):
    """It runs for moments between two steps, and no step waits for it."""
    pinned = ("learner.ordered=true", "learner.max_staleness=0", "learner.publish_every=1")
    sizes = ("rollout.workers=2", "rollout.batch_size=2", f"learner.steps={USUAL + MOST}")
    run = run_in(*pinned, *sizes)
    services, crew, student = start(run, placed)
    services.ledger.restore({"step": 0, "frontier": 0, "beyond": []})
    slow = crew.crews[ROLLOUT].members["worker-0"]._actor
    pid = ray.get(slow.__ray_call__.remote(lambda actor: os.getpid()))
    ids, late, done = [], [], 0

    def train(step):
        share = take(services, step)
        for batch in map(from_arrow, share.records):
            ids.extend(batch.id_B.tolist())
            if batch.facts.get("late") == "worker-0":
                late.append(batch.facts["worker"])
        publish(services, student, step + 1)
        services.ledger.commit(step + 1, share.leases)
        return step + 1

    while done < USUAL:
        done = train(done)
    while len(late) < LATE and done < USUAL + MOST:
        with stopped(pid):
            done = train(done)
        time.sleep(0.01)
    assert len(late) >= LATE
    assert set(late) == {"worker-1"}
    assert sorted(ids) == list(range(done * run[0].learner.global_batch_size))
    assert services.ledger.gauges()["ledger/taken_over"] >= len(late)
    services.close("over")
    crew.dismiss()
