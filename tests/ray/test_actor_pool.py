"""The pool that makes parts and runs cells: jobs end as results, refusals, faults or lost ones."""

import os
import time

import pytest

from common.errors import InputError
from deploy.backend.actor_pool import ActorPool, ProcessLost, call_here

pytestmark = pytest.mark.ray


def counting(folder):
    """A function for a pool; made here, so that it travels by value."""

    class Counting:
        """Remembers, in its process, how many jobs it did; dies, refuses or fails on demand."""

        def __init__(self, folder):
            self.folder, self.done = folder, 0

        def __call__(self, job):
            if job == "die":
                os._exit(1)
            if job == "once" and not (self.folder / "mark").exists():
                (self.folder / "mark").touch()
                os._exit(1)
            if job == "refuse":
                raise InputError("not like this")
            if job == "fail":
                raise KeyError("lost")
            self.done += 1
            return os.getpid(), self.done

    return Counting(folder)


def shown(outcome):
    return outcome if isinstance(outcome, Exception) else "done"


def test_every_job_ends_and_none_takes_the_others_along(ray_cluster, tmp_path):
    work = dict(enumerate(["ok", "refuse", "fail", "die", "once", "ok"]))
    found = dict(ActorPool("jobs", 0, 0, most=2, tries=2)(counting(tmp_path), work))
    assert found.keys() == work.keys()
    assert {n: type(shown(found[n])) for n in (0, 4, 5)} == {0: str, 4: str, 5: str}
    assert (type(found[1]), str(found[1])) == (InputError, "not like this")
    assert isinstance(found[2], KeyError)
    assert isinstance(found[3], ProcessLost)
    assert "its process died 2 times" in str(found[3])


def test_an_actor_keeps_what_it_loaded_for_its_next_job(ray_cluster, tmp_path):
    found = dict(ActorPool("jobs", 0, 0, most=1)(counting(tmp_path), dict.fromkeys(range(3), "ok")))
    assert len({pid for pid, _ in found.values()}) == 1
    assert [done for _, done in found.values()] == [1, 2, 3]
    here = dict(call_here(counting(tmp_path), dict.fromkeys(range(3), "ok")))
    assert [done for _, done in here.values()] == [1, 2, 3]


def test_more_actors_than_there_is_room_for_do_not_wait_for_ever(ray_cluster, tmp_path):
    cpus = int(ray_cluster.cluster_resources()["CPU"])
    pool = ActorPool("jobs", cpus, 0)  # one fits, four are wanted
    assert len(dict(pool(counting(tmp_path), dict.fromkeys(range(4), "ok")))) == 4


def test_actors_of_a_round_that_is_given_up_end(ray_cluster, tmp_path):
    from ray.util import list_named_actors

    def sleep(job):
        time.sleep(60 * job)

    outcomes = ActorPool("sleepers", 0, 0)(sleep, {0: 0, 1: 1, 2: 1})
    assert next(outcomes) == (0, None)
    outcomes.close()
    deadline = time.monotonic() + 30
    while any(a["name"].startswith("sleepers-") for a in list_named_actors(all_namespaces=True)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
