"""SIGTERM on a private Ray cluster: what was done is kept, and nobody else has anything to say.

The run that was begun is of a user whose environment has an odd path, with plug-ins of the user's
own.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from building.plugin_package import SMALL, forget, prepare, write_config, write_package
from building.waiting import require_ended, until

from common.config.plugin_path import VARIABLE
from common.files.snapshots import Snapshots
from common.files.tensors import read_metadata
from deploy.run_folder.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LONG = ("learner.steps=20000", "learner.ordered=true", "rollout.workers=1")
"""More steps than this run gets to."""


@contextmanager
def varkd(python: Path, *words: object) -> "Iterator[subprocess.Popen[str]]":
    """A command in a process group of its own, as a terminal starts it, from elsewhere."""
    known = {k: v for k, v in os.environ.items() if k != VARIABLE and not k.startswith("RAY_")}
    process = subprocess.Popen(
        [str(python), "-m", "deploy.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        start_new_session=True,
        env=known | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
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


def require_order(process: "subprocess.Popen[str]", said: str) -> None:
    assert process.returncode == 0, said
    foreign = [
        line
        for line in said.splitlines()
        if re.search(r"GCS|stack trace|Traceback|\.cc:|@ +0x", line)
    ]
    assert not foreign, said


def test_sigterm_ends_a_run_in_order_while_it_starts(run_in, tiny_overrides):
    _, workspace = run_in()
    before = {path.name for path in workspace.root.iterdir()}
    words = ["distill", "smoke", "--out", workspace.root, *tiny_overrides, *LONG]
    with varkd(Path(sys.executable), *words) as process:
        assert process.stdout is not None
        said = ""
        while "waiting for" not in said:
            said += (line := process.stdout.readline())
            assert line, said
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=120)[0]
    require_order(process, said)
    assert f"stopped by SIGTERM before its first step; {workspace.root} is as it was" in said
    assert {path.name for path in workspace.root.iterdir()} == before


@dataclass(frozen=True)
class Stopped:
    """A run that was told to end after some steps."""

    workspace: Workspace
    python: Path
    rank: list[str]
    """The command that the learner's process was forked from."""
    everybody: list[psutil.Process]
    """All processes that there were below it."""


@pytest.fixture(scope="module")
def odd_python(tmp_path_factory):
    """The interpreter of an environment of its own, with the packages of this one."""
    root = tmp_path_factory.mktemp("odd") / "it's a $HOME (x)"
    command = [sys.executable, "-m", "venv", "--without-pip", str(root)]
    subprocess.run(command, check=True, capture_output=True)
    (packages,) = root.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return root / "bin" / "python"


@pytest.fixture(scope="module")
def stopped(odd_python, tmp_path_factory):
    package = write_package(tmp_path_factory.mktemp("mine"))
    config, made = write_config(package), tmp_path_factory.mktemp("made")
    prepare(config, made)
    forget(package)
    workspace = Workspace(tmp_path_factory.mktemp("run"))
    out = ["--from", made, "--out", workspace.root]
    with varkd(odd_python, "distill", config, *SMALL, *LONG, *out) as process:
        until(lambda: process.poll() is not None or len(rows_of(workspace)) >= 3, 120)
        assert process.poll() is None, process.communicate()[0]
        rank = psutil.Process(rows_of(workspace)[-1]["pid"]).parent()
        forked_from = rank.cmdline() if rank else []
        everybody = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    require_order(process, said)
    return Stopped(workspace, odd_python, forked_from, everybody)


def test_sigterm_ends_a_run_in_order_with_what_was_done(stopped):
    steps = len(rows_of(stopped.workspace))
    assert Snapshots(stopped.workspace.snapshots).steps() == [steps]


def test_nothing_is_left_of_a_cluster_that_ended(stopped):
    assert len(stopped.everybody) > 10
    require_ended(stopped.everybody)


def test_actors_and_ranks_find_plug_ins_where_only_the_config_says_where_they_are(stopped):
    assert read_metadata(stopped.workspace.student)["config"]["kind"] == "own_family"
    assert "share/own_context" in rows_of(stopped.workspace)[0]


def test_an_environment_with_odd_letters_in_its_path_has_working_actors(stopped):
    assert stopped.rank[0] == str(stopped.python)
