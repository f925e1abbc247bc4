"""`--out URL`: a run that lives at a URL and works in a folder of whoever works on it."""

import io
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from building.runs import BASE, TINY
from pyarrow import fs

from common.errors import InputError
from common.files.sealed import Part
from common.files.snapshots import Snapshots
from deploy.cli.at_url import working_folder
from deploy.main import main
from deploy.run_folder.manifest import NAME, read_manifest
from deploy.run_folder.mirror import Mirror
from deploy.run_folder.remote import Remote
from deploy.run_folder.workspace import Workspace

WORDS = ("distill", "smoke", "--local", *TINY, *BASE)
LATER = ("sample", "--per-class", "1")


@pytest.fixture
def varkd(capsys, tmp_path, monkeypatch):
    """Exit code and what was said by one command, as on a machine of this name."""

    def command(machine, *words):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return caught.value.code, said.out + said.err

    return command


def test_a_run_goes_on_on_another_machine_with_nothing_but_the_url(
    varkd, prepared, tmp_path, monkeypatch
):
    url = (there := tmp_path / "there").as_uri()
    code, said = varkd("a", *WORDS, "learner.steps=4", "--from", prepared, "--out", url)
    assert (code, f"next:  varkd evaluate {url}" in said) == (0, True), said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    first = working_folder(url)
    assert first.parent.stat().st_mode & 0o77 == 0, "nobody else looks into it"
    names = {"tokens/train.parquet", "teacher.safetensors", "student.safetensors", "config.toml"}
    assert all((there / name).is_file() for name in names)
    listed = json.loads((there / NAME).read_text())
    assert (listed["whole"], listed["writer"]["is_open"], listed["changing"]) == (True, False, {})

    code, said = varkd("b", *WORDS, "--out", url)
    assert (code, "holds a run already (metrics.jsonl)" in said) == (2, True), said
    code, said = varkd("b", *WORDS, "learner.steps=6", "--out", url, "--resume")
    assert (code, "fetched snapshots/step-00000004" in said) == (0, True), said
    steps = [json.loads(line)["step"] for line in (there / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert Snapshots(there / "snapshots").steps() == [4, 6], "what a run prunes is gone there"

    code, said = varkd("c", "status", url)
    assert (code, f"run         {url}" in said, "6 of 6" in said) == (0, True, True), said
    code, said = varkd("a", *LATER, url)  # which had four steps, and nothing more
    assert code == 0, said
    assert (there / "grid.png").is_file()
    assert len((first / "metrics.jsonl").read_text().splitlines()) == 6

    (first / "distill.json").write_text("{}")
    listed = json.loads((there / NAME).read_text())
    listed["writer"]["folder"] = "of another machine"
    (there / NAME).write_text(json.dumps(listed))
    code, said = varkd("a", *LATER, url)
    assert (code, "distill.json is not as at" in said, "--local-out" in said) == (2, True, True)
    listed["writer"] |= {"is_open": True, "host": "elsewhere"}
    (there / NAME).write_text(json.dumps(listed))
    for words, wanted in ((LATER, 2), (("status",), 0)):
        code, said = varkd("c", *words, url)
        assert (code, "`varkd sample` is at work" in said) == (wanted, True), said


def damaged(there, kind):
    """How a sentence about it goes."""
    if kind == "cut":
        (there / "tokens/train.parquet").write_bytes(b"PAR1")
        return "tokens/train.parquet has 4 bytes of "
    if kind == "other":
        (there / "metrics.jsonl").write_text((there / "metrics.jsonl").read_text().upper())
        return "metrics.jsonl has other contents than were written"
    if kind == "missing":
        (there / "teacher.safetensors").unlink()
        return "teacher.safetensors is missing"
    listed = json.loads((there / NAME).read_text())
    if kind == "half":
        (there / NAME).write_text(json.dumps({**listed, "whole": False}))
        return "holds half a copy: `varkd distill` on "
    if kind == "outside":
        listed["files"]["../../stolen"] = [1, "00"]
        (there / NAME).write_text(json.dumps(listed))
        return "no list of a run's files of ours"
    (there / NAME).unlink()
    return f"without {NAME}"


@pytest.mark.parametrize("kind", ["cut", "other", "missing", "half", "outside", "unlisted"])
def test_a_copy_that_is_not_whole_is_refused_by_name(varkd, half, tmp_path, kind):
    _, workspace = half()
    there = tmp_path / "there"
    with Mirror(Remote(there.as_uri()), workspace, print, is_complete=True):
        pass
    words = damaged(there, kind)
    code, said = varkd("b", "sample", there.as_uri())
    assert (code, words in said, there.as_uri() in said) == (2, True, True), said
    assert not list((tmp_path / "b").rglob("student.*")), "half a run is none"


def test_a_file_may_be_as_it_was_or_as_it_will_be_while_it_is_copied(half, tmp_path):
    _, workspace = half()
    there, said = tmp_path / "there", []
    storage = Remote(there.as_uri())
    with Mirror(storage, workspace, said.append):
        pass
    before = read_manifest(storage)
    assert before is not None
    old, new = (there / "distill.json").read_bytes(), b"{}"
    part = Part.of_open("distill.json", io.BytesIO(new), len(new))
    changing = {"distill.json": part, "report.html": None}
    replace(before, changing=changing).store(storage)
    (there / "report.html").unlink()
    for number, found in enumerate((old, new)):
        (there / "distill.json").write_bytes(found)
        elsewhere = Workspace(tmp_path / f"elsewhere-{number}")
        Mirror(storage, elsewhere, said.append).fetch()
        assert elsewhere.facts.read_bytes() == found
        assert elsewhere.metrics.exists()
        assert not (elsewhere.root / "report.html").exists()


class Objects:
    """An object store, which has no folders: nobody makes one, or has to."""

    type_name = "s3"

    def __init__(self):
        self._files = fs._MockFileSystem()
        self._files.create_dir("bucket")

    def open_output_stream(self, path):
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(path)

    def get_file_info(self, asked):
        found = self._files.get_file_info(asked)
        if isinstance(asked, fs.FileSelector):
            return found
        return [
            info
            if info.path == "bucket" or not self._is_empty(info)
            else fs.FileInfo(info.path, fs.FileType.NotFound)
            for info in found
        ]

    def _is_empty(self, info):
        """Whether it is a folder without files, so none."""
        return info.type is fs.FileType.Directory and not self._files.get_file_info(
            fs.FileSelector(info.path)
        )

    def __getattr__(self, name):
        assert name not in ("create_dir", "delete_dir"), "which needs rights above the folder"
        return getattr(self._files, name)


def test_an_object_store_holds_a_run_as_a_folder_does(half, tmp_path):
    _, workspace = half()
    store = Objects()
    for path, sentence in (("", "names no bucket"), ("other/run", "there is no bucket other; ")):
        with pytest.raises(InputError, match=f"--out s3://{path}: {sentence}"):
            Remote(f"s3://{path}", "--out", lambda url, path=path: (store, path))
    there = Remote("s3://bucket/run", "--out", lambda url: (store, "bucket/run"))
    with Mirror(there, workspace, print, is_complete=True):
        pass
    elsewhere = Workspace(tmp_path / "elsewhere")
    Mirror(there, elsewhere, print, is_complete=True).fetch()
    assert elsewhere.teacher.read_bytes() == workspace.teacher.read_bytes()
    assert Snapshots(elsewhere.snapshots).verify(4)


def test_whether_anybody_is_at_work_is_told_by_the_storages_clock(tmp_path):
    class Ahead:
        """Of this machine, by an hour."""

        type_name = "local"
        _files = fs.LocalFileSystem()

        def get_file_info(self, asked):
            return [
                fs.FileInfo(
                    i.path, i.type, size=i.size, mtime=i.mtime and i.mtime + timedelta(hours=1)
                )
                for i in self._files.get_file_info(asked)
            ]

        def __getattr__(self, name):
            return getattr(self._files, name)

    there = Remote("file:///there", "--out", lambda url: (Ahead(), str(tmp_path)))
    there.put_text("", "now")
    assert abs(there.age("now")) < 60
    there._ahead = 0.0  # as where nothing may be written
    assert there.age("now") < -3000
    assert [*tmp_path.rglob("*.clock")] == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--out", "nope://bucket/x"), "--out nope://bucket/x: Unrecognized filesystem type"),
        (("--out", "file:///proc/nobody/x"), "--out file:///proc/nobody/x: cannot be written: "),
        (("--local-out", "x"), "--local-out x is where a run that lives at a URL works"),
        (("--from", "nope://bucket/x"), "--from nope://bucket/x: Unrecognized filesystem type"),
        (("--mirror", "file:///x", "--out", "file:///y"), "needs no --mirror"),
    ],
)
def test_a_url_that_is_of_no_use_is_a_sentence(varkd, words, complaint):
    code, said = varkd("a", *WORDS, *words)
    assert (code, complaint in said) == (2, True), said
