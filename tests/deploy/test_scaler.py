"""Who is the bottleneck, and when a run has one more worker or replica, or one less."""

import pytest

from common.exchange.schedule import Schedule
from deploy.backend.role import ROLLOUT, replica_limits, worker_limits
from deploy.backend.scaler import Scaler
from deploy.load import LoadMeter
from deploy.stages.pace import WorkerPace
from rollout.config import RolloutConfig
from teacher_server.replicas import ReplicasConfig


def steps(scaler, count, *, wait, rollout, workers, teacher=0.1):
    """Steps of a second: what is said after each of them."""
    row = {"seconds/wait": wait, "seconds/step": 1 - wait, "teacher/busy": teacher}
    row["seconds/rollout"] = rollout * workers
    for _ in range(count):
        scaler.hear(row, {ROLLOUT: workers})
        yield scaler.decide({ROLLOUT: workers}, is_coming=False).change


@pytest.fixture
def scaler():
    def make(least=1, most=4, images=64):
        schedule = Schedule(100, images, 8, max_staleness=0, publish_every=1)
        config = RolloutConfig(workers=least, min_workers=least, max_workers=most)
        return Scaler({ROLLOUT: worker_limits(config)}, schedule, 1, window_seconds=4)

    return make


def test_a_worker_is_added_while_the_learner_waits_and_one_retires_while_it_does_not(scaler):
    waiting, idle = {"wait": 0.5, "rollout": 1.0}, {"wait": 0.0, "rollout": 0.3}
    chosen = scaler()
    assert list(steps(chosen, 24, **waiting, workers=2)) == [0] * 11 + [1] + [0] * 11 + [1]
    assert list(steps(chosen, 12, **idle, workers=3)) == [0] * 11 + [-1]
    in_turns = steps(scaler(), 12, wait=0.5, rollout=0.5, workers=2)
    assert list(in_turns) == [0] * 11 + [1], "as on policy"
    for change in ({"workers": 4}, {"workers": 2, "teacher": 0.95}, {"workers": 2, "rollout": 0.3}):
        assert not any(steps(scaler(), 30, **{**waiting, **change})), change
    for change in ({"workers": 1}, {"workers": 3, "rollout": 0.6}, {"workers": 3, "wait": 0.1}):
        assert not any(steps(scaler(), 30, **{**idle, **change})), change
    assert not any(steps(scaler(images=16), 30, **waiting, workers=2)), "two leases are out at most"
    assert not any(steps(scaler(3, 3), 30, **waiting, workers=3)), "somebody fixed the number"


def test_the_scorer_that_is_busy_all_the_time_gets_another_replica(scaler):
    schedule = Schedule(100, 64, 8, max_staleness=0, publish_every=1)
    replicas = ReplicasConfig(replicas=1, max_replicas=3)
    limits = {ROLLOUT: worker_limits(RolloutConfig(workers=2, max_workers=9))}
    limits |= {name: replica_limits(replicas, name, name) for name in ("teacher", "scorer-a")}

    def chosen(wait, shares, fixed=(), teacher=1):
        scaler = Scaler(limits, schedule, 1, window_seconds=4)
        alive = {ROLLOUT: 2, "teacher": teacher, "scorer-a": 2}
        row = {"seconds/wait": wait, "seconds/step": 1 - wait, "seconds/rollout": 2.0}
        row |= dict(zip(("teacher/busy", "busy/scorer-a"), shares, strict=True))
        for _ in range(12):
            scaler.hear(row, alive)
            decision = scaler.decide(alive, is_coming=False, fixed=fixed)
        return decision.role, decision.change

    assert chosen(0.5, (0.5, 0.95)) == ("scorer-a", 1)
    assert chosen(0.5, (0.95, 0.95)) == ("teacher", 1), "the first of two"
    assert chosen(0.5, (0.95, 0.5), teacher=3)[1] == 0, "more samples would only wait for it"
    assert chosen(0.5, (0.95, 0.5), fixed={"teacher"})[1] == 0
    assert chosen(0.5, (0.5, 0.5)) == (ROLLOUT, 1)
    assert chosen(0.0, (0.2, 0.3)) == ("scorer-a", -1), "one teacher is the least"
    assert chosen(0.0, (0.7, 0.5))[1] == 0, "one alone would be busy all the time"


def test_windows_must_agree_and_a_worker_on_its_way_is_waited_for(scaler):
    chosen = scaler()
    row = {"seconds/wait": 0.5, "seconds/step": 0.5, "seconds/rollout": 1.0}
    for _ in range(60):
        assert not any(steps(chosen, 8, wait=0.5, rollout=1.0, workers=1))
        assert not any(steps(chosen, 4, wait=0.1, rollout=1.0, workers=1)), "a good window"
        chosen.hear(row, {ROLLOUT: 1})
        assert chosen.decide({ROLLOUT: 2}, is_coming=True).change == 0, "somebody comes already"


def test_the_bottleneck_is_who_is_busy_while_others_wait():
    def found(wait, rollout, teacher, workers=2):
        meter = LoadMeter(world_size=2)
        row = {"seconds/wait": wait, "seconds/step": 1 - wait, "teacher/busy": teacher}
        for _ in range(3):
            meter.add({**row, "seconds/rollout": rollout * workers / 2}, workers)
        load = meter.load()
        assert load is not None
        assert load.sentence().startswith(load.bottleneck)
        return load.bottleneck

    assert LoadMeter(1).load() is None
    assert found(0.05, 1.0, 1.0) == "learner"
    assert found(0.4, 0.9, 0.5) == "rollout"
    assert found(0.4, 0.8, 0.9) == "teacher"
    assert found(0.5, 0.5, 0.1) == "none", "in turns"
    assert found(0.25, 0.2, 0.0) == "learner"


def test_a_worker_that_is_far_slower_than_the_others_is_named_once():
    pace, said = WorkerPace(), []
    for step in range(20):
        row = {f"lease_seconds/worker-{number}": 0.1 for number in range(3)} | {"loss": 9.0}
        row["lease_seconds/worker-1"] = 1.0 if step >= 5 else 0.1
        row["lease_seconds/worker-2"] = 9.0 if step == 3 else 0.3  # a hiccup
        said += [(step, warning) for warning in pace.hear(row)]
    ((step, warning),) = said
    assert 8 <= step <= 10
    assert warning.startswith("warning: worker-1 takes 1 s for a lease, ")
    assert list(pace.slow) == ["worker-1"]


def test_who_is_slow_and_holds_nobody_up_is_not_named():
    """Milliseconds are chance, and a second of a minute is no matter."""
    for slow, usual, step in ((0.1, 0.01, 0.02), (1.0, 0.1, 60.0)):
        pace = WorkerPace()
        row = {"lease_seconds/worker-0": usual, "lease_seconds/worker-1": slow}
        row |= {"seconds/wait": step / 2, "seconds/step": step / 2}
        assert [said for _ in range(20) for said in pace.hear(row)] == []
        assert not pace.slow


def test_a_worker_whose_leases_others_had_to_sample_again_and_again_is_named_once():
    pace, said = WorkerPace(), []
    for step in range(200):
        row = {"loss": 9.0} | ({"late_leases/worker-1": 1.0} if step > 100 else {})
        row |= {"late_leases/worker-2": 1.0} if step % 15 == 0 else {}  # a hiccup now and then
        said += [(step, warning.partition(":")[2]) for warning in pace.hear(row)]
    ((step, warning),) = said
    assert (step, warning[:20]) == (103, " worker-1 was late w")
