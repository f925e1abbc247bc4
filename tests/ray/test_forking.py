"""Workers that are forked with their imports done are what Ray would have started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
START = """
import json, os, signal, sys, time
from pathlib import Path
from deploy.backend.session import cluster
from deploy.run_folder.opening import open_run

def about():
    import os, signal, sys
    import numpy, torch  # one of them is imported only here
    return {
        "path": sys.path, "folder": os.getcwd(), "python": sys.executable, "flags": str(sys.flags),
        "variables": dict(os.environ), "main": sys.modules["__main__"].__file__,
        "argv": [word.partition("=")[0] for word in sys.argv],
        "umask": os.umask(0o22), "nice": os.nice(0),
        "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in (2, 15, 17)],
        "threads": torch.get_num_threads(), "draw": numpy.random.rand(),
        "parent": os.getppid(), "pid": os.getpid(),
    }

def imported():
    import sys
    return "torch" in sys.modules, "ray" in sys.modules

OWN = {"env_vars": {"OMP_DYNAMIC": "FALSE"}}  # read while a library loads: such workers start anew

with cluster(open_run(Path("smoke"), [])[0], 2):
    import ray
    def ask(function, **how):
        return ray.get(ray.remote(num_cpus=0, **how)(function).remote(), timeout=100)
"""


def script(body: str) -> str:
    return START + "".join(f"    {line}\n" for line in body.strip().splitlines())


def start(body: str, **how) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script(body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **how,
    )


def answer(body: str):
    with start(body) as process:
        said, _ = process.communicate(timeout=250)
        assert process.returncode == 0
        return json.loads(said)


@pytest.mark.ray
@pytest.mark.slow
def test_a_forked_worker_is_as_one_that_ray_starts():
    found = answer(
        """
print(json.dumps({
    "imported": [ask(imported), ask(imported, runtime_env=OWN)],
    "forked": [ask(about) for _ in range(2)],
    "own": ask(about, runtime_env=OWN),
}))
"""
    )
    assert found["imported"] == [[True, True], [False, True]]
    forked, own = found["forked"][0], found["own"]
    different = {key for key in own if own[key] != forked[key]}
    assert different <= {"variables", "draw", "pid", "parent"}
    ours, theirs = forked["variables"], own["variables"]
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert {name for name in names if not name.startswith("RAY_")} <= {"OMP_DYNAMIC"}
    assert forked["parent"] != own["parent"]


@pytest.mark.ray
@pytest.mark.slow
def test_forked_workers_draw_different_numbers():
    found = answer(
        """
Holder = ray.remote(num_cpus=0)(type("Holder", (), {"about": lambda self: about()}))
holders = [Holder.remote(), Holder.remote()]
print(json.dumps(ray.get([holder.about.remote() for holder in holders], timeout=100)))
"""
    )
    assert found[0]["pid"] != found[1]["pid"]
    assert found[0]["draw"] != found[1]["draw"]


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_server_workers_start_as_ray_has_it():
    found = answer(
        """
first = ask(about)
os.kill(first["parent"], signal.SIGKILL)
more = {"env_vars": {"NOTHING": "1"}}  # of no use, but for another process
print(json.dumps([ask(imported), ask(imported, runtime_env=more)]))
"""
    )
    assert found == [[True, True], [False, True]]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_of_a_cluster_that_ended_or_whose_command_was_killed(killed):
    body = """
found = ask(about)
print(json.dumps([found["parent"], found["pid"]]), flush=True)
input()
"""
    with start(body, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = json.loads(process.stdout.readline())
        everybody = [*map(psutil.Process, pids), *psutil.Process(process.pid).children(True)]
        if killed:
            # The raylet's agents look for it every few seconds, and give up after some.
            everybody = [p for p in everybody if not p.cmdline()[0].endswith("Agent")]
            process.send_signal(signal.SIGKILL)
        else:
            process.stdin.write("\n")
            process.stdin.flush()
        process.wait(100)
    until = time.monotonic() + 30
    while left := [p for p in everybody if p.is_running() and p.status() != "zombie"]:
        assert time.monotonic() < until, [p.cmdline() for p in left]
        time.sleep(0.1)
