"""`ray job submit` to a head of one's own, from a copy of the checkout in a folder with a space.

Run by name alone (`pytest -m long`), for a head and four drivers take a minute.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from building.runs import TINY
from building.waiting import until

from benchmarks.processes import MARK, end_all, new_mark
from common.exchange.metric_files import read_rows
from common.files.snapshots import Snapshots
from deploy.backend.session import secure_environment
from deploy.control.client import RunFolder, ask
from deploy.control.rendezvous import Rendezvous

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300
"""On a busy machine a dozen processes that import take minutes."""
OVER = {"SUCCEEDED", "FAILED", "STOPPED"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def client():
    """Of a head that somebody started on this machine, with a token, as `ray start` has it."""
    from ray.job_submission import JobSubmissionClient

    secure_environment()  # a token for the head and for who asks it
    mark, dashboard = new_mark(), free_port()
    environment = {**os.environ, MARK: mark.partition("=")[2]}
    environment.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="head-", dir="/tmp")  # names of sockets are short
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    ray += ["--num-cpus=4", "--object-store-memory=300000000", f"--temp-dir={folder}"]
    ray += [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    ray += [f"--dashboard-agent-listen-port={free_port()}"]
    subprocess.Popen(ray, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def connected():
        try:
            return JobSubmissionClient(f"http://127.0.0.1:{dashboard}")
        except (ConnectionError, RuntimeError):
            return None

    try:
        until(connected)
        yield connected()
    finally:
        end_all(mark)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """With a config that the installed code does not have."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this copy of the files is no checkout")
    copy = tmp_path_factory.mktemp("a") / "my clone"
    for name in filter(None, done.stdout.decode().split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    shutil.copy(copy / "deploy/configs/smoke.toml", copy / "deploy/configs/of_the_clone.toml")
    return copy


@pytest.fixture
def submit(client, clone):
    def begin(*words):
        line = shlex.join(
            ["varkd", "distill", "of_the_clone", *TINY, "rollout.workers=1", *map(str, words)]
        )
        return client.submit_job(entrypoint=line, runtime_env={"working_dir": str(clone)})

    return begin


@pytest.fixture
def ended(client):
    """State, our own exit code and the last line of a job that is over."""

    def wait(job):
        until(lambda: is_over(client, job), PATIENCE_SECONDS)
        info = client.get_job_info(job)
        said = (info.message or "").rstrip().rpartition("\n")[2]
        return info.status.value, info.driver_exit_code, said

    return wait


def is_over(client, job):
    time.sleep(0.5)  # the head has more to do than to answer
    return client.get_job_info(job).status in OVER


def says(root, state):
    return (Rendezvous(root).status() or {}).get("state") == state


def test_a_submitted_run_is_watched_stopped_and_gone_on_with(
    client, submit, ended, prepared, tmp_path
):
    root = tmp_path / "my run"
    again = ("--from", prepared, "--out", root, "--resume")
    job = submit(*again, "learner.steps=100000")
    until(lambda: says(root, "running") or is_over(client, job), PATIENCE_SECONDS)
    assert says(root, "running"), client.get_job_logs(job)
    state, code, said = ended(submit("--out", root, "--resume"))
    assert (state, code) == ("FAILED", 2)
    assert "`varkd distill` is at work here" in said, "the first run's"
    until(lambda: len(read_rows(root / "metrics.jsonl")) > 3)
    ask(RunFolder(root), "stop")
    assert ended(job)[:2] == ("SUCCEEDED", 0)
    (done,) = Snapshots(root / "snapshots").steps()
    assert ended(submit(*again, f"learner.steps={done + 2}"))[:2] == ("SUCCEEDED", 0)
    steps = [row["step"] for row in read_rows(root / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, done + 3))


def test_a_mistake_reaches_who_submitted_it(submit, ended, tmp_path):
    state, code, said = ended(submit("learner.stepz=1", "--out", tmp_path / "new"))
    assert (state, code) == ("FAILED", 2)
    assert said.startswith("varkd distill: ")
    assert "learner.stepz" in said
    assert not (tmp_path / "new").exists()
