"""Commands on a file system that fills up while they run: a sentence, and what was whole stays."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from building.runs import go, tree

from common.errors import InputError
from common.files.snapshots import Snapshots
from deploy.run_folder.workspace import Workspace

DISK = 64 * 2**20


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.name != "posix":
        pytest.skip("there is no mount command")
    words = [mount, "-t", "tmpfs", "-o", f"size={DISK}", "varkd-test", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def run_on(prepared, disk):
    """A run folder on the disk; its files are its own."""
    shutil.copytree(prepared, disk / "run")
    (disk / "run" / "config.toml").unlink(missing_ok=True)
    return Workspace(disk / "run")


@contextmanager
def filled(disk, left):
    """The disk with `left` bytes free."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left)
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def varkd(server, tmp_path):
    """(exit code, what was said) of a command in a process of its own."""

    def run(*words):
        done = server.run(words, tmp_path, seconds=240)
        return done.code, done.out + done.err

    return run


def require_sentence(code, said):
    assert code == 2, said
    assert "could not be written" in said or "cannot be written" in said
    assert "free some space or choose another --out" in said
    assert "Traceback" not in said
    assert "Exception" not in said


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_a_pretraining_whose_log_has_no_room_is_one_sentence(run_on, disk, tiny_overrides, varkd):
    run_on.student_before.unlink()
    words = ["pretrain", "smoke", "--out", run_on.root, "--model", "student", *tiny_overrides]
    with filled(disk, 24 * 2**10):
        code, said = varkd(*words, "pretrain.student.steps=2000")
        require_sentence(code, said)
    assert "pretrain_student.jsonl: could not be written" in said
    assert not run_on.student_before.exists()
    assert not leftovers(run_on.root)
    code, said = varkd(*words, "pretrain.student.steps=2", "--restart")
    assert code == 0, said


def test_a_version_without_room_is_one_sentence_and_leaves_nothing(run_in, disk):
    config, workspace = run_in(f"rollout.weights_folder={disk}")
    before, sentence = (
        tree(workspace.root),
        "version 0 of the student's weights could not be written",
    )
    with filled(disk, 8 * 2**10), pytest.raises(InputError, match=f"{sentence}: no space left"):
        go((config, workspace))
    assert not [*disk.iterdir()]
    assert tree(workspace.root) == before


@pytest.mark.slow
@pytest.mark.parametrize("room", ["rows", "snapshot"])
def test_a_distillation_without_room_is_one_sentence_and_the_snapshot_before_stays(
    run_on, disk, tiny_overrides, varkd, room
):
    words = ["distill", "smoke", "--local", "--out", run_on.root, *tiny_overrides]
    code, said = varkd(*words, "learner.steps=2")
    assert code == 0, said
    snapshot = run_on.snapshots / "step-00000002"
    size = sum(path.stat().st_size for path in snapshot.iterdir())
    left = 8 * 2**10 if room == "rows" else size // 2
    with filled(disk, left):
        more = "learner.steps=2000" if room == "rows" else "learner.steps=3"
        code, said = varkd(*words, more, "--resume")
        require_sentence(code, said)
        assert not leftovers(run_on.root)
    found = Snapshots(run_on.snapshots)
    assert 2 in found.steps()
    assert all(found.verify(step) for step in found.steps())
    code, said = varkd(*words, f"learner.steps={found.steps()[-1] + 1}", "--resume")
    assert code == 0, said
