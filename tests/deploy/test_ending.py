"""How a run ends that is told to, or whose driver has no time left."""

import time

import pytest
from building.launchers import Replacing
from building.runs import go, rows_of

from common.errors import RunFailed
from common.exchange.ledger import Ledger
from common.files.snapshots import Snapshots
from common.files.tensors import read_metadata
from deploy.console.stopping import EXIT_CODES, LIMIT, StopRequest
from deploy.stages.watch import Watch

MINUTES = 0.05


class Late(Ledger):
    """Its second step lasts until the time is over."""

    def commit(self, step, numbers):
        super().commit(step, numbers)
        if step == 2:
            time.sleep(60 * MINUTES)


def test_a_wall_clock_limit_ends_a_run_in_order(run_in):
    settings = ("learner.steps=4", "learner.ordered=true")
    config, workspace = run_in(*settings, f"learner.max_minutes={MINUTES}")
    facts, said = go((config, workspace), launch=lambda: Replacing({Ledger: Late}))
    assert (facts["steps"], facts["stopped"], EXIT_CODES[facts["stopped"]]) == (2, LIMIT, 0)
    assert facts["cause"] == "stopped by learner.max_minutes"
    assert "learner.max_minutes: stopping after this step" in said
    assert Snapshots(workspace.snapshots).steps() == [2]
    assert read_metadata(workspace.student)["steps"] == 2
    facts, _ = go((run_in(*settings)[0], workspace), resume=True)
    assert (facts["steps"], facts["stopped"], facts["resumed_from"]) == (4, None, 2)
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3, 4]


class Dead(Ledger):
    """Its process dies when all is done."""

    def restarts(self):
        raise RunFailed("gone")


def test_the_student_is_there_before_the_driver_ends(run_in):
    config, workspace = run_in("learner.steps=2")
    with pytest.raises(RunFailed, match="gone"):
        go((config, workspace), launch=lambda: Replacing({Ledger: Dead}))
    assert read_metadata(workspace.student)["steps"] == 2
    assert read_metadata(workspace.student_ema)["steps"] == 2
    assert not workspace.facts.exists()


def test_a_learner_that_does_not_end_is_ended_in_a_stated_time():
    watch = Watch(None, None, StopRequest(), None)
    watch.require_end(0.01)
    watch.is_closing = True
    watch.require_end(0.01)
    time.sleep(0.02)
    watch.require_end(5)
    with pytest.raises(RunFailed, match=r"within 0\.01 s \(learner\.stop_seconds\)"):
        watch.require_end(0.01)
