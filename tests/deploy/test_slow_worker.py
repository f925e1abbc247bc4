"""A worker that is ten times as slow as the other one, both in threads of this process."""

import time
from threading import Thread

from building.launchers import Replacing
from building.runs import go, rows_of

from rollout.worker import RolloutWorker

SLOW = 1.5
"""Seconds of a lease, which takes the other one milliseconds."""


class Threaded(RolloutWorker):
    """Works beside the learner, which finds nothing to do while it waits."""

    def __init__(self, *args, name, **rest):
        super().__init__(*args, name=name, **rest)
        self.name, self.thread = name, Thread(target=self.run, daemon=True)

    def produce(self):
        if self.thread.ident is None:
            self.thread.start()
        time.sleep(0.005)
        return True

    def sample(self, lease):
        if self.name == "worker-1":
            time.sleep(SLOW)
        return super().sample(lease)


def test_what_a_slow_worker_holds_up_another_one_samples_to_the_same_bits(run_in):
    made = []

    class Kept(Threaded):
        def __init__(self, *args, **rest):
            super().__init__(*args, **rest)
            made.append(self)

    pinned = ("learner.ordered=true", "learner.max_staleness=1", "learner.steps=30")
    alone, run = run_in(*pinned, name="alone"), run_in(*pinned, "rollout.workers=2")
    go(alone)
    facts, _ = go(run, launch=lambda: Replacing({RolloutWorker: Kept}))
    for worker in made:
        worker.stop()
        worker.thread.join(10)
    losses = [[row["loss"] for row in rows_of(each[1])] for each in (alone, run)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 30
    assert facts["ledger/taken_over"] >= 1
    late = [row["late_leases/worker-1"] for row in rows_of(run[1]) if "late_leases/worker-1" in row]
    assert late, "a row says whose it was"
