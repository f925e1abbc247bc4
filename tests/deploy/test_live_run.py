"""A run and the commands that talk to it through its folder: `status`, `scale`, `stop`."""

import json
import os
import signal
import time

import pytest
from building.waiting import until

from common.files.snapshots import Snapshots
from deploy.console.stopping import StopRequest
from deploy.control.client import RunFolder, ask, look
from deploy.control.live import LiveRun
from deploy.control.rendezvous import Rendezvous
from deploy.control.view import lines
from deploy.main import main
from deploy.run_folder.lock import holder, locked


def varkd(capsys, *arguments):
    """Exit code, stdout and stderr of one command, in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


@pytest.fixture
def begin(server, run_in, tiny_overrides):
    """A long run in a process of its own, and its workspace."""
    _, workspace = run_in()
    words = ["distill", "smoke", "--local", "--out", workspace.root, *tiny_overrides]
    running = server.begin([*words, "learner.steps=20000", "rollout.workers=1"], workspace.root)

    def is_running():
        assert running.process.is_alive(), running.ended()
        status = Rendezvous(workspace.root).status()
        return status is not None and status["state"] == "running" and status["step"] > 2

    until(is_running)
    return running, workspace


def test_a_run_in_one_process_is_watched_and_stopped_from_elsewhere(begin, capsys):
    running, workspace = begin
    root = workspace.root
    code, out, _ = varkd(capsys, "status", root)
    assert (code, "of 20000" in out, "running (process" in out) == (0, True, True), out
    code, out, err = varkd(capsys, "scale", root, "rollout=2")
    assert (code, out) == (2, "")
    assert "begun with --local has no workers of their own" in err
    odd = workspace.root / "control" / "0123456789abcdef.request.json"
    odd.write_text("[1")
    (odd.parent / "elsewhere.request.json").symlink_to(workspace.train_tokens)
    code, out, _ = varkd(capsys, "stop", root)
    assert (code, "stopped by varkd stop" in out, "--resume" in out) == (0, True, True), out
    ended = running.ended(60)
    assert ended.code == 0, ended
    assert "varkd stop: stopping after this step" in ended.err
    steps = json.loads(workspace.facts.read_text())["steps"]
    assert Snapshots(workspace.snapshots).steps() == [steps], "stopped with a snapshot"
    assert workspace.train_tokens.exists()
    assert not odd.exists()
    assert (odd.parent / "elsewhere.request.json").is_symlink(), "of somebody else"
    code, out, _ = varkd(capsys, "status", root, "--watch")
    assert (code, f"{steps} of 20000" in out, "not running since" in out) == (0, True, True), out
    for words in (("stop",), ("scale", "rollout=1")):
        code, out, err = varkd(capsys, words[0], root, *words[1:])
        assert (code, out) == (2, "")
        assert "not running since" in err
    assert json.loads(workspace.facts.read_text())["bottleneck"] in ("learner", "rollout", "none")


def test_a_run_that_was_killed_is_not_taken_for_one_that_goes_on(begin, capsys):
    running, workspace = begin
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.join(30)
    code, out, _ = varkd(capsys, "status", workspace.root)
    assert (code, "ended without a word" in out) == (1, True), out
    code, _, err = varkd(capsys, "stop", workspace.root)
    assert (code, "ended without a word" in err, "--resume" in err) == (2, True, True), err
    path = workspace.root / "control" / "status.json"
    hostile = {"state": "ended", "cause": "\x1b[2Ja", "deaths": {"w": "\x1b]52;c;eA==\x07"}}
    path.write_text(json.dumps(json.loads(path.read_bytes()) | hostile))
    _, out, _ = varkd(capsys, "status", workspace.root)
    assert r"\x1b[2Ja" in out
    assert out.replace("\n", "").isprintable(), "whoever looks has a terminal"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("status", "nowhere"), "nowhere: no such folder; give the run folder"),
        (("stop", "file"), "file: is no folder"),
        (("status", "empty"), "empty: holds no run"),
        (("stop", "empty"), "empty: holds no run"),
        (("scale", "empty", "rollout=0x2"), "rollout=0x2: expected rollout=N, teacher=N or"),
        (("scale", "empty", "learner=2"), "learner=2: expected rollout=N"),
        (("scale", "empty", "rollout=99999999999"), "expected rollout=N"),
        (("status", "odd"), "status.json: is no status of a run"),
        (("status", "torn"), "expected the status of a run, which is JSON"),
    ],
)
def test_what_is_no_run_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty", None), ("odd", '{"time": "now"}'), ("torn", "{")):
        (tmp_path / name / "control").mkdir(parents=True)
        if text is not None:
            (tmp_path / name / "control" / "status.json").write_text(text)
    (tmp_path / "file").touch()
    code, out, err = varkd(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert sentence in err


def test_another_command_at_work_in_the_folder_is_no_run(live, tmp_path, capsys):
    assert holder(tmp_path) is None
    with live() as begun:
        begun.begin()
    with locked(tmp_path, "evaluate"):
        assert (found := holder(tmp_path)) is not None
        assert (found["command"], found["pid"]) == ("evaluate", os.getpid())
        code, out, _ = varkd(capsys, "status", tmp_path)
        assert (code, "`varkd evaluate` is at work; not running since" in out) == (0, True), out
        code, _, err = varkd(capsys, "stop", tmp_path)
        assert (code, "`varkd evaluate` is at work here" in err) == (2, True), err
    assert holder(tmp_path) is None


@pytest.fixture
def live(tmp_path):
    def make(stop=None):
        snapshots = Snapshots(tmp_path / "snapshots")
        return LiveRun(tmp_path, stop or StopRequest(), snapshots, lambda: "waiting for room", 7)

    return make


def test_a_run_that_never_began_leaves_what_was_there(live, tmp_path):
    with live():
        assert any("starting: waiting for room" in line for line in lines(look(tmp_path), 0.0))
    assert list(tmp_path.iterdir()) == []
    with live() as begun:
        begun.begin()
        begun.tell(step=7, cause=None)
    before = (tmp_path / "control" / "status.json").read_bytes()
    with pytest.raises(RuntimeError), live():
        raise RuntimeError("no cluster")
    now = json.loads((tmp_path / "control" / "status.json").read_bytes())
    assert now == json.loads(before)
    assert not look(tmp_path).has_failed

    def fail_late():
        with live() as begun:
            begun.begin()
            raise RuntimeError("no room\non this device")

    with pytest.raises(RuntimeError):
        fail_late()
    seen = look(tmp_path)
    assert seen.has_failed
    assert "RuntimeError: on this device" in lines(seen, time.time())[1]


def test_a_request_to_a_run_that_ends_is_answered_and_a_second_stop_does_no_harm(live, tmp_path):
    stop = StopRequest()
    stop.name = "SIGTERM"
    with live(stop) as running:
        assert ask(RunFolder(tmp_path), "stop") == "SIGTERM", "it is on its way already"
        identifier = Rendezvous(tmp_path).ask("scale", {"rollout": 2})
        until(running.requests)
        running.begin()
        late = Rendezvous(tmp_path).ask("scale", {"rollout": 3})
    answer = Rendezvous(tmp_path).answered(late)
    assert answer is not None
    assert answer.is_refused
    assert Rendezvous(tmp_path).answered(identifier) is None
