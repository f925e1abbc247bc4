"""Ctrl-C and SIGTERM in real processes: what was done is kept, and the second one ends at once."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.files.snapshots import Snapshots
from deploy.console.stopping import Stopped, stop_request

ROOT = Path(__file__).parents[2]
STEPS = 20_000  # more than any of these runs gets to


def rows_of(workspace):
    if not workspace.metrics.exists():
        return []
    return [json.loads(line) for line in workspace.metrics.read_text().splitlines(keepends=True)]


def until(condition, running, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert running.process.is_alive(), running.ended()
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
def test_a_signal_ends_a_run_with_a_snapshot_and_the_words_to_go_on(
    server, command, number, name, code
):
    words, workspace = command
    running = server.begin([*words, f"learner.steps={STEPS}"], workspace.root)
    until(lambda: len(rows_of(workspace)) >= 3, running)
    running.send(number)
    stopped = running.ended(120)
    assert stopped.code == code, stopped
    assert "Traceback" not in stopped.err
    assert f"{name}: stopping after this step; once more ends at once" in stopped.err
    assert "--resume" in stopped.out.splitlines()[-1]
    done = len(rows_of(workspace))
    assert Snapshots(workspace.snapshots).steps() == [done]
    facts = json.loads(workspace.facts.read_text())
    assert (facts["steps"], facts["cause"]) == (done, f"stopped by {name}")
    resumed = server.run([*words, f"learner.steps={done + 2}", "--resume"], workspace.root)
    assert resumed.code == 0, resumed
    assert [row["step"] for row in rows_of(workspace)] == list(range(1, done + 3))


WAITING = """
import time
from deploy.console.stopping import stop_request
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


ON_A_TERMINAL = """
import os, signal, sys, time
from deploy.console.stopping import stop_request
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
os.open(os.ttyname(1), os.O_RDWR)  # from now on it is this session's
with stop_request() as stop:
    stop.poll_from_here()
    print("ready", flush=True)
    while stop.name is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)  # once more, as a shell does
    print("nobody reads this", flush=True)
    with open(sys.argv[1], "w") as file:
        file.write(str(stop.name))
"""


def test_a_terminal_that_hangs_up_ends_a_run_in_order(tmp_path):
    """As a connection that is lost; what is written to it later is an error."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path / "said")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), end)
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            os.close(end)
            assert b"ready" in os.read(terminal, 100)
            os.close(terminal)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert (tmp_path / "said").read_text() == "SIGHUP"


def test_who_was_told_to_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_that_lost_its_name_on_the_way_gets_it_back():
    """Ray's C++ code makes a plain KeyboardInterrupt of whatever a handler raises."""

    def interrupted():
        with stop_request():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Stopped:
                raise KeyboardInterrupt from None

    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"):
        interrupted()


STARTING = """
import os, signal, sys
from deploy.console.stopping import Stopped, handlers_kept, stop_request
with stop_request() as stop:
    try:
        with handlers_kept():  # as Ray does, before and after it is up
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
            if "during" in sys.argv:
                os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    except Stopped as stopped:
        print(stopped, end="")
"""


def made_an_error_of(stop):
    """As torch does where a signal arrives while it looks at an object's shape."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    except Stopped:
        pass
    raise ValueError(f"no shape, {stop.name}")


def test_an_error_that_a_library_makes_of_a_signal_is_a_stop():
    with pytest.raises(Stopped, match="stopped by Ctrl-C"), stop_request() as stop:
        made_an_error_of(stop)


def test_an_error_while_a_stop_is_carried_out_or_without_one_stays_an_error():
    with pytest.raises(ValueError, match="no shape, Ctrl-C"), stop_request() as stop:
        (stop.poll_from_here(), made_an_error_of(stop))
    with pytest.raises(ValueError, match="nobody stopped it"), stop_request():
        raise ValueError("nobody stopped it")


@pytest.mark.parametrize("when", ["during", "after"])
def test_handlers_that_a_library_installs_do_not_end_the_run_their_own_way(when):
    command = [sys.executable, "-c", STARTING, when]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped by SIGTERM", "", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 0)],
)
def test_a_study_that_is_stopped_while_it_pretrains_ends_as_every_command(
    server, tmp_path, number, name, code
):
    words = ["study", ROOT / "studies" / "digits" / "study.toml", "--local", "--out", tmp_path]
    log = tmp_path / "start" / "pretrain_teacher.jsonl"
    running = server.begin(words, tmp_path)
    until(lambda: log.exists() and log.read_text().count("\n") > 2, running)
    running.send(number)
    stopped = running.ended(120)
    said = stopped.out + stopped.err
    assert stopped.code == code, said
    last = f"varkd study: stopped by {name}; finished cells stay: the same command goes on after"
    assert last in said
    assert "Traceback" not in said


def test_a_signal_before_the_first_step_leaves_the_folder_as_it_was(server, command):
    words, workspace = command
    before = {path.name for path in workspace.root.iterdir()}
    words += [f"learner.steps={STEPS}", "learner.global_batch_size=40960"]
    running = server.begin(words, workspace.root)
    until(lambda: (workspace.root / ".lock.json").exists(), running)
    running.send(signal.SIGINT)
    stopped = running.ended(120)
    assert stopped.code == 130, stopped
    assert "Traceback" not in stopped.err
    assert {path.name for path in workspace.root.iterdir()} == before
