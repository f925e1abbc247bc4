"""Processes that die in the middle of a run on Ray: it goes on, or ends with the cause."""

import json
import os
import signal
import time

import pytest
from building.launchers import beside
from building.waiting import until

from common.errors import RunFailed
from common.exchange.metric_files import read_rows
from deploy.stages.distill import distill

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def rows_of(workspace):
    return [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]


def require_fresh(run):
    """No image was older than the config allows."""
    lags = [row.get("lag_max", 0) for row in rows_of(run[1])]
    assert max(lags) <= run[0].learner.max_staleness


def test_a_run_goes_on_without_one_worker_and_ends_without_any(ray_cluster, run_in, quiet):
    """With the cause, and within 10 s of the last death."""
    alone = ("learner.max_failures=0", "rollout.workers=2", "rollout.max_restarts=0")
    run = run_in("learner.steps=100000", *alone)
    killed_at = []

    def steps():
        return len(read_rows(run[1].metrics))

    def kill(made):
        for worker in ("worker-0", "worker-1"):
            before = steps()
            until(lambda before=before: steps() >= before + 10)
            killed_at.append(time.monotonic())
            ray_cluster.kill(made[worker]._actor)

    with pytest.raises(RunFailed, match="0 rollout workers are left") as caught:
        distill(*run, quiet, local=False, launch=lambda: beside(kill))
    assert len(killed_at) == 2, "the run went on for some steps after the first death"
    assert "the process of worker-" in str(caught.value)
    assert time.monotonic() - killed_at[1] < 10
    assert list(run[1].snapshots.rglob("facts.json")), "finished steps stay resumable"
    assert "0 rollout workers are left" in (run[1].root / "report.html").read_text()
    require_fresh(run)


def test_the_only_worker_teacher_and_learner_are_killed_and_others_take_their_places(
    ray_cluster, run_in, quiet
):
    """And in `ordered` mode the numbers are those of a run in which nobody died."""
    again = ("rollout.max_restarts=1", "learner.max_failures=1", "learner.checkpoint_every=5")
    pinned = ("learner.ordered=true", "learner.max_staleness=2", "learner.steps=30")
    run = run_in("rollout.workers=1", *again, *pinned)
    whole = run_in(*pinned, name="whole")
    distill(*whole, quiet, local=True)

    def kill(made):
        until(lambda: len(read_rows(run[1].metrics)) >= 3)
        ray_cluster.kill(made["worker-0"]._actor)
        until(lambda: len(read_rows(run[1].metrics)) >= 7)
        ray_cluster.kill(made["teacher-0"]._actor)
        until(lambda: len(read_rows(run[1].metrics)) >= 12)
        os.kill(read_rows(run[1].metrics)[-1]["pid"], signal.SIGKILL)

    facts = distill(*run, quiet, local=False, launch=lambda: beside(kill))
    assert facts["steps"] == 30
    assert list(facts["deaths"]) == ["worker-0", "teacher-0"]
    assert {name: found["by"] for name, found in facts["replaced"].items()} == {
        "worker-0": "worker-1",
        "teacher-0": "teacher-1",
    }
    recovered = [found["seconds"] for found in facts["replaced"].values()]
    assert all(0 < seconds < facts["wall_seconds"] for seconds in recovered)
    rows = rows_of(run[1])
    assert [row["step"] for row in rows] == list(range(1, 31)), "every step once"
    restarted = next(i for i in range(1, 30) if rows[i]["pid"] != rows[i - 1]["pid"])
    assert rows[restarted]["step"] % 5 == 1, "it went on right after a snapshot"
    (restart,) = facts["restarts"]
    assert restart["from"] == rows[restarted - 1]["step"] <= restart["reached"]
    assert 0 < restart["seconds"] < facts["wall_seconds"]
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_of(whole[1])]
    require_fresh(run)
