"""Workers that are forked with their imports done are what Ray would have started."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from building.waiting import require_ended

from deploy.backend.early_imports import begin_imports

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "deploy" / "backend" / "forking" / "client.py"
UNSET = {"RAY_ADDRESS", "PS1"}
"""PS1: a shell that Ray starts a worker by drops it."""
START = """
import json, os, signal, sys, time
from pathlib import Path
from deploy.backend.session import cluster
from deploy.run_folder.opening import open_run

def about():
    import os, signal, sys
    imported = "torch" in sys.modules, "ray.train" in sys.modules
    import numpy, ray, torch  # one of them is imported only here
    return {
        "imported": imported,
        "path": sys.path, "folder": os.getcwd(), "python": sys.executable, "flags": str(sys.flags),
        "variables": dict(os.environ), "main": sys.modules["__main__"].__file__,
        "argv": [word.partition("=")[0] for word in sys.argv],
        "umask": os.umask(0o22), "nice": os.nice(0),
        "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in (2, 15, 17)],
        "threads": torch.get_num_threads(),
        "draws": [numpy.random.rand(), ray.NodeID.from_random().hex(), in_a_thread()],
        "leads its group": os.getpgrp() == os.getpid(),
        "parent": os.getppid(), "pid": os.getpid(),
    }

def in_a_thread():
    import ray
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: ray.NodeID.from_random().hex()).result()

ELSEWHERE = {"PYTHONPATH": "/some/place:/another"}
OWN = ELSEWHERE | {"OMP_DYNAMIC": "FALSE"}  # read while a library loads: such workers start anew

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
        env={name: os.environ[name] for name in os.environ.keys() - UNSET},
        **how,
    )


@pytest.fixture(scope="module")
def found():
    """What processes of one cluster say of themselves, and which of them are there when its command
    is killed."""
    with start(
        """
asked = {"forked": ELSEWHERE, "own": OWN}
found = {name: ask(about, runtime_env={"env_vars": those}) for name, those in asked.items()}
Holder = ray.remote(num_cpus=0)(type("Holder", (), {"about": lambda self: about()}))
holders = [Holder.remote(), Holder.remote()]
found["holders"] = ray.get([holder.about.remote() for holder in holders], timeout=100)
print(json.dumps(found), flush=True)
input()
""",
        stdin=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        found = json.loads(process.stdout.readline())
        everybody = psutil.Process(process.pid).children(True)
        living = [other for other in everybody if other.status() != "zombie"]
        found["words"] = [other.cmdline() for other in living]
        # The raylet's agents look for it every few seconds, and give up after some.
        everybody = [other for other in living if not other.cmdline()[0].endswith("Agent")]
        process.send_signal(signal.SIGKILL)
        process.wait(100)
    return {**found, "everybody": everybody}


@pytest.mark.ray
@pytest.mark.slow
def test_a_forked_worker_is_as_one_that_ray_starts(found):
    forked, own = found["forked"], found["own"]
    assert (forked["imported"], own["imported"]) == ([True, True], [False, False])
    different = {key for key in own if own[key] != forked[key]}
    assert different <= {"variables", "draws", "pid", "parent", "imported"}
    ours, theirs = forked["variables"], own["variables"]
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert {name for name in names if not name.startswith("RAY_")} <= {"OMP_DYNAMIC"}
    assert forked["parent"] != own["parent"]


@pytest.mark.ray
@pytest.mark.slow
def test_forked_workers_draw_different_numbers(found):
    first, second = found["holders"]
    assert first["pid"] != second["pid"]
    drawn = [*first["draws"], *second["draws"], *found["forked"]["draws"]]
    assert len(set(drawn)) == len(drawn) == 9


def test_a_process_that_has_drawn_a_name_is_not_fit_to_be_forked():
    body = """
import ray
from deploy.backend.forking.ray_library import forks_draw_apart
before = forks_draw_apart()
ray.NodeID.from_random()
print([before, forks_draw_apart()])
"""
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[True, False]\n", done.stderr


@pytest.mark.ray
def test_a_process_that_is_connected_imports_for_no_other_cluster(ray_cluster):
    before = psutil.Process().children()
    with ExitStack() as stack:
        begin_imports(stack)
        assert psutil.Process().children() == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_workers_own_places_of_modules_are_searched_first(found):
    assert found["forked"]["parent"] == found["holders"][0]["parent"] != found["own"]["parent"]
    assert found["forked"]["path"] == found["own"]["path"]
    assert {"/some/place", "/another"} <= set(found["own"]["path"])


def test_without_the_server_a_worker_starts_as_ray_has_it(tmp_path):
    worker = tmp_path / "default_worker.py"
    worker.write_text("import os, sys; print([sys.flags.isolated, sys.argv[1:], os.getpid()])")
    words = [
        sys.executable,
        "-I",
        "-S",
        CLIENT,
        sys.executable,
        tmp_path / "nobody",
        worker,
        "--a=b",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"[0, ['--a=b'], {process.pid}]\n"


@pytest.mark.ray
@pytest.mark.slow
def test_the_agent_of_a_dashboard_that_is_not_there_loads_nothing(found):
    agents = [words for words in found["words"] if "/dashboard/agent.py" in " ".join(words[:8])]
    assert len(agents) == 1
    assert agents[0][3].endswith("forking/client.py")
    assert not any("DashboardAgent" in " ".join(words) for words in found["words"])


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_is_left_of_a_cluster_whose_command_was_killed(found):
    words = [" ".join(words[:3]) for words in found["words"]]
    assert any("forking/server.py" in each for each in words)
    require_ended(found["everybody"])
