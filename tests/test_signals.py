"""Ctrl-C and SIGTERM in real processes: what was done is kept, and the second one ends at once."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.snapshots import Snapshots

ROOT = Path(__file__).parent.parent
STEPS = 20_000  # more than any of these runs gets to


@contextmanager
def varkd(*words):
    """A command in a process group of its own, as a terminal starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rows_of(workspace):
    if not workspace.metrics.exists():
        return []
    return [json.loads(line) for line in workspace.metrics.read_text().splitlines(keepends=True)]


def until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@pytest.fixture
def command(run_in, tiny_overrides):
    """(words of a long distillation in one process, its workspace)."""
    _, workspace = run_in()
    words = ["distill", "smoke", "--local", "--out", workspace.root, *tiny_overrides]
    return [*words, "learner.ordered=true"], workspace


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 0)],
)
def test_a_signal_ends_a_run_with_a_snapshot_and_the_words_to_go_on(command, number, name, code):
    words, workspace = command
    with varkd(*words, f"learner.steps={STEPS}") as process:
        until(lambda: len(rows_of(workspace)) >= 3, process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert f"{name}: stopping after this step; once more ends at once" in said
    assert "--resume" in said.splitlines()[-1]
    done = len(rows_of(workspace))
    assert Snapshots(workspace.snapshots).steps() == [done]
    facts = json.loads(workspace.facts.read_text())
    assert (facts["steps"], facts["cause"]) == (done, f"stopped by {name}")
    with varkd(*words, f"learner.steps={done + 2}", "--resume") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [row["step"] for row in rows_of(workspace)] == list(range(1, done + 3))


WAITING = """
import time
from deploy.stopping import stop_request
with stop_request() as stop:
    stop.poll_from_here()
    print("ready", flush=True)
    while stop.name is None:
        time.sleep(0.01)
    print("in order", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_run_that_takes_long_to_end_in_order(second, code):
    command = [sys.executable, "-c", WAITING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        for line in ("ready\n", "in order\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT if line == "ready\n" else second)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert said.strip().endswith("again: ended at once")


def test_a_signal_before_the_first_step_leaves_the_folder_as_it_was(command):
    words, workspace = command
    before = {path.name for path in workspace.root.iterdir()}
    with varkd(*words, f"learner.steps={STEPS}", "learner.images_per_step=40960") as process:
        until(lambda: (workspace.root / ".lock.json").exists(), process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert {path.name for path in workspace.root.iterdir()} == before
