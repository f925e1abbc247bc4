"""How many threads a process computes with: what `cpus` reserves for it; and who goes first."""

import subprocess
import sys

import pytest
import torch

from deploy.backend.actors import ActorHost, ActorOptions, threads_of
from deploy.backend.launcher import threads_as_on_ray
from deploy.stages.distill import distill


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cpus", "threads"), [(0, 1), (0.25, 1), (1, 1), (2.5, 2), (8, 8)])
def test_a_process_has_a_thread_for_every_whole_cpu_and_one_at_least(cpus, threads):
    assert threads_of(cpus) == threads
    assert ActorOptions("x", cpus=cpus).computing == threads


def test_an_actor_computes_with_the_threads_it_is_given():
    ActorHost(dict, (), {}, 2)
    assert torch.get_num_threads() == 2


def test_an_ordered_run_in_one_process_has_the_threads_of_the_actors(run_in):
    said = []
    with threads_as_on_ray(run_in("learner.ordered=true")[0], said.append):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3, "as before"
    alike = ("rollout.cpus=2", "teacher.cpus=2", "learner.cpus=2.5", "learner.ordered=true")
    with threads_as_on_ray(run_in(*alike, name="alike")[0], said.append):
        assert torch.get_num_threads() == 2
    assert said == []
    with threads_as_on_ray(run_in("learner.cpus=2", "learner.ordered=true")[0], said.append):
        assert torch.get_num_threads() == 2
    assert len(said) == 1
    assert "rollout and teacher with others on Ray" in said[0]


def test_only_an_ordered_run_changes_the_threads(run_in):
    with threads_as_on_ray(run_in()[0], print):
        assert torch.get_num_threads() == 3


def test_an_ordered_run_leaves_the_threads_as_they_were(run_in, quiet):
    distill(*run_in("learner.ordered=true", "learner.steps=1"), quiet, local=True)
    assert torch.get_num_threads() == 3


YIELDING = """
import os, threading
from deploy.backend.actors import ActorOptions, yield_cores

ended = threading.Event()
thread = threading.Thread(target=ended.wait)
thread.start()
yield_cores()
print({os.getpriority(os.PRIO_PROCESS, at) for at in (os.getpid(), thread.native_id)})
ended.set()
places = (0, "rollout"), (1, "rollout"), (0, "")
sites = [ActorOptions("a", 4, 1, gpus, section) for gpus, section in places]
print([site.yields for site in sites])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_workers_leave_cores_to_whoever_they_sample_for():
    done = subprocess.run([sys.executable, "-c", YIELDING], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["{19}", "[True, False, False]"], done.stderr
