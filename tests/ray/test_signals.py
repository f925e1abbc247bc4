"""SIGTERM on a private Ray cluster: what was done is kept, and nobody else has anything to say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.files.snapshots import Snapshots

ROOT = Path(__file__).parents[2]
STEPS = 20_000  # more than this run gets to


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
    """(words of a long distillation, its workspace)."""
    _, workspace = run_in()
    words = ["distill", "smoke", "--out", workspace.root, *tiny_overrides]
    return [*words, "learner.ordered=true", "rollout.workers=1"], workspace


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_sigterm_ends_a_run_on_ray_in_order_while_it_starts_and_later(command, begun):
    words, workspace = command
    before = {path.name for path in workspace.root.iterdir()}
    with varkd(*words, f"learner.steps={STEPS}") as process:
        assert process.stdout is not None
        said = ""
        while not begun and "waiting for" not in said:
            said += (line := process.stdout.readline())
            assert line, said
        if begun:
            until(lambda: len(rows_of(workspace)) >= 3, process)
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    lines = said.splitlines()
    foreign = [line for line in lines if re.search(r"GCS|stack trace|Traceback|\.cc:|@ +0x", line)]
    assert not foreign, said
    if begun:
        assert Snapshots(workspace.snapshots).steps() == [len(rows_of(workspace))]
    else:
        assert f"stopped by SIGTERM before its first step; {workspace.root} is as it was" in said
        assert {path.name for path in workspace.root.iterdir()} == before
