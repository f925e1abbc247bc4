"""Work that other processes do beside this one, which forked from what has imported for it."""

import operator
import os
import subprocess
import time
from functools import partial

import psutil
import pytest
import torch
from building.waiting import require_ended, until

from common.errors import InputError, RunFailed
from deploy.backend.beside import beside, wait_for
from deploy.backend.forking.fork_server import ForkServer
from deploy.console.stopping import Stopped
from deploy.run_folder.shipped import shipped
from deploy.stages.quality import assess


@pytest.fixture(scope="module")
def server():
    server = ForkServer(os.environ)
    yield server
    server.close()


def test_a_job_runs_in_another_process_in_the_same_world(server, tmp_path, monkeypatch):
    """Even if it waits first for everything to be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARKD_OF_THIS_TEST", "here")
    with beside(server) as jobs:
        asked = {
            jobs.begin("sum", operator.add, [1], [2]): [1, 2],
            jobs.begin("folder", os.getcwd): str(tmp_path),
            jobs.begin("variable", os.getenv, "VARKD_OF_THIS_TEST"): "here",
            jobs.begin("threads", torch.get_num_threads): 1,
            jobs.begin("niceness", os.nice, 0, niceness=3): os.nice(0) + 3,
        }
        parent, own = jobs.begin("parent", os.getppid), jobs.begin("own", os.getpid)
        assert wait_for([*asked, parent, own]) is None
        assert [job.result() for job in asked] == [*asked.values()]
        assert own.result() not in (os.getpid(), parent.result())
    assert parent.result() == server._process.pid


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (shipped, ("nowhere",), InputError, "nowhere: no shipped config of that name"),
        (operator.truediv, (1, 0), RuntimeError, "oops: ZeroDivisionError: division by zero"),
        (os._exit, (3,), RunFailed, "the process of oops died"),
    ],
)
def test_the_first_job_that_fails_says_why_at_once(server, function, arguments, error, words):
    with beside(server) as jobs:
        others = jobs.begin("another", time.sleep, 600)
        with pytest.raises(error, match=words) as caught:
            wait_for([others, jobs.begin("oops", function, *arguments)])
    traced = error is RuntimeError
    assert any("in _done" in note for note in getattr(caught.value, "__notes__", [])) == traced


def test_a_block_that_raises_ends_its_jobs(server):
    forks = psutil.Process(server._process.pid).children
    until(lambda: not forks())

    def give_up():
        with beside(server) as jobs:
            for _ in range(2):
                jobs.begin("wait", time.sleep, 600)
            until(lambda: len(forks()) == 2)
            ours.extend(forks())
            raise KeyboardInterrupt

    ours: list[psutil.Process] = []
    with pytest.raises(KeyboardInterrupt):
        give_up()
    require_ended(ours)


def test_a_block_that_somebody_stops_lets_its_jobs_end_in_order(server, tmp_path):
    begun = []

    def stopped():
        with beside(server) as jobs:
            words = ["sh", "-c", "touch here; exec sleep 600"]
            begun.append(jobs.begin("wait", partial(subprocess.run, words, cwd=tmp_path)))
            until((tmp_path / "here").exists)
            raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        stopped()
    with pytest.raises(Stopped, match="stopped by SIGTERM"):  # and not that its process died
        begun[0].result()


def test_without_a_server_this_process_does_the_jobs_in_turn():
    with beside(None) as jobs:
        begun = [jobs.begin("own", os.getpid), jobs.begin("oops", operator.truediv, 1, 0)]
        assert wait_for(begun) is None
        assert begun[0].result() == os.getpid()
        with pytest.raises(ZeroDivisionError):
            begun[1].result()


def test_models_are_judged_elsewhere_as_here(server, run_in, quiet):
    config, workspace = run_in("evaluate.samples=40")
    here = assess(config, workspace, quiet)
    shown = []
    with beside(server) as jobs:
        elsewhere = assess(config, workspace, quiet, jobs, meanwhile=shown.append)
    assert [*elsewhere.metrics.items()] == [*here.metrics.items()]
    assert len(here.metrics) == 2
    assert (elsewhere.weights, elsewhere.features) == (here.weights, here.features)
    assert shown == [here.classes]
    for name, classes in here.images.items():
        assert all(map(torch.equal, classes, elsewhere.images[name])), name


def test_a_server_that_has_gone_does_no_job(server):
    with beside(server) as jobs:
        assert wait_for([jobs.begin("before", os.getpid)]) is None
        server._process.kill()
        server._process.wait()
        with pytest.raises(RunFailed, match="the process of after died"):
            jobs.begin("after", os.getpid).result()
