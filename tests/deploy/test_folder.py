"""A run folder belongs to one command at a time, and what the user put there stays."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.config.schema import dump_toml
from common.errors import InputError
from deploy.main import main
from deploy.run_folder.lock import locked
from deploy.run_folder.opening import open_run

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from deploy.run_folder.lock import locked
with locked(Path(sys.argv[1]), "pretrain"):
    print("held", flush=True)
    time.sleep(600)
"""


def varkd(capsys, *arguments):
    """Exit code and stderr of one command, in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr().err


@contextmanager
def holder(folder):
    """Another process that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_every_command_that_writes_into_a_folder_waits_for_its_holder(capsys, run_in, tmp_path):
    _, workspace = run_in()
    with holder(workspace.root) as process:
        for words in (
            ("tokenize", "smoke", "--local"),
            ("pretrain", "smoke"),
            ("generate", "smoke", "--local"),
            ("distill", "smoke", "--local"),
            ("evaluate", "smoke"),
            ("export", "smoke"),
            ("smoke",),
        ):
            code, said = varkd(capsys, *words, "--out", workspace.root)
            assert code == 2, words
            assert f"`varkd pretrain` is at work here (process {process.pid} on " in said, words
        study = tmp_path / "study.toml"
        study.write_text("budget.steps = 2\n[methods.kd]\nobjective.kind = 'kd'\n")
        code, said = varkd(capsys, "study", study, "--local", "--out", workspace.root)
        assert (code, "is at work here" in said) == (2, True)


def test_a_killed_holder_lets_go(run_in):
    _, workspace = run_in()
    with holder(workspace.root) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (workspace.root / ".lock").exists(), "nobody tidied up after it"
        with locked(workspace.root, "distill"):
            assert json.loads((workspace.root / ".lock.json").read_text())["pid"] == os.getpid()
    assert not list(workspace.root.glob(".lock*"))


def test_a_lock_leaves_nothing_behind(tmp_path):
    root = tmp_path / "runs" / "new"
    with locked(root, "distill"):
        assert root.is_dir()
    assert not (tmp_path / "runs").exists()
    with locked(root, "distill"):
        (root / "student").touch()
    assert [path.name for path in root.iterdir()] == ["student"]


def test_a_folder_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").touch()
    code, said = varkd(capsys, "evaluate", "smoke", "--out", tmp_path / "file")
    assert (code, said.count("\n")) == (2, 1)
    assert f"{tmp_path}/file: could not be written: File exists; choose another --out" in said


def test_a_users_own_config_stays_and_the_folder_still_says_what_the_run_is(tmp_path):
    own = tmp_path / "config.toml"
    notes = "# learning rate chosen on 3 Nov\nseed = 3\n"
    config, workspace = open_run(Path("smoke"), [], tmp_path)
    own.write_text(notes + dump_toml(config).replace("seed = 0\n", ""))
    before = own.read_bytes()
    config, workspace = open_run(own, ["learner.steps=9"])
    assert workspace.root == tmp_path
    workspace.keep_config(config)
    assert own.read_bytes() == before
    again, same = open_run(tmp_path, [])
    assert (again, same.root, again.seed, again.learner.steps) == (config, tmp_path, 3, 9)
    own.write_text(own.read_text().replace("seed = 3", "seed = 4"))
    with pytest.raises(InputError, match=r"config\.toml was changed after config\.resolved\.toml"):
        open_run(tmp_path, [])
    assert open_run(own, [])[0].seed == 4, "named, it is read"
    assert open_run(workspace.resolved, [])[0].seed == 3
    assert open_run(workspace.resolved, [])[1].root == tmp_path


def test_our_own_config_is_written_anew_until_somebody_comments_it(tmp_path):
    config, workspace = open_run(Path("smoke"), [], tmp_path)
    workspace.keep_config(config)
    workspace.keep_config(config.model_copy(update={"seed": 7}))
    assert open_run(tmp_path, [])[0].seed == 7
    assert not workspace.resolved.exists()
    commented = workspace.config.read_text() + "# mine\n"
    workspace.config.write_text(commented)
    workspace.keep_config(config.model_copy(update={"seed": 8}))
    assert workspace.config.read_text() == commented
    assert open_run(tmp_path, [])[0].seed == 8
    workspace.config.unlink()
    workspace.keep_config(config)
    assert (open_run(tmp_path, [])[0].seed, workspace.resolved.exists()) == (0, False)
