"""Commands that talk to a live run through the URL that it is copied to."""

import json
import os
import socket
import time
from threading import Thread

import pytest
from building.runs import BASE, TINY
from building.waiting import until

from common.errors import InputError
from common.files.snapshots import Snapshots
from deploy.console.stopping import StopRequest
from deploy.control.client import ask
from deploy.control.far import RunAtUrl
from deploy.control.live import STOP, LiveRun
from deploy.control.rendezvous import Answer
from deploy.main import main
from deploy.run_folder.manifest import NAME, Manifest, Writer
from deploy.run_folder.mirror import Mirror
from deploy.run_folder.post import Post
from deploy.run_folder.remote import Remote
from deploy.run_folder.workspace import Workspace

QUICK = 0.05


class Asked(StopRequest):
    """Sends no signal to the process of the tests."""

    def ask(self, name):
        self.name = name


@pytest.fixture
def varkd(capsys, tmp_path, monkeypatch):
    """Exit code and what was said by one command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return caught.value.code, said.out + said.err

    return command


def test_a_run_is_scaled_and_stopped_through_its_url(varkd, tmp_path):
    here, there, stop = tmp_path / "here", tmp_path / "there", Asked()
    (there / "control").mkdir(parents=True)
    stale = there / "control" / "00000000000000aa.request.json"
    stale.write_text('{"command": "stop", "wanted": {}}')  # somebody's of an earlier run
    here.mkdir()
    heard, line = [], lambda: "a line"

    def drive(run):
        while stop.name is None:
            time.sleep(QUICK)
            for request in run.requests():
                heard.append(request.wanted)
                is_wrong = request.wanted != {"rollout": 2}
                run.answer(request, Answer("2 workers", is_refused=is_wrong))

    mirror = Mirror(Remote(there.as_uri()), Workspace(here), print, is_complete=True, pause=QUICK)
    with mirror, LiveRun(here, stop, Snapshots(here / "snapshots"), line, 7) as run:
        run.begin()
        driver = Thread(target=drive, args=(run,))
        driver.start()
        until((there / NAME).exists)
        place = RunAtUrl(there.as_uri(), pause=QUICK, patience=10)
        until(lambda: place.look().is_live and place.look().status)
        for odd in ("0123456789abcdef.request.json", "elsewhere.request.json"):
            (there / "control" / odd).write_bytes(b"\xff")
        assert ask(place, "scale", {"rollout": 2}) == "2 workers"
        with pytest.raises(InputError, match="2 workers"):
            ask(place, "scale", {"rollout": 3})
        assert ask(place, "stop") == STOP
        driver.join(10)
    assert heard == [{"rollout": 2}, {"rollout": 3}]
    assert stop.name == STOP
    assert not place.look().is_live
    left = {path.name for path in (there / "control").iterdir()}
    assert left == {"status.json", "elsewhere.request.json"}
    assert {path.name for path in (here / "control").iterdir()} == {"status.json"}


def test_a_run_is_asked_while_a_snapshot_is_copied(tmp_path):
    """Which may take long: status, request and answer pass it."""
    here, there, stop = tmp_path / "here", tmp_path / "there", Asked()
    tensors = here / "snapshots" / "step-00000002" / "tensors.pt"
    tensors.parent.mkdir(parents=True)
    tensors.write_bytes(b"x")

    class Slow(Remote):
        def put(self, source, size, name):
            if name.endswith("tensors.pt"):
                until(lambda: stop.name is not None)
            super().put(source, size, name)

    slow = Slow(there.as_uri())
    mirror = Mirror(slow, Workspace(here), print, is_complete=True, pause=QUICK)
    with mirror, LiveRun(here, stop, Snapshots(here / "snapshots"), lambda: "a line", 7) as run:
        run.begin()
        until((there / NAME).exists)
        place = RunAtUrl(there.as_uri(), pause=QUICK, patience=10)
        until(lambda: (place.look().status or {}).get("state") == "running")
        assert not (there / "snapshots").exists()
        assert ask(place, "stop") == STOP
    assert (there / "snapshots" / "step-00000002" / "tensors.pt").read_bytes() == b"x"


def test_a_first_word_comes_soon_and_a_process_that_is_gone_is_not_live(tmp_path):
    here, there, ours = tmp_path / "here", Remote((tmp_path / "there").as_uri()), []
    (here / "control").mkdir(parents=True)
    (here / "control" / "status.json").write_text('{"time": 1}')
    with Post(there, here, lambda: bool(ours), pause=60):
        ours.append(True)
        until((tmp_path / "there" / "control" / "status.json").exists, seconds=20)
    for process, is_live in ((os.getpid(), True), (2**22 + 1, False)):  # more than there are
        Manifest(Writer("a", "distill", process, socket.gethostname())).store(there)
        assert RunAtUrl(there.url).look().is_live == is_live


@pytest.mark.parametrize("words", [("stop",), ("scale", "rollout=2")])
def test_what_has_ended_says_how_it_goes_on(varkd, tmp_path, words):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    run = LiveRun(here, Asked(), Snapshots(here / "snapshots"), lambda: "a line", 7)
    with Mirror(Remote(there.as_uri()), Workspace(here), print, is_complete=True), run:
        run.begin()
    code, said = varkd(words[0], there.as_uri(), *words[1:])
    assert (code, f"{there.as_uri()}: not running since" in said) == (2, True), said
    assert "`varkd distill FOLDER --resume # of which this is the copy` goes on" in said
    code, said = varkd("distill", there.as_uri(), "--resume", "--local")
    assert (code, "holds what --mirror copies, and neither tokens nor" in said) == (2, True), said
    (here / "tokens").mkdir()
    (here / "tokens" / "train.parquet").touch()
    with Mirror(Remote(there.as_uri()), Workspace(here), print, is_complete=True):
        pass
    code, said = varkd("stop", there.as_uri())
    assert f"`varkd distill {there.as_uri()} --resume` goes on" in said
    place = RunAtUrl(there.as_uri(), patience=10)
    seen = place.look()
    there.rename(tmp_path / "away")
    assert place.look() is seen, "who waits goes on waiting"
    place.patience = 0
    with pytest.raises(InputError, match="nothing is there"):
        place.look()


def test_a_run_begins_from_the_files_of_one_at_a_url(varkd, prepared, tmp_path):
    there, new = (tmp_path / "there").as_uri(), tmp_path / "new"
    with Mirror(Remote(there), Workspace(prepared), print, is_complete=True):
        pass
    words = ["distill", "smoke", "--local", *TINY, *BASE, "learner.steps=2"]
    for steps in (2, 3):  # the same command, by whoever watches a job
        words[-1] = f"learner.steps={steps}"
        code, said = varkd(*words, "--from", there, "--out", new, "--resume")
        assert code == 0, said
        assert json.loads((new / "distill.json").read_text())["steps"] == steps
    assert len((new / "metrics.jsonl").read_text().splitlines()) == 3
    assert (new / "teacher.safetensors").read_bytes() == (
        prepared / "teacher.safetensors"
    ).read_bytes()
    nowhere = (tmp_path / "nowhere").as_uri()
    code, said = varkd(*words, "--from", nowhere, "--out", tmp_path / "other")
    assert (code, f"--from {nowhere}: nothing is there" in said) == (2, True), said
    local = ("--local-out", tmp_path / "x")
    code, said = varkd(*words, "--from", there, "--out", tmp_path / "other", *local)
    assert (code, "no URL is given" in said) == (2, True), said
