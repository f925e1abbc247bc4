"""`--mirror`: a run's finished files somewhere else, from which it goes on in another folder."""

import io
import shutil
import signal
import threading
from dataclasses import replace

import pytest
from building.runs import go, rows_of
from building.waiting import until

from common.errors import InputError, RunFailed
from common.exchange.metric_files import read_rows
from common.exchange.metrics import MetricsLog
from common.files.snapshots import Snapshots
from deploy.run_folder.manifest import read_manifest
from deploy.run_folder.mirror import Mirror
from deploy.run_folder.remote import Remote
from deploy.run_folder.workspace import Workspace


def copied(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_whole_follows_what_is_kept_and_a_run_goes_on_from_it(half, again, tmp_path):
    _, workspace = half()
    there, said = tmp_path / "there", []
    with Mirror(Remote(there.as_uri()), workspace, said.append) as mirror:
        mirror.require_free()
    with pytest.raises(InputError, match=r"holds a run already \(metrics\.jsonl\)"):
        mirror.require_free()
    names = copied(there)
    assert {"metrics.jsonl", "student.safetensors", "distill.json", "report.html"} <= names
    assert {f"snapshots/step-0000000{step}/facts.json" for step in (2, 4)} <= names
    assert not any(name.endswith(".part") or "tokens" in name for name in names)
    (there / "snapshots/step-00000009").mkdir()
    (there / "snapshots/step-00000009/tensors.pt").touch()  # of a process that was killed
    elsewhere = Workspace(tmp_path / "elsewhere")
    shutil.copytree(workspace.root, elsewhere.root, symlinks=True)
    for path in elsewhere.traces():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Mirror(Remote(there.as_uri()), workspace, said.append):
        shutil.rmtree(workspace.snapshots / "step-00000002")
    assert not [
        n
        for n in copied(there)
        if n.startswith(("snapshots/step-00000002", "snapshots/step-00000009"))
    ]
    Mirror(Remote(there.as_uri()), elsewhere, said.append).fetch()
    assert said == [f"fetched snapshots/step-00000004 of {there.as_uri()}"]
    assert Snapshots(elsewhere.snapshots).steps() == [4]
    config, _ = again("learner.steps=6", name="elsewhere")
    go((config, elsewhere), resume=True)
    assert [row["step"] for row in rows_of(elsewhere)] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_copied_is_a_sentence(half, tmp_path):
    _, workspace = half()
    for url in ("nowhere", "nope://bucket/x"):
        with pytest.raises(InputError, match=f"--mirror {url}"):
            Remote(url)
    with pytest.raises(InputError, match=r"--mirror nope://bucket/x: a key or") as refused:
        Remote("nope://key:secret@bucket/x?token=secret")
    assert "secret" not in str(refused.value)
    there, said = tmp_path / "there", []
    copies = [Mirror(Remote(there.as_uri()), workspace, said.append) for _ in range(2)]
    left = r"not everything could be copied to file:.*run has all of it"

    def meanwhile(ending=None):
        there.rmdir()
        there.write_text("a file")
        if ending is not None:
            raise ending

    with pytest.raises(RunFailed, match=left), copies[0]:
        meanwhile()
    there.unlink()
    with pytest.raises(SystemExit), copies[1]:
        meanwhile(SystemExit(2))
    assert [words.partition(":")[0] for words in said] == ["warning"]


def test_a_folder_with_a_space_is_a_url_as_it_is_written(tmp_path):
    (tmp_path / "my runs").mkdir()
    Remote(f"file://{tmp_path}/my runs/one").put(io.BytesIO(b"x"), 1, "a")
    assert (tmp_path / "my runs" / "one" / "a").read_bytes() == b"x"


class Watched(Remote):
    """Names what is stored."""

    def put(self, source, size, name):
        super().put(source, size, name)
        self.sent = [*getattr(self, "sent", []), name]


class Moving(Mirror):
    """Something happens between the look at the folder and the first copy."""

    meanwhile = staticmethod(lambda: None)

    def _gone(self, here):
        self.meanwhile()
        return super()._gone(here)


def test_rows_that_move_while_their_file_is_copied_come_before_the_snapshot(tmp_path):
    """And a part is sent once, however the run goes on."""
    workspace, there = Workspace(tmp_path / "run"), tmp_path / "there"
    log = MetricsLog(workspace.root, limit=60)
    log.write([{"step": step, "loss": 0.5} for step in (1, 2, 3)])
    facts = workspace.snapshots / "step-00000003" / "facts.json"
    facts.parent.mkdir(parents=True)
    facts.write_text("{}")
    remote = Watched(there.as_uri())
    with Moving(remote, workspace, print) as mirror:
        mirror.meanwhile = lambda: log.write([{"step": 4, "loss": 0.5}])
        mirror._round()
        first = [name for name in remote.sent if name.startswith(("metrics", "snapshots"))]
        mirror.meanwhile = lambda: None
        log.write([{"step": 5, "loss": 0.5}])
    log.close()
    assert [name.partition("-")[0] for name in first] == [
        *("metrics.jsonl", "metrics/00000001", "snapshots/step"),
    ]
    assert [remote.sent.count(name) for name in first] == [2, 1, 1]
    assert [row["step"] for row in read_rows(there / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def with_snapshot(workspace, step, size=3):
    folder = workspace.snapshots / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "tensors.pt").write_bytes(b"x" * size)
    (folder / "facts.json").write_text("{}")


def test_who_dies_while_a_snapshot_is_sent_leaves_the_one_before(tmp_path):
    here, there = Workspace(tmp_path / "here"), (tmp_path / "there").as_uri()
    with_snapshot(here, 2)

    class Killed(Remote):
        def put(self, source, size, name):
            if name.endswith("4/facts.json"):
                raise MemoryError
            super().put(source, size, name)

    mirror = Mirror(Killed(there), here, print, is_complete=True, pause=0.0)
    mirror._round()
    with_snapshot(here, 4)
    with pytest.raises(MemoryError):
        mirror._round()
    mirror._copy.close()  # as after 90 seconds
    elsewhere = Workspace(tmp_path / "elsewhere")
    on = Mirror(Remote(there), elsewhere, print, is_complete=True)
    on.fetch()
    assert Snapshots(elsewhere.snapshots).steps() == [2]
    with on:
        (elsewhere.root / "metrics.jsonl").touch()
    assert not (tmp_path / "there" / "snapshots" / "step-00000004").exists(), "half of one"


def test_who_was_taken_for_dead_in_the_middle_of_a_round_replaces_nothing(tmp_path):
    here, there = Workspace(tmp_path / "here"), (tmp_path / "there").as_uri()
    with_snapshot(here, 2)

    class Late(Remote):
        def put(self, source, size, name):
            super().put(source, size, name)
            if name.endswith("tensors.pt"):
                manifest = read_manifest(self)
                assert manifest is not None
                other = replace(manifest.writer, folder="of another machine", host="elsewhere")
                replace(manifest, writer=other).store(Remote(there))

    mirror = Mirror(Late(there), here, print, is_complete=True)
    with pytest.raises(OSError, match="on elsewhere is at work there by now"):
        mirror._round()
    found = read_manifest(Remote(there))
    assert found is not None
    assert found.writer.host == "elsewhere"


@pytest.fixture
def interrupted():
    """Ctrl-C means something, also where a shell in the background began the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupted")
def test_a_signal_does_not_cut_the_last_copies_short(half, tmp_path):
    """An object that is not sent to its end would be there half."""
    said, threads, there = [], set(), tmp_path / "there"
    main = threading.get_ident()

    class Slow(Remote):
        def put(self, source, size, name):
            threads.add(threading.current_thread().name)
            if name == "student.safetensors":
                signal.pthread_kill(main, signal.SIGINT)
                until(lambda: any("a second signal ends" in words for words in said))
            super().put(source, size, name)

    remote = Slow(there.as_uri())
    with Mirror(remote, half()[1], said.append):
        threads.clear()
    assert threads == {"mirror"}
    assert (there / "student.safetensors").read_bytes()
    assert read_manifest(remote).is_whole
