"""The supervisor adds, replaces and retires workers; hand-made workers and services."""

import time
from dataclasses import dataclass, field
from threading import Event

import pytest

from common.errors import InputError, ServiceDied, Verdict
from common.exchange.schedule import Schedule
from deploy.backend.scaler import Scaler
from deploy.backend.supervisor import WorkerSupervisor
from deploy.load import LoadMeter
from rollout.config import RolloutConfig


class Worker:
    """Runs until it is told to stop, or until it is given something to die of."""

    def __init__(self) -> None:
        self.over, self.error = Event(), None

    def run(self) -> int:
        assert self.over.wait(20)
        if self.error is not None:
            raise self.error
        return 3

    def stop(self) -> None:
        self.over.set()

    def die(self, error: Exception) -> None:
        self.error = error
        self.over.set()


@dataclass
class Services:
    """A ledger and the rest of a run: they note what they are told."""

    expired: list[str] = field(default_factory=list)
    closed: list[Verdict | str] = field(default_factory=list)
    made: dict[str, Worker] = field(default_factory=dict)
    ended: list[Worker] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> "Services":
        return self

    def expire(self, worker: str) -> list[int]:
        self.expired.append(worker)
        return [7]

    def close(self, cause: Verdict | str) -> None:
        self.closed.append(cause)
        for worker in self.made.values():
            worker.over.set()

    def make(self, name: str) -> Worker:
        assert name not in self.made, "no name is used twice"
        self.made[name] = Worker()
        return self.made[name]

    def end(self, worker: Worker) -> None:
        """Its process is gone, whether it was there or not."""
        assert worker not in self.ended
        self.ended.append(worker)
        worker.die(ServiceDied("was ended"))

    def is_there(self, worker: Worker) -> bool:
        return all(self.made[name] is not worker for name in self.away)


@pytest.fixture
def start():
    started = []

    def begin(**settings):
        services = Services()
        supervisor = WorkerSupervisor(
            services, services.make, RolloutConfig(**settings), services, services.told.append
        )
        started.append(supervisor)
        return services, supervisor

    yield begin
    for supervisor in started:
        supervisor.dismiss()


def until(supervisor, condition):
    deadline = time.monotonic() + 20
    while not condition():
        supervisor.check()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def test_a_dead_worker_is_replaced_as_often_as_the_config_allows(start):
    services, supervisor = start(workers=2, max_restarts=1)
    first, died = services.made["worker-0"], ServiceDied("its machine is gone")
    first.die(died)
    until(supervisor, lambda: "worker-2" in supervisor.workers)
    assert (list(supervisor.workers), supervisor.alive) == (["worker-1", "worker-2"], 2)
    assert (services.expired, services.ended) == (["worker-0"], [first])
    services.made["worker-2"].die(died)
    until(supervisor, lambda: len(supervisor.deaths) == 2)
    assert list(supervisor.workers) == ["worker-1"], "once was all"
    assert not services.closed
    services.made["worker-1"].die(died)
    until(supervisor, lambda: services.closed)
    assert "0 rollout workers are left" in str(supervisor.failure)
    assert "worker-1 had 1 open leases: its machine is gone" in str(supervisor.failure)
    assert services.told[0] == "its machine is gone; worker-2 takes its place"
    assert "nobody takes its place (rollout.max_restarts)" in services.told[1]


def test_the_last_worker_may_be_replaced_too(start):
    services, supervisor = start(workers=1, max_restarts=1)
    services.made["worker-0"].die(RuntimeError("a fault"))
    until(supervisor, lambda: "worker-1" in supervisor.workers)
    assert supervisor.failure is None
    assert "RuntimeError: a fault" in supervisor.deaths["worker-0"]


def test_workers_are_added_while_others_run_up_to_what_the_services_bear(start):
    _, supervisor = start(workers=1)
    assert supervisor.add() == "worker-1"
    assert list(supervisor.workers) == ["worker-0", "worker-1"]
    with pytest.raises(ValueError, match="2 workers run"):
        supervisor.add()


def test_a_worker_retires_in_order_and_leaves_what_it_could_not_hand_over(start):
    services, supervisor = start(workers=2, max_restarts=1)
    leaver = services.made["worker-0"]
    supervisor.retire("worker-0")
    assert supervisor.alive == 1
    until(supervisor, lambda: list(supervisor.workers) == ["worker-1"])
    assert (services.expired, services.ended) == (["worker-0"], [leaver])
    assert (supervisor.deaths, services.closed) == ({}, [])
    assert list(services.made) == ["worker-0", "worker-1"], "nobody takes its place"
    with pytest.raises(ValueError, match="fewer than rollout"):
        supervisor.retire("worker-1")
    with pytest.raises(ValueError, match="no worker worker-0 runs"):
        supervisor.retire("worker-0")


def test_a_worker_that_dies_while_it_retires_is_not_replaced(start):
    services, supervisor = start(workers=2, max_restarts=1)
    services.made["worker-0"].error = ServiceDied("gone before it was done")
    supervisor.retire("worker-0")
    until(supervisor, lambda: supervisor.deaths)
    assert list(supervisor.workers) == ["worker-1"]
    assert services.expired == ["worker-0"]
    assert list(services.made) == ["worker-0", "worker-1"]


def test_a_worker_that_says_why_it_cannot_go_on_ends_the_run_and_is_not_replaced(start):
    services, supervisor = start(workers=2, max_restarts=5)
    services.made["worker-1"].die(InputError("the teacher is of other tokens"))
    until(supervisor, lambda: services.closed)
    assert services.closed == [Verdict(InputError, "the teacher is of other tokens")]
    until(supervisor, lambda: not supervisor.workers)
    assert (list(services.made), supervisor.deaths) == (["worker-0", "worker-1"], {})


def test_scaling_takes_those_first_who_wait_for_room_and_nobody_waits_for_them(start):
    services, supervisor = start(workers=2, min_workers=2, max_workers=5)
    services.away = {"worker-3", "worker-4"}
    assert supervisor.scale(5) == ["worker-2", "worker-3", "worker-4"]
    supervisor.check()
    assert (supervisor.alive, supervisor.pending) == (5, ["worker-3", "worker-4"])
    services.away = {"worker-4"}
    supervisor.check()
    assert supervisor.pending == ["worker-4"]
    assert supervisor.scale(3) == ["worker-4", "worker-3"]
    assert services.ended == [services.made["worker-4"]], "at once: it has begun nothing"
    until(supervisor, lambda: list(supervisor.workers) == ["worker-0", "worker-1", "worker-2"])
    assert (supervisor.alive, supervisor.deaths, supervisor.failure) == (3, {}, None)
    assert sorted(services.expired) == ["worker-3", "worker-4"]
    assert supervisor.scale(3) == []
    for count in (1, 6):
        sentence = rf"rollout={count}, but this run has 2 \(rollout.min_workers\) to 5"
        with pytest.raises(InputError, match=sentence):
            supervisor.scale(count)
    assert (supervisor.alive, services.told) == (3, ["worker-3 has retired"])


def steps(scaler, count, *, wait, rollout, workers, teacher=0.1):
    """Steps of a second: what is said after each of them."""
    row = {"seconds/wait": wait, "seconds/step": 1 - wait, "teacher/busy": teacher}
    row["seconds/rollout"] = rollout * workers
    for _ in range(count):
        scaler.hear(row, workers)
        yield scaler.decide(workers, 0).change


@pytest.fixture
def scaler():
    def make(least=1, most=4, images=64):
        schedule = Schedule(100, images, 8, max_staleness=0, publish_every=1)
        config = RolloutConfig(workers=least, min_workers=least, max_workers=most)
        return Scaler(config, schedule, 1, window_seconds=4)

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


def test_windows_must_agree_and_a_worker_on_its_way_is_waited_for(scaler):
    chosen = scaler()
    row = {"seconds/wait": 0.5, "seconds/step": 0.5, "seconds/rollout": 1.0}
    for _ in range(60):
        assert not any(steps(chosen, 8, wait=0.5, rollout=1.0, workers=1))
        assert not any(steps(chosen, 4, wait=0.1, rollout=1.0, workers=1)), "a good window"
        chosen.hear(row, 1)
        assert chosen.decide(2, 1).change == 0, "somebody comes already"


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
