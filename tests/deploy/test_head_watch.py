"""The head of a private cluster that is lost while a command uses it."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from building.waiting import until

from common.errors import RunFailed
from deploy.backend.head_watch import HeadWatch, JoinedHead, PrivateProcesses, require_head
from deploy.console.stopping import SHOW_CURSOR


@pytest.fixture
def head():
    """One process, as Ray's node has it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    info = SimpleNamespace(process=process)
    found = SimpleNamespace(all_processes={"gcs_server": [info]}, ended=threading.Event())
    found.end, found.process = found.ended.set, process
    yield found
    process.kill()
    process.wait()


def lost():
    try:
        require_head()
    except RunFailed as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "the private cluster's gcs_server died (exit code -9); go on from"),
        (signal.SIGSTOP, "the private cluster's gcs_server has been stopped for 4 s, although"),
    ],
)
def test_a_command_hears_of_it_and_may_end_in_order(head, number, words):
    forced = []
    with HeadWatch(PrivateProcesses(head), force=forced.append):
        require_head()
        head.process.send_signal(number)
        until(lost)
        assert lost().startswith(words)
    assert lost() is None
    assert not forced
    assert not head.ended.is_set()


def test_who_is_let_down_by_it_hears_at_once(head):
    """What lived in a cluster is missed before the next look at its head."""
    with HeadWatch(PrivateProcesses(head)):
        head.process.kill()
        head.process.wait()
        with pytest.raises(RunFailed, match="the private cluster's gcs_server died"):
            require_head(now=True)


def test_one_that_hangs_in_it_is_ended(head, capfd):
    forced = []
    with HeadWatch(PrivateProcesses(head), force=forced.append, patience=0.1):
        head.process.kill()
        until(lambda: forced)
    assert forced == [1]
    assert head.ended.is_set()
    assert "varkd: the private cluster's gcs_server died" in capfd.readouterr().err


def test_who_is_ended_in_order_is_not_lost(head):
    processes = PrivateProcesses(head)
    with HeadWatch(processes) as watch:
        processes.end()
        head.process.kill()
        head.process.wait()
        assert not watch.look()
    assert head.ended.is_set()


def test_a_process_that_dies_is_missed_at_once(head):
    """And not at the next look, until when Ray may have ended the command."""
    threading.Timer(0.1, head.process.kill).start()
    PrivateProcesses(head).wait(3600)
    assert head.process.wait() == -signal.SIGKILL


WATCHED = """
import os, sys, time
from deploy.backend.head_watch import HeadWatch, JoinedHead, require_head

class Gone(JoinedHead):
    def lost(self):
        return "the head is gone"
    def wait(self, seconds):
        pass

with HeadWatch(Gone("", print)) as watch:
    while watch.loss is None or sys.stderr is sys.__stderr__:
        time.sleep(0.01)
    os.write(2, b"lines of a library\\n")
    print("warning: a service died", file=sys.stderr)
    print("(raylet) Raylet is terminated.", flush=True)
    sys.stderr.write("varkd distill: our last line\\n")
"""


def test_nothing_is_said_behind_the_sentence_but_the_last_one():
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True)
    first, last = done.stderr.strip().splitlines()
    assert first.startswith("varkd: the head is gone; go on from")
    assert last == "varkd distill: our last line"
    assert done.stdout == ""


def test_a_stdout_that_is_closed_does_not_keep_the_sentence_back():
    unprinted = "\n".join(line for line in WATCHED.splitlines() if "(raylet)" not in line)
    closed = f"import sys\nsys.stdout.close()\n{unprinted}"
    done = subprocess.run([sys.executable, "-c", closed], capture_output=True, text=True)
    assert done.stderr.startswith("\nvarkd: the head is gone; go on from")
    assert done.stderr.endswith("\nvarkd distill: our last line\n")


def test_a_terminal_has_its_cursor_back():
    """A progress bar hides it, and what the bar says afterwards is no cause."""
    ours, its = os.openpty()
    subprocess.run([sys.executable, "-c", WATCHED], stderr=its, check=True)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(its)
    assert said.index(SHOW_CURSOR) < said.index("varkd: the head is gone")
    assert said.rstrip().endswith("varkd distill: our last line")


def test_a_joined_clusters_head_may_be_silent_for_a_while():
    answers, sentence = [None, OSError, None, OSError], "the Ray cluster at head:6379 (RAY_ADDRESS)"

    def ask(seconds):
        if (error := answers.pop(0)) is not None:
            raise error

    patient = JoinedHead("head:6379", ask)
    assert [patient.lost() for _ in range(3)] == [None] * 3
    assert JoinedHead("head:6379", ask, patience=0).lost().startswith(sentence)
