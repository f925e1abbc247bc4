"""A process that lives and never answers (SIGSTOP), and the death of one that nobody needs."""

import os
import signal
import time

import pytest
import ray
from building.launchers import beside
from building.waiting import until

from common.errors import RunFailed
from common.exchange.metric_files import read_rows
from deploy.stages.distill import distill

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def process_of(proxy):
    """Its process."""
    return ray.get(proxy._actor.__ray_call__.remote(lambda actor: os.getpid()))


def test_a_run_goes_on_without_metrics_and_a_service_that_hangs_ends_it_by_name(
    ray_cluster, run_in, quiet
):
    run = run_in("learner.steps=3000", "learner.checkpoint_every=2", "learner.stall_seconds=4.0")
    stopped = []

    def newest():
        names = [path.parent.name for path in run[1].snapshots.glob("step-*/facts.json")]
        return max(int(name.removeprefix("step-")) for name in names)

    def harm(made):
        ledger = process_of(made["ledger"])
        until(lambda: len(read_rows(run[1].metrics)) >= 3)
        ray_cluster.kill(made["metrics"]._actor)
        before = newest()
        until(lambda: newest() >= before + 4)
        stopped.append(time.monotonic())
        os.kill(ledger, signal.SIGSTOP)

    with pytest.raises(RunFailed, match=r"^ledger has not answered for [0-9]+ s"):
        distill(*run, quiet, local=False, launch=lambda: beside(harm))
    assert time.monotonic() - stopped[0] < 30
