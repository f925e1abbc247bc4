"""Runs beside each other from the same files: read in place, and never written through."""

import json
from pathlib import Path

import pytest

from common.errors import InputError
from deploy.main import main
from deploy.run_folder.borrowing import borrowed, link, shared
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from deploy.stages.pretrain import pretrain_model
from deploy.stages.tokenize import tokenize
from deploy.study.config import open_study
from deploy.study.start import prepare


def varkd(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr()


@pytest.fixture
def first(run_in):
    """A run folder that was prepared, and a place for another run."""
    _, workspace = run_in("learner.steps=2")
    return workspace, workspace.root.with_name("beside")


def test_another_run_starts_from_the_same_files(capsys, first, tiny_overrides):
    workspace, beside = first
    words = ("distill", "smoke", "--local", *tiny_overrides, "learner.steps=2")
    assert varkd(capsys, *words, "--out", workspace.root)[0] == 0
    student = workspace.student.read_bytes()
    code, said = varkd(capsys, *words, "--out", workspace.root, "objective.kind=kd")
    assert (code, f"--from {workspace.root} --out NEW" in said.err) == (2, True)
    other = ("--from", workspace.root, "--out", beside, "objective.kind=kd")
    code, said = varkd(capsys, *words, *other)
    assert code == 0, said.err
    for name in ("teacher", "student_before", "tokenizer"):
        path = beside / f"{name}.safetensors"
        assert path.is_symlink()
        assert path.samefile(workspace.root / path.name)
    assert (beside / "tokens" / "train.parquet").samefile(workspace.train_tokens)
    assert workspace.student.read_bytes() == student
    assert json.loads((beside / "distill.json").read_text())["steps"] == 2
    assert open_run(beside, [])[0].objective.kind == "kd"


def test_a_start_that_is_refused_leaves_no_links(capsys, first, tiny_overrides):
    workspace, beside = first
    words = ("distill", "smoke", "--local", *tiny_overrides, "--from", workspace.root)
    for refused in ("objective.gate.tau=0.99", "models.teacher.width=64"):
        assert varkd(capsys, *words, "--out", beside, refused)[0] == 2
        assert not beside.exists()
    for strange in (workspace.root, workspace.root / "tokens"):
        code, said = varkd(capsys, *words[:-1], strange, "--out", workspace.root)
        assert (code, "no other run folder" in said.err) == (2, True)


def test_files_of_its_own_are_not_mixed_with_borrowed_ones(capsys, first, tiny_overrides):
    workspace, beside = first
    beside.mkdir()
    (beside / "teacher.safetensors").write_bytes(workspace.teacher.read_bytes())
    words = ("distill", "smoke", "--local", *tiny_overrides, "--from", workspace.root)
    code, said = varkd(capsys, *words, "--out", beside)
    assert (code, "is there already and is not that of --from" in said.err) == (2, True)
    assert [path.name for path in beside.iterdir()] == ["teacher.safetensors"]


def test_what_is_made_anew_replaces_the_link_and_not_the_file(first, tiny_overrides, quiet):
    workspace, beside = first
    link(workspace.root, beside)
    before = {
        path: path.read_bytes() for path in (workspace.student_before, workspace.train_tokens)
    }
    run = open_run(Path("smoke"), [*tiny_overrides, "pretrain.student.steps=6"], beside)
    pretrain_model(*run, "student", quiet)
    tokenize(*run, quiet, local=True)
    assert not (beside / "student_before.safetensors").is_symlink()
    assert not (beside / "tokens" / "train.parquet").is_symlink()
    assert all(path.read_bytes() == contents for path, contents in before.items())


def test_a_study_may_start_from_a_run_folder(run_in, tmp_path, quiet):
    config, workspace = run_in()
    workspace.keep_config(config)
    file, root = tmp_path / "study.toml", tmp_path / "start"
    file.write_text("base = 'run'\nbudget.steps = 2\n[methods.kd]\nobjective.kind = 'kd'\n")
    study = open_study(file, [])
    assert study.start == config
    prepare(study, root, quiet, local=True)
    for theirs, ours in zip(shared(workspace), shared(Workspace(root)), strict=True):
        assert not theirs.exists() or ours.samefile(theirs) or ours.name == "features.safetensors"
    assert (root / "teacher.safetensors").is_symlink()


def test_a_folder_without_a_run_is_no_start(tmp_path, first):
    start = borrowed(tmp_path / "nowhere", first[0])
    with pytest.raises(InputError, match="no other run folder with tokens and models"), start:
        pass


def test_a_dry_run_reads_what_it_would_borrow_and_writes_nothing(capsys, first, tiny_overrides):
    workspace, beside = first
    words = ("distill", "smoke", "--dry-run", *tiny_overrides, "--out", beside)
    code, alone = varkd(capsys, *words)
    assert (code, "missing: the tokens" in alone.out) == (0, True)
    code, said = varkd(capsys, *words, "--from", workspace.root)
    assert code == 0, said.err
    assert "missing:" not in said.out
    assert f"run folder: {beside}" in said.out
    code, said = varkd(capsys, *words, "--from", workspace.root, "models.teacher.width=64")
    assert (code, said.out) == (2, "")
    assert f"{workspace.root / 'teacher.safetensors'} holds a model with" in said.err
    assert not beside.exists()
